"""Ready-made masks of COCO by others: index PNGs that hold COCO's own ids (91) or class indices (81), told apart.

Reading masks of one sort as the other gives a few percent of mIoU and no error, a common accident.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from seam_dist.config.findings import Findings
from seam_dist.config.schema import IGNORE_INDEX
from seam_dist.data.images import BadImageError
from seam_dist.data.masks import decode_mask
from seam_dist.data.sources.base import SourceError
from seam_dist.data.sources.coco_json import Instances, image_number

_NUM_PROBED = 200  # masks that are opened to see which ids they hold


class ReadyMask(NamedTuple):
    """One mask: its file, and how its bytes are read with class indices."""

    path: Path
    read: Callable[[], bytes]


def ready_made_masks(
    masks: Path, split: str, chosen: Sequence[int], instances: Instances, ids: Mapping[int, int], findings: Findings
) -> dict[int, ReadyMask]:
    """Return the masks of images by image id, from the folder `masks`, or SPLIT in it.

    Names may be 42.png, 000000000042.png or COCO_train2014_000000000042.png. Adds an error for each missing mask.
    Raises SourceError when the folder is missing, or when the masks hold neither COCO's ids nor class indices.
    """
    folder = masks / split if (masks / split).is_dir() else masks
    if not folder.is_dir():
        text = f"source.masks={folder} is not a folder"
        raise SourceError(f"{text}: give the folder of the masks, or unset it to draw them")
    paths = {image_number(entry.name): Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(".png")}
    by_image = {image: paths.get(image_number(instances.images[image][0])) for image in chosen}
    for image, path in by_image.items():
        if path is None:
            name = instances.images[image][0]
            findings.error("mask-missing", f"image {name} has no mask in {folder}: add it, or unset source.masks")
    there = {image: path for image, path in by_image.items() if path is not None}
    raw = sorted(ids) != sorted(ids.values()) and _hold_category_ids(there, instances, ids)
    if not raw:
        return {image: ReadyMask(path, path.read_bytes) for image, path in there.items()}
    sizes = {image: instances.images[image][1:] for image in there}
    return {image: ReadyMask(path, partial(_translate, path, ids, sizes[image])) for image, path in there.items()}


def _hold_category_ids(masks: Mapping[int, Path], instances: Instances, ids: Mapping[int, int]) -> bool:
    """Return whether masks hold category ids rather than class indices, by what agrees with the image labels."""
    agree = {"category ids": 0, "class indices": 0}
    num_filled = 0
    for image in list(masks)[:: max(1, len(masks) // _NUM_PROBED)]:
        height, width = instances.images[image][1:]
        try:
            values = set(np.unique(decode_mask(masks[image].read_bytes(), max_pixels=height * width)).tolist())
        except (BadImageError, OSError):
            continue  # conversion names it
        present = instances.classes.get(image, set())
        values -= {0, IGNORE_INDEX}
        num_filled += bool(values)
        agree["category ids"] += bool(values) and values <= present
        agree["class indices"] += bool(values) and values <= {ids[category] for category in present}
    if 2 * max(agree.values()) < num_filled:
        raise SourceError(
            f"the masks in {next(iter(masks.values())).parent} fit the image labels neither as COCO's category ids (in "
            f"{agree['category ids']} of {num_filled} masks) nor as class indices ({agree['class indices']}): they "
            "belong to other images or another list of classes; unset source.masks to draw them"
        )
    return agree["category ids"] > agree["class indices"]


def _translate(path: Path, ids: Mapping[int, int], size: tuple[int, int]) -> bytes:
    """Return a mask of category ids as gray PNG of class indices; raise BadImageError for an id that is not used."""
    mask = decode_mask(path.read_bytes(), max_pixels=size[0] * size[1])
    table = np.full(256, -1, np.int16)
    table[[0, IGNORE_INDEX, *ids]] = [0, IGNORE_INDEX, *ids.values()]
    indices = table[mask]
    if (indices < 0).any():
        raise BadImageError(f"it holds the value {mask[indices < 0][0]}, which is no category id of the annotations")
    return bytes(cv2.imencode(".png", indices.astype(np.uint8))[1])
