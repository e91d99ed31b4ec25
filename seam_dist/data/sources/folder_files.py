"""Image files and masks in the folders of a plain folder data set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from seam_dist.config.findings import Findings
from seam_dist.data.images import IMAGE_SUFFIXES
from seam_dist.data.sources.names import is_hidden, likely_mask, list_folder, normal_form


def list_images(folder: Path, listed: Collection[str], findings: Findings) -> list[Path]:
    """Return the image files of a folder by name: those with the suffix of a format, and those in `listed`.

    Hidden files are left out without a word, all else with a warning.
    """
    entries = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    images = [path for path in entries if path.is_file() and (_is_image(path) or path.name in listed)]
    others = sorted(set(entries) - set(images))
    inner = next((path for path in others if path.is_dir() and any(map(_is_image, path.iterdir()))), None)
    if inner is not None and not images:
        findings.error(
            "images-in-subfolder",
            f"{folder} has no images, but its folder {inner.name!r} has: move them to {folder} and write their classes "
            "to labels.csv",
        )
    elif others:
        other = inner or others[0]
        what = "a folder" if other.is_dir() else "no file" if not other.is_file() else "no image by its name"
        findings.warning(
            "not-an-image",
            f"{other} is {what}, so it is left out: move it elsewhere, or give it the suffix of an image format",
            count=len(others),
        )
    return images


def list_masks(root: Path, split: str, images: Sequence[Path], findings: Findings) -> dict[str, Path]:
    """Return image name -> mask file; empty where there is no folder of masks, else an error counts missing ones."""
    folder = root / split
    if not folder.is_dir():
        named = [name for name in list_folder(root.parent) if normal_form(name) == root.name and name != root.name]
        if named and not root.is_dir():
            findings.warning(
                "mask-folder", f"{root.parent / named[0]} is not used, masks are expected in {root}: rename it"
            )
        loose = [name for name in list_folder(root) if name.lower().endswith(".png") or name.lower() == split.lower()]
        if loose:
            findings.warning(
                "mask-folder",
                f"{root / loose[0]} is not used, the masks of split {split!r} are expected in {folder}: move them",
                count=len(loose),
            )
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
        findings.warning(
            "mask-without-image",
            f"{folder / spare[0]} is the mask of no image in split {split!r}: remove it, or add the image",
            count=len(spare),
        )
    return {name: folder / mask for name, mask in expected.items() if mask in present}


_MOST_COMPARED = 20


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path.name)
