"""The plan of a conversion: which records go to which shard, and which shards must be written.

Sample i of a split goes to shard i mod num_shards: sizes differ by at most one, and a data set sorted by class still
gives shards of mixed classes. A shard whose records and source files are as its note says stays as it is. Planning
touches nothing; it opens source files only where their time changed and their size did not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from seam_dist.artifacts.provenance import fingerprint
from seam_dist.config.phrases import count_of, first_of
from seam_dist.data.manifest import MANIFEST, Manifest, ShardError, Split, load_manifest
from seam_dist.data.mask_labels import MaskLabels
from seam_dist.data.shard_notes import Comparison, RecordNote, ShardNote, compare, noted_shards, read_note
from seam_dist.data.sources.base import Record, SourceError

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
# Settings that the manifest keeps and that change no byte of a shard of the same records.
_NOT_IDENTIFYING = ("root", "empty_images")


@dataclass(frozen=True)
class ShardTask:
    """One shard: its file, its records, and whether the file is there, made from what the data set holds now."""

    path: Path
    records: Sequence[Record]
    is_current: bool
    is_whole: bool

    @property
    def must_be_written(self) -> bool:
        """Return whether the file is missing, damaged or made from something else."""
        return not (self.is_current and self.is_whole)


@dataclass(frozen=True)
class SplitPlan:
    """One split, its shards not listed yet, and what changed in the data set since they were written."""

    split: Split
    tasks: tuple[ShardTask, ...]
    changes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Sort of change, such as `label changed` -> names of the images."""
    redated: Sequence[str] = ()
    """Images with a file of another time whose content was not compared."""
    unreadable: Sequence[str] = ()
    """Source files that cannot be read, each with the reason."""
    mask_labels: MaskLabels = field(default_factory=MaskLabels)
    """Masks and labels of the shards that are current."""

    @property
    def num_to_write(self) -> int:
        """Return the number of shards that must be written."""
        return sum(task.must_be_written for task in self.tasks)

    def describe_changes(self) -> str:
        """Return what changed, with the first names: `1 image changed: a.jpg, 2 labels changed: b.jpg, c.jpg`."""
        return ", ".join(_describe(sort, names) for sort, names in self.changes.items())


@dataclass(frozen=True)
class Plan:
    """What a conversion will do; every rank gets the same."""

    classes: tuple[str, ...]
    folder: Path
    settings: Mapping[str, Any]
    identity: str
    max_pixels: int
    splits: tuple[SplitPlan, ...]
    manifest: Manifest | None
    """That of the folder; the shards are finished if it fits."""
    has_notes: bool
    """Whether shards of the folder say what they were made from."""
    refreshed: Mapping[Path, ShardNote] = field(default_factory=dict)
    """Notes of current shards whose source files got another time, by shard."""

    @property
    def tasks(self) -> list[ShardTask]:
        """Return the shards of all splits."""
        return [task for split in self.splits for task in split.tasks]

    @property
    def is_done(self) -> bool:
        """Return whether the shards of the folder are finished and made from what the data set holds now."""
        if self.manifest is None or self.manifest.classes != self.classes:
            return False
        if _identity(self.manifest.source, len(self.classes)) != self.identity:
            return False
        planned = {part.split.name: (part.split, [task.path.name for task in part.tasks]) for part in self.splits}
        finished = {
            name: (replace(split, shards=()), [shard.file for shard in split.shards])
            for name, split in self.manifest.splits.items()
        }
        return planned == finished and all(task.is_current for task in self.tasks)


