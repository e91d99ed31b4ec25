"""Seeded synthetic scenes with exact masks: any number of images and classes, no data set on disk.

Designed for the case that SEAM addresses. An object is one coherent body (color, texture and outline are random and
independent of the class) with a small head that carries the pattern of the class. A classifier needs the head only, so
a plain CAM is high there; only common color and texture connect the body to it. Backgrounds hold bodies without a head,
so that a body is no evidence either.

Image i of a split depends on (seed, split, i) and on nothing else: images can be drawn in any order and by any number
of processes, and a larger split begins with the images of a smaller one.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

import cv2
import numpy as np
import simplejpeg

from seam_dist.config.schema import SourceConfig
from seam_dist.data.sources import synthetic_shapes as shapes
from seam_dist.data.sources.base import Listing, Record, SourceError, make_key
from seam_dist.data.sources.synthetic_shapes import Bools, Bytes, Float, Layer

_JPEG_QUALITY: Final = 92
_SHORT_SIDES: Final = (0.66, 0.75, 0.75, 0.75, 0.75, 0.89, 1.0)  # of the long side; few, so that sizes repeat as in VOC
_SMALLEST: Final = 32  # pixels; below that an object has no room for its parts
_MIN_VISIBLE: Final = 0.5  # share of an object, and of its head, that later objects leave uncovered


@dataclass(frozen=True)
class SyntheticSource:
    """A data set that is drawn on demand: `cfg.num_images[k]` images in `splits[k]`, all with labels and masks."""

    cfg: SourceConfig
    splits: Sequence[str]

    def __post_init__(self) -> None:
        if min(self.cfg.image_size) < _SMALLEST:
            text = f"source.image_size={self.cfg.image_size} has a side below {_SMALLEST} pixels"
            raise SourceError(f"{text}: enlarge it")

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the foreground classes: the head's pattern, numbered from its second color on."""
        names, count = list(shapes.PATTERNS), len(shapes.PATTERNS)
        ids = range(self.cfg.num_classes)
        return tuple(names[c % count] + (f"-{c // count + 1}" if c >= count else "") for c in ids)

    def listing(self, split: str) -> Listing:
        """Return the records of a split; none is drawn before it is loaded. Raises SourceError for a wrong split."""
        num_images = dict(zip(self.splits, self.cfg.num_images, strict=True)).get(split)
        if num_images is None:
            raise SourceError(f"split {split!r} is not one of {list(self.splits)}: add it to data.splits")
        if num_images < 1:
            raise SourceError(f"split {split!r} is empty: set source.num_images to at least 1 for it")
        return Listing([self._record(split, index) for index in range(num_images)])

    def _record(self, split: str, index: int) -> Record:
        cfg, name = self.cfg, f"{split}_{index:06d}"
        scene = (index, split, cfg.seed, cfg.num_classes, cfg.image_size)
        classes = tuple(sorted(set(_plan_objects(index, split, cfg.seed, cfg.num_classes))))
        return Record(make_key(name), name, classes, partial(_jpeg, *scene), partial(_png, *scene))


def _jpeg(*scene: Any) -> bytes:
    jpeg: bytes = simplejpeg.encode_jpeg(draw_scene(*scene)[0], quality=_JPEG_QUALITY)
    return jpeg


def _png(*scene: Any) -> bytes:
    return bytes(cv2.imencode(".png", draw_scene(*scene)[1])[1])


def _plan_objects(index: int, split: str, seed: int, num_classes: int) -> list[int]:
    """Return the class of each object of an image, back to front, without drawing it."""
    stream = zlib.crc32(split.encode())
    rng = random.Random(f"{seed}/{split}/{index}")
    # The first class cycles, so that even a small split holds all of them.
    classes = [(index + stream + seed) % num_classes + 1]
    for _ in range(rng.choices((0, 1, 2), (0.5, 0.35, 0.15))[0]):
        classes.append(classes[0] if rng.random() < 0.25 else rng.randrange(num_classes) + 1)
    return classes


