"""The training stream: augmented samples in canonical order, as batches, from any sample number on.

Rank r of R owns the samples n with n mod R = r; its worker w of W every W-th of them. Since R * W divides the number of
streams, a process reads whole streams and nothing else, and the batch of a step is the same for any R and W. The state
of a loader is one integer, the number of its next global sample.

A sample that cannot be used is replaced by the next one of its group, so the order is still a function of (seed, n) and
of the shards. It is reported once by name; a stream with more bad samples than data.max_bad_fraction allows stops.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from seam_dist.config import AugmentConfig, Config
from seam_dist.data.images import BadImageError
from seam_dist.data.manifest import Manifest, ShardError, Split, check_shards
from seam_dist.data.order import Group, Order, sample_generator
from seam_dist.data.processes import single_thread
from seam_dist.data.shards import BadSampleError, RawSample, image_extension, parse_info, read_raw
from seam_dist.data.transforms import augment, draw

_log = logging.getLogger(__name__)
_GRACE_S = 10


class Batch(TypedDict):
    """A micro-batch; images stay uint8 until `normalize_images` on the device.

    image (B, 3, S, S) uint8, zero outside `valid`; valid (B, 4) int32 y0, x0, y1, x1; color (B, 8) float32, see
    `seam_dist.data.color`; label (B, C) float32 multi-hot; key; sample_number (B,) int64.
    """

    image: Tensor
    valid: Tensor
    color: Tensor
    label: Tensor
    key: list[str]
    sample_number: Tensor


@dataclass(frozen=True)
class Item:
    """One augmented sample; `replaced` tells whether it stands in for a bad one."""

    image: Tensor
    valid: NDArray[np.int32]
    color: NDArray[np.float32]
    classes: tuple[int, ...]
    key: str
    number: int
    replaced: bool


@dataclass(frozen=True)
class _Loaded:
    """The samples of a group, compressed, with the shard each is from, in the group's order."""

    group: Group
    samples: list[tuple[RawSample, str]]


class TrainStream(IterableDataset[Item]):
    """Samples start, start + step, start + 2 step, ... of the canonical order, augmented, without end.

    Inside a DataLoader of W workers each worker takes every W-th of them. Holds the compressed bytes of one group of
    shards for each of its streams.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        order: Order,
        augmentation: AugmentConfig,
        *,
        num_classes: int,
        start: int,
        step: int,
        max_pixels: int,
        max_bad_fraction: float,
    ) -> None:
        self._folder, self._split, self._order, self._augmentation = Path(folder), split, order, augmentation
        self.num_classes, self._start, self._step = num_classes, start, step
        self._max_pixels, self._max_bad_fraction = max_pixels, max_bad_fraction
        self._groups: dict[int, _Loaded] = {}
        self._bad: dict[int, set[str]] = {}

    def __iter__(self) -> Iterator[Item]:
        """Yield this process's share."""
        worker = get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        number = self._start + index * self._step
        while True:
            yield self.item(number)
            number += count * self._step

    def item(self, number: int) -> Item:
        """Return sample `number`, or its deterministic replacement when that one is bad."""
        group, place = self._order.locate(number)
        samples = self._load(group).samples
        choice = draw(sample_generator(self._order.seed, number), self._augmentation)
        for attempt in range(len(samples)):
            raw, shard = samples[(place + attempt) % len(samples)]
            try:
                info = parse_info(raw.members["json"], self.num_classes)
                image, valid, color = augment(
                    raw.members[image_extension(raw)],
                    choice,
                    self._augmentation,
                    size=info.size,
                    orientation=info.orientation,
                    max_pixels=self._max_pixels,
                )
            except (BadSampleError, BadImageError) as error:
                self._report(group.stream, raw.key, shard, error)
                continue
            return Item(torch.from_numpy(image), valid, color, info.classes, raw.key, number, attempt > 0)
        names = ", ".join(self._split.shards[index].file for index in group.shards)
        raise ShardError(f"none of the {len(samples)} samples of {names} can be used: convert the data set again")

    def _load(self, group: Group) -> _Loaded:
        loaded = self._groups.get(group.stream)
        if loaded is None or loaded.group != group:
            self._groups.pop(group.stream, None)  # two groups of a stream never share the memory
            stored = []
            for index in group.shards:
                shard = self._split.shards[index]
                stored += [(raw, shard.file) for raw in read_raw(self._folder / shard.file, shard)]
            loaded = _Loaded(group, [stored[index] for index in self._order.permutation(group)])
            self._groups[group.stream] = loaded
        return loaded

    def _report(self, stream: int, key: str, shard: str, error: ValueError) -> None:
        """Warn once a bad sample; raise ShardError when the stream has more than the allowed share of them."""
        bad = self._bad.setdefault(stream, set())
        if key in bad:
            return
        bad.add(key)
        _log.warning("bad sample %s in %s is left out: %s", key, self._folder / shard, error)
        length = self._order.length(stream)
        # Rounded up, by stream: whether a job stops must not depend on how many ranks share its streams.
        allowed = int(np.ceil(self._max_bad_fraction * length))
        if len(bad) > allowed:
            raise ShardError(
                f"{len(bad)} of the {length} samples of stream {stream} of split {self._split.name!r} are bad, the last "
                f"is {key} in {self._folder / shard} ({error}): correct the data set, or raise "
                f"data.max_bad_fraction={self._max_bad_fraction}"
            )


