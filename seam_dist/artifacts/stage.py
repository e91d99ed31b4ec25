"""What a stage leaves on disk, and when it is skipped, resumed or rerun.

`stage.json` is written when a stage starts and says which settings and inputs its outputs belong to; `manifest.json`
is written last and lists the outputs. A stage whose manifest matches is done. One whose `stage.json` matches resumes.
Otherwise derived outputs are removed and the stage is rerun, while outputs that cost hours (a training) are never
touched unless run.overwrite is set. Files that the stage did not write stay in any case.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seam_dist.artifacts.atomic import TEMPORARY, atomic_write, read_json, remove_temporaries, write_json
from seam_dist.artifacts.leftovers import remove_stage_files
from seam_dist.artifacts.provenance import fingerprint, machine, reset_peak_memory, versions
from seam_dist.config.load import dump_yaml, flatten
from seam_dist.config.schema import Config

RECORD = "stage.json"
MANIFEST = "manifest.json"
SETTINGS = "config.yaml"


class StageError(ValueError):
    """A stage that cannot run from what is on disk; the message says what is missing or differs, and the remedy."""


@dataclass(frozen=True)
class StageRun:
    """One stage of one run: its folder and the identity of what it makes."""

    stage: str
    dir: Path
    identity: Mapping[str, Any]
    started: float = field(default_factory=time.time)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings and inputs that the outputs depend on."""
        return fingerprint(self.identity)

    def is_done(self) -> bool:
        """Return whether the manifest matches and every output that it lists is there in full size."""
        path = self.dir / MANIFEST
        if not path.is_file():
            return False
        manifest = read_json(path)
        return manifest.get("fingerprint") == self.fingerprint and not damaged_outputs(self.dir, manifest)

    def begin(self, cfg: Config) -> None:
        """Write the record of what the outputs will belong to, which makes the folder the stage's, and the settings."""
        write_json(self.dir / RECORD, {"fingerprint": self.fingerprint, **self.identity})
        atomic_write(self.dir / SETTINGS, dump_yaml(cfg))

    def finish(self, outputs: Iterable[Path], **metadata: Any) -> None:
        """Write the manifest with its `metadata`: the stage is done. Call it on the main rank, after a barrier."""
        sizes = {str(path.relative_to(self.dir)): path.stat().st_size for path in sorted(outputs)}
        write_json(
            self.dir / MANIFEST,
            {
                "schema": 1,
                "stage": self.stage,
                "fingerprint": self.fingerprint,
                **self.identity,
                "outputs": sizes,
                "time_s": round(time.time() - self.started, 3),
                **machine(),
                "versions": versions(),
                **metadata,
            },
        )


def open_stage(
    cfg: Config,
    stage: str,
    *,
    settings: Sequence[str],
    ignore: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    precious: bool = False,
    directory: Path | None = None,
) -> StageRun:
    """Return the stage's place on disk, ready to resume from whatever matches what is asked for.

    Args:
        settings: dotted keys or sections that the outputs depend on, for example ("model", "run.seed").
        ignore: keys below them that change nothing in the outputs, for example ("model.pcm_impl",).
        inputs: name -> fingerprint of each input, for example of an earlier stage.
        precious: refuse to replace outputs of other settings unless run.overwrite is set.
        directory: the stage's folder; unset: runs/<name>/<stage>.

    Raises StageError when precious outputs of other settings are in the way; it names what differs.
    """
    folder = directory or cfg.stage_dir(stage)
    identity = {"settings": select(cfg, settings, ignore), "inputs": dict(inputs or {})}
    run = StageRun(stage=stage, dir=folder, identity=identity)
    record = folder / RECORD
    reset_peak_memory()
    old = read_json(record) if record.is_file() else None
    if isinstance(old, dict) and "fingerprint" in old:
        remove_temporaries(folder)
        if old["fingerprint"] == run.fingerprint:
            if not (folder / SETTINGS).is_file():  # of a process that was killed between the two
                atomic_write(folder / SETTINGS, dump_yaml(cfg))
            return run
        if precious:
            check_replaceable(cfg, folder, "; ".join(differences(old, identity)) or "unknown")
        remove_stage_files(folder, MANIFEST)
    else:
        check_foreign(cfg, stage, folder)
        remove_temporaries(folder)
    run.begin(cfg)
    return run


def check_replaceable(cfg: Config, folder: Path, changes: str) -> None:
    """Raise StageError for outputs of other settings that cost hours, unless run.overwrite is set."""
    if not cfg.run.overwrite:
        remedy = "give the run another run.name, or set run.overwrite=true to replace it"
        raise StageError(f"{folder} was made with other settings or inputs ({changes}): {remedy}")


def check_foreign(cfg: Config, stage: str, folder: Path) -> None:
    """Raise StageError when a folder without a record holds more than what a process killed writing one leaves."""
    for name in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ():
        if (match := TEMPORARY.fullmatch(name)) is None or match["name"] != RECORD:
            setting = "data.shards" if stage == "shard" and cfg.data.shards is not None else "run.name"
            raise StageError(
                f"{folder} holds files that stage {stage} did not make, the first {name} (no {RECORD} of a stage): set "
                f"{setting} to an empty or a new folder"
            )


def damaged_outputs(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the outputs of a manifest that are missing or have another size."""
    outputs = manifest.get("outputs", {}).items()
    return [name for name, size in outputs if not (path := folder / name).is_file() or path.stat().st_size != size]


def input_fingerprint(folder: Path, stage: str) -> str:
    """Return the fingerprint of a finished stage's outputs; raise StageError when it is not finished."""
    path = folder / MANIFEST
    if not path.is_file():
        raise StageError(f"{path} is missing, so stage {stage} is not finished there: run `--only {stage}` first")
    manifest = read_json(path)
    return str(manifest.get("fingerprint") or fingerprint(manifest))


def select(cfg: Config, settings: Sequence[str], ignore: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings at or below the given dotted keys, less those to ignore; raise KeyError on unknown keys."""
    flat = flatten(cfg)

    def below(key: str, prefixes: Sequence[str]) -> bool:
        return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)

    for prefix in (*settings, *ignore):
        if not any(below(key, (prefix,)) for key in flat):
            raise KeyError(prefix)
    return {key: value for key, value in flat.items() if below(key, settings) and not below(key, ignore)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `key: old -> new` for every setting and input that differs between two identities."""
    changes = []
    for part in ("settings", "inputs"):
        before, after = old.get(part, {}), new.get(part, {})
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                a, b = (str(side.get(key, "unset"))[:40] for side in (before, after))
                changes.append(f"{key}: {a} -> {b}")
    return changes
