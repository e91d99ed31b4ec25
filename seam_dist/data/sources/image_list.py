"""A list of images as PASCAL VOC has them: a line is an image id, or the paths of an image and of its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seam_dist.config.findings import Findings
from seam_dist.data.sources.base import read_lines
from seam_dist.data.sources.names import ImageNames, clean, split_path


@dataclass(frozen=True)
class Entry:
    """An image of a list: the name of its file, and the path of its mask where the list has it."""

    image: str
    mask: str | None


def read_image_list(path: Path, images: ImageNames, findings: Findings) -> list[Entry]:
    """Return the images of a list that are among `images`, in its order; add an error for each other line.

    Raises SourceError when the list cannot be read.
    """
    entries: list[Entry] = []
    first: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, remedy="add the list"), start=1):
        where = f"{path}, line {number}"
        if not (text := clean(line)):
            continue
        # The whole line first: the name of an image may have spaces.
        fields = [text] if _files(text, images) else text.split()
        mask = "/".join(split_path(fields[1])).lstrip("/") if len(fields) == 2 else None
        if text.startswith("#"):
            findings.error("list-comment", f"{where}: {text!r} looks like a comment, which lists have not: remove it")
        elif len(fields) == 2 and fields[1] in ("-1", "0", "1"):
            what = f"{where}: {text!r} is from the list of one class, which says whether each image shows it"
            findings.error("list-of-class", f"{what}: name a list of images alone in data.splits, such as train")
        elif len(fields) > 2 or (mask is not None and (not mask.endswith(".png") or ".." in split_path(mask))):
            findings.error("list-line", f"{where}: {text!r} is not an image id, nor the paths of an image and its mask")
        elif len(files := _files(fields[0], images)) != 1:
            _report_missing(where, path, fields[0], files, images, findings)
        elif first.setdefault(files[0], number) != number:
            what = f"{where} lists {files[0]} again, first in line {first[files[0]]}"
            findings.error("listed-twice", f"{what}: remove one of them")
        else:
            entries.append(Entry(files[0], mask))
    return entries


def _files(written: str, images: ImageNames) -> Sequence[str]:
    """Return the image files that a line may mean; an id alone means its JPEG."""
    jpeg = f"{split_path(written)[-1]}.jpg"
    return [jpeg] if jpeg in images else images.matches(written)


def _report_missing(
    where: str, path: Path, written: str, files: Sequence[str], images: ImageNames, findings: Findings
) -> None:
    if files:
        meant = " or ".join(map(repr, files))
        findings.error("image-ambiguous", f"{where}: {written!r} may be {meant}: write the name of the file")
    elif any(finding.topic == "image-missing" for finding in findings):
        findings.error("image-missing", where)  # counted; to look for near names takes long
    else:
        near = images.nearest(split_path(written)[-1])
        hint = f" (did you mean {near!r}?)" if near else ""
        what = f"{written} is missing in JPEGImages but listed in {path}, line {where.rpartition(' ')[2]}{hint}"
        findings.error("image-missing", f"{what}: unpack the images again or edit the list")
