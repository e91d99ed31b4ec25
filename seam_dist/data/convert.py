"""Conversion of a data set to shards: deterministic, shard by shard, resumable, spread over ranks and processes.

Sample i of a split goes to shard i mod num_shards: sizes differ by at most one, and a data set sorted by class still
gives shards of mixed classes. Every image is decoded once on the way, so that a damaged one is reported here, by name.
A shard appears by rename with a small `.<shard>.json` beside it that identifies its records; an interrupted conversion
resumes with the missing shards. The manifest is written last and replaces those notes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import seam_dist
from seam_dist.artifacts.atomic import atomic_file, read_json, write_json
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.data.images import single_thread
from seam_dist.data.inspection import inspect_record
from seam_dist.data.manifest import MANIFEST, Manifest, Shard, ShardError, Split, load_manifest
from seam_dist.data.shards import RawSample, write_shard
from seam_dist.data.sources.base import Record, SourceError

_MAX_REPORTED = 5
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")


@dataclass(frozen=True)
class _Task:
    """One shard to write: its file and its records."""

    path: Path
    records: Sequence[Record]
    num_classes: int
    max_pixels: int
    fingerprint: str

    def written(self) -> Shard | None:
        """Return the shard when it is there, whole, and of the same records."""
        note = _note(self.path)
        if not note.is_file() or not self.path.is_file():
            return None
        value = read_json(note)
        shard = Shard(**value["shard"])
        is_done = value["fingerprint"] == self.fingerprint and shard.num_bytes == self.path.stat().st_size
        return shard if is_done else None


def count_shards(num_samples: int, *, samples_per_shard: int, streams: int) -> int:
    """Return the shards of a split: enough for samples_per_shard, a multiple of streams where that is possible."""
    least = -(-num_samples // samples_per_shard)
    return min(num_samples, -(-least // streams) * streams)


def convert(
    classes: Sequence[str],
    splits: Mapping[str, Sequence[Record]],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    samples_per_shard: int,
    streams: int,
    max_pixels: int,
    rank: int = 0,
    world_size: int = 1,
    num_processes: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> Manifest:
    """Convert the records of each split to shards in `folder` and return their manifest, the same on every rank.

    `classes` are the foreground classes; `settings` identify the source and are kept in the manifest. Rank r of R
    writes shards r, r + R, ...; rank 0 writes the manifest after `barrier`. Raises SourceError with the names of images
    that cannot be used, and ShardError when a shard cannot be written; whole shards stay and are not written again.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        (folder / MANIFEST).unlink(missing_ok=True)  # shards that are about to change must not look finished
    plans: list[tuple[Split, list[_Task]]] = []
    for name, records in splits.items():
        if not _SPLIT_NAME.fullmatch(name):
            raise SourceError(f"split name {name!r} has other characters than letters, digits, _ and -: rename it")
        has_masks, has_labels = (_all_or_none(records, field, name) for field in ("mask", "classes"))
        count = count_shards(len(records), samples_per_shard=samples_per_shard, streams=streams)
        tasks = [
            _plan_shard(folder / f"{name}-{i:05d}.tar", records[i::count], len(classes), max_pixels, settings)
            for i in range(count)
        ]
        plans.append((Split(name, len(records), has_masks, has_labels, shards=()), tasks))
    own = [task for _, tasks in plans for task in tasks][rank::world_size]
    _run_all([task for task in own if task.written() is None], num_processes)
    barrier()
    if rank == 0:
        finished = {
            split.name: replace(split, shards=tuple(_written_shard(task) for task in tasks)) for split, tasks in plans
        }
        created_by = f"seam-dist {seam_dist.__version__}"
        write_json(folder / MANIFEST, Manifest(tuple(classes), finished, settings, created_by).to_json())
        _clean_up(folder, finished)
    barrier()
    return load_manifest(folder)


def convert_record(record: Record, *, num_classes: int, max_pixels: int) -> RawSample:
    """Return one record as it is stored; raise SourceError with its name when it cannot be used."""
    inspection = inspect_record(record, num_classes=num_classes, max_pixels=max_pixels)
    inspection.findings.raise_errors(SourceError)
    assert inspection.sample is not None
    return inspection.sample


def _all_or_none(records: Sequence[Record], field: str, split: str) -> bool:
    """Return whether all records have the field; raise SourceError when only some have it."""
    without = [record for record in records if getattr(record, field) is None]
    if without and len(without) < len(records):
        raise SourceError(
            f"split {split!r}: image {without[0].source_id} has no {field} ({len(without)} of {len(records)} images), "
            "others have: give all of them or none"
        )
    return not without


def _plan_shard(
    path: Path, records: Sequence[Record], num_classes: int, max_pixels: int, settings: Mapping[str, Any]
) -> _Task:
    content = [[record.key, record.source_id, record.classes, record.mask is not None] for record in records]
    identity = json.dumps([dict(settings), num_classes, content], sort_keys=True, default=str)
    fingerprint = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    return _Task(path, records, num_classes, max_pixels, fingerprint)


def _note(shard: Path) -> Path:
    return shard.with_name(f".{shard.name}.json")


def _run_all(tasks: Sequence[_Task], num_processes: int) -> None:
    """Write the shards, in several processes where that helps; raise SourceError with the first of all bad images."""
    if min(num_processes, len(tasks)) <= 1:
        problems = [problem for task in tasks for problem in _write_task(task)]
    else:
        # fork: readers may hold open state, and the loaders of training fork as well.
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(min(num_processes, len(tasks)), context, initializer=single_thread) as pool:
            problems = [problem for reported in pool.map(_write_task, tasks) for problem in reported]
    if problems:
        raise SourceError(
            f"{len(problems)} images cannot be converted, the first are below; correct or remove them and rerun (whole "
            "shards stay):\n" + "\n".join(problems[:_MAX_REPORTED])
        )


def _write_task(task: _Task) -> list[str]:
    """Write one shard and its note; return the errors of its images instead, if there are any."""
    path, problems = task.path, []
    for left_over in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed while writing
        left_over.unlink()

    def samples() -> Iterator[RawSample]:
        for record in task.records:
            try:
                yield convert_record(record, num_classes=task.num_classes, max_pixels=task.max_pixels)
            except SourceError as error:
                problems.append(str(error))
        if problems:
            raise SourceError  # the temporary file goes away

    try:
        with atomic_file(path) as temporary:
            with open(temporary, "wb") as file:
                write_shard(file, samples())
            shard = Shard(path.name, len(task.records), temporary.stat().st_size, sha256_file(temporary))
        write_json(_note(path), {"fingerprint": task.fingerprint, "shard": asdict(shard)})
    except SourceError:
        return problems
    except OSError as error:
        raise ShardError(
            f"shard {path.name} cannot be written to {path.parent} ({error.strerror or error}): make room there or "
            "choose another data.shards, then rerun; whole shards are kept"
        ) from None
    return []


def _written_shard(task: _Task) -> Shard:
    shard = task.written()
    if shard is None:
        raise ShardError(f"{task.path} was not written by its rank: all ranks must see the same folder; rerun")
    return shard


def _clean_up(folder: Path, splits: Mapping[str, Split]) -> None:
    """Remove the notes of the shards, and shards of an earlier plan."""
    for split in splits.values():
        for shard in split.shards:
            _note(folder / shard.file).unlink()
        planned = {shard.file for shard in split.shards}
        for path in folder.glob(f"{split.name}-[0-9][0-9][0-9][0-9][0-9].tar"):
            if path.name not in planned:
                path.unlink()
