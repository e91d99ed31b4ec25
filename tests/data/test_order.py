"""The canonical order is a function of (seed, sample number)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from seam_dist.data.order import Group, Order, sample_generator

COUNTS = (4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 3)  # 11 shards on 4 streams


def order(seed: int = 0, group_shards: int = 2, counts: tuple[int, ...] = COUNTS) -> Order:
    return Order(counts, streams=4, group_shards=group_shards, seed=seed)


def stored(order: Order, number: int) -> tuple[int, int]:
    """Which sample of which shard sample `number` is."""
    group, place = order.locate(number)
    index = order.permutation(group)[place]
    for shard in group.shards:
        if index < order.counts[shard]:
            return shard, index
        index -= order.counts[shard]
    raise AssertionError("a permutation points past its group")


@pytest.mark.parametrize("group_shards", [1, 2, 3, 100])
def test_each_epoch_of_a_stream_holds_each_of_its_samples_once(group_shards: int) -> None:
    canonical = order(group_shards=group_shards)
    for stream in range(4):
        length = canonical.lengths[stream]
        shards = range(stream, len(COUNTS), 4)
        everything = {(shard, index) for shard in shards for index in range(COUNTS[shard])}
        assert length == len(everything)
        for epoch in range(3):
            numbers = [(epoch * length + i) * 4 + stream for i in range(length)]
            assert Counter(stored(canonical, n) for n in numbers) == Counter(everything)
            assert all(canonical.locate(n)[0].epoch == epoch for n in numbers)


def test_sample_number_decides_the_stream() -> None:
    for number in range(200):
        group, _ = order().locate(number)
        assert group.stream == number % 4
        assert all(shard % 4 == group.stream for shard in group.shards)


def test_epochs_streams_and_seeds_are_shuffled_differently() -> None:
    equal = order(counts=(10,) * 8)
    places = [[stored(equal, (e * 20 + i) * 4 + s) for i in range(20)] for e in range(4) for s in range(4)]
    relative = [tuple((shard // 4, index) for shard, index in run) for run in places]
    assert len(set(relative)) == 16
    of_second_seed = [stored(order(seed=1, counts=(10,) * 8), n) for n in range(80)]
    assert of_second_seed != [stored(equal, n) for n in range(80)]
    assert of_second_seed == [stored(order(seed=1, counts=(10,) * 8), n) for n in range(80)]


def test_samples_of_a_group_are_mixed_over_its_shards() -> None:
    many = Order((50,) * 8, streams=1, group_shards=4, seed=3)
    first_group = [stored(many, n)[0] for n in range(200)]
    assert len(set(first_group)) == 4
    for start in range(0, 200, 50):
        assert len(set(first_group[start : start + 50])) == 4


def test_first_sample_of_a_stream_is_uniform_over_seeds() -> None:
    counts = Counter(stored(Order((5,) * 4, 1, 2, seed), 0) for seed in range(600))
    assert len(counts) == 20
    assert min(counts.values()) > 8  # 30 expected, standard deviation 5.3
    assert max(counts.values()) < 54


def test_far_numbers_cost_nothing_and_large_seeds_are_taken() -> None:
    canonical = order(seed=2**63)
    group, place = canonical.locate(10**12 + 1)
    assert group.epoch == (10**12 + 1) // 4 // canonical.lengths[1]
    assert 0 <= place < sum(COUNTS[shard] for shard in group.shards)


def test_fewer_shards_than_streams_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"num_shards=3 is fewer than data\.streams=4: .*data\.streams=3"):
        order(counts=(1, 1, 1))


def test_random_generators_of_samples_are_keyed_and_apart() -> None:
    draws = {(seed, n): tuple(sample_generator(seed, n).random(3)) for seed in range(5) for n in range(200)}
    assert len(set(draws.values())) == len(draws)
    assert draws[3, 17] == tuple(sample_generator(3, 17).random(3))
    firsts = np.array([sample_generator(0, n).random() for n in range(4000)])
    assert abs(firsts.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 4000)
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 4 / np.sqrt(4000)


def test_order_does_not_change_between_versions() -> None:
    # A resumed run must see the samples that the interrupted one would have seen.
    assert [stored(order(), n) for n in range(8)] == [(4, 1), (9, 2), (6, 0), (7, 0), (0, 1), (1, 0), (10, 2), (7, 2)]
    assert order().locate(0)[0] == Group(0, 0, 0, (0, 4))
    assert sample_generator(0, 0).integers(2**32) == 517086099
