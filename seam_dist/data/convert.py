"""Conversion of a data set to shards: deterministic, shard by shard, resumable, spread over ranks and processes.

Every image is decoded once on the way, so that a damaged one is reported here, by name. A shard appears by rename, with
a note of its records and their source files (shard_notes.py). Only shards that the plan (conversion_plan.py) finds
missing or changed are written: an interrupted conversion resumes, and a corrected label costs one shard. The result is
always that of a conversion from scratch, so an added image moves those after it to other shards. The manifest is
removed first and written last.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import seam_dist
from seam_dist.artifacts.atomic import atomic_file, fsync, write_json
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.artifacts.stage import RECORD
from seam_dist.config.findings import Finding, Findings
from seam_dist.config.phrases import count_of
from seam_dist.data.conversion_plan import Plan, ShardTask
from seam_dist.data.images import single_thread
from seam_dist.data.inspection import Inspection, inspect_record
from seam_dist.data.manifest import MANIFEST, Manifest, Shard, ShardError, load_manifest
from seam_dist.data.mask_check import mask_findings
from seam_dist.data.mask_labels import MaskLabels, MaskRow
from seam_dist.data.shard_notes import FOLDER as NOTES
from seam_dist.data.shard_notes import (
    RecordNote,
    ShardNote,
    file_state,
    note_path,
    noted_shards,
    read_note,
    write_note,
)
from seam_dist.data.shards import RawSample, write_shard
from seam_dist.data.sources.base import Record, SourceError

_MAX_REPORTED = 5  # images of each sort of error
T = TypeVar("T")


@dataclass
class _Failure:
    """A shard that was not written: the errors of its images, one each, and the masks of those that are good."""

    shard: Path
    errors: list[Finding] = field(default_factory=list)
    mask_rows: list[MaskRow] = field(default_factory=list)


def write_shards(
    plan: Plan,
    *,
    check_masks: Literal["refuse", "warn"],
    rank: int = 0,
    world_size: int = 1,
    num_processes: int = 1,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> tuple[Manifest, Findings]:
    """Write the shards of a plan that are missing or changed; return the manifest and warnings, the same on each rank.

    Rank r of R writes every R-th of these shards; rank 0 writes the manifest when all have come to `gather`, which
    returns a value of each rank. Raises SourceError with the names of images that cannot be used and with masks that
    contradict the labels in most images (`check_masks="warn"`: a warning), and ShardError when a shard cannot be
    written; whole shards stay and are not written again.
    """

    def on_main(function: Callable[[], T]) -> T:
        result, error = None, None
        if rank == 0:
            try:
                result = function()
            except (OSError, ValueError) as failure:
                error = failure
        result, error = gather((result, error))[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    on_main(lambda: mark_unfinished(plan.folder))
    pixel_range = plan.settings.get("pixel_range")
    inspect = partial(
        inspect_record, num_classes=len(plan.classes), max_pixels=plan.max_pixels, pixel_range=pixel_range
    )
    write = partial(_write_shard, identity=plan.identity, inspect=inspect)
    tasks = [task for task in plan.tasks if task.must_be_written]
    failures, error = [], None
    try:
        failures = _run_all(write, tasks[rank::world_size], num_processes)
    except ShardError as failure:
        error = failure
    reports = gather((failures, error))
    if errors := [error for _, error in reports if error is not None]:
        raise errors[0]
    all_failures = [failure for failures, _ in reports for failure in failures]
    warnings = on_main(lambda: _finish(plan, all_failures, refuse=check_masks == "refuse"))
    return load_manifest(plan.folder), warnings


def mark_unfinished(folder: Path) -> None:
    """Remove the manifest, so that shards which are about to change do not look finished, and keep whose they are."""
    if not (folder / MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        return
    with _writing(folder / MANIFEST):
        for split in load_manifest(folder).splits.values():
            for shard in split.shards:
                if not note_path(folder / shard.file).is_file():
                    write_note(folder / shard.file, ShardNote("", None, ()))
        (folder / MANIFEST).unlink()
        fsync(folder)


def remove_shards(folder: Path) -> None:
    """Remove what conversions wrote into a folder, and nothing else."""
    mark_unfinished(folder)
    for shard in noted_shards(folder):
        shard.unlink(missing_ok=True)
        note_path(shard).unlink()


def foreign_files(folder: Path) -> list[str]:
    """Return the names in a folder of shards that no conversion wrote."""
    own = {RECORD, "config.yaml", MANIFEST, NOTES, *(shard.name for shard in noted_shards(folder))}
    if (folder / MANIFEST).is_file():
        own |= {shard.file for split in load_manifest(folder).splits.values() for shard in split.shards}
    names = (path.name for path in folder.iterdir() if not path.match(".*.tmp"))
    return sorted(name for name in names if name not in own)


def _run_all(
    write: Callable[[ShardTask], _Failure | None], tasks: Sequence[ShardTask], num_processes: int
) -> list[_Failure]:
    """Write the shards, in several processes where that helps; return those that have bad images."""
    num_processes = min(num_processes, len(tasks))
    if num_processes <= 1:
        failures = list(map(write, tasks))
    else:
        # fork: readers may hold open state, and the loaders of training fork as well.
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(num_processes, context, initializer=single_thread) as pool:
            failures = list(pool.map(write, tasks))
    return [failure for failure in failures if failure is not None]


def _write_shard(task: ShardTask, *, identity: str, inspect: Callable[[Record], Inspection]) -> _Failure | None:
    """Write one shard and its note; return the errors of its images instead, if there are any."""
    path = task.path
    failure, notes, warnings = _Failure(path), [], Findings()

    def samples() -> Iterator[RawSample]:
        for record in task.records:
            note, inspection = _open_record(record, inspect)
            warnings.merge(inspection.findings.warnings)
            failure.errors += inspection.findings.errors
            failure.mask_rows.append(MaskRow(record.source_id, record.classes, inspection.mask_pixels))
            if note is not None and inspection.sample is not None:
                notes.append(note)
                yield inspection.sample
        if failure.errors:
            raise SourceError  # the temporary file goes away

    try:
        with _writing(path):
            for left_over in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed while writing
                left_over.unlink()
            before = read_note(path) or ShardNote(identity, None, ())
            write_note(path, replace(before, shard=None))
            with atomic_file(path) as temporary:
                with open(temporary, "wb") as file:
                    write_shard(file, samples())
                shard = Shard(path.name, len(notes), temporary.stat().st_size, sha256_file(temporary))
            write_note(path, ShardNote(identity, shard, tuple(notes), tuple(warnings)))
    except SourceError:
        return failure
    return None


def _open_record(record: Record, inspect: Callable[[Record], Inspection]) -> tuple[RecordNote | None, Inspection]:
    """Return the note of a record, None where it cannot be used, and what was found."""
    # Before the files are read: what changes in between is seen the next time.
    files, unreadable = [], None
    try:
        files += [file_state(path) for path in record.files]
    except OSError as error:
        unreadable = error
    inspection = inspect(record)
    if unreadable is not None and not inspection.findings.errors:
        inspection.findings.error("image-unreadable", f"image {record.source_id} cannot be read: {unreadable}")
    if inspection.findings.errors:
        return None, inspection
    pixels = None if record.mask is None else tuple((inspection.mask_pixels or {}).items())
    return RecordNote(record.key, record.source_id, record.classes, record.content, tuple(files), pixels), inspection


def _finish(plan: Plan, failures: Sequence[_Failure], *, refuse: bool) -> Findings:
    """Check the masks against the labels and write the manifest; return the warnings, raise SourceError on errors."""
    failed = {failure.shard: failure for failure in failures}
    findings, splits = Findings(), {}
    for part in plan.splits:
        shards, labels = [], MaskLabels()
        for task in part.tasks:
            if task.path in failed:
                rows = failed[task.path].mask_rows
            else:
                note = _written_note(task, plan.identity)
                rows = [record.mask_row() for record in note.records]
                findings.merge(note.warnings)
                shards.append(note.shard)
            for row in rows:
                labels.add(row)
        findings.merge(mask_findings(labels, part.split.name, plan.classes, refuse=refuse))
        splits[part.split.name] = replace(part.split, shards=tuple(filter(None, shards)))
    lines = [*_image_errors(failures), *map(str, findings.errors)]
    if lines:
        raise SourceError("\n".join(lines))
    created_by = f"seam-dist {seam_dist.__version__}"
    with _writing(plan.folder / MANIFEST):
        # Before the manifest: what is not in it must not stay behind.
        for shard in list(noted_shards(plan.folder)):
            if shard not in {task.path for task in plan.tasks}:
                shard.unlink(missing_ok=True)
                note_path(shard).unlink()
        write_json(plan.folder / MANIFEST, Manifest(plan.classes, splits, plan.settings, created_by).to_json())
    return findings


def _written_note(task: ShardTask, identity: str) -> ShardNote:
    note = read_note(task.path)
    keys = [record.key for record in task.records]
    if note is None or note.shard is None or note.settings != identity or [r.key for r in note.records] != keys:
        raise ShardError(f"{task.path} was not written by its rank: all ranks must see the same folder; rerun")
    return note


def _image_errors(failures: Sequence[_Failure]) -> list[str]:
    """Return the errors of images and masks: for each sort a line with their number, and the first of them."""
    by_topic: dict[str, list[str]] = {}
    for failure in failures:
        for error in failure.errors:
            by_topic.setdefault(error.topic, []).append(error.text)
    lines = []
    for topic, texts in by_topic.items():
        number = count_of(len(texts), "mask" if "mask" in topic else "image")
        more = f", the first {_MAX_REPORTED} are" if len(texts) > _MAX_REPORTED else ""
        lines.append(f"{number} cannot be converted ({topic}{more}): correct them and rerun, whole shards stay")
        lines += [f"  {text}" for text in texts[:_MAX_REPORTED]]
    return lines


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name the file in errors of the system."""
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"{path.name} cannot be written to {path.parent} ({error.strerror or error}): make room there or choose "
            "another data.shards, then rerun; whole shards are kept"
        ) from None
