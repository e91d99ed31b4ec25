"""The training stream: batches of augmented samples in canonical order, from any sample number on.

Rank r of R owns the samples n with n mod R = r; its worker w of W every W-th of them. Since R * W divides the number of
streams, a process reads whole streams and nothing else, and the batch of a step is the same for any R and W. The state
of a loader is one integer, the number of its next global sample.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from seam_dist.config import Config
from seam_dist.data.manifest import Manifest, ShardError, check_shards
from seam_dist.data.order import Order
from seam_dist.data.processes import single_thread
from seam_dist.data.reader import Item, StreamReader

_GRACE_S = 10  # seconds that a worker stays alive after it was told to stop


class Batch(TypedDict):
    """A micro-batch; images stay uint8 until `normalize_images` on the device.

    image (B, 3, S, S) uint8 in channels_last memory, zero outside `valid`; valid (B, 4) int32 y0, x0, y1, x1; color
    (B, 8) float32, see `seam_dist.data.color`; label (B, C) float32 multi-hot; key; sample_number (B,) int64.
    """

    image: Tensor
    valid: Tensor
    color: Tensor
    label: Tensor
    key: list[str]
    sample_number: Tensor


class TrainStream(IterableDataset[tuple[int, Item]]):
    """Samples start, start + step, start + 2 step, ... for the workers of a DataLoader, each taking every W-th.

    The pixels go through `slots` (W, num_slots, S, S, 3), memory that all processes share: a worker fills its slots in
    turn and hands over their numbers. Nothing is overwritten too early as long as there are two slots more than results
    that a worker may be ahead, and each result is copied before the next one is asked for.
    """

    def __init__(self, reader: StreamReader, slots: Tensor, start: int, step: int) -> None:
        self._reader, self._slots, self._start, self._step = reader, slots, start, step

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        """Yield (slot, item) of this worker's share, without end."""
        worker = get_worker_info()
        assert worker is not None, "TrainStream is read by the workers of a DataLoader"
        number, count = self._start + worker.id * self._step, 0
        slots = self._slots[worker.id].numpy()
        while True:
            slot = count % len(slots)
            yield slot, self._reader.read(number, slots[slot])
            number, count = number + worker.num_workers * self._step, count + 1


class TrainLoader(Iterator[Batch]):
    """Batches of one rank, without end; `next_sample` is the whole state: resume with start_sample=next_sample.

    `num_replaced` counts the samples so far that stood in for bad ones. Call `close` to end the loader's processes.
    """

    def __init__(
        self, reader: StreamReader, *, num_workers: int, micro_batch_size: int, rank: int, world_size: int, start: int
    ) -> None:
        self.next_sample = start
        self.num_replaced = 0
        self._reader, self._rank, self._world_size = reader, rank, world_size
        self._micro_batch_size, self._num_workers = micro_batch_size, num_workers
        self._results: Iterator[tuple[int, Item]] | None = None
        self._turn = 0
        if num_workers == 0:
            return
        ahead = max(2, -(-2 * micro_batch_size // num_workers))  # two batches
        size = reader.crop_size
        self._slots = torch.empty(num_workers, ahead + 2, size, size, 3, dtype=torch.uint8)
        self._slots.share_memory_()  # type: ignore[no-untyped-call]
        self._results = iter(
            DataLoader(
                TrainStream(reader, self._slots, start + rank, world_size),
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
        size = self._reader.crop_size
        image = torch.empty(self._micro_batch_size, size, size, 3, dtype=torch.uint8)
        items = [self._read(place, out) for place, out in enumerate(image)]
        self.next_sample += self._micro_batch_size * self._world_size
        self.num_replaced += sum(item.replaced for item in items)
        label = torch.zeros(len(items), self._reader.num_classes)
        for row, item in zip(label, items, strict=True):
            row[[index - 1 for index in item.classes]] = 1
        return Batch(
            image=image.permute(0, 3, 1, 2),
            valid=torch.tensor([item.valid for item in items], dtype=torch.int32),
            color=torch.from_numpy(np.stack([item.color for item in items])),
            label=label,
            key=[item.key for item in items],
            sample_number=torch.tensor([item.number for item in items], dtype=torch.int64),
        )

    def _read(self, place: int, out: Tensor) -> Item:
        """Fill `out` (S, S, 3) with the sample at `place` of the batch."""
        if self._num_workers == 0:
            return self._reader.read(self.next_sample + self._rank + place * self._world_size, out.numpy())
        if self._results is None:
            raise StopIteration
        # The DataLoader takes one result from each worker in turn, beginning with the first.
        slot, item = next(self._results)
        out.copy_(self._slots[self._turn, slot])
        self._turn = (self._turn + 1) % self._num_workers
        return item

    def close(self) -> None:
        """End the worker processes; a loader with workers gives no more batches."""
        self._results = None


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
    reader = StreamReader(
        cfg.shards_dir,
        split,
        order,
        cfg.augment,
        num_classes=manifest.num_classes,
        max_pixels=data.max_pixels,
        max_bad_fraction=data.max_bad_fraction,
    )
    return TrainLoader(
        reader,
        num_workers=data.num_workers,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world_size,
        start=start_sample,
    )


def _as_is(item: Any) -> Any:
    return item


def _start_worker(index: int) -> None:
    """Keep the worker to one thread, and alive for a while when the job is told to stop.

    Ctrl-C and many schedulers signal every process of a job. A worker that died at once would take the training
    process with it before its last checkpoint.
    """
    single_thread(index)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))
