"""What a stage leaves on disk, and when it may be skipped, resumed or must be made again.

`stage.json` is written when a stage starts and says which settings and inputs its outputs belong to; `manifest.json`
is written last and lists the outputs. A stage whose manifest matches is done. One whose `stage.json` matches goes on
where it was cut. Otherwise derived outputs are removed and made anew, while outputs that cost hours (a training) are
never touched unless run.overwrite is set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from seam_dist.artifacts.atomic import atomic_write, read_json, remove_temporaries, write_json
from seam_dist.config.load import dump_yaml, flatten
from seam_dist.config.schema import Config

SCHEMA = 1


class StageError(ValueError):
    """A stage that cannot run from what is on disk; the message says what is missing or differs, and the remedy."""


@dataclass(frozen=True)
class StageRun:
    """One stage of one run: its folder and the identity of what it makes."""

    stage: str
    dir: Path
    identity: Mapping[str, Any]
    started: float

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings and inputs that the outputs depend on."""
        return fingerprint(self.identity)

    def is_done(self) -> bool:
        """Tell whether the manifest matches and every output that it lists is there in full size."""
        path = self.dir / "manifest.json"
        if not path.is_file():
            return False
        manifest = read_json(path)
        if manifest.get("fingerprint") != self.fingerprint:
            return False
        outputs = manifest["outputs"].items()
        return all((self.dir / name).is_file() and (self.dir / name).stat().st_size == size for name, size in outputs)

    def finish(self, outputs: Iterable[Path], **facts: Any) -> None:
        """Write the manifest: the stage is done. Call it on the main rank, after a barrier; `facts` are kept beside."""
        sizes = {str(path.relative_to(self.dir)): path.stat().st_size for path in sorted(outputs)}
        write_json(
            self.dir / "manifest.json",
            {
                "schema": SCHEMA,
                "stage": self.stage,
                "fingerprint": self.fingerprint,
                **self.identity,
                "outputs": sizes,
                "time_s": round(time.time() - self.started, 3),
                **_machine(),
                "versions": versions(),
                **facts,
            },
        )


def open_stage(
    cfg: Config,
    stage: str,
    *,
    settings: Sequence[str],
    ignore: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    is_main: bool = True,
    precious: bool = False,
    directory: Path | None = None,
) -> StageRun:
    """Return the stage's place on disk, ready to go on from whatever matches what is asked for.

    Args:
        settings: dotted keys or sections that the outputs depend on, for example ("model", "run.seed").
        ignore: keys below them that change nothing in the outputs, for example ("model.pcm_impl",).
        inputs: name -> fingerprint of each input, for example of an earlier stage.
        is_main: only the main rank writes and removes; the others must pass a barrier after it.
        precious: refuse to replace outputs of other settings unless run.overwrite is set.
        directory: the stage's folder; unset: runs/<name>/<stage>.

    Raises StageError when precious outputs of other settings are in the way; it names what differs.
    """
    folder = directory or cfg.stage_dir(stage)
    identity = {"settings": select(cfg, settings, ignore), "inputs": dict(inputs or {})}
    run = StageRun(stage=stage, dir=folder, identity=identity, started=time.time())
    record = folder / "stage.json"
    _reset_peak()
    if not is_main:
        return run
    remove_temporaries(folder)
    if record.is_file():
        old = read_json(record)
        if old.get("fingerprint") == run.fingerprint:
            return run
        if precious and not cfg.run.overwrite:
            raise StageError(
                f"{folder} was made with other settings ({'; '.join(differences(old, identity)) or 'unknown'}): "
                "give the run another run.name, or set run.overwrite=true to replace it"
            )
    elif folder.is_dir() and any(path.name != "config.yaml" for path in folder.iterdir()):
        raise StageError(
            f"{folder} holds files that stage {stage} did not make (no stage.json): give an empty or a new folder"
        )
    if folder.is_dir():
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    atomic_write(folder / "config.yaml", dump_yaml(cfg))  # alone, it is left of a process killed at this line
    write_json(record, {"fingerprint": run.fingerprint, **identity})
    return run


def _machine() -> dict[str, Any]:
    """Return number of ranks, device and the most memory held on host and device since the stage was opened, GiB."""
    on_gpu = torch.cuda.is_available()
    return {
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "host_peak_gib": _peak_gib(),
        "device_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if on_gpu else None,
    }


def _peak_gib() -> float | None:
    """Return the most memory that this process has held since `_reset_peak`, GiB; None where that is not told."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return round(int(found[1]) / 2**20, 3)
    return None


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def files_fingerprint(folder: Path, setting: str) -> str:
    """Return the identity of the .npy files in a folder: names, sizes and times, since they may be 100 GB."""
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise StageError(f"{folder} ({setting}) holds no .npy file: give the folder of the authors' dicts")
    stats = [(path.name, path.stat()) for path in files]
    return fingerprint([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def input_fingerprint(folder: Path, stage: str) -> str:
    """Return the fingerprint of a finished stage's outputs; raise StageError when it is not finished."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise StageError(f"{path} is missing, so stage {stage} is not finished there: run `--stage {stage}` first")
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


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `key: old -> new` for every setting and input that differs between two identities."""
    found = []
    for part in ("settings", "inputs"):
        before, after = old.get(part, {}), new.get(part, {})
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                a, b = (str(side.get(key, "unset"))[:40] for side in (before, after))
                found.append(f"{key}: {a} -> {b}")
    return found


def versions() -> dict[str, str]:
    """Return the versions that a result depends on: Python, the libraries and this package."""
    found = {"python": platform.python_version()}
    for name in ("seam-dist", "torch", "triton", "deepspeed", "webdataset", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
