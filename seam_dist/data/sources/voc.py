"""PASCAL VOC 2012 on disk: `root` is the folder with JPEGImages, Annotations and ImageSets (VOC2012).

Split S is the list ImageSets/Segmentation/S.txt or, where there is none, ImageSets/Main/S.txt. A line is an image id,
or the paths of an image and of its mask below `root`, as in the lists of the augmented set (trainaug). Image-level
labels are the objects of Annotations/ID.xml, difficult ones included (PARITY.md section 2). Masks are in
SegmentationClass, for trainaug in SegmentationClassAug. A split of which no image has an annotation has no labels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from seam_dist.config.findings import Findings
from seam_dist.data.sources.annotation_xml import object_names
from seam_dist.data.sources.base import Listing, Record, SourceError, make_key, require_folder, unique_records
from seam_dist.data.sources.image_list import Entry, read_image_list
from seam_dist.data.sources.names import ClassNames, ImageNames, Names, image_stem, likely_mask, list_folder

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

    @cached_property
    def _images(self) -> ImageNames:
        return ImageNames(list_folder(self._folder / "JPEGImages"))

    @cached_property
    def _annotations(self) -> Names:
        return Names(list_folder(self._folder / "Annotations"))

    def list_file(self, split: str) -> Path:
        """Return the list of a split; raise SourceError with the lists there are."""
        sets = self._folder / "ImageSets"
        folders = [sets / "Segmentation", sets / "Main"]
        for folder in folders:
            if (folder / f"{split}.txt").is_file():
                return folder / f"{split}.txt"
        lists = sorted({path.stem for folder in folders for path in folder.glob("*.txt") if "_" not in path.stem})
        hint = " (the list of the 10,582 images of the augmented set comes with SegmentationClassAug)"
        text = f"{folders[0] / f'{split}.txt'} is missing, found {', '.join(lists) or 'no lists'}"
        raise SourceError(f"{text}: add the list{hint if split == 'trainaug' else ''} or change data.splits")

    def listing(self, split: str) -> Listing:
        """Return the images of a list, in its order; the findings say what is missing or wrong."""
        path, findings = self.list_file(split), Findings()
        entries = read_image_list(path, self._images, findings)
        default = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
        masks = self._masks(entries, default, all_or_none=path.parent.name == "Segmentation", findings=findings)
        labels = self._labels(split, entries, path, findings)
        records = [
            Record(
                key=make_key(image_stem(entry.image)),
                source_id=image_stem(entry.image),
                classes=None if labels is None else labels[entry.image],
                image=(image := self._folder / "JPEGImages" / entry.image).read_bytes,
                mask=mask.read_bytes if mask is not None else None,
                files=(image,) if mask is None else (image, mask),
            )
            for entry, mask in zip(entries, masks, strict=True)
            if labels is None or entry.image in labels
        ]
        if records or not findings.errors:
            records = unique_records(split, records, findings, where=str(path))
        return Listing(records, findings)

    def _labels(
        self, split: str, entries: Sequence[Entry], list_file: Path, findings: Findings
    ) -> dict[str, tuple[int, ...] | None] | None:
        """Return the class ids of each image with a readable annotation, None for those with an unknown class.

        None when no image has an annotation.
        """
        folder, classes = self._folder / "Annotations", ClassNames(CLASSES)
        matched = {entry.image: self._annotations.matches(f"{image_stem(entry.image)}.xml") for entry in entries}
        if entries and not any(matched.values()):
            if not split.startswith("test"):
                text = f"no image of {list_file} has an annotation in {folder}: its {len(entries)} images count as"
                findings.warning("unlabelled-split", f"{text} unlabelled, which serves inference alone")
            return None
        labels: dict[str, tuple[int, ...] | None] = {}
        for image, names in matched.items():
            if len(names) == 1:
                try:
                    objects = object_names(folder / names[0])
                except SourceError as error:
                    findings.error("bad-annotation", str(error))
                    continue
                labels[image] = classes.ids(objects, where=str(folder / names[0]))
            else:
                missing = f"may have {' or '.join(names)}: remove one" if names else "is missing: unpack Annotations"
                text = f"image {image} has no labels: {folder / f'{image_stem(image)}.xml'} {missing} or edit the list"
                findings.error("annotation-missing", text)
        classes.report_unknown(findings)
        return labels

    def _masks(
        self, entries: Sequence[Entry], default: str, *, all_or_none: bool, findings: Findings
    ) -> Sequence[Path | None]:
        """Return a mask for each image or for none: lists of Segmentation have all or none, those of Main have some."""
        paths = [self._folder / (e.mask or f"{default}/{image_stem(e.image)}.png") for e in entries]
        missing = [path for path in paths if not os.path.isfile(path)]  # no error for a long name
        if not missing:
            return paths
        absent = set(missing)
        twin = likely_mask(missing[0].stem, list_folder(missing[0].parent))
        if all_or_none and (twin or len(missing) < len(paths)):
            hint = (
                "but the name is there: it is a link to nothing, or no file"
                if twin == missing[0].name
                else "others are there: unpack the masks again"
            )
            if twin and twin != missing[0].name:
                hint = f"but there is {twin!r}: rename it"
            text = f"mask {missing[0]} is missing ({len(missing)} of {len(paths)}), {hint}"
            findings.error("mask-missing", text, count=len(missing))
            return [None if path in absent else path for path in paths]  # what is there is checked as well
        return [None] * len(paths)
