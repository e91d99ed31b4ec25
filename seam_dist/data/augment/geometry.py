"""Geometry of training augmentation (PARITY.md section 2): random choices, places of crops, resizing of a region.

Published order: long side to U{a..b}, flip, color jitter, normalization, random crop with zero padding; a small image
lies at a random place of the crop. Here only the region of the crop is resized, by OpenCV's bicubic kernel, and the
color of that region is changed afterwards, on the device (`seam_dist.data.augment.color`). The random numbers have the
published distribution; pixels differ a little (`seam_dist.bench.published_augmentation` has the original order).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import cv2
import numpy as np
from numpy.typing import NDArray

from seam_dist.config.schema import AugmentConfig
from seam_dist.data.images import Pixels
from seam_dist.data.reader import Box

_ORDERS = tuple(permutations(range(4), 3))
_REACH = 3  # source pixels on either side of a window that bicubic interpolation can touch, and one to spare
_SEARCH = 32  # source pixels over which a window looks for a better start
_ALIGNED = 1 / 32  # of a pixel: largest shift that a window's start may cause
_AREA_BELOW = 0.75  # scale under which the area filter stands in for Pillow's wide bicubic kernel


@dataclass(frozen=True)
class Draw:
    """The random choices for one image, apart from its size: all that augmentation depends on."""

    long_side: int
    flip: bool
    position: tuple[float, float]
    """Share of the free space above and left of the crop, or of the image inside a larger crop; 0 to below 1."""
    color: NDArray[np.float32]
    """Color jitter as one row of `seam_dist.data.augment.color`, without its mean gray."""


@dataclass(frozen=True)
class Placement:
    """Where a crop lies. All in pixels: size of the resized image, region of it, place of that region in the crop."""

    resized: tuple[int, int]
    start: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]

    def mirrored(self, crop_size: int) -> Placement:
        """Return the same place seen from the right edge."""
        (y, x), (top, left), width = self.start, self.offset, self.size[1]
        start, offset = (y, self.resized[1] - x - width), (top, crop_size - left - width)
        return Placement(self.resized, start, self.size, offset)


def draw(rng: np.random.Generator, cfg: AugmentConfig) -> Draw:
    """Draw the augmentation of one image; always as many draws, so that one setting does not shift another."""
    # One call for all: each costs more than the numbers.
    flip, y, x, side, order, *factors = (float(u) for u in rng.random(9))
    smallest, largest = cfg.resize_long
    long_side = smallest + int(side * (largest - smallest + 1))
    brightness, contrast, saturation, hue = (2 * u - 1 for u in factors)
    blends = 1 + cfg.brightness * brightness, 1 + cfg.contrast * contrast, 1 + cfg.saturation * saturation
    color = np.array((*blends, cfg.hue * hue, 0, *_ORDERS[int(order * len(_ORDERS))]), np.float32)
    return Draw(long_side, flip < cfg.hflip, (y, x), color)


def place(height: int, width: int, choice: Draw, crop_size: int) -> Placement:
    """Return where the crop of an image of that size (display order) lies after resizing and flipping."""
    height, width = (max(1, round(side * choice.long_side / max(height, width))) for side in (height, width))
    return place_resized((height, width), choice.position, crop_size)


def place_resized(
    resized: tuple[int, int], position: tuple[float, float], crop_size: int, *, step: int = 1
) -> Placement:
    """Return where the crop of an image of size `resized` lies; `position` as in `Draw`.

    The crop's start, or a small image's place in it, is a multiple of `step` pixels.
    """
    start, size, offset = [], [], []
    for side, share in zip(resized, position, strict=True):
        free = int(share * (abs(side - crop_size) // step + 1)) * step
        start.append(free if side > crop_size else 0)
        offset.append(free if side < crop_size else 0)
        size.append(min(side, crop_size))
    return Placement(resized, (start[0], start[1]), (size[0], size[1]), (offset[0], offset[1]))


def resize_region(image: Pixels, resized: tuple[int, int], start: tuple[int, int], size: tuple[int, int]) -> Pixels:
    """Return `size` pixels from `start` of the image resized to `resized`, resizing little more than that region."""
    (y0, y1, scale_y, skip_y), (x0, x1, scale_x, skip_x) = (
        _window(side, new, first, count)
        for side, new, first, count in zip(image.shape[:2], resized, start, size, strict=True)
    )
    if round((y1 - y0) * scale_y) == y1 - y0 and round((x1 - x0) * scale_x) == x1 - x0:
        # OpenCV copies where the size stays, also where the scale is not quite 1 and pixels should move.
        y0, y1, skip_y, x0, x1, skip_x = 0, image.shape[0], start[0], 0, image.shape[1], start[1]
    method = cv2.INTER_AREA if min(scale_y, scale_x) < _AREA_BELOW else cv2.INTER_CUBIC
    # With the scale given instead of a size, OpenCV keeps it exact: pixel centers stay where the whole image has them.
    part = cv2.resize(image[y0:y1, x0:x1], None, fx=scale_x, fy=scale_y, interpolation=method)
    return np.asarray(part[skip_y : skip_y + size[0], skip_x : skip_x + size[1]], np.uint8)


@lru_cache(maxsize=4096)
def _window(side: int, resized: int, start: int, count: int) -> tuple[int, int, float, int]:
    """Return source begin and end, scale, and resized pixels to skip, along one axis.

    The begin is a source pixel that falls on a whole number of resized pixels, nearly: one of the last few before the
    region, or 0, which always does.
    """
    scale = resized / side
    last = int(start / scale) - _REACH
    begin = 0
    if last > 0:
        candidates = range(last, max(0, last - _SEARCH), -1)
        best = min(candidates, key=lambda source: abs(source * scale - round(source * scale)))
        if abs(best * scale - round(best * scale)) <= _ALIGNED:
            begin = best
    skip = start - round(begin * scale)
    end = min(side, -int(-(start + count) / scale // 1) + _REACH)
    return begin, end, scale, skip


def cut(pixels: Pixels, where: Placement) -> Pixels:
    """Return the region of an image that is not resized."""
    (y, x), (height, width) = where.start, where.size
    return pixels[y : y + height, x : x + width]


def paste(region: Pixels, where: Placement, out: Pixels, *, flip: bool, fill: int) -> Box:
    """Write a region to its place in `out`, with `fill` around it, then mirror `out` if `flip`; return its box."""
    (top, left), (height, width) = where.offset, where.size
    if flip:
        left = out.shape[1] - left - width
    if (height, width) != out.shape[:2]:
        out.fill(fill)
    target = out[top : top + height, left : left + width]
    if flip:
        cv2.flip(region, 1, dst=target)
    else:
        target[:] = region
    return top, left, top + height, left + width
