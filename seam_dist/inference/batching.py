"""What the inference stages share: images of one size together, resized copies, other ranks' shards, bad samples."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.data.manifest import Shard
from seam_dist.data.shards import Sample
from seam_dist.models.grid import scaled_size

T = TypeVar("T")


class Work(NamedTuple):
    """An input shard and the folders that get its output shards."""

    shard: Shard
    folders: tuple[str, ...]


Pixels = NDArray[np.uint8]

# Pixels that go through the network at once: a CPU gains nothing from batches beyond it and needs about 1 KB a pixel.
PIXELS_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 23}
_WAITING = 8  # batches' worth of decoded images that wait for others of their size


def by_size(samples: Iterable[Sample], batch_size: int) -> Iterator[list[tuple[int, Sample]]]:
    """Yield batches of (place in the stream, sample) with images of equal size, at most `batch_size` each.

    At most 8 batches' worth of samples wait for their like; then the largest group goes as it is.
    """
    groups: dict[tuple[int, ...], list[tuple[int, Sample]]] = {}
    for item in enumerate(samples):
        group = groups.setdefault(item[1].image.shape, [])
        group.append(item)
        full = len(group) == batch_size
        if full or sum(map(len, groups.values())) >= _WAITING * batch_size:
            yield groups.pop(item[1].image.shape if full else max(groups, key=lambda size: len(groups[size])))
    yield from groups.values()


def scaled_images(images: Sequence[Pixels], scales: Sequence[float], *, align: int | None = None) -> list[Tensor]:
    """Return for each scale the images of one size resized together, uint8 (B, 3, h, w); bicubic as published."""
    result = []
    for scale in scales:
        height, width = scaled_size((images[0].shape[0], images[0].shape[1]), scale, align=align)
        # Pillow's kernel is the published one; OpenCV's differs by up to 30 gray levels at edges when shrinking.
        resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in images]
        result.append(torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2))
    return result


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = thread.submit(next, items, None)
            yield item


def wait_for(folder: Path, names: Sequence[str]) -> None:
    """Wait until all files are there. Ranks finish up to a shard apart, longer than a collective may take."""
    while not set(names) <= set(os.listdir(folder)):
        time.sleep(0.2)


def write_bad(folder: Path, shard: str, messages: Sequence[str]) -> None:
    """Keep what was said of the bad samples of one input shard; call it before the shard counts as done."""
    record = _bad_file(folder, shard)
    if messages:
        write_json(record, list(messages))
    else:
        record.unlink(missing_ok=True)


def read_bad(folder: Path, shards: Sequence[Shard], max_bad_fraction: float) -> list[str]:
    """Return what was said of the bad samples of all shards, whichever call met them.

    Raises ValueError when they are more than `max_bad_fraction` of the samples.
    """
    bad: list[str] = []
    for shard in shards:
        record = _bad_file(folder, shard.file)
        bad += read_json(record) if record.is_file() else []
    num_images = sum(shard.num_samples for shard in shards)
    if len(bad) > max_bad_fraction * num_images:
        raise ValueError(
            f"{len(bad)} of {num_images} images cannot be used, more than data.max_bad_fraction={max_bad_fraction:g}; "
            f"the first: {bad[0]}"
        )
    return bad


def _bad_file(folder: Path, shard: str) -> Path:
    return folder / "bad" / f"{shard.removesuffix('.tar')}.json"
