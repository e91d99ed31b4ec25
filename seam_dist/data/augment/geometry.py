"""Training augmentation (PARITY.md section 2): drawn from one random generator, applied crop first in uint8.

Published order: long side to U{a..b}, flip, color jitter, normalization, random crop with zero padding; a small image
lies at a random place of the crop. Here only the region of the crop is resized, by OpenCV's bicubic kernel, and the
color of that region is changed afterwards, on the host or on the device (`seam_dist.data.augment.color`). The random numbers
have the published distribution; pixels differ a little (`seam_dist.bench.published` is the slow original order).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seam_dist.config.schema import AugmentConfig
from seam_dist.data.augment.color import IDENTITY, jitter_device, jitter_host, with_gray_mean
from seam_dist.data.images import BadImageError, decode_image

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_ORDERS = tuple((a, b, c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3)
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
    color: Floats
    """Color jitter as one row of `seam_dist.data.augment.color`, without its mean gray."""


@dataclass(frozen=True)
class Placement:
    """Where a crop lies. All in pixels: size of the resized image, region of it, place of that region in the crop."""

    resized: tuple[int, int]
    start: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]


def draw(rng: np.random.Generator, cfg: AugmentConfig) -> Draw:
    """Draw the augmentation of one image; always as many draws, so that one setting does not shift another."""
    # One call for all: each costs more than the numbers.
    flip, y, x, side, turn, *factors = (float(u) for u in rng.random(9))
    smallest, largest = cfg.resize_long
    long_side = smallest + int(side * (largest - smallest + 1))
    brightness, contrast, saturation, hue = (2 * u - 1 for u in factors)
    color = np.array(
        (
            1 + cfg.brightness * brightness,
            1 + cfg.contrast * contrast,
            1 + cfg.saturation * saturation,
            cfg.hue * hue,
            0,
            *_ORDERS[int(turn * len(_ORDERS))],
        ),
        np.float32,
    )
    return Draw(long_side, flip < cfg.hflip, (y, x), color)


def place(height: int, width: int, choice: Draw, crop_size: int) -> Placement:
    """Return where the crop of an image of that size (display order) lies after resizing and flipping."""
    long_side = max(height, width)
    resized = (
        max(1, round(height * choice.long_side / long_side)),
        max(1, round(width * choice.long_side / long_side)),
    )
    return place_resized(resized, choice.position, crop_size)


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


def augment(
    data: bytes,
    choice: Draw,
    cfg: AugmentConfig,
    out: Pixels,
    *,
    size: tuple[int, int],
    orientation: int,
    max_pixels: int,
) -> tuple[tuple[int, int, int, int], Floats]:
    """Decode and augment one image of `size` (height, width in display order) into `out` (S, S, 3) uint8 RGB.

    `out` is zero outside the image. Returns the image's box in it (y0, x0, y1, x1) and its color jitter, identity
    when that is off or was done here (`color_on=host`). Raises BadImageError for damaged data.
    """
    where = place(*size, choice, cfg.crop_size)
    image = decode_sized(data, size, orientation=orientation, max_pixels=max_pixels, smallest=where.resized)
    color, change = color_change(image, choice, cfg)
    (y, x), (height, width), (top, left) = where.start, where.size, where.offset
    # The published crop is taken from the flipped image: mirrored, it begins where it ended.
    x = where.resized[1] - x - width if choice.flip else x
    region = resize_region(image, where.resized, (y, x), where.size, change)
    box = top, left, top + height, left + width
    if where.size != out.shape[:2]:
        out.fill(0)
    target = out[top : top + height, left : left + width]
    if choice.flip:
        cv2.flip(region, 1, dst=target)
    else:
        target[:] = region
    return box, color


def decode_sized(
    data: bytes,
    size: tuple[int, int],
    *,
    orientation: int,
    max_pixels: int,
    smallest: tuple[int, int] | None = None,
) -> Pixels:
    """Decode an image of `size` (height, width in display order); raise BadImageError when it has another one.

    With `smallest`, a size that is at most half, a JPEG may come at any reduced size that is not below it.
    """
    image = decode_image(data, max_pixels=max_pixels, orientation=orientation, min_size=smallest)
    reduced = smallest is not None and 2 * smallest[0] <= size[0] and 2 * smallest[1] <= size[1]
    if image.shape[:2] != size and not reduced:
        raise BadImageError(f"the image has {image.shape[:2]} pixels (height, width), expected {size}")
    return image


def color_change(image: Pixels, choice: Draw, cfg: AugmentConfig) -> tuple[Floats, Callable[[Pixels], Pixels] | None]:
    """Return the jitter that is left to the device, and the function that does it here with `color_on=host`."""
    identity = np.array(IDENTITY, np.float32)
    if not any((cfg.brightness, cfg.contrast, cfg.saturation, cfg.hue)):
        return identity, None
    full = with_gray_mean(choice.color, image)
    return (identity, partial(jitter_host, color=full)) if cfg.color_on == "host" else (full, None)


def resize_region(
    image: Pixels,
    resized: tuple[int, int],
    start: tuple[int, int],
    size: tuple[int, int],
    change: Callable[[Pixels], Pixels] | None = None,
) -> Pixels:
    """Return `size` pixels from `start` of the image resized to `resized`, resizing little more than that region.

    `change` alters pixels one by one; it sees the region before or after resizing, whichever is smaller.
    """
    (y0, y1, scale_y, skip_y), (x0, x1, scale_x, skip_x) = (
        _window(side, new, first, count)
        for side, new, first, count in zip(image.shape[:2], resized, start, size, strict=True)
    )
    if round((y1 - y0) * scale_y) == y1 - y0 and round((x1 - x0) * scale_x) == x1 - x0:
        # OpenCV copies where the size stays, also where the scale is not quite 1 and pixels should move.
        y0, y1, skip_y, x0, x1, skip_x = 0, image.shape[0], start[0], 0, image.shape[1], start[1]
    window = image[y0:y1, x0:x1]
    first = change is not None and window.shape[0] * window.shape[1] < size[0] * size[1]
    if change is not None and first:
        window = change(window)
    shrinks = min(scale_y, scale_x) < _AREA_BELOW
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    # With the scale given instead of a size, OpenCV keeps it exact: pixel centers stay where the whole image has them.
    part = np.asarray(cv2.resize(window, None, fx=scale_x, fy=scale_y, interpolation=method), np.uint8)
    part = part[skip_y : skip_y + size[0], skip_x : skip_x + size[1]]
    return change(part) if change is not None and not first else part


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


def normalize_images(
    image: Tensor,
    valid: Tensor,
    color: Tensor | None,
    mean: Tensor,
    std: Tensor,
    *,
    channels_last: bool,
    padding: Literal["mean", "black"] = "mean",
) -> Tensor:
    """Return jittered, normalized float32 (B, 3, S, S) from uint8 crops.

    `valid` (B, 4) int32 holds y0, x0, y1, x1; outside it the result is exactly zero, or with padding "black" that of
    a black pixel. `color` (B, 8) is the jitter of `seam_dist.data.augment.color`, None for none; `mean` and `std` (3) are in
    units of 0..1 pixel values. Runs on the device of `image` and compiles.
    """
    device = image.device
    valid = valid.to(device)
    pixels = image.to(torch.float32)
    if channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    if color is not None:
        pixels = jitter_device(pixels, color)
    mean, std = (value.to(device, torch.float32).view(1, 3, 1, 1) for value in (mean, std))
    pixels = (pixels / 255 - mean) / std
    rows = torch.arange(image.shape[-2], device=device)
    columns = torch.arange(image.shape[-1], device=device)
    inside_y = (rows >= valid[:, 0:1]) & (rows < valid[:, 2:3])
    inside_x = (columns >= valid[:, 1:2]) & (columns < valid[:, 3:4])
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    outside = -mean / std if padding == "black" else torch.zeros((), device=device)
    pixels = torch.where(inside, pixels, outside)
    return pixels.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
