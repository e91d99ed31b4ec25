"""Augmentation for training from image-level labels (stage train_seam): resize, flip, color jitter, crop.

PARITY.md section 2; `seam_dist.data.augment.geometry` says how the order differs from the published one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seam_dist.config.schema import AugmentConfig
from seam_dist.data.augment.color import complete_jitter
from seam_dist.data.augment.geometry import draw, paste, place, resize_region
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
        if choice.flip:  # the published crop is taken from the flipped image
            where = where.mirrored(self.cfg.crop_size)
        image = decode_stored_image(raw, info, max_pixels=self.max_pixels, smallest=where.resized)
        region = resize_region(image, where.resized, where.start, where.size)
        box = paste(region, where, out["image"], flip=choice.flip, fill=0)
        return box, complete_jitter(choice.color, image, self.cfg)
