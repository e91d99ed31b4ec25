"""The training stream of images with label maps: the canonical order of `seam_dist.data.loader`, two augmentations.

"affinity" (PARITY.md section 5): the image is not resized; crop, flip, color jitter. The label is a grid with one
value for each block of s x s pixels, so the crop begins at a multiple of s, and it is flipped after cropping: blocks
stay whole, and the cropped grid is exactly the grid of the crop. The published code draws from all offsets; this is
1 / s^2 of them. What lies outside the image is black: `valid` tells the module where.

"seg" (PARITY.md section 7): scale, crop, flip, shifts of hue, saturation and value. Outside the image the label is 255.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.config.schema import IGNORE_INDEX, AugmentConfig, Config, TrainSegConfig
from seam_dist.data.augment.color import IDENTITY
from seam_dist.data.augment.geometry import Placement, color_change, decode_sized, draw, place_resized, resize_region
from seam_dist.data.images import decode_labels, decode_mask
from seam_dist.data.loader import SampleFacts, SampleLoader, open_order, sample_facts
from seam_dist.data.manifest import Manifest, ShardError
from seam_dist.data.reader import Box, Pixels, StreamReader
from seam_dist.data.shards import BadSampleError, RawSample, SampleInfo, image_extension

JointKind = Literal["affinity", "seg"]


class JointBatch(SampleFacts):
    """A micro-batch of images with label maps.

    image (B, 3, S, S) uint8 in channels_last memory, zero outside `valid`; target uint8 (B, S, S), of kind affinity
    (B, S / s, S / s): class indices, 255 where nothing is known or no image is.
    """

    image: Tensor
    target: Tensor


class JointLoader(SampleLoader, Iterator[JointBatch]):
    """Batches of one rank, without end."""

    def __next__(self) -> JointBatch:
        """Return the next micro-batch."""
        arrays, items = self._next_samples()
        return JointBatch(image=arrays["image"].permute(0, 3, 1, 2), target=arrays["target"], **sample_facts(items))


@dataclass(frozen=True)
class _LabelDecoder:
    """Reads the label map of a sample: `folder` of label tars, or None for the masks in the shards."""

    folder: Path | None
    num_classes: int
    max_pixels: int

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Pixels:
        """Return the label map; raise BadSampleError when it is missing or damaged, ShardError for another size.

        A map of another size belongs to other shards or another stride: no sample would fit, so it ends the job. A mask
        of another size is a fault of its sample alone.
        """
        if "png" not in raw.members:
            raise BadSampleError(f"it has no {'mask' if self.folder is None else f'label in {self.folder}'}")
        data = raw.members["png"]
        if self.folder is None:
            label = decode_mask(data, max_pixels=self.max_pixels)
            if ((label > self.num_classes) & (label != IGNORE_INDEX)).any():
                raise BadSampleError(f"its mask holds other values than 0 to {self.num_classes} and {IGNORE_INDEX}")
            if label.shape != size:
                raise BadSampleError(f"its mask has {label.shape} pixels (height, width), its image {size}")
            return label
        try:
            label = decode_labels(data, max_pixels=self.max_pixels, num_classes=self.num_classes)
        except ValueError as error:
            raise BadSampleError(str(error)) from None
        if label.shape != size:
            raise ShardError(
                f"the label of {raw.key} in {self.folder} has {label.shape} cells (height, width), expected {size} for "
                "its image: these labels belong to other shards or another output stride; make them again"
            )
        return label


@dataclass(frozen=True)
class AffinityAugmentation:
    """Crop at multiples of `stride`, flip and color jitter of an image and its affinity labels."""

    cfg: AugmentConfig
    stride: int
    labels: _LabelDecoder
    max_pixels: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the crop and of its labels."""
        side, cells = self.cfg.crop_size, self.cfg.crop_size // self.stride
        return {"image": (side, side, 3), "target": (cells, cells)}

    def __call__(
        self, raw: RawSample, info: SampleInfo, rng: np.random.Generator, out: Mapping[str, Pixels]
    ) -> tuple[Box, NDArray[np.float32]]:
        """Write the crop of both; return the image's box and its color jitter."""
        image = _decode(raw, info, self.max_pixels)
        label = self.labels(raw, (-(-info.size[0] // self.stride), -(-info.size[1] // self.stride)))
        choice = draw(rng, self.cfg)
        where = place_resized(info.size, choice.position, self.cfg.crop_size, step=self.stride)
        cells = _coarser(where, self.stride)
        color, change = color_change(image, choice, self.cfg)
        region = _cut(image, where)
        box = _paste(region if change is None else change(region), where, out["image"], flip=choice.flip, fill=0)
        _paste(_cut(label, cells), cells, out["target"], flip=choice.flip, fill=IGNORE_INDEX)
        return box, color


@dataclass(frozen=True)
class SegAugmentation:
    """Scale, crop, flip and color shifts of an image and its labels; the color is done here, on the host."""

    cfg: TrainSegConfig
    labels: _LabelDecoder
    max_pixels: int

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
        flip, y, x, size, *turns = (float(u) for u in rng.random(7))
        smallest, largest = self.cfg.scale
        scale = smallest + size * (largest - smallest)
        height, width = info.size
        resized = max(1, round(height * scale)), max(1, round(width * scale))
        image = _decode(raw, info, self.max_pixels, smallest=resized)
        label = self.labels(raw, info.size)
        where = place_resized(resized, (y, x), self.cfg.crop_size)
        region = resize_region(image, resized, where.start, where.size)
        limit = self.cfg.hsv_jitter
        region = shift_hsv(region, [int(u * (2 * limit + 1)) - limit for u in turns])
        mirrored = flip < self.cfg.hflip
        box = _paste(region, where, out["image"], flip=mirrored, fill=0)
        nearest = label[_sources(height, where, 0)[:, None], _sources(width, where, 1)]
        _paste(nearest, where, out["target"], flip=mirrored, fill=IGNORE_INDEX)
        return box, np.array(IDENTITY, np.float32)


def make_joint_loader(
    cfg: Config,
    manifest: Manifest,
    rank: int,
    world_size: int,
    start_sample: int,
    micro_batch_size: int,
    *,
    labels: Path | None,
    kind: JointKind,
) -> JointLoader:
    """Return the batches of `rank` from global sample `start_sample` on, in the order of `make_loader`.

    `labels` is a folder of label tars named like the shards; None takes the masks in the shards. A sample whose tar
    has no label for it is replaced like a bad sample. Raises ValueError for numbers that do not fit together, and
    ShardError for a shard or a label tar that is missing, by its name, and for labels of another size.
    """
    data = cfg.data
    split = manifest.split(data.train_split)
    order, own = open_order(cfg, manifest, rank, world_size, start_sample, micro_batch_size)
    if labels is None and not split.has_masks:
        raise ShardError(f"split {split.name!r} has no masks to train on: give pseudo-labels, or set data.train_split")
    for path in [] if labels is None else [labels / shard.file for shard in own]:
        if not path.is_file():
            raise ShardError(f"{path} is missing: run the stage that writes these labels again")
    decoder = _LabelDecoder(labels, manifest.num_classes, data.max_pixels)
    reader = StreamReader(
        cfg.shards_dir,
        split,
        order,
        _affinity(cfg, decoder) if kind == "affinity" else SegAugmentation(cfg.train_seg, decoder, data.max_pixels),
        num_classes=manifest.num_classes,
        max_bad_fraction=data.max_bad_fraction,
        labels=None if labels is None else partial(_read_tar, labels),
    )
    return JointLoader(
        reader,
        num_workers=data.num_workers,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
        start=start_sample,
    )


def shift_hsv(image: Pixels, shift: list[int]) -> Pixels:
    """Return uint8 RGB pixels with OpenCV's hue (0..179, a circle), saturation and value (0..255) shifted."""
    if not any(shift):
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    values = np.arange(256)
    table = np.stack([(values + shift[0]) % 180, *((values + by).clip(0, 255) for by in shift[1:])], axis=-1)
    return np.asarray(cv2.cvtColor(cv2.LUT(hsv, table.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB), np.uint8)


def _read_tar(folder: Path, file: str) -> Mapping[str, bytes]:
    return read_label_shard(folder / file)


def _affinity(cfg: Config, labels: _LabelDecoder) -> AffinityAugmentation:
    settings = cfg.train_affinity
    stride = settings.output_stride or cfg.model.output_stride
    augment = replace(cfg.augment, crop_size=settings.crop_size, hflip=settings.hflip)
    if not settings.jitter:
        augment = replace(augment, brightness=0, contrast=0, saturation=0, hue=0)
    return AffinityAugmentation(augment, stride, labels, cfg.data.max_pixels)


def _decode(raw: RawSample, info: SampleInfo, max_pixels: int, smallest: tuple[int, int] | None = None) -> Pixels:
    data = raw.members[image_extension(raw)]
    return decode_sized(data, info.size, orientation=info.orientation, max_pixels=max_pixels, smallest=smallest)


def _coarser(where: Placement, stride: int) -> Placement:
    """Return the same place on a grid of blocks, the last ones of a small image being parts of blocks."""

    def blocks(pair: tuple[int, int]) -> tuple[int, int]:
        return -(-pair[0] // stride), -(-pair[1] // stride)

    return Placement(blocks(where.resized), blocks(where.start), blocks(where.size), blocks(where.offset))


def _cut(pixels: Pixels, where: Placement) -> Pixels:
    (y, x), (height, width) = where.start, where.size
    return pixels[y : y + height, x : x + width]


def _sources(side: int, where: Placement, axis: int) -> NDArray[np.intp]:
    """Return, for the rows or columns of the region, the pixel of the original that their centers lie in."""
    centers = where.start[axis] + np.arange(where.size[axis]) + 0.5
    return np.minimum((centers * side / where.resized[axis]).astype(np.intp), side - 1)


def _paste(region: Pixels, where: Placement, out: Pixels, *, flip: bool, fill: int) -> Box:
    """Write a region to its place in `out`, then mirror `out` if `flip`; return the region's box."""
    (top, left), (height, width) = where.offset, where.size
    if flip:
        left = out.shape[1] - left - width
    if (height, width) != out.shape[:2]:
        out.fill(fill)
    target = out[top : top + height, left : left + width]
    target[:] = cv2.flip(region, 1) if flip else region
    return top, left, top + height, left + width
