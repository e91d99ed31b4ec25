"""Augmentation for training from image-level labels (stage train_seam): resize, flip, color jitter, crop.

PARITY.md section 2; `seam_dist.data.augment.geometry` says how the order differs from the published one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from seam_dist.config.schema import AugmentConfig
from seam_dist.data.augment.color import complete_jitter
from seam_dist.data.augment.geometry import draw, place, resize_region
from seam_dist.data.images import Pixels
from seam_dist.data.reader import Box
from seam_dist.data.shards import RawSample, SampleInfo, decode_stored_image


@dataclass(frozen=True)
class ClassificationAugmentation:
    """Fills "image" (S, S, 3) with one augmented crop."""

    cfg: AugmentConfig
    max_pixels: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of the image."""
        return {"image": (self.cfg.crop_size, self.cfg.crop_size, 3)}

    def __call__(
        self, raw: RawSample, info: SampleInfo, rng: np.random.Generator, out: Mapping[str, Pixels]
    ) -> tuple[Box, NDArray[np.float32]]:
        """Write the crop, zero outside the image; return the image's box in it and its color jitter."""
        choice = draw(rng, self.cfg)
        where = place(*info.size, choice, self.cfg.crop_size)
        image = decode_stored_image(raw, info, max_pixels=self.max_pixels, smallest=where.resized)
        (y, x), (height, width), (top, left) = where.start, where.size, where.offset
        # The published crop is taken from the flipped image: mirrored, it begins where it ended.
        x = where.resized[1] - x - width if choice.flip else x
        region = resize_region(image, where.resized, (y, x), where.size)
        if where.size != out["image"].shape[:2]:
            out["image"].fill(0)
        target = out["image"][top : top + height, left : left + width]
        if choice.flip:
            cv2.flip(region, 1, dst=target)
        else:
            target[:] = region
        return (top, left, top + height, left + width), complete_jitter(choice.color, image, self.cfg)