@lru_cache(maxsize=2)  # a record's image and mask are loaded one after the other
def draw_scene(index: int, split: str, seed: int, num_classes: int, image_size: tuple[int, int]) -> tuple[Bytes, Bytes]:
    """Draw image `index` of a split: 1-3 objects, some of them partly hidden, on a cluttered background.

    `image_size` is the median width and height in pixels; a quarter of the images are rotated by a right angle.
    Returns the image (H, W, 3) uint8 RGB and its mask (H, W) uint8, 0 for background.
    """
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    size = height, width = _draw_size(rng, image_size)
    image = shapes.draw_background(rng, height, width)
    light = rng.uniform(0, 2 * math.pi)
    short_side = min(size)
    for _ in range(int(rng.integers(0, 3))):
        extent = short_side * rng.uniform(0.12, 0.45)
        layer = shapes.draw_object(rng, extent, size, 0, light, shapes.random_color(rng))
        _paste(image, layer, _draw_corner(rng, layer, size))

    mask = np.zeros(size, np.uint8)
    parts: list[tuple[Bools, int]] = []  # of each object and each head the visible pixels, and how many there were
    for class_id in _plan_objects(index, split, seed, num_classes):
        smallest = 0.15 if parts else 0.3
        extent = short_side * (smallest + (0.7 - smallest) * rng.random() ** 0.8)
        corner = None
        while corner is None:  # ends: a small object hides no more than is allowed at nearly every place
            layer = shapes.draw_object(rng, extent, size, class_id, light, shapes.contrasting_color(rng, image))
            corner = _find_corner(rng, layer, parts, size)
            extent = max(0.8 * extent, 0.15 * short_side)
        visible, head = _paste(image, layer, corner)
        for part, _ in parts:
            part &= ~visible
        parts += [(part, int(np.count_nonzero(part))) for part in (visible, head)]
        mask[visible] = class_id
    picture = shapes.develop(rng, image)
    for array in (picture, mask):
        array.setflags(write=False)  # the cache hands the same arrays to every caller
    return picture, mask


def _draw_size(rng: np.random.Generator, image_size: tuple[int, int]) -> tuple[int, int]:
    long_side, median_short = max(image_size), min(image_size)
    if rng.random() < 0.2:
        long_side = round(long_side * rng.uniform(0.8, 1.0))
    ratio = float(rng.choice(_SHORT_SIDES)) * (median_short / max(image_size)) / 0.75
    short_side = max(round(min(ratio, 1.0) * long_side), 1)
    portrait = (rng.random() < 0.25) != (image_size[0] < image_size[1])
    return (long_side, short_side) if portrait else (short_side, long_side)


def _draw_corner(rng: np.random.Generator, layer: Layer, size: tuple[int, int]) -> tuple[int, int]:
    """Return a top left corner at which the layer lies within the image."""
    height, width = layer.alpha.shape
    return int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))


def _covered_window(layer: Layer, corner: tuple[int, int]) -> tuple[slice, slice]:
    (y, x), (height, width) = corner, layer.alpha.shape
    return slice(y, y + height), slice(x, x + width)


def _find_corner(
    rng: np.random.Generator, layer: Layer, parts: Sequence[tuple[Bools, int]], size: tuple[int, int]
) -> tuple[int, int] | None:
    """Return a corner for the layer that leaves enough of every earlier object and head visible, or None."""
    covered = layer.alpha >= 0.5
    for _ in range(8):
        corner = _draw_corner(rng, layer, size)
        window = _covered_window(layer, corner)
        if all(
            np.count_nonzero(part) - np.count_nonzero(part[window] & covered) >= _MIN_VISIBLE * area
            for part, area in parts
        ):
            return corner
    return None


def _paste(image: Float, layer: Layer, corner: tuple[int, int]) -> tuple[Bools, Bools]:
    """Blend a layer and its soft shadow into the image in place; return the masks (H, W) of the object and its head."""
    window = _covered_window(layer, corner)
    soft = cv2.GaussianBlur(layer.alpha, (0, 0), max(1.0, layer.alpha.shape[0] / 25))
    ground = image[window] * shapes.repeat_rgb(1 - 0.35 * soft)
    image[window] = ground + shapes.repeat_rgb(layer.alpha) * (layer.color - ground)
    visible, head = np.zeros((2, *image.shape[:2]), bool)
    visible[window] = layer.alpha >= 0.5
    head[window] = layer.head
    return visible, head
