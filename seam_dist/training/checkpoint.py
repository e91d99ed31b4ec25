"""Checkpoints that survive kills and fit any number of ranks: safetensors and JSON under a checksum manifest.

    checkpoints/step-00000200/{model.safetensors, optimizer.safetensors, state.json, manifest.json}
    checkpoints/latest        text: the name of the newest folder

Two phases: a checkpoint is written to a hidden folder and flushed to disk with the checksums of its files; then it is
renamed to its place, and only then `latest` is replaced. A process killed at any point leaves the previous checkpoint
and `latest` as they were, or both new. Nothing in a checkpoint is executable, and it is verified before it is loaded.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seam_dist.artifacts.atomic import atomic_write, fsync, read_json, write_json
from seam_dist.artifacts.provenance import sha256_file, versions
from seam_dist.cluster.distributed import World, on_main

SCHEMA = 1
_MODEL, _OPTIMIZER, _STATE, _MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
_FILES = (_MODEL, _OPTIMIZER, _STATE)
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".saving-"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or must not be loaded; the message says why and what to do."""


@dataclass
class TrainState:
    """All that training depends on, in host memory and independent of ranks and ZeRO stage.

    `samples` counts the samples taken from the canonical order. `weights` holds parameters and buffers by name,
    `momentum` the optimizer's memory of the trained parameters; both are filled on the main rank only when gathered.
    """

    step: int
    samples: int
    seed: int
    weights: dict[str, Tensor] = field(default_factory=dict)
    momentum: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one training in one folder."""

    folder: Path
    """Where they lie; made at the first save."""
    world: World
    stage: str
    """The training stage, for messages."""
    architecture: dict[str, Any]
    """What the weights belong to, as JSON; a checkpoint of another one is refused, even if all shapes agree."""
    config: dict[str, Any]
    """The resolved settings, kept for the reader."""
    keep: int
    """How many are kept, newest first."""

    def save(self, state: TrainState) -> Path:
        """Write a checkpoint from the main rank's state; every rank must call it and returns when it is on disk.

        Raises CheckpointError on every rank when a value is not finite or the disk refuses.
        """
        path = self.folder / f"step-{state.step:08d}"

        def write() -> None:
            try:
                _check_finite(state)
                self._write(path, state)
            except (OSError, SafetensorError, CheckpointError) as failure:
                raise CheckpointError(self._explain(path, failure)) from None

        on_main(write, self.world)
        return path

    def load(self, resume: str, model: nn.Module) -> TrainState | None:
        """Return the state to resume from on every rank, or None to start from step 0.

        `resume` is the setting of the schedule: "auto" takes the newest whole checkpoint of this folder, "never"
        removes what is there, anything else is the folder of one checkpoint. Raises CheckpointError for a damaged
        checkpoint that was named, and for one of another architecture.
        """

        def choose() -> Path | None:
            chosen = self._choose(resume)
            if chosen is not None:
                self._check_architecture(chosen, model)
            return chosen

        path = on_main(choose, self.world)
        return None if path is None else read_state(path)

    def _choose(self, resume: str) -> Path | None:
        if resume == "never":
            for folder in step_folders(self.folder).values():
                shutil.rmtree(folder, ignore_errors=True)
            (self.folder / "latest").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it is not there, or holds other files
                self.folder.rmdir()
            return None
        if resume == "auto":
            return find_newest(self.folder)
        verify(Path(resume))
        return Path(resume)

    def _check_architecture(self, path: Path, model: nn.Module) -> None:
        """Refuse a checkpoint that was trained with another architecture or another set of classes."""
        with safe_open(path / _MODEL, framework="pt") as file:
            stored_shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        differences = [
            *_differences(read_json(path / _STATE)["architecture"], self.architecture, lacking="unset"),
            *_differences(stored_shapes, shapes, lacking="missing"),
        ]
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise CheckpointError(
                f"checkpoint {path} is of another architecture: {'; '.join(differences[:3])}{more}: use the settings "
                f"it was trained with, another run.name, or {self.stage}.schedule.resume=never"
            )

    def _write(self, path: Path, state: TrainState) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in (*self.folder.glob(f"{_TEMPORARY}*"), *self.folder.glob(".latest.*")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        needed = sum(t.numel() * t.element_size() for part in (state.weights, state.momentum) for t in part.values())
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise CheckpointError(f"it needs {needed / 2**20:.1f} MiB and the disk has {free / 2**20:.1f} MiB free")
        temporary = self.folder / f"{_TEMPORARY}{path.name}"
        temporary.mkdir()
        try:
            save_file(state.weights, temporary / _MODEL, metadata={"format": "pt"})
            save_file(state.momentum, temporary / _OPTIMIZER, metadata={"format": "pt"})
            write_json(
                temporary / _STATE,
                {
                    "schema": SCHEMA,
                    "step": state.step,
                    "samples": state.samples,
                    "seed": state.seed,
                    "world_size": self.world.size,
                    "architecture": self.architecture,
                    "config": self.config,
                    "versions": versions(),
                },
            )
            files = {}
            for name in _FILES:
                fsync(temporary / name)
                files[name] = {"bytes": (temporary / name).stat().st_size, "sha256": sha256_file(temporary / name)}
            write_json(temporary / _MANIFEST, {"schema": SCHEMA, "files": files})
            if path.exists():
                # Left by a run that went back to an older checkpoint; `latest` does not name it.
                path.rename(self.folder / f"{_TEMPORARY}old-{path.name}")
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync(self.folder)
        atomic_write(self.folder / "latest", path.name + "\n")
        self._remove_old(state.step)

    def _remove_old(self, step: int) -> None:
        """Keep the newest checkpoints up to `step`; later ones belong to steps that a run went back behind."""
        folders = step_folders(self.folder)
        kept = [number for number in sorted(folders) if number <= step][-self.keep :]
        doomed = [folder for number, folder in folders.items() if number not in kept]
        for folder in [*doomed, *self.folder.glob(f"{_TEMPORARY}*")]:
            shutil.rmtree(folder)

    def _explain(self, path: Path, failure: Exception) -> str:
        reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
        previous = find_newest(self.folder, quiet=True)
        rest = f"the previous one, {previous.name}, is intact" if previous else "there is no earlier one"
        return f"checkpoint {path} could not be written: {reason}; {rest}: free space or fix the cause, then resume"


def find_newest(folder: Path, *, quiet: bool = False) -> Path | None:
    """Return the newest whole checkpoint in `folder`: the one that `latest` names, else the highest step that verifies.

    Damaged ones are passed over with a line on stderr that says why, unless `quiet`.
    """
    folders = step_folders(folder)
    order = [folders[number] for number in sorted(folders, reverse=True)]
    try:
        named = folder / (folder / "latest").read_text().strip()
    except (OSError, UnicodeDecodeError):
        named = None
    if named in order:
        order.remove(named)
        order.insert(0, named)
    for path in order:
        try:
            verify(path)
        except CheckpointError as error:
            if not quiet:
                print(f"seam-dist: {error}; looking for an older one", file=sys.stderr)
            continue
        return path
    return None


def step_folders(folder: Path) -> dict[int, Path]:
    """Return the checkpoint folders in `folder` by step, whole or not."""
    if not folder.is_dir():
        return {}
    matches = {path: _STEP_FOLDER.fullmatch(path.name) for path in folder.iterdir()}
    return {int(match[1]): path for path, match in matches.items() if match and path.is_dir()}


def verify(path: Path) -> None:
    """Check every file of a checkpoint against its manifest; raise CheckpointError with the first thing wrong."""
    if not (path / _MANIFEST).is_file():
        raise CheckpointError(f"{path} is not a checkpoint, it has no {_MANIFEST}: give the folder of one, step-...")
    try:
        manifest = read_json(path / _MANIFEST)
        schema = manifest.get("schema")
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {_MANIFEST} cannot be read ({error})") from None
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has schema {schema}, this version reads {SCHEMA}: use another one")
    if set(expected) != set(_FILES):
        raise CheckpointError(f"checkpoint {path} is damaged: its manifest lists {sorted(expected)}, not {_FILES}")
    for name, (size, digest) in expected.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is missing")
        if file.stat().st_size != size:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} has {file.stat().st_size} bytes, not {size}")
        if sha256_file(file) != digest:
            raise CheckpointError(f"checkpoint {path} is damaged: the checksum of {name} differs")


def read_state(path: Path) -> TrainState:
    """Return the state in a checkpoint that was verified before."""
    stored = read_json(path / _STATE)
    return TrainState(
        step=int(stored["step"]),
        samples=int(stored["samples"]),
        seed=int(stored["seed"]),
        weights=load_file(path / _MODEL),
        momentum=load_file(path / _OPTIMIZER),
    )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], *, lacking: str) -> list[str]:
    return [
        f"{key} is {there.get(key, lacking)} there and {here.get(key, lacking)} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def _check_finite(state: TrainState) -> None:
    for title, tensors in (("parameter", state.weights), ("momentum of", state.momentum)):
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{title} {name} holds NaN or infinity at step {state.step}")
