"""COCO on disk: `root` holds the image folders and annotations/instances_SPLIT.json, for example SPLIT train2014.

Image-level labels are the categories of all annotations of an image, crowd included, numbered by ascending category id
(COCO: 91 ids, 80 of them used). Masks are drawn from the annotations (coco_masks.py) or taken from a folder of
ready-made ones. PARITY.md section 10 has the conventions of published work.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from seam_dist.config.findings import Findings
from seam_dist.config.schema import SourceConfig
from seam_dist.data.sources import base
from seam_dist.data.sources.base import Listing, Record, SourceError, make_key, require_folder
from seam_dist.data.sources.coco_json import Instances, image_number, read_instances
from seam_dist.data.sources.coco_masks import draw_mask
from seam_dist.data.sources.coco_ready_masks import ready_made_masks
from seam_dist.data.sources.names import ImageNames, clean

_YEAR = re.compile(r"(2014|2017)$")


@dataclass(frozen=True)
class CocoSource:
    """Reader of COCO 2014 and 2017, and of other data sets in their layout."""

    cfg: SourceConfig
    splits: Sequence[str]

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the category names of the first split's instances file, by ascending category id."""
        return tuple(name for _, name in sorted(self._instances(self.splits[0]).categories.items()))

    @cached_property
    def root(self) -> Path:
        """Return the folder of the data set; raise SourceError when it is none, or for splits of both years."""
        assert self.cfg.root is not None
        years = {match[0] for split in self.splits if (match := _YEAR.search(split))}
        if len(years) > 1:
            raise SourceError(
                f"data.splits={list(self.splits)} mix COCO {' and '.join(sorted(years))}, whose images overlap "
                "(train2017 holds most of val2014): take the splits of one year"
            )
        require_folder(
            self.cfg.root / "annotations", what="annotation folder", remedy="set source.root to COCO's folder"
        )
        return self.cfg.root

    def _instances(self, split: str) -> Instances:
        path = self.root / "annotations" / f"instances_{split}.json"
        if not path.is_file():
            there = sorted(file.stem.removeprefix("instances_") for file in path.parent.glob("instances_*.json"))
            raise SourceError(f"{path} is missing, found {', '.join(there) or 'none'}: add it or change data.splits")
        status = path.stat()
        return read_instances(path, status.st_size, status.st_mtime_ns)

    def listing(self, split: str) -> Listing:
        """Return the images of a split by ascending id: source.image_list says which of them."""
        instances = self._instances(split)
        findings = Findings()
        findings.merge(instances.findings)
        names = [name for _, name in sorted(instances.categories.items())]
        if tuple(names) != self.classes:
            text = f"the categories of {split} differ from those of {self.splits[0]}"
            findings.error("categories", f"{text}: use files of one data set")
        places = [self.root / split, self.root / "images" / split]
        folder = next((place for place in places if place.is_dir()), places[0])
        require_folder(folder, what="image folder", remedy=f"unpack the images of {split} there")
        on_disk = ImageNames(entry.name for entry in os.scandir(folder))
        ids = {category: index for index, category in enumerate(sorted(instances.categories), start=1)}
        chosen = self._chosen(split, instances, findings)
        masks = ready_made_masks(self.cfg.masks, split, chosen, instances, ids, findings) if self.cfg.masks else None
        records = []
        for image_id in chosen:
            written, height, width = instances.images[image_id]
            matched = on_disk.matches(written)
            if len(matched) != 1:
                _report_missing(folder, written, matched, findings)
                continue
            name = matched[0]
            mask = masks.get(image_id) if masks is not None else None
            packed = tuple(instances.annotations.get(image_id, ()))
            draw = partial(draw_mask, packed, (height, width), ids, self.cfg.overlap, self.cfg.crowd)
            content = hashlib.sha256(b"".join(packed))
            content.update(f"{self.cfg.overlap} {self.cfg.crowd}".encode())
            records.append(
                Record(
                    key=make_key(Path(name).stem),
                    source_id=Path(name).stem,
                    classes=tuple(sorted(ids[category] for category in instances.classes.get(image_id, ()))),
                    image=(folder / name).read_bytes,
                    mask=(mask.read if mask else None)
                    if masks is not None
                    else draw
                    if instances.has_outlines
                    else None,
                    files=(folder / name,) if mask is None else (folder / name, mask.path),
                    content=content.hexdigest() if masks is None else "",
                )
            )
        if not chosen and self.cfg.image_list == "annotated" and not findings.errors:
            findings.error(
                "no-annotations",
                f"{folder}: none of the {len(instances.images)} images of split {split!r} has an annotation: correct "
                "its instances file, or set source.image_list=all",
            )
        if records or not findings.errors:
            records = base.unique_records(split, records, findings, where=str(folder))
        return Listing(records, findings)

    def _chosen(self, split: str, instances: Instances, findings: Findings) -> list[int]:
        """Return the ids of the images that source.image_list asks for, ascending."""
        if self.cfg.image_list == "all":
            return sorted(instances.images)
        if self.cfg.image_list == "annotated":
            return sorted(image for image in instances.images if instances.classes.get(image))
        path = Path(self.cfg.image_list.replace("{split}", split))
        by_number = {image_number(name): image_id for image_id, (name, _, _) in instances.images.items()}
        chosen: dict[int, None] = {}
        remedy = "set source.image_list to annotated, all or a file of names"
        for line, text in enumerate(map(clean, base.read_lines(path, remedy=remedy)), start=1):
            if not text:
                continue
            image_id = by_number.get(image_number(text))
            if image_id is None:
                what = f"{path}, line {line}: {text!r} is no image of {split}"
                findings.error("list-unknown", f"{what}: remove it")
            elif image_id in chosen:
                what = f"{path}, line {line}: {text!r} is listed twice"
                findings.warning("list-twice", f"{what}: it is taken once")
            else:
                chosen[image_id] = None
        return sorted(chosen)


def _report_missing(folder: Path, written: str, matched: Sequence[str], findings: Findings) -> None:
    """Add the error on an image that no file of the folder is, or more than one."""
    hint = f" (there is {' and '.join(map(repr, matched))})" if matched else ""
    if not matched and not any(finding.topic == "image-missing" for finding in findings):  # the first has the text
        inner = next(folder.glob(f"*/{glob.escape(written)}"), None)
        hint = f" (but {inner} is there: move the images to {folder})" if inner else ""
    findings.error("image-missing", f"{folder / written} is missing but listed{hint}: unpack the images again")
