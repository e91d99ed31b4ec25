"""Augmentation of images with label maps (stage train_seg): scale, crop, flip, color shifts (PARITY.md section 7).

Hue, saturation and value are shifted on the host, as the published retraining does. Outside the image the label is 255.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from seam_dist.config.schema import IGNORE_INDEX, TrainSegConfig
from seam_dist.data.augment.color import IDENTITY
from seam_dist.data.augment.geometry import Placement, paste, place_resized, resize_region
from seam_dist.data.images import Pixels
from seam_dist.data.reader import Box, LabelMapDecoder
from seam_dist.data.shards import RawSample, SampleInfo, decode_stored_image


@dataclass(frozen=True)
class SegmentationAugmentation:
    """Scale, crop, flip and color shifts of an image and its labels; the color is done here, on the host."""

    cfg: TrainSegConfig
    labels: LabelMapDecoder

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the crop and of its labels."""
        side = self.cfg.crop_size
        return {"image": (side, side, 3), "target": (side, side)}

    def __call__(
        self, raw: RawSample, info: SampleInfo, rng: np.random.Generator, out: Mapping[str, Pixels]
    ) -> tuple[Box, NDArray[np.float32]]:
        """Write the crop of both; return the image's box and no color jitter."""
        # One call for all: each costs more than the numbers.
        flip, y, x, size, *shifts = (float(u) for u in rng.random(7))
        smallest, largest = self.cfg.scale
        scale = smallest + size * (largest - smallest)
        height, width = info.size
        resized = max(1, round(height * scale)), max(1, round(width * scale))
        image = decode_stored_image(raw, info, max_pixels=self.labels.max_pixels, smallest=resized)
        label = self.labels(raw, info.size)
        where = place_resized(resized, (y, x), self.cfg.crop_size)
        region = resize_region(image, resized, where.start, where.size)
        limit = self.cfg.hsv_jitter
        region = shift_hsv(region, [int(u * (2 * limit + 1)) - limit for u in shifts])
        mirrored = flip < self.cfg.hflip
        box = paste(region, where, out["image"], flip=mirrored, fill=0)
        nearest = label[_sources(height, where, 0)[:, None], _sources(width, where, 1)]
        paste(nearest, where, out["target"], flip=mirrored, fill=IGNORE_INDEX)
        return box, np.array(IDENTITY, np.float32)


def shift_hsv(image: Pixels, shift: list[int]) -> Pixels:
    """Return uint8 RGB pixels with OpenCV's hue (0..179, a circle), saturation and value (0..255) shifted."""
    if not any(shift):
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    values = np.arange(256)
    table = np.stack([(values + shift[0]) % 180, *((values + by).clip(0, 255) for by in shift[1:])], axis=-1)
    return np.asarray(cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB), np.uint8)


def _sources(side: int, where: Placement, axis: int) -> NDArray[np.intp]:
    """Return, for the rows or columns of the region, the pixel of the original that their centers lie in."""
    centers = where.start[axis] + np.arange(where.size[axis]) + 0.5
    return np.minimum((centers * side / where.resized[axis]).astype(np.intp), side - 1)