class TrainLoader(Iterator[Batch]):
    """Batches of one rank, without end; `next_sample` is the whole state: resume with start_sample=next_sample.

    `num_replaced` counts the samples so far that stood in for bad ones. Call `close` to end the loader's processes.
    """

    def __init__(
        self, stream: TrainStream, num_workers: int, micro_batch_size: int, world_size: int, start: int
    ) -> None:
        self.next_sample = start
        self.num_replaced = 0
        self._micro_batch_size, self._world_size = micro_batch_size, world_size
        self._num_classes = stream.num_classes
        self._items: Iterator[Item]
        if num_workers == 0:
            self._items = iter(stream)
            return
        # Two batches ahead; results come back in the order of the workers' turns, which is the canonical one.
        ahead = max(2, -(-2 * micro_batch_size // num_workers))
        self._items = iter(
            DataLoader(
                stream,
                batch_size=None,
                collate_fn=_as_is,
                num_workers=num_workers,
                prefetch_factor=ahead,
                worker_init_fn=_start_worker,
                persistent_workers=True,
                multiprocessing_context="fork",
                generator=torch.Generator(),  # its own: the loader must not advance the generator of dropout
            )
        )

    def __next__(self) -> Batch:
        """Return the next micro-batch."""
        items = [next(self._items) for _ in range(self._micro_batch_size)]
        self.next_sample += self._micro_batch_size * self._world_size
        self.num_replaced += sum(item.replaced for item in items)
        label = torch.zeros(len(items), self._num_classes)
        for row, item in zip(label, items, strict=True):
            row[[index - 1 for index in item.classes]] = 1
        return Batch(
            image=torch.stack([item.image for item in items]),
            valid=torch.from_numpy(np.stack([item.valid for item in items])),
            color=torch.from_numpy(np.stack([item.color for item in items])),
            label=label,
            key=[item.key for item in items],
            sample_number=torch.tensor([item.number for item in items], dtype=torch.int64),
        )

    def close(self) -> None:
        """End the worker processes; the loader gives no more batches."""
        self._items = iter(())


def make_loader(
    cfg: Config, manifest: Manifest, rank: int, world_size: int, start_sample: int, micro_batch_size: int
) -> TrainLoader:
    """Return the batches of `rank` from global sample `start_sample` on, after checking the shards that it will read.

    `start_sample` counts the samples of all ranks, so it is a multiple of `world_size`. Raises ValueError for numbers
    that do not fit together and ShardError, with its name, for a shard that is missing or damaged.
    """
    data = cfg.data
    split = manifest.split(data.train_split)
    if not split.has_labels:
        raise ShardError(f"split {split.name!r} has no image-level labels, so it cannot train: set data.train_split")
    readers = world_size * max(1, data.num_workers)
    if data.streams % readers:
        raise ValueError(
            f"data.streams={data.streams} is not a multiple of {world_size} ranks x {max(1, data.num_workers)} workers "
            f"= {readers}: set data.streams to a multiple, or change data.num_workers"
        )
    if not 0 <= rank < world_size or start_sample < 0 or start_sample % world_size or micro_batch_size < 1:
        raise ValueError(
            f"rank={rank}, world_size={world_size}, start_sample={start_sample}, micro_batch_size={micro_batch_size}: "
            "expected 0 <= rank < world_size, start_sample a multiple of world_size, and at least one image a batch"
        )
    order = Order(tuple(s.num_samples for s in split.shards), data.streams, data.shuffle_shards, cfg.run.seed)
    own = tuple(shard for i, shard in enumerate(split.shards) if i % data.streams % world_size == rank)
    check_shards(cfg.shards_dir, own, data.verify)
    stream = TrainStream(
        cfg.shards_dir,
        split,
        order,
        cfg.augment,
        num_classes=manifest.num_classes,
        start=start_sample + rank,
        step=world_size,
        max_pixels=data.max_pixels,
        max_bad_fraction=data.max_bad_fraction,
    )
    return TrainLoader(stream, data.num_workers, micro_batch_size, world_size, start_sample)


def _as_is(item: Any) -> Any:
    return item


def _start_worker(index: int) -> None:
    """Keep the worker to one thread, and alive for a while when the job is told to stop.

    Ctrl-C and many schedulers signal every process of a job. A worker that died at once would take the training
    process with it before its last checkpoint.
    """
    single_thread(index)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))