def count_shards(num_samples: int, *, samples_per_shard: int, streams: int) -> int:
    """Return the shards of a split: enough for samples_per_shard, a multiple of streams where that is possible."""
    least = -(-num_samples // samples_per_shard)
    return min(num_samples, -(-least // streams) * streams)


def plan_conversion(
    classes: Sequence[str],
    splits: Mapping[str, Sequence[Record]],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    samples_per_shard: int,
    streams: int,
    max_pixels: int,
    max_bytes: int | None = None,
) -> Plan:
    """Compare a data set with the shards in `folder` and return what must be written; touches nothing.

    `classes` are the foreground classes; `settings` identify the source and are kept in the manifest. Of files whose
    time changed at the same size at most `max_bytes` in all are read (None: all). Raises SourceError for splits that
    cannot be converted, and ShardError when a file of the user's has the name of a shard.
    """
    folder = Path(folder)
    identity = _identity(settings, len(classes))
    manifest = load_manifest(folder) if (folder / MANIFEST).is_file() else None
    is_same = manifest is not None and _identity(manifest.source, manifest.num_classes) == identity
    empty_splits = [check_split(name, records) for name, records in splits.items()]
    notes = {path: note for path in noted_shards(folder) if (note := read_note(path)) is not None}
    usable = {path: note for path, note in notes.items() if note.settings == identity}
    parts: list[SplitPlan] = []
    refreshed: dict[Path, ShardNote] = {}
    for split, records in zip(empty_splits, splits.values(), strict=True):
        count = count_shards(split.num_samples, samples_per_shard=samples_per_shard, streams=streams)
        if manifest is not None and is_same and split.name in manifest.splits:
            before = manifest.splits[split.name]
            # Shards of a run with more streams serve as well.
            if before.num_samples == split.num_samples and len(before.shards) >= min(streams, split.num_samples):
                count = len(before.shards)
        paths = [folder / f"{split.name}-{i:05d}.tar" for i in range(count)]
        part, redated = _plan_split(split, records, paths, usable, max_bytes, is_again=is_same and bool(usable))
        parts.append(part)
        refreshed |= redated
    listed = set() if manifest is None else {s.file for split in manifest.splits.values() for s in split.shards}
    foreign = [
        task.path
        for part in parts
        for task in part.tasks
        if task.path not in notes and task.path.name not in listed and task.path.exists()
    ]
    if foreign:
        text = f"{foreign[0]} has the name of a shard ({len(foreign)} such files) but was not written by a conversion"
        raise ShardError(f"{text}: move it away, or choose another data.shards")
    return Plan(tuple(classes), folder, settings, identity, max_pixels, tuple(parts), manifest, bool(notes), refreshed)


def _identity(settings: Mapping[str, Any], num_classes: int) -> str:
    """Return what notes keep of the settings, beside the records."""
    kept = {key: value for key, value in settings.items() if key not in _NOT_IDENTIFYING}
    return fingerprint([kept, num_classes])


def check_split(name: str, records: Sequence[Record]) -> Split:
    """Return a split without its shards; raise SourceError when it cannot be converted."""
    if not _SPLIT_NAME.fullmatch(name):
        raise SourceError(f"split name {name!r} has other characters than letters, digits, _ and -: rename it")
    if not records:
        raise SourceError(f"split {name!r} is empty: add images to it or leave it out of data.splits")
    has_masks, has_labels = (_all_or_none(records, field, name) for field in ("mask", "classes"))
    return Split(name, len(records), has_masks, has_labels, shards=())


def _all_or_none(records: Sequence[Record], field: str, split: str) -> bool:
    """Return whether all records have the field; raise SourceError when only some have it."""
    without = [record for record in records if getattr(record, field) is None]
    if without and len(without) < len(records):
        text = f"split {split!r}: image {without[0].source_id} has no {field} ({len(without)} of {len(records)} images)"
        raise SourceError(f"{text}, others have: give all of them or none")
    return not without


def _plan_split(
    split: Split,
    all_records: Sequence[Record],
    paths: Sequence[Path],
    notes: Mapping[Path, ShardNote],
    max_bytes: int | None,
    *,
    is_again: bool,
) -> tuple[SplitPlan, dict[Path, ShardNote]]:
    """Return the plan of one split, and the notes whose source files got another time.

    `is_again` says that all shards of these settings had been finished, so that what has no note was added since.
    """
    shards = {path: all_records[i :: len(paths)] for i, path in enumerate(paths)}
    own = {path: note for path, note in notes.items() if path.stem.rpartition("-")[0] == split.name}
    noted = {(path, record.key): record for path, note in own.items() for record in note.records}
    elsewhere = {key: record for (_, key), record in noted.items()}
    # A record that moved to another shard is compared as well, to say what changed.
    pairs = [
        (record, before)
        for path, records in shards.items()
        for record in records
        if (before := noted.get((path, record.key)) or elsewhere.get(record.key)) is not None
    ]
    compared = compare([record for record, _ in pairs], [before for _, before in pairs], max_bytes)
    by_key = {record.key: comparison for (record, _), comparison in zip(pairs, compared, strict=True)}
    tasks, refreshed, labels = [], {}, MaskLabels()
    for path, records in shards.items():
        note = own.get(path)
        keys = [record.key for record in records]
        if note is None or note.shard is None:
            tasks.append(ShardTask(path, records, is_current=False, is_whole=False))
            continue
        is_current = keys == [r.key for r in note.records] and all(by_key[key].change is None for key in keys)
        is_whole = path.is_file() and path.stat().st_size == note.shard.num_bytes
        tasks.append(ShardTask(path, records, is_current, is_whole))
        if is_current:
            for before in note.records:
                labels.add(before.mask_row())
            # The times that the files have now, as far as their content was compared.
            redated = tuple(
                before if by_key[before.key].unread_bytes else before._replace(files=by_key[before.key].files)
                for before in note.records
            )
            if redated != note.records:
                refreshed[path] = replace(note, records=redated)
    changes = _changes(all_records, elsewhere, by_key)
    if not is_again and not any(note.shard is None and note.records for note in own.values()):
        changes.pop("image added", None)  # the first conversion did not come to them
    if is_again and not changes and not all(task.is_current for task in tasks):
        changes["image moved"] = []
    unread = [record.source_id for record, _ in pairs if by_key[record.key].unread_bytes]
    unreadable = [error for comparison in compared if (error := comparison.unreadable) is not None]
    return SplitPlan(split, tuple(tasks), changes, unread, unreadable, labels), refreshed


def _changes(
    records: Sequence[Record], before: Mapping[str, RecordNote], by_key: Mapping[str, Comparison]
) -> dict[str, list[str]]:
    """Return the names of images by what changed."""
    changes: dict[str, list[str]] = {}
    for record in records:
        change = by_key[record.key].change if record.key in by_key else "image added"
        if change is not None:
            changes.setdefault(change, []).append(record.source_id)
    keys = {record.key for record in records}
    if removed := [note.source_id for key, note in before.items() if key not in keys]:
        changes["image removed"] = removed
    return changes


def _describe(sort: str, names: Sequence[str]) -> str:
    if sort == "image moved":
        return "images in another order"
    thing, _, what = sort.partition(" ")
    return f"{count_of(len(names), thing)} {what}: {first_of(names, 3)}"
