"""The files of `seam-dist predict`: which images it takes, what it writes for each, and what is in the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from seam_dist.artifacts.outputs import OutputFolder, printable, why_not_writable
from seam_dist.config.phrases import count_of
from seam_dist.data.image_folder import ImageFolder, list_images
from seam_dist.data.images import IMAGE_SUFFIXES, BadImageError

_LONGEST_NAME = 255  # bytes
_ELSEWHERE = "give another --out"


def find_images(source: Path, out: Path, masks: Path | None = None) -> ImageFolder:
    """Return the images by their name in the output, `sub/folder/stem`; what is left out is said on standard error.

    Raises ValueError when there are no images, when two would have the same
    name, and when `out` is the folder of images, the folder of masks, or holds other images than those of the command.
    """
    outputs = OutputFolder(out)
    listed = list_images(source, "--images", outputs=[outputs], without=masks)
    inside, folder = out.resolve(), (source if source.is_dir() else source.parent).resolve()
    if inside == folder:
        raise ValueError(f"--out {printable(out)} is the folder of the images: {_ELSEWHERE}")
    if masks is not None and inside == masks.resolve():
        raise ValueError(f"--out {printable(out)} is the folder of --masks, which labels would replace: {_ELSEWHERE}")
    if folder in inside.parents and source.is_dir():
        root = source / inside.relative_to(folder)
        foreign = [path for path in listed.images.values() if root in path.parents]
        if foreign:
            number = count_of(len(foreign), "image", "images")
            raise ValueError(
                f"--out {printable(out)} lies in --images and holds {number} that seam-dist did not write, the first "
                f"{printable(foreign[0])}: {_ELSEWHERE}"
            )
    for note in listed.notes():
        complain(f"warning: --images {printable(source)}: {note}")
    for reason in listed.unreadable:
        complain(f"warning: folder {reason}, so its images are left out")
    if not listed.images:
        held = "; ".join(listed.notes()) or "it is empty"
        raise ValueError(
            f"--images {printable(source)} holds no {', '.join(IMAGE_SUFFIXES)} ({held}): give a folder of images"
        )
    return listed


def check_targets(images: Iterable[str], out: Path, overlay: bool) -> dict[str, list[str]]:
    """Return the names of the files that each image gets, by its own name.

    Raises OutputError when one is there that is not the command's, and ValueError when `out` cannot be written.
    """
    targets = {key: [f"{key}.png", f"{key}_overlay.jpg"][: 1 + overlay] for key in images}
    if not targets:
        return targets
    names = [name for own in targets.values() for name in own]
    files = set(names)
    for name in names:
        between = next((str(parent) for parent in Path(name).parents if str(parent) in files), None)
        if between is not None:
            raise ValueError(
                f"{printable(between)} would be the labels of one image and the folder of others: rename one"
            )
    outputs = OutputFolder(out)
    outputs.check((name for name in names if not _too_long(name)), remedy=_ELSEWHERE)
    if (reason := why_not_writable(out)) is not None:
        raise ValueError(f"--out {printable(out)} cannot be written to, {reason}: {_ELSEWHERE}")
    outputs.remove_abandoned(names)
    return targets


def check_name(names: Sequence[str]) -> None:
    """Raise BadImageError when one of the files of an image has a name that no file system takes."""
    if long := next(filter(_too_long, names), None):
        size = len(os.fsencode(Path(long).name))
        raise BadImageError(f"the name of its output has {size} bytes, at most {_LONGEST_NAME} are possible: rename it")


def _too_long(name: str) -> bool:
    return len(os.fsencode(Path(name).name)) > _LONGEST_NAME


def complain(text: str) -> None:
    """Say on standard error what is wrong or left out."""
    print(f"seam-dist predict: {text}", file=sys.stderr)
