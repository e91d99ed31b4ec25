"""What stages leave in their folders, by name, so that a rerun removes that and nothing else.

Files of which there is one an image (interop/, files/) and archives are in the journals of artifacts/outputs.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.outputs import JOURNAL, OutputFolder

_FIVE_DIGITS = "[0-9]" * 5
_LABELS = ("labels", "labels_crf", "labels_oracle")
_CHECKPOINT = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")

_PATTERNS = (
    *("metrics.jsonl", "report.html", "tensorboard/events.out.tfevents.*"),
    *("final/model.safetensors", "final/model.json", "checkpoints/latest"),
    *(f"checkpoints/{folder}/{name}" for folder in ("step-*", ".saving-*") for name in _CHECKPOINT),
    *(f"{folder}/*-{_FIVE_DIGITS}.tar" for folder in ("cams", "crf", "affinity", *_LABELS)),
    *(f"bad/*-{_FIVE_DIGITS}.json", ".heartbeats/*"),
)


def remove_stage_files(folder: Path, manifest: str) -> None:
    """Remove what a stage wrote into its folder, finished or not; its record and settings and all else stay.

    `manifest` is the name of the list of its outputs.
    """
    paths = [path for path in stage_files(folder, manifest) if not path.is_dir()]
    (folder / manifest).unlink(missing_ok=True)  # first: what is about to go must not look finished
    for path in paths:
        path.unlink(missing_ok=True)
    parents = {parent for path in paths for parent in path.parents if folder in parent.parents}
    for parent in sorted(parents, key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):  # it holds other files, or is a link
            parent.rmdir()


def stage_files(folder: Path, manifest: str) -> Iterator[Path]:
    """Yield the files that a stage wrote into its folder, but for manifest, record and settings."""
    for pattern in _PATTERNS:
        yield from folder.glob(pattern)
    listed = read_json(folder / manifest) if (folder / manifest).is_file() else {}
    # Those of evaluate are named after splits. In folders below, the list has what the user added as well.
    for name, size in listed.get("outputs", {}).items():
        if "/" not in name and (folder / name).is_file() and (folder / name).stat().st_size == size:
            yield folder / name
    for split in listed.get("splits", {}).values():
        yield from (folder / Path(shard["file"]).name for shard in split["shards"])
    for note in folder.glob(f"sources/*-{_FIVE_DIGITS}.json"):  # written before its shard
        yield from (folder / f"{note.stem}.tar", note)
    for journal in [*folder.glob(JOURNAL), *folder.glob(f"*/{JOURNAL}")]:
        yield from (journal.parent / name for name in OutputFolder(journal.parent).own_names())
        yield journal
