"""A plain folder of images.

    classes.txt               one foreground class a line, in index order
    labels.csv                header `image,split,classes`; class names separated by `;`, none for an empty image
    images/<split>/NAME.*     any format that Pillow reads
    masks/<split>/NAME.png    class indices (gray or palette), 0 background, 255 ignored; optional, all or none a split

Masks are in the orientation in which the image is displayed, that is after its EXIF rotation. A split without any row
in labels.csv has no image-level labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from seam_dist.config.findings import Findings
from seam_dist.data.sources.base import Listing, Record, SourceError, make_key, require_folder, unique_records
from seam_dist.data.sources.class_list import read_class_list
from seam_dist.data.sources.folder_files import list_images, list_masks
from seam_dist.data.sources.folder_labels import LabelTable, match_labels
from seam_dist.data.sources.names import ClassNames, list_folder


@dataclass(frozen=True)
class FolderSource:
    """Reader of a plain folder; `root` holds classes.txt, labels.csv, images/ and, where they exist, masks/."""

    root: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the foreground class names of classes.txt; raise SourceError when they cannot be used."""
        classes, findings = self._class_list
        findings.raise_errors(SourceError)
        return classes

    @cached_property
    def _class_list(self) -> tuple[tuple[str, ...], Findings]:
        require_folder(self.root, what="data set", remedy="set source.root to the folder that holds classes.txt")
        findings = Findings()
        return read_class_list(self.root / "classes.txt", findings), findings

    @cached_property
    def _table(self) -> LabelTable:
        return LabelTable(self.root / "labels.csv", list_folder(self.root / "images"))

    def listing(self, split: str) -> Listing:
        """Return the images of images/<split> by name; the findings say what does not fit labels.csv and masks/."""
        classes, class_findings = self._class_list  # first: its error names the folder when that is missing
        table, findings = self._table, Findings()
        findings.merge([*class_findings, *table.findings])
        remedy = f"put the images of split {split!r} there or change data.splits"
        folder = require_folder(self.root / "images" / split, what="image folder", remedy=remedy)
        images = list_images(folder, table.images(split), findings)
        labels = match_labels(table, split, images, ClassNames(classes), findings) if images else {}
        masks = list_masks(self.root / "masks", split, images, findings)
        records = [
            Record(
                key=make_key(path.stem),
                source_id=path.name,
                classes=None if labels is None else labels.get(path.name, ()),
                image=path.read_bytes,
                mask=masks[path.name].read_bytes if path.name in masks else None,
                files=(path, *((masks[path.name],) if path.name in masks else ())),
            )
            for path in images
            if labels is None or path.name in labels
        ]
        if not images or records:
            records = unique_records(split, records, findings, where=str(folder))
        return Listing(records, findings)
