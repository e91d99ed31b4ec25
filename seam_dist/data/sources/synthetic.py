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
from typing import Any, Final, overload

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from seam_dist.data.sources.base import Record, SourceError, make_key
from seam_dist.data.sources.synthetic_shapes import (
    PATTERNS,
    Bytes,
    Float,
    Layer,
    contrasting_color,
    develop,
    draw_background,
    draw_object,
    random_color,
    repeat_rgb,
)

_JPEG_QUALITY: Final = 92
_SHORT_SIDES: Final = (0.66, 0.75, 0.75, 0.75, 0.75, 0.89, 1.0)  # of the long side; few, so that sizes repeat as in VOC
_SMALLEST: Final = 32  # pixels; below that an object has no room for its parts
_MIN_VISIBLE: Final = 0.5  # share of an object, and of its head, that later objects leave uncovered


@dataclass(frozen=True)
class Scene:
    """One drawn image: `image` (H, W, 3) uint8 RGB, `mask` (H, W) uint8, 0 for background, `classes` ids from 1."""

    image: Bytes
    mask: Bytes
    classes: tuple[int, ...]


class SyntheticSource:
    """A data set that is drawn on demand: `num_images[k]` images in `splits[k]`, all of them with labels and masks."""

    def __init__(
        self,
        splits: Sequence[str] = ("train", "val"),
        num_images: Sequence[int] = (240, 60),
        num_classes: int = 4,
        image_size: tuple[int, int] = (256, 192),
        seed: int = 0,
    ) -> None:
        if len(splits) != len(num_images):
            raise SourceError(f"num_images has {len(num_images)} entries for {len(splits)} splits: give one each")
        if not 1 <= num_classes <= 254:
            raise SourceError(
                f"num_classes={num_classes} is not in 1..254, the ids that a one-byte mask can hold: change it"
            )
        if min(image_size) < _SMALLEST:
            raise SourceError(f"image_size={tuple(image_size)} has a side below {_SMALLEST} pixels: enlarge it")
        self._num_images = dict(zip(splits, num_images, strict=True))
        self._num_classes = num_classes
        self._image_size = (int(image_size[0]), int(image_size[1]))
        self._seed = seed

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the foreground classes: the head's pattern, numbered from its second color on."""
        count = len(PATTERNS)
        ids = range(self._num_classes)
        return tuple(PATTERNS[c % count] + (f"-{c // count + 1}" if c >= count else "") for c in ids)

    def records(self, split: str) -> Sequence[Record]:
        """Return the records of a split; none is drawn before it is loaded. Raises SourceError for a wrong split."""
        num_images = self._num_images.get(split)
        if num_images is None:
            raise SourceError(f"split {split!r} is not one of {list(self._num_images)}: add it to source.splits")
        if num_images < 1:
            raise SourceError(f"split {split!r} is empty: set source.num_images to at least 1 for it")
        return _Records(split, num_images, self._seed, self._num_classes, self._image_size)


@dataclass(frozen=True)
class _Records(Sequence[Record]):
    """The records of a split, built one by one, so that a large split costs no memory."""

    split: str
    num_images: int
    seed: int
    num_classes: int
    image_size: tuple[int, int]

    def __len__(self) -> int:
        return self.num_images

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        name = f"{self.split}_{index:06d}"
        scene = (index, self.split, self.seed, self.num_classes, self.image_size)
        classes = tuple(sorted(set(_plan(index, self.split, self.seed, self.num_classes))))
        return Record(make_key(name), name, classes, partial(_jpeg, *scene), partial(_png, *scene))


def _jpeg(*scene: Any) -> bytes:
    jpeg: bytes = simplejpeg.encode_jpeg(draw_scene(*scene).image, quality=_JPEG_QUALITY)
    return jpeg


def _png(*scene: Any) -> bytes:
    return bytes(cv2.imencode(".png", draw_scene(*scene).mask)[1])


def _plan(index: int, split: str, seed: int, num_classes: int) -> list[int]:
    """Return the class of each object of an image, back to front, without drawing it."""
    stream = zlib.crc32(split.encode())
    rng = random.Random(f"{seed}/{split}/{index}")
    # The first class cycles, so that even a small split holds all of them.
    classes = [(index + stream + seed) % num_classes + 1]
    for _ in range(rng.choices((0, 1, 2), (0.5, 0.35, 0.15))[0]):
        classes.append(classes[0] if rng.random() < 0.25 else rng.randrange(num_classes) + 1)
    return classes


