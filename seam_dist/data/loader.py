"""The training stream: batches of augmented samples in canonical order, starting at any sample number.

Rank r of R owns the samples n with n mod R = r; its worker w of W every W-th of them. Since R * W divides the number of
streams, a process reads whole streams and nothing else, and the batch of a step is the same for any R and W. The state
of a loader is one integer, the number of its next global sample.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from seam_dist.config.schema import Config, DataConfig
from seam_dist.data.augment.affinity import affinity_augmentation
from seam_dist.data.augment.classification import ClassificationAugmentation
from seam_dist.data.augment.segmentation import SegmentationAugmentation
from seam_dist.data.images import single_thread
from seam_dist.data.manifest import Manifest, ShardError, check_shards
from seam_dist.data.order import Order
from seam_dist.data.reader import Augmentation, Item, LabelMapDecoder, StreamReader

_GRACE_S = 10  # seconds that a worker stays alive after a stop signal


class SampleMetadata(TypedDict):
    """What every batch says of its samples.

    valid (B, 4) int32 y0, x0, y1, x1: the box that is image, the rest is padding; color (B, 8) float32, see
    `seam_dist.data.augment.color`; key; sample_number (B,) int64.
    """

    valid: Tensor
    color: Tensor
    key: list[str]
    sample_number: Tensor


class ClassificationBatch(SampleMetadata):
    """A micro-batch of images with image-level labels; images stay uint8 until `normalize_images` on the device.

    image (B, 3, S, S) uint8 in channels_last memory, zero outside `valid`; label (B, C) float32 multi-hot.
    """

    image: Tensor
    label: Tensor


class LabelMapBatch(SampleMetadata):
    """A micro-batch of images with label maps.

    image (B, 3, S, S) uint8 in channels_last memory, zero outside `valid`; target uint8 (B, S, S), of affinity labels
    (B, S / s, S / s): class indices, 255 where nothing is known or no image is.
    """

    image: Tensor
    target: Tensor


class TrainStream(IterableDataset[tuple[int, Item]]):
    """Samples start, start + step, start + 2 step, ... for the workers of a DataLoader, each taking every W-th.

    The pixels go through `slots`, arrays (W, num_slots, ...) by name in memory that all processes share: a worker fills
    its slots in a cycle and passes on their numbers. Nothing is overwritten too early as long as there are two slots
    more than results that a worker may be ahead, and each result is copied before the next one is asked for.
    """

    def __init__(self, reader: StreamReader, slots: Mapping[str, Tensor], start: int, step: int) -> None:
        self._reader, self._slots, self._start, self._step = reader, slots, start, step

    def __iter__(self) -> Iterator[tuple[int, Item]]:
        """Yield (slot, item) of this worker's share, without end."""
        worker = get_worker_info()
        assert worker is not None, "TrainStream is read by the workers of a DataLoader"
        number, count = self._start + worker.id * self._step, 0
        slots = {name: array[worker.id].numpy() for name, array in self._slots.items()}
        num_slots = min(len(array) for array in slots.values())
        while True:
            slot = count % num_slots
            yield slot, self._reader.read(number, {name: array[slot] for name, array in slots.items()})
            number, count = number + worker.num_workers * self._step, count + 1


