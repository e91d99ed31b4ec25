"""Plain folders of images: what lies in the folders of images and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from case import Case, Outcome
from small_sets import HEADING, LABELS, TABLE, Run, folder_set

from seam_dist.data.sources.folder import FolderSource


def image_folder(fault: str, run: Sequence[str] | Run, **outcome: Any) -> Case:
    """A row by the files that lie there as well, or by all that is made."""
    return Case("images", fault, run if callable(run) else folder_set(files=run), **outcome)


def mask_folder(fault: str, run: Sequence[str] | Run, **outcome: Any) -> Case:
    """A row by the files that lie there as well, or by all that is made."""
    return Case("masks", fault, run if callable(run) else folder_set(files=run), **outcome)


def _has_masks(root: Path) -> Outcome:
    folder_set(files=["masks/train/a.png", "masks/train/b.png"])(root)
    listing = FolderSource(root).listing("train")
    return Outcome([record.mask is not None for record in listing.records], [])


CASES = [
    image_folder(
        "what desktops leave behind",
        [f"images/train/{name}" for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini")],
        works=LABELS,
    ),
    image_folder(
        "files that are no images",
        ["images/train/notes.txt", "images/train/list.csv"],
        works=LABELS,
        warns=r"list\.csv is no image by its name, so it is left out.*\(2 such cases\)",
    ),
    image_folder(
        "a folder of images between images",
        ["images/train/old/c.jpg"],
        works=LABELS,
        warns=r"images/train/old is a folder, so it is left out",
    ),
    image_folder(
        "a folder a class",
        folder_set(images=(), files=["images/train/cat/1.jpg"]),
        refused=r"has no images, but its folder 'cat' has: move them",
    ),
    image_folder(
        "an image without a suffix, with its row",
        folder_set(images=["a", "b.jpg"], table=TABLE.replace("a.jpg", "a")),
        works={"a": (1,), "b.jpg": (2, 3)},
    ),
    image_folder(
        "one stem, two formats",
        folder_set(images=["a.jpg", "a.png"], table=HEADING + ("a.jpg,train,cat\na.png,train,cat\n")),
        refused=r"a\.jpg and a\.png have the same key 'a'",
    ),
    image_folder("no image", folder_set(images=()), refused=r"split 'train' is empty"),
    mask_folder("all there, and what desktops leave behind", _has_masks, works=[True, True]),
    mask_folder(
        "one is missing",
        ["masks/train/a.png", "masks/train/.b.png"],
        refused=r"b\.jpg has no mask .*masks/train/b\.png: add it, or remove .*masks/train if masks",
    ),
    mask_folder(
        "the ending .PNG",
        ["masks/train/a.PNG", "masks/train/b.PNG"],
        refused=r"a\.jpg has no mask .*a\.png, but there is 'a\.PNG': rename it \(2 such cases\)",
    ),
    mask_folder(
        "the ending _mask",
        ["masks/train/a.png", "masks/train/b_mask.png"],
        refused=r"b\.jpg has no mask .*, but there is 'b_mask\.png': rename it$",
    ),
    mask_folder(
        "the ending -GT", ["masks/train/a-GT.png", "masks/train/b-GT.png"], refused=r"there is 'a-GT\.png': rename it"
    ),
    mask_folder(
        "a JPEG",
        ["masks/train/a.jpg", "masks/train/b.png"],
        refused=r"a\.jpg has no mask .*a\.png, but there is 'a\.jpg'",
    ),
    mask_folder(
        "a mask of no image",
        [f"masks/train/{name}.png" for name in "abc"],
        works=LABELS,
        warns=r"c\.png is the mask of no image in split 'train'",
    ),
    mask_folder(
        "no folder of the split",
        ["masks/a.png", "masks/b.png"],
        works=LABELS,
        warns=r"masks/a\.png is not used, the masks of split 'train' "
        r"are expected in .*masks/train: move them \(2 such cases\)",
    ),
    mask_folder("the folder in another case", ["masks/Train/a.png"], works=LABELS, warns=r"masks/Train is not used"),
    mask_folder(
        "the folder of all masks in another case",
        ["Masks/train/a.png", "Masks/train/b.png"],
        works=LABELS,
        warns=r"Masks is not used, masks are expected in \S+/masks: rename it",
    ),
]
