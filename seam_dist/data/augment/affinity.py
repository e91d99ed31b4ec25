"""Augmentation of images with affinity labels (stage train_affinity): crop, flip, color jitter (PARITY.md section 5).

The image is not resized. The label is a grid with one value for each block of s x s pixels, so the crop begins at a
multiple of s, and it is flipped after cropping: blocks stay whole, and the cropped grid is exactly the grid of the
crop. The published code draws from all offsets; this is 1 / s^2 of them. What lies outside the image is black: `valid`
gives the module the box that is image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seam_dist.config.schema import IGNORE_INDEX, AugmentConfig, Config
from seam_dist.data.augment.color import complete_jitter
from seam_dist.data.augment.geometry import Placement, cut, draw, paste, place_resized
from seam_dist.data.images import Pixels
from seam_dist.data.reader import Box, LabelMapDecoder
from seam_dist.data.shards import RawSample, SampleInfo, decode_stored_image


@dataclass(frozen=True)
class AffinityAugmentation:
    """Crop at multiples of `stride`, flip and color jitter of an image and its affinity labels."""

    cfg: AugmentConfig
    stride: int
    labels: LabelMapDecoder

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the crop and of its labels."""
        side, cells = self.cfg.crop_size, self.cfg.crop_size // self.stride
        return {"image": (side, side, 3), "target": (cells, cells)}

    def __call__(
        self, raw: RawSample, info: SampleInfo, rng: np.random.Generator, out: Mapping[str, Pixels]
    ) -> tuple[Box, NDArray[np.float32]]:
        """Write the crop of both; return the image's box and its color jitter."""
        image = decode_stored_image(raw, info, max_pixels=self.labels.max_pixels)
        label = self.labels(raw, (-(-info.size[0] // self.stride), -(-info.size[1] // self.stride)))
        choice = draw(rng, self.cfg)
        where = place_resized(info.size, choice.position, self.cfg.crop_size, step=self.stride)
        cells = _coarser(where, self.stride)
        box = paste(cut(image, where), where, out["image"], flip=choice.flip, fill=0)
        paste(cut(label, cells), cells, out["target"], flip=choice.flip, fill=IGNORE_INDEX)
        return box, complete_jitter(choice.color, image, self.cfg)


def affinity_augmentation(cfg: Config, labels: LabelMapDecoder) -> AffinityAugmentation:
    """Return the augmentation that cfg.train_affinity describes; strengths of the color jitter are cfg.augment's."""
    settings = cfg.train_affinity
    augment = replace(cfg.augment, crop_size=settings.crop_size, hflip=settings.hflip)
    if not settings.jitter:
        augment = replace(augment, brightness=0, contrast=0, saturation=0, hue=0)
    stride = settings.output_stride or cfg.model.output_stride
    return AffinityAugmentation(augment, stride, labels)


def _coarser(where: Placement, stride: int) -> Placement:
    """Return the same place on a grid of blocks, the last ones of a small image being parts of blocks."""

    def blocks(pair: tuple[int, int]) -> tuple[int, int]:
        return -(-pair[0] // stride), -(-pair[1] // stride)

    return Placement(blocks(where.resized), blocks(where.start), blocks(where.size), blocks(where.offset))