class SampleLoader:
    """The samples of one rank, without end; `next_sample` is the whole state: resume with start=next_sample.

    `num_replaced` counts the samples so far that stood in for bad ones. Call `close` to end the loader's processes.
    """

    def __init__(
        self,
        cfg: Config,
        manifest: Manifest,
        augmentation: Augmentation,
        rank: int,
        world_size: int,
        start_sample: int,
        micro_batch_size: int,
        labels: Path | None = None,
    ) -> None:
        data, split = cfg.data, manifest.split(cfg.data.train_split)
        _check_numbers(data, rank, world_size, start_sample, micro_batch_size)
        own = [shard for i, shard in enumerate(split.shards) if i % data.streams % world_size == rank]
        check_shards(cfg.shards_dir, own, data.verify)
        for path in [] if labels is None else [labels / shard.file for shard in own]:
            if not path.is_file():
                raise ShardError(f"{path} is missing: run the stage that writes these labels again")
        counts = tuple(shard.num_samples for shard in split.shards)
        reader = StreamReader(
            cfg.shards_dir,
            split,
            Order(counts, data.streams, data.shuffle_shards, cfg.run.seed),
            augmentation,
            num_classes=manifest.num_classes,
            max_bad_fraction=data.max_bad_fraction,
            labels=labels,
        )
        num_workers = data.num_workers
        self.next_sample = start_sample
        self.num_replaced = 0
        self._reader, self._rank, self._world_size = reader, rank, world_size
        self._micro_batch_size, self._num_workers = micro_batch_size, num_workers
        self._results: Iterator[tuple[int, Item]] | None = None
        self._worker = 0
        if num_workers == 0:
            return
        ahead = max(2, -(-2 * micro_batch_size // num_workers))  # two batches
        self._slots = {
            name: torch.empty(num_workers, ahead + 2, *shape, dtype=torch.uint8)
            for name, shape in reader.shapes.items()
        }
        for slots in self._slots.values():
            slots.share_memory_()  # type: ignore[no-untyped-call]
        self._results = iter(
            DataLoader(
                TrainStream(reader, self._slots, start_sample + rank, world_size),
                batch_size=None,
                collate_fn=_as_is,
                num_workers=num_workers,
                prefetch_factor=ahead,
                worker_init_fn=_start_loader_worker,
                persistent_workers=True,
                multiprocessing_context="fork",
                generator=torch.Generator(),  # its own: the loader must not advance the generator of dropout
            )
        )

    def _next_samples(self) -> tuple[dict[str, Tensor], list[Item]]:
        """Return the pixels of the next micro-batch, arrays (B, ...) by name, and what belongs to them."""
        size = self._micro_batch_size
        arrays = {name: torch.empty(size, *shape, dtype=torch.uint8) for name, shape in self._reader.shapes.items()}
        items = [self._read(place, {name: array[place] for name, array in arrays.items()}) for place in range(size)]
        self.next_sample += size * self._world_size
        self.num_replaced += sum(item.replaced for item in items)
        return arrays, items

    def _read(self, place: int, out: Mapping[str, Tensor]) -> Item:
        """Fill `out` with the sample at `place` of the batch."""
        if self._num_workers == 0:
            number = self.next_sample + self._rank + place * self._world_size
            return self._reader.read(number, {name: array.numpy() for name, array in out.items()})
        if self._results is None:
            raise StopIteration
        # The DataLoader takes one result from each worker in turn, beginning with the first.
        slot, item = next(self._results)
        for name, array in out.items():
            array.copy_(self._slots[name][self._worker, slot])
        self._worker = (self._worker + 1) % self._num_workers
        return item

    def close(self) -> None:
        """End the worker processes; a loader with workers gives no more batches."""
        self._results = None


def _metadata(items: list[Item]) -> SampleMetadata:
    return SampleMetadata(
        valid=torch.tensor([item.valid for item in items], dtype=torch.int32),
        color=torch.from_numpy(np.stack([item.color for item in items])),
        key=[item.key for item in items],
        sample_number=torch.tensor([item.number for item in items], dtype=torch.int64),
    )


class ClassificationLoader(SampleLoader, Iterator[ClassificationBatch]):
    """Batches of one rank, without end."""

    def __next__(self) -> ClassificationBatch:
        """Return the next micro-batch."""
        arrays, items = self._next_samples()
        label = torch.zeros(len(items), self._reader.num_classes)
        for row, item in zip(label, items, strict=True):
            row[[index - 1 for index in item.classes]] = 1
        return ClassificationBatch(image=arrays["image"].permute(0, 3, 1, 2), label=label, **_metadata(items))


class LabelMapLoader(SampleLoader, Iterator[LabelMapBatch]):
    """Batches of one rank, without end."""

    def __next__(self) -> LabelMapBatch:
        """Return the next micro-batch."""
        arrays, items = self._next_samples()
        return LabelMapBatch(image=arrays["image"].permute(0, 3, 1, 2), target=arrays["target"], **_metadata(items))


def make_classification_loader(
    cfg: Config, manifest: Manifest, rank: int, world_size: int, start_sample: int, micro_batch_size: int
) -> ClassificationLoader:
    """Return the batches of `rank` from global sample `start_sample` on, after checking the shards that it will read.

    `start_sample` counts the samples of all ranks, so it is a multiple of `world_size`. Raises ValueError for numbers
    that do not fit together and ShardError, with its name, for a shard that is missing or damaged.
    """
    split = manifest.split(cfg.data.train_split)
    if not split.has_labels:
        raise ShardError(f"split {split.name!r} has no image-level labels, so it cannot train: set data.train_split")
    augmentation = ClassificationAugmentation(cfg.augment, cfg.data.max_pixels)
    return ClassificationLoader(cfg, manifest, augmentation, rank, world_size, start_sample, micro_batch_size)


def make_label_map_loader(
    cfg: Config,
    manifest: Manifest,
    rank: int,
    world_size: int,
    start_sample: int,
    micro_batch_size: int,
    *,
    labels: Path | None,
    stage: Literal["train_affinity", "train_seg"],
) -> LabelMapLoader:
    """Return the batches of `rank` from global sample `start_sample` on, in the order of `make_classification_loader`.

    `labels` is a folder of label tars named like the shards; None takes the masks in the shards. A sample whose tar
    has no label for it is replaced like a bad sample. Raises ValueError for numbers that do not fit together, and
    ShardError for a shard or a label tar that is missing, by its name, and for labels of another size.
    """
    split = manifest.split(cfg.data.train_split)
    if labels is None and not split.has_masks:
        raise ShardError(f"split {split.name!r} has no masks to train on: give pseudo-labels, or set data.train_split")
    decoder = LabelMapDecoder(labels, manifest.num_classes, cfg.data.max_pixels)
    augmentation: Augmentation
    if stage == "train_affinity":
        augmentation = affinity_augmentation(cfg, decoder)
    else:
        augmentation = SegmentationAugmentation(cfg.train_seg, decoder)
    return LabelMapLoader(cfg, manifest, augmentation, rank, world_size, start_sample, micro_batch_size, labels=labels)


def check_streams(data: DataConfig, world_size: int) -> None:
    """Raise ValueError unless the loaders of all ranks can share data.streams evenly."""
    readers = world_size * max(1, data.num_workers)
    if data.streams % readers:
        raise ValueError(
            f"data.streams={data.streams} is not a multiple of {world_size} ranks x {max(1, data.num_workers)} workers "
            f"= {readers}: set data.streams to a multiple, or change data.num_workers"
        )


def _check_numbers(data: DataConfig, rank: int, world_size: int, start_sample: int, micro_batch_size: int) -> None:
    check_streams(data, world_size)
    if not 0 <= rank < world_size or start_sample < 0 or start_sample % world_size:
        text = f"rank={rank}, world_size={world_size}, start_sample={start_sample}"
        raise ValueError(f"{text}: expected 0 <= rank < world_size and start_sample a multiple of world_size")
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size={micro_batch_size} is less than one image: give at least 1")


def _as_is(item: Any) -> Any:
    return item


def _start_loader_worker(_: int) -> None:
    """Keep the worker to one thread, and alive for a while after a signal to stop the job.

    Ctrl-C and many schedulers signal every process of a job. A worker that died at once would take the training
    process with it before its last checkpoint.
    """
    single_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))
