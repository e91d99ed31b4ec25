"""Masks of COCO, drawn from polygons and run lengths by one of two published conventions.

pycocotools rasterizes a polygon; which annotation a pixel belongs to is decided here (PARITY.md section 10).
`overlap` area: annotations by ascending area, the first to claim a pixel keeps it, so the smallest is on top; equal
areas in the file's order. order: in the file's order, the last one wins. `crowd` class: drawn like any other;
background: not drawn; ignore: drawn as 255.
"""

from __future__ import annotations

import marshal
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np

from seam_dist.config.schema import IGNORE_INDEX
from seam_dist.data.images import BadImageError

# Runs of equal values are all that a mask has: a fifth of the time of the default, and a little larger.
_PNG_OPTIONS = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_COMPRESSION, 1)
_HUNDREDTHS = 100.0  # COCO's coordinates have two decimals


def has_outline(entry: Mapping[str, Any]) -> bool:
    """Return whether an annotation says which pixels it has; detection and keypoints leave that out."""
    outline = entry.get("segmentation")
    return isinstance(outline, Mapping) or bool(outline and outline != [[]])


def pack_annotation(entry: Mapping[str, Any], size: tuple[int, int]) -> bytes:
    """Return the category, area, crowd flag and outline of an annotation in few bytes, for `draw_mask`.

    Raises KeyError, TypeError or ValueError for an entry that cannot be drawn.
    """
    outline = entry["segmentation"] if has_outline(entry) else []
    parts: list[tuple[str, bytes]] = []
    if isinstance(outline, Mapping):
        if tuple(outline["size"]) != size:
            raise ValueError(f"its run lengths are for {tuple(outline['size'])} pixels, its image has {size}")
        counts = outline["counts"]
        if isinstance(counts, str):
            parts.append(("rle", counts.encode("ascii")))
        else:
            runs = np.asarray(counts, np.int64)
            if runs.ndim != 1 or (runs < 0).any() or runs.sum() != size[0] * size[1]:
                raise ValueError(f"its run lengths add up to {runs.sum()}, expected {size[0]} x {size[1]} pixels")
            parts.append(("runs", runs.astype(np.uint32).tobytes()))
    else:
        for polygon in outline:
            if not isinstance(polygon, list | tuple) or any(isinstance(number, list) for number in polygon):
                raise ValueError("its segmentation is not a list of polygons, each a list of x, y, x, y, ...")
            points = np.asarray(polygon, np.float64)
            if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
                raise ValueError(f"a polygon has {points.size} numbers, expected an even number of at least 6")
            whole = np.rint(points * _HUNDREDTHS)
            if whole.min() >= 0 and whole.max() <= 65_535 and np.array_equal(whole / _HUNDREDTHS, points):
                parts.append(("u2", whole.astype(np.uint16).tobytes()))  # a quarter of the memory, and exact
            else:
                parts.append(("f8", points.tobytes()))
    area, crowd = entry.get("area"), int(entry.get("iscrowd") or 0)
    return marshal.dumps((int(entry["category_id"]), None if area is None else float(area), crowd != 0, parts))


def draw_mask(
    annotations: Sequence[bytes],
    size: tuple[int, int],
    ids: Mapping[int, int],
    overlap: Literal["area", "order"],
    crowd: Literal["class", "background", "ignore"],
) -> bytes:
    """Return the mask of an image of `size` (height, width) as gray PNG; `ids` are category id -> class index."""
    entries = [marshal.loads(packed) for packed in annotations]
    if overlap == "area" and len(entries) > 1 and any(entry[1] is None for entry in entries):
        entries = [(entry[0], _num_pixels(entry[3], size), *entry[2:]) for entry in entries]
    if overlap == "area":
        # The largest is painted first; of equal areas the first of the file comes last, so that it keeps the pixel.
        entries = sorted(entries, key=lambda entry: entry[1])[::-1]
    mask = np.zeros(size, np.uint8, order="F")  # run lengths go down the columns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools and NumPy 2, once an annotation
        for category, _, is_crowd, parts in entries:
            if is_crowd and crowd == "background":
                continue
            _paint(mask, parts, IGNORE_INDEX if is_crowd and crowd == "ignore" else ids[category])
    return bytes(cv2.imencode(".png", np.ascontiguousarray(mask), _PNG_OPTIONS)[1])


def _paint(mask: Any, parts: Sequence[tuple[str, bytes]], value: int) -> None:
    """Set the pixels of an annotation; raise BadImageError when its run lengths do not fit the mask."""
    x, y, inside = _region(parts, mask.shape)
    h, w = inside.shape
    np.copyto(mask[y : y + h, x : x + w], value, where=inside)


def _num_pixels(parts: Sequence[tuple[str, bytes]], size: tuple[int, int]) -> int:
    """Return the area of an annotation that does not say it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return int(_region(parts, size)[2].sum())


def _region(parts: Sequence[tuple[str, bytes]], size: tuple[int, int]) -> tuple[int, int, Any]:
    """Return the corner (x, y) of an annotation's box and which pixels of the box it covers; raise BadImageError."""
    from pycocotools import mask as coco

    height, width = size
    polygons, runs = [], []
    for form, data in parts:
        if form == "u2":
            polygons.append((np.frombuffer(data, np.uint16) / _HUNDREDTHS).tolist())
        elif form == "f8":
            polygons.append(np.frombuffer(data, np.float64).tolist())
        elif form == "runs":
            counts = {"counts": np.frombuffer(data, np.uint32).tolist(), "size": [height, width]}
            runs.append(coco.frPyObjects(counts, height, width))
        else:
            runs.append({"counts": data, "size": [height, width]})
    try:
        region = coco.merge([*runs, *(coco.frPyObjects(polygons, height, width) if polygons else [])])
        x, y, w, h = (int(side) for side in coco.toBbox(region))
        return x, y, coco.decode(region)[y : y + h, x : x + w].view(bool)
    except (ValueError, TypeError, IndexError) as error:
        raise BadImageError(f"an annotation cannot be drawn ({error}): download the annotations again") from None
