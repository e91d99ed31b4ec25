"""One process's part of a training stream: any sample number, read from its group of shards and augmented.

A sample that cannot be used is replaced by the next one of its group, so the order is still a function of (seed, n) and
of the shards. It is reported once by name; a stream with more bad samples than data.max_bad_fraction allows stops.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.data.images import BadSampleError, Pixels
from seam_dist.data.manifest import ShardError, Split
from seam_dist.data.masks import decode_labels
from seam_dist.data.order import Group, Order, sample_generator
from seam_dist.data.shards import RawSample, SampleInfo, decode_stored_mask, parse_info, read_raw

_log = logging.getLogger(__name__)

Box = tuple[int, int, int, int]  # y0, x0, y1, x1


class Augmentation(Protocol):
    """How a stored sample becomes pixels, given random numbers of its own."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the uint8 arrays that one sample fills, by name."""

    def __call__(
        self, raw: RawSample, info: SampleInfo, rng: np.random.Generator, out: Mapping[str, Pixels]
    ) -> tuple[Box, NDArray[np.float32]]:
        """Fill the arrays; return the image's box in them and its color jitter as in `Item`.

        Raises BadSampleError for a sample that cannot be used.
        """


@dataclass(frozen=True)
class LabelMapDecoder:
    """Reads the label map of a sample: `folder` of label tars, or None for the masks in the shards."""

    folder: Path | None
    num_classes: int
    max_pixels: int

    def __call__(self, raw: RawSample, size: tuple[int, int]) -> Pixels:
        """Return the label map; raise BadSampleError when it is missing or damaged, ShardError for another size.

        A map of another size belongs to other shards or another stride: no sample would fit, so it ends the job. A mask
        of another size is a fault of its sample alone.
        """
        if self.folder is None:
            return decode_stored_mask(raw, size, max_pixels=self.max_pixels, num_classes=self.num_classes)
        if "png" not in raw.members:
            raise BadSampleError(f"it has no label in {self.folder}")
        label = decode_labels(raw.members["png"], max_pixels=self.max_pixels, num_classes=self.num_classes)
        if label.shape != size:
            raise ShardError(
                f"the label of {raw.key} in {self.folder} has {label.shape} cells (height, width), expected {size} for "
                "its image: these labels belong to other shards or another output stride; write them again"
            )
        return label


@dataclass(frozen=True)
class Item:
    """What belongs to one augmented image; `replaced` is whether it stands in for a bad sample.

    `valid` is the box that is image, `color` a row of `seam_dist.data.augment.color`; `classes` are ids from 1.
    """

    number: int
    key: str
    classes: tuple[int, ...]
    valid: Box
    color: NDArray[np.float32]
    replaced: bool


class StreamReader:
    """Augmented samples of a split by number; holds the compressed bytes of one group of shards a stream in use.

    `labels` is a folder of label tars named like the shards: their images take the place of the masks in the shard, and
    a sample without one has no mask.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        order: Order,
        augmentation: Augmentation,
        *,
        num_classes: int,
        max_bad_fraction: float,
        labels: Path | None = None,
    ) -> None:
        self.num_classes, self.shapes = num_classes, augmentation.shapes
        self._folder, self._split, self._order, self._augmentation = Path(folder), split, order, augmentation
        self._max_bad_fraction, self._labels = max_bad_fraction, labels
        # Of each stream its group and the compressed samples in the group's order, each with the name of its shard.
        self._groups: dict[int, tuple[Group, list[tuple[RawSample, str]]]] = {}
        self._bad: dict[int, set[str]] = {}

    def read(self, number: int, out: Mapping[str, Pixels]) -> Item:
        """Fill `out`, arrays of `shapes`, from sample `number`, or from its replacement when that one is bad."""
        group, place = self._order.locate(number)
        samples = self._load(group)
        for attempt in range(len(samples)):
            raw, shard = samples[(place + attempt) % len(samples)]
            try:
                info = parse_info(raw.members["json"], self.num_classes)
                rng = sample_generator(self._order.seed, number)
                valid, color = self._augmentation(raw, info, rng, out)
            except BadSampleError as error:
                self._report(group.stream, raw.key, shard, error)
                continue
            return Item(number, raw.key, info.classes, valid, color, attempt > 0)
        names = ", ".join(self._split.shards[index].file for index in group.shards)
        raise ShardError(f"none of the {len(samples)} samples of {names} can be used: convert the data set again")

    def _load(self, group: Group) -> list[tuple[RawSample, str]]:
        if group.stream in self._groups and self._groups[group.stream][0] == group:
            return self._groups[group.stream][1]
        self._groups.pop(group.stream, None)  # two groups of a stream never share the memory
        stored = []
        for index in group.shards:
            shard = self._split.shards[index]
            labels = None if self._labels is None else read_label_shard(self._labels / shard.file)
            for raw in read_raw(self._folder / shard.file, shard):
                stored.append((raw if labels is None else _relabeled(raw, labels), shard.file))
        self._groups[group.stream] = group, [stored[index] for index in self._order.permutation(group)]
        return self._groups[group.stream][1]

    def _report(self, stream: int, key: str, shard: str, error: ValueError) -> None:
        """Warn once of a bad sample; raise ShardError when the stream has more than the allowed share of them."""
        bad = self._bad.setdefault(stream, set())
        if key in bad:
            return
        bad.add(key)
        _log.warning("bad sample %s in %s is left out: %s", key, self._folder / shard, error)
        length = self._order.lengths[stream]
        # By stream and rounded up: whether a job stops must not depend on how many ranks share its streams.
        if len(bad) > math.ceil(self._max_bad_fraction * length):
            raise ShardError(
                f"{len(bad)} of the {length} samples of stream {stream} of split {self._split.name!r} are bad, the "
                f"last is {key} in {self._folder / shard} ({error}): correct the data set, or raise "
                f"data.max_bad_fraction={self._max_bad_fraction}"
            )


def _relabeled(raw: RawSample, labels: Mapping[str, bytes]) -> RawSample:
    """Return the sample with its label image, or nothing, in place of its mask."""
    members = {name: data for name, data in raw.members.items() if name != "png"}
    if raw.key in labels:
        members["png"] = labels[raw.key]
    return RawSample(raw.key, members)
