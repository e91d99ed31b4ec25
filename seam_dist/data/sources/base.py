"""What every data set reader offers: class names and, for each split, an ordered sequence of records.

A reader (`Source`) lists a data set without opening its images, with everything that is wrong in its lists and labels;
a `Record` is one image that can be loaded by any process, so both must pickle. To add a data set, add a file beside
this one that returns listings: the conversion to shards needs nothing else. Image-level labels are class ids from 1, in
the order of the class names.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from seam_dist.config.findings import Findings
from seam_dist.config.text_file import TextError, read_text, split_lines

MAX_KEY = 80  # a member name, key and extension, must fit the 100 bytes of a tar header

_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_-]")


class SourceError(ValueError):
    """A data set that cannot be converted; the message names the file or folder, what is wrong and the remedy."""


@dataclass(frozen=True)
class Record:
    """One image of a split, not loaded yet.

    `image` and `mask` return the bytes of an encoded file. The image keeps its original encoding; the mask is a PNG of
    class indices (gray or palette), 0 for background and 255 for ignored. `classes` are foreground ids from 1,
    ascending, empty for an image without any object, or None where the split has no image-level labels. `source_id` is
    the image's own name in its data set. `image_b` is the second image of a bi-temporal pair. `files` are the files
    that `image`, `mask` and `image_b` read, so that a changed one is noticed; `content` identifies what else they are
    made of, such as the polygons of a mask that is drawn.
    """

    key: str
    source_id: str
    classes: tuple[int, ...] | None
    image: Callable[[], bytes]
    mask: Callable[[], bytes] | None = None
    image_b: Callable[[], bytes] | None = None
    files: tuple[Path, ...] = ()
    content: str = ""

    def check_files(self) -> None:
        """Raise OSError for a name that is no file, such as a folder, or a pipe, which nobody may ever write to."""
        for path in self.files:
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "it is no regular file", str(path))


@dataclass(frozen=True)
class Listing:
    """The usable records of a split, and all that is wrong or odd in its lists, labels and file names."""

    records: Sequence[Record]
    findings: Findings = field(default_factory=Findings)


@runtime_checkable
class Source(Protocol):
    """A data set on disk, or drawn on demand."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the foreground classes, in index order; the first has id 1."""
        ...

    def listing(self, split: str) -> Listing:
        """Return the records of a split in the data set's own order with all findings.

        Raises SourceError when there is nothing to list, for example without the data set's folder.
        """
        ...


def make_key(name: str) -> str:
    """Return the sample key of an image name: letters, digits, `_` and `-`, at most MAX_KEY characters.

    In a longer name or one with other characters, these are replaced and a short hash of the name is added, so that
    different names never collide. A dot would end the key in a webdataset shard, so it is replaced as well.
    """
    key = _NOT_ALLOWED.sub("_", name)
    if key == name and 0 < len(key) <= MAX_KEY and not key.startswith("__"):
        return key
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    return f"{key.strip('_')[: MAX_KEY - 11] or 'sample'}-{digest}"


def read_lines(path: Path, *, remedy: str) -> list[str]:
    """Return the lines of a text file; raise SourceError when it is missing, with what may be it, or not readable."""
    try:
        return split_lines(read_text(path))
    except FileNotFoundError:
        raise SourceError(f"{path} is missing{_nearest(path)}: {remedy}") from None
    except (TextError, OSError) as error:
        raise SourceError(str(error)) from None


def require_folder(path: Path, *, what: str, remedy: str) -> Path:
    """Return `path` when it is a folder; raise SourceError with the nearest existing name beside it otherwise."""
    if path.is_dir():
        return path
    raise SourceError(f"{what} {path} is not a folder{_nearest(path)}: {remedy}")


def _nearest(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [beside.name for beside in path.parent.glob("*")], n=1)
    return f" (there is {near[0]!r} beside it)" if near else ""


def unique_records(split: str, records: Sequence[Record], findings: Findings, *, where: str) -> list[Record]:
    """Return the first record of each key; add an error for each other one, and when there is no record at all."""
    if not records:
        findings.error("split-empty", f"split {split!r} is empty: add images to {where} or leave it out of data.splits")
    by_key: dict[str, Record] = {}
    for record in records:
        first = by_key.setdefault(record.key, record)
        if first is not record:
            text = f"split {split!r}: {first.source_id} and {record.source_id} have the same key {record.key!r}"
            remedy = "(a file extension does not make keys differ): rename or remove one of them"
            findings.error("key-twice", f"{text} {remedy}")
    return list(by_key.values())
