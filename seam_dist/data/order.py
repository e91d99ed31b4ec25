"""The canonical order: which stored sample is sample number n of the training stream, from (seed, n) and counts alone.

The shards of a split are dealt to S streams, shard i to stream i mod S; sample n comes from stream n mod S. A stream
never ends. Each of its epochs shuffles its shards, cuts them into groups of a few shards and shuffles the samples
of a group, so any place in it is located by arithmetic, without reading what is before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np

_SHARDS, _SAMPLES, _AUGMENT = 1, 2, 3  # what a random generator is for; keeps their sequences apart


@dataclass(frozen=True)
class Group:
    """Shards of one stream whose samples are shuffled and held in memory together in one epoch."""

    stream: int
    epoch: int
    index: int
    shards: tuple[int, ...]


def sample_generator(seed: int, number: int) -> np.random.Generator:
    """Return the random generator of sample `number`: augmentation depends on (seed, number) alone."""
    return _generator(seed, _AUGMENT, number, 0, 0)


def _generator(seed: int, purpose: int, *place: int) -> np.random.Generator:
    # Philox is keyed, not seeded: any (seed, purpose, place) gives its own sequence at no cost of searching for it.
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, purpose], counter=[0, *place]))


@dataclass(frozen=True)
class Order:
    """Order of a split whose shards hold `counts` samples, for a seed, S streams and groups of `group_shards`."""

    counts: tuple[int, ...]
    streams: int
    group_shards: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.counts) < self.streams:
            raise ValueError(
                f"num_shards={len(self.counts)} is fewer than data.streams={self.streams}: write more shards "
                f"(a smaller data.samples_per_shard, a new conversion) or set data.streams={len(self.counts)}"
            )

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Return the number of samples in one epoch of each stream."""
        return tuple(sum(self.counts[stream :: self.streams]) for stream in range(self.streams))

    def locate(self, number: int) -> tuple[Group, int]:
        """Return the group that sample `number` is in and its place in the group's order."""
        stream, index = number % self.streams, number // self.streams
        epoch, index = divmod(index, self.lengths[stream])
        groups, ends = _epoch(self, stream, epoch)
        group = bisect_right(ends, index)
        return groups[group], index - (ends[group - 1] if group else 0)

    def permutation(self, group: Group) -> Sequence[int]:
        """Return the order of a group's samples: place -> index into its shards' samples, one shard after the other."""
        total = sum(self.counts[shard] for shard in group.shards)
        rng = _generator(self.seed, _SAMPLES, group.stream, group.epoch, group.index)
        return [int(index) for index in rng.permutation(total)]


@lru_cache(maxsize=256)
def _epoch(order: Order, stream: int, epoch: int) -> tuple[tuple[Group, ...], tuple[int, ...]]:
    """Return the groups of one epoch of a stream, and for each the number of samples up to its end."""
    shards = np.arange(stream, len(order.counts), order.streams)
    shuffled = [int(shard) for shard in _generator(order.seed, _SHARDS, stream, epoch, 0).permutation(shards)]
    starts = range(0, len(shuffled), order.group_shards)
    groups = tuple(
        Group(stream, epoch, index, tuple(shuffled[start : start + order.group_shards]))
        for index, start in enumerate(starts)
    )
    return groups, tuple(accumulate(sum(order.counts[shard] for shard in group.shards) for group in groups))
