"""A plain folder of images.

    classes.txt               one foreground class a line, in index order
    labels.csv                header `image,split,classes`; class names separated by `;`, none for an empty image
    images/<split>/NAME.*     any format that Pillow reads
    masks/<split>/NAME.png    class indices (gray or palette), 0 background, 255 ignored; optional, all or none a split

Masks are in the orientation in which the image is displayed, that is after its EXIF rotation. A split without any row
in labels.csv has no image-level labels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from seam_dist.config.findings import Findings
from seam_dist.data.images import IMAGE_SUFFIXES
from seam_dist.data.sources.base import Listing, Record, SourceError, make_key, require_folder, unique_records
from seam_dist.data.sources.class_list import read_class_list
from seam_dist.data.sources.folder_labels import LabelTable, match_labels
from seam_dist.data.sources.names import ClassNames, is_hidden, likely_mask, list_folder, normal_form

_MOST_COMPARED = 20  # images without a mask for which a file of another name is looked for


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
        images = _list_images(folder, {row.image for row in table.rows(split)}, findings)
        labels = match_labels(table, split, images, ClassNames(classes), findings) if images else {}
        masks = _list_masks(self.root / "masks", split, images, findings)
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


def _list_images(folder: Path, listed: Collection[str], findings: Findings) -> list[Path]:
    """Return the image files of a folder by name: those with the suffix of a format, and those in `listed`.

    Hidden files are left out without a word, all else with a warning.
    """
    entries = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    images = [path for path in entries if path.is_file() and (_is_image(path) or path.name in listed)]
    others = sorted(set(entries) - set(images))
    inner = next((path for path in others if path.is_dir() and any(map(_is_image, path.iterdir()))), None)
    if inner is not None and not images:
        text = f"{folder} has no images, but its folder {inner.name!r} has"
        findings.error("images-in-subfolder", f"{text}: move them to {folder} and write their classes to labels.csv")
    elif others:
        other = inner or others[0]
        what = "a folder" if other.is_dir() else "no file" if not other.is_file() else "no image by its name"
        text = f"{other} is {what}, so it is left out: move it elsewhere"
        findings.warning("not-an-image", f"{text}, or give it the suffix of an image format", count=len(others))
    return images


def _list_masks(root: Path, split: str, images: Sequence[Path], findings: Findings) -> dict[str, Path]:
    """Return image name -> mask file; empty where there is no folder of masks, else an error counts missing ones."""
    folder = root / split
    if not folder.is_dir():
        named = [name for name in list_folder(root.parent) if normal_form(name) == root.name and name != root.name]
        if named and not root.is_dir():
            text = f"{root.parent / named[0]} is not used, masks are expected in {root}"
            findings.warning("mask-folder", f"{text}: rename it")
        loose = [name for name in list_folder(root) if name.lower().endswith(".png") or name.lower() == split.lower()]
        if loose:
            text = f"{root / loose[0]} is not used, the masks of split {split!r} are expected in {folder}"
            findings.warning("mask-folder", f"{text}: move them", count=len(loose))
        return {}
    present = set(list_folder(folder))
    expected = {path.name: f"{path.stem}.png" for path in images}
    missing = [path for path in images if expected[path.name] not in present]
    spare = sorted(present - set(expected.values()))
    if missing:
        # The first image for which there is a hint tells more than the first image.
        twins = ((path, likely_mask(path.stem, spare)) for path in missing[:_MOST_COMPARED])
        image, twin = next(((path, twin) for path, twin in twins if twin), (missing[0], None))
        hint = f", but there is {twin!r}: rename it" if twin else f": add it, or remove {folder} if masks are not used"
        findings.error("mask-missing", f"{image} has no mask {folder / expected[image.name]}{hint}", count=len(missing))
    elif spare:
        text = f"{folder / spare[0]} is the mask of no image in split {split!r}"
        findings.warning("mask-without-image", f"{text}: remove it, or add the image", count=len(spare))
    return {name: folder / mask for name, mask in expected.items() if mask in present}


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path.name)
