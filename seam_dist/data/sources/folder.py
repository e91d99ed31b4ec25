"""A plain folder of images.

    classes.txt               one foreground class a line, in index order
    labels.csv                header `image,split,classes`; class names separated by `;`
    images/<split>/NAME.*     any format that Pillow reads
    masks/<split>/NAME.png    class indices (gray or palette), 0 background, 255 ignored; optional, all or none a split

Masks are in the orientation in which the image is displayed, that is after its EXIF rotation.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from seam_dist.config.schema import MAX_CLASSES
from seam_dist.data.sources.base import Listing, Record, SourceError, class_ids, make_key, require_folder, require_split

_COLUMNS = ("image", "split", "classes")


@dataclass(frozen=True)
class FolderSource:
    """Reader of a plain folder; `root` holds classes.txt, labels.csv, images/ and, where they exist, masks/."""

    root: Path

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Return the foreground class names of classes.txt."""
        require_folder(self.root, what="data set", remedy="set source.root to the folder that holds classes.txt")
        path = self.root / "classes.txt"
        names = tuple(line.strip() for line in _text(path).splitlines() if line.strip())
        if not 1 <= len(names) <= MAX_CLASSES:
            raise SourceError(
                f"{path} names {len(names)} classes, expected 1 to {MAX_CLASSES}: one foreground class a line"
            )
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise SourceError(f"{path} names {doubled[0]!r} more than once: remove one of the lines")
        return names

    @cached_property
    def _labels(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """(split, image name) -> class ids."""
        classes = self.classes  # first: its error names the folder when that is missing
        path = self.root / "labels.csv"
        reader = csv.DictReader(_text(path).splitlines())
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise SourceError(
                f"{path} has no column {missing[0]!r} (found: {', '.join(reader.fieldnames or ()) or 'nothing'}): "
                f"its first line must be {','.join(_COLUMNS)}"
            )
        labels: dict[tuple[str, str], tuple[int, ...]] = {}
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            image, split, names = (row[name] for name in _COLUMNS)
            if image is None or split is None or names is None:
                raise SourceError(f"{where} has fewer than {len(_COLUMNS)} fields: write image,split,classes")
            if (split, image) in labels:
                raise SourceError(f"{where}: image {image!r} of split {split!r} is listed twice: merge the two lines")
            present = [name.strip() for name in names.split(";") if name.strip()]
            labels[split, image] = class_ids(present, classes, where=where)
        return labels

    def listing(self, split: str) -> Listing:
        """Return the images of images/<split> by name; raise SourceError for one without labels or without its mask."""
        labels = {image: ids for (name, image), ids in self._labels.items() if name == split}
        remedy = f"put the images of split {split!r} there or change data.splits"
        folder = require_folder(self.root / "images" / split, what="image folder", remedy=remedy)
        images = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        table = self.root / "labels.csv"
        for path in images:
            if not labels.get(path.name):
                line = f"{path.name},{split},CLASS;CLASS"
                raise SourceError(f"{path} has no labels: add the line {line} to {table} or remove the image")
        lost = sorted(labels.keys() - {path.name for path in images})
        if images and lost:
            raise SourceError(
                f"{table} lists {lost[0]!r} in split {split!r} ({len(lost)} such lines), but {folder} has no such "
                "file: add the image or remove the line"
            )
        masks = self.root / "masks" / split
        records = [
            Record(
                key=make_key(path.stem),
                source_id=path.name,
                classes=labels[path.name],
                image=path.read_bytes,
                mask=_mask(masks / f"{path.stem}.png", path).read_bytes if masks.is_dir() else None,
                files=(path, masks / f"{path.stem}.png") if masks.is_dir() else (path,),
            )
            for path in images
        ]
        return Listing(require_split(split, records, where=str(folder)))


def _mask(mask: Path, image: Path) -> Path:
    """Return `mask` when it exists: a split has all its masks or no folder of masks."""
    if not mask.is_file():
        raise SourceError(f"{image} has no mask {mask}: add it, or remove {mask.parent} if masks are not used")
    return mask


def _text(path: Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark; raise SourceError when that fails."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SourceError(f"{path} is missing: a plain folder needs classes.txt, labels.csv and images/") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
