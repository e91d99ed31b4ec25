"""What each shard was made from: a note of its records and their source files beside the shards, to see what changed.

`sources/<shard>.json` has, for each record, key, name, labels, and of each file that was read its size, time and
SHA-256; the counts of its mask and the warnings of the shard stay there as well. A note is first written without its
shard, so that a tar that belongs to a conversion always has a note, also after a kill, and one without belongs to the
user.

A file of the same size and time counts as unchanged; at another time its content decides.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain, starmap
from pathlib import Path
from typing import Any, NamedTuple

from seam_dist.artifacts.atomic import atomic_write
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.config.findings import Finding
from seam_dist.data.manifest import Shard
from seam_dist.data.mask_labels import MaskRow
from seam_dist.data.sources.base import Record

FOLDER = "sources"
_NUM_THREADS = 16  # a network file system answers many requests at once
_CHUNK = 256  # records: a task for each would cost more than its work


class FileState(NamedTuple):
    """A source file as it was read."""

    size: int
    mtime_ns: int
    sha256: str


class RecordNote(NamedTuple):
    """One record as it was stored; `mask_pixels` are (value, pixels) of its mask, None without a mask."""

    key: str
    source_id: str
    classes: tuple[int, ...] | None
    content: str
    files: tuple[FileState, ...]
    mask_pixels: tuple[tuple[int, int], ...] | None

    def mask_row(self) -> MaskRow:
        """Return what the check of masks against labels needs."""
        return MaskRow(self.source_id, self.classes, None if self.mask_pixels is None else dict(self.mask_pixels))


@dataclass(frozen=True)
class ShardNote:
    """The records of a shard, in their order; `shard` is None while it is being written.

    `settings` identify the conversion; `warnings` are those of its images.
    """

    settings: str
    shard: Shard | None
    records: tuple[RecordNote, ...]
    warnings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """How a record differs from its note: `change` says what changed, None if nothing did.

    `files` are the files as they are now. `unread_bytes` are those of files with another time whose content was not
    compared, `unreadable` is the error of one that cannot be read.
    """

    change: str | None
    files: tuple[FileState, ...] = ()
    unread_bytes: int = 0
    unreadable: str | None = None


def note_path(shard: Path) -> Path:
    """Return the place of the note of a shard."""
    return shard.parent / FOLDER / f"{shard.stem}.json"


def write_note(shard: Path, note: ShardNote) -> None:
    """Write the note of a shard, whole or not at all; raises OSError."""
    value = {
        "settings": note.settings,
        "shard": None if note.shard is None else asdict(note.shard),
        "warnings": [asdict(finding) for finding in note.warnings],
    }
    # A line a record: the file is made for the eye of whoever looks for one.
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in note.records)
    atomic_write(note_path(shard), json.dumps(value)[:-1] + f', "records": [\n{lines}\n]}}\n')


def read_note(shard: Path) -> ShardNote | None:
    """Return the note of a shard, None when there is none; of one that cannot be read only that it is there."""
    try:
        value: dict[str, Any] = json.loads(note_path(shard).read_bytes())
        return ShardNote(
            str(value["settings"]),
            None if value["shard"] is None else Shard(**value["shard"]),
            tuple(_record(*fields) for fields in value["records"]),
            tuple(Finding(**finding) for finding in value["warnings"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        return ShardNote("", None, ())


def refresh_notes(notes: Mapping[Path, ShardNote]) -> None:
    """Write the notes of shards whose source files have new times; a folder that cannot be written to is left alone."""
    for shard, note in notes.items():
        with contextlib.suppress(OSError):
            write_note(shard, note)


def _record(key: str, source_id: str, classes: Any, content: str, files: Any, mask_pixels: Any) -> RecordNote:
    return RecordNote(
        key,
        source_id,
        None if classes is None else tuple(classes),
        content,
        tuple(FileState(*state) for state in files),
        None if mask_pixels is None else tuple((value, count) for value, count in mask_pixels),
    )


def noted_shards(folder: Path) -> Iterator[Path]:
    """Yield the places of the shards in a folder that have a note, in the order of their names."""
    for path in sorted((folder / FOLDER).glob("*.json")):
        yield folder / f"{path.stem}.tar"


def file_state(path: Path) -> FileState:
    """Return size, time and SHA-256 of a file; raises OSError."""
    status = os.stat(path)
    return FileState(status.st_size, status.st_mtime_ns, sha256_file(path))


def compare(records: Sequence[Record], notes: Sequence[RecordNote], max_bytes: int | None) -> list[Comparison]:
    """Compare each record with its note; files with another time are read up to `max_bytes` in all (None: all).

    When there is more to read than that, none of them is.
    """
    pairs = list(zip(records, notes, strict=True))
    starts = range(0, len(pairs), _CHUNK)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        chunks = pool.map(lambda start: list(starmap(_compare_status, pairs[start : start + _CHUNK])), starts)
        compared = list(chain.from_iterable(chunks))
        to_read = [i for i, comparison in enumerate(compared) if comparison.unread_bytes]
        if max_bytes is not None and sum(compared[i].unread_bytes for i in to_read) > max_bytes:
            return compared
        read = pool.map(lambda i: _compare_content(*pairs[i], compared[i]), to_read)
        for i, comparison in zip(to_read, read, strict=True):
            compared[i] = comparison
    return compared


def _compare_status(record: Record, note: RecordNote) -> Comparison:
    if (change := _listed_change(record, note)) is not None:
        return Comparison(change)
    files, unread = note.files, 0
    for i, (path, before) in enumerate(zip(record.files, files, strict=True)):
        try:
            status = os.stat(path)
        except OSError as error:
            return Comparison(_file_change(record, i), unreadable=f"{path}: {error.strerror}")
        if status.st_size != before.size:
            return Comparison(_file_change(record, i))
        if status.st_mtime_ns != before.mtime_ns:
            now = FileState(status.st_size, status.st_mtime_ns, before.sha256)
            files = (*files[:i], now, *files[i + 1 :])
            unread += max(1, status.st_size)
    return Comparison(None, files, unread)


def _compare_content(record: Record, note: RecordNote, comparison: Comparison) -> Comparison:
    for i, (path, before, now) in enumerate(zip(record.files, note.files, comparison.files, strict=True)):
        if now.mtime_ns == before.mtime_ns:
            continue
        try:
            if sha256_file(path) != before.sha256:
                return Comparison(_file_change(record, i))
        except OSError as error:
            return Comparison(_file_change(record, i), unreadable=f"{path}: {error.strerror}")
    return replace(comparison, unread_bytes=0)


def _listed_change(record: Record, note: RecordNote) -> str | None:
    """Return what the lists and labels of a data set say otherwise than before."""
    if (record.mask is None) != (note.mask_pixels is None):
        return "mask removed" if record.mask is None else "mask added"
    if record.classes != note.classes:
        return "label changed"
    if record.source_id != note.source_id:
        return "image renamed"
    if record.content != note.content:
        return "image changed" if record.mask is None else "mask changed"
    return None if len(record.files) == len(note.files) else "image changed"


def _file_change(record: Record, index: int) -> str:
    is_mask = record.mask is not None and index >= (1 if record.image_b is None else 2)
    return "mask changed" if is_mask else "image changed"