@lru_cache(maxsize=2)  # a record's image and mask are loaded one after the other
def draw_scene(
    index: int, split: str = "train", seed: int = 0, num_classes: int = 4, image_size: tuple[int, int] = (256, 192)
) -> Scene:
    """Draw image `index` of a split: 1-3 objects, some of them partly hidden, on a cluttered background.

    `image_size` is the median width and height in pixels; a quarter of the images are rotated by a right angle.
    """
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    height, width = _draw_size(rng, image_size)
    image = draw_background(rng, height, width)
    light = rng.uniform(0, 2 * math.pi)
    short_side = min(height, width)
    for _ in range(int(rng.integers(0, 3))):
        _place_body(rng, image, short_side * rng.uniform(0.12, 0.45), light)

    mask = np.zeros((height, width), np.uint8)
    objects: list[_Object] = []
    for class_id in _plan(index, split, seed, num_classes):
        smallest = 0.15 if objects else 0.3
        size = short_side * (smallest + (0.7 - smallest) * rng.random() ** 0.8)
        place = None
        while place is None:  # ends: a small object hides no more than is allowed at nearly every place
            layer = draw_object(rng, size, (height, width), class_id, light, contrasting_color(rng, image))
            place = _find_place(rng, layer, objects, (height, width))
            size = max(0.8 * size, 0.15 * short_side)
        visible, head = _paste(image, layer, *place)
        for earlier in objects:
            earlier.visible &= ~visible
            earlier.head &= ~visible
        objects.append(_Object(visible, head, _count(visible), _count(head)))
        mask[visible] = class_id
    picture = develop(rng, image)
    for array in (picture, mask):
        array.setflags(write=False)  # the cache hands the same arrays to every caller
    return Scene(picture, mask, tuple(int(c) for c in np.unique(mask[mask > 0])))


def _draw_size(rng: np.random.Generator, image_size: tuple[int, int]) -> tuple[int, int]:
    long_side, median_short = max(image_size), min(image_size)
    if rng.random() < 0.2:
        long_side = round(long_side * rng.uniform(0.8, 1.0))
    ratio = float(rng.choice(_SHORT_SIDES)) * (median_short / max(image_size)) / 0.75
    short_side = max(round(min(ratio, 1.0) * long_side), 1)
    portrait = (rng.random() < 0.25) != (image_size[0] < image_size[1])
    return (long_side, short_side) if portrait else (short_side, long_side)


def _count(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))


@dataclass
class _Object:
    """The visible pixels of an object and of its head, and their areas before anything covered them, in pixels."""

    visible: NDArray[np.bool_]
    head: NDArray[np.bool_]
    area: int
    head_area: int


def _find_place(
    rng: np.random.Generator, layer: Layer, objects: Sequence[_Object], size: tuple[int, int]
) -> tuple[int, int] | None:
    """Return a top left corner for the layer that leaves enough of every earlier object visible, or None."""
    height, width = layer.alpha.shape
    solid = layer.alpha >= 0.5
    for _ in range(8):
        y, x = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        window = (slice(y, y + height), slice(x, x + width))
        if all(
            _count(earlier.visible) - _count(earlier.visible[window] & solid) >= _MIN_VISIBLE * earlier.area
            and _count(earlier.head) - _count(earlier.head[window] & solid) >= _MIN_VISIBLE * earlier.head_area
            for earlier in objects
        ):
            return y, x
    return None


def _paste(image: Float, layer: Layer, y: int, x: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Blend a layer and its soft shadow into the image in place; return the masks (H, W) of the object and its head."""
    height, width = layer.alpha.shape
    window = (slice(y, y + height), slice(x, x + width))
    soft = cv2.GaussianBlur(layer.alpha, (0, 0), max(1.0, height / 25))
    ground = image[window] * repeat_rgb(1 - 0.35 * soft)
    image[window] = ground + repeat_rgb(layer.alpha) * (layer.color - ground)
    visible = np.zeros(image.shape[:2], bool)
    head = np.zeros(image.shape[:2], bool)
    visible[window] = layer.alpha >= 0.5
    head[window] = layer.head
    return visible, head


def _place_body(rng: np.random.Generator, image: Float, size: float, light: float) -> None:
    """Draw a body without a head somewhere on the background, in place."""
    height, width = image.shape[:2]
    layer = draw_object(rng, size, (height, width), 0, light, random_color(rng))
    rows, columns = layer.alpha.shape
    _paste(image, layer, int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)))
