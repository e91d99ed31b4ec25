"""PASCAL VOC 2012 on disk: `root` is the folder with JPEGImages, Annotations and ImageSets (VOC2012).

Split S is the list ImageSets/Segmentation/S.txt or, where there is none, ImageSets/Main/S.txt. A line is an image id,
or the paths of an image and of its mask below `root`, as in the lists of the augmented set (trainaug). Image-level
labels are the objects of Annotations/ID.xml, difficult ones included (PARITY.md section 2). Masks are in
SegmentationClass, for trainaug in SegmentationClassAug. A split called test... may lack annotations altogether.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from seam_dist.data.sources.base import Listing, Record, SourceError, class_ids, make_key, require_folder, require_split

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class VOCSource:
    """Reader of PASCAL VOC 2012."""

    root: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the twenty classes."""
        return CLASSES

    @cached_property
    def _folder(self) -> Path:
        inner = [name for name in ("VOC2012", "VOCdevkit/VOC2012") if (self.root / name / "JPEGImages").is_dir()]
        hint = self.root / inner[0] if inner else "the folder of VOC 2012 that holds JPEGImages"
        require_folder(self.root / "JPEGImages", what="image folder", remedy=f"set source.root to {hint}")
        return self.root

    def list_file(self, split: str) -> Path:
        """Return the list of a split; raise SourceError with the lists there are."""
        sets = self._folder / "ImageSets"
        for folder in ("Segmentation", "Main"):
            if (sets / folder / f"{split}.txt").is_file():
                return sets / folder / f"{split}.txt"
        lists = sorted(path.stem for path in (sets / "Segmentation").glob("*.txt"))
        hint = " (the list of the 10,582 images of the augmented set comes with SegmentationClassAug)"
        raise SourceError(
            f"{sets / 'Segmentation' / f'{split}.txt'} is missing, found {', '.join(lists) or 'no lists'}: "
            f"add the list{hint if split == 'trainaug' else ''} or change data.splits"
        )

    def listing(self, split: str) -> Listing:
        """Return the images of a list, in its order."""
        path = self.list_file(split)
        lines = [(number, line.split()) for number, line in enumerate(path.read_text().splitlines(), start=1)]
        entries = [_parse(fields, f"{path}, line {number}") for number, fields in lines if fields]
        default = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
        masks = [mask or f"{default}/{name}.png" for name, mask in entries]
        has_masks = self._has_masks(masks, all_or_none=path.parent.name == "Segmentation")
        unlabeled = split.startswith("test") and not any(self._annotation(name).is_file() for name, _ in entries)
        records = [
            Record(
                key=make_key(name),
                source_id=name,
                classes=None if unlabeled else self._labels(name),
                image=self._image(name, path).read_bytes,
                mask=(self._folder / mask).read_bytes if has_masks else None,
                files=(self._folder / "JPEGImages" / f"{name}.jpg", *([self._folder / mask] if has_masks else [])),
            )
            for (name, _), mask in zip(entries, masks, strict=True)
        ]
        return Listing(require_split(split, records, where=str(path)))

    def _image(self, name: str, list_file: Path) -> Path:
        path = self._folder / "JPEGImages" / f"{name}.jpg"
        if not path.is_file():
            raise SourceError(f"{path} is missing but listed in {list_file}: unpack the images again or edit the list")
        return path

    def _annotation(self, name: str) -> Path:
        return self._folder / "Annotations" / f"{name}.xml"

    def _labels(self, name: str) -> tuple[int, ...]:
        path = self._annotation(name)
        if not path.is_file():
            raise SourceError(f"image {name} has no labels: {path} is missing, unpack Annotations or edit the list")
        try:
            objects = ElementTree.parse(path).getroot().findall("object")
        except ElementTree.ParseError as error:
            raise SourceError(f"{path} is not readable as XML ({error}): unpack it again") from None
        if not objects:
            raise SourceError(f"image {name} has no labels: {path} lists no object, add one or take it off the list")
        return class_ids((entry.findtext("name", "").strip() for entry in objects), CLASSES, where=str(path))

    def _has_masks(self, masks: Sequence[str], *, all_or_none: bool) -> bool:
        """Return whether the split has masks; lists of Segmentation have all or none, those of Main have some."""
        missing = [mask for mask in masks if not (self._folder / mask).is_file()]
        if missing and len(missing) < len(masks) and all_or_none:
            raise SourceError(
                f"mask {self._folder / missing[0]} is missing ({len(missing)} of {len(masks)}), others are there: "
                "unpack the masks again"
            )
        return not missing


def _parse(fields: Sequence[str], where: str) -> tuple[str, str | None]:
    """Return image id and mask path of one line of a list."""
    image = Path(fields[0])
    mask = fields[1].lstrip("/") if len(fields) == 2 else None
    if len(fields) > 2 or (mask is not None and not mask.endswith(".png")) or (mask and ".." in Path(mask).parts):
        raise SourceError(f"{where}: {' '.join(fields)!r} is not an image id, nor the paths of an image and its mask")
    return image.stem if image.suffix == ".jpg" else image.name, mask
