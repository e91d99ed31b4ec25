"""Random choices, places of crops and the resizing of a region."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seam_dist.config.schema import AugmentConfig
from seam_dist.data.augment.color import IDENTITY, operation_order
from seam_dist.data.augment.geometry import Draw, draw, place, resize_region
from seam_dist.data.order import sample_generator

PUBLISHED = AugmentConfig()


def test_draws_have_the_published_distribution() -> None:
    draws = [draw(sample_generator(0, number), PUBLISHED) for number in range(4000)]
    sides = np.array([d.long_side for d in draws])
    assert (sides.min(), sides.max()) == (448, 768)
    assert abs(sides.mean() - 608) < 4 * 92.7 / np.sqrt(4000)
    assert abs(np.mean([d.flip for d in draws]) - 0.5) < 0.04
    color = np.stack([d.color for d in draws])
    for column, low, high in ((0, 0.7, 1.3), (1, 0.7, 1.3), (2, 0.7, 1.3), (3, -0.1, 0.1)):
        values = color[:, column]
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * 4000)
    orders = {tuple(operation_order(row)) for row in color}
    assert len(orders) == 24
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_crop_position_is_uniform_for_large_and_small_images() -> None:
    cfg = replace(PUBLISHED, resize_long=(6, 6))
    places = [place(3, 6, draw(sample_generator(0, n), cfg), 4) for n in range(600)]
    assert {placement.resized for placement in places} == {(3, 6)}
    starts, offsets = (
        Counter(placement.start for placement in places),
        Counter(placement.offset for placement in places),
    )
    assert set(starts) == {(0, x) for x in range(3)}
    assert set(offsets) == {(y, 0) for y in range(2)}
    assert min(starts.values()) > 150
    assert min(offsets.values()) > 250


def test_settings_switch_single_parts_off() -> None:
    cfg = replace(PUBLISHED, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, hflip=0.0, resize_long=(500, 500))
    for number in range(20):
        choice = draw(sample_generator(0, number), cfg)
        assert (choice.long_side, choice.flip) == (500, False)
        assert tuple(choice.color[:4]) == IDENTITY[:4]


def test_one_setting_does_not_shift_the_draws_of_another() -> None:
    first = draw(sample_generator(0, 0), PUBLISHED)
    second = draw(sample_generator(0, 0), replace(PUBLISHED, hflip=0.0, hue=0.0))
    assert first.position == second.position
    assert first.long_side == second.long_side
    assert np.array_equal(first.color[:3], second.color[:3])


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)), st.integers(20, 700), st.integers(8, 300), st.floats(0, 0.999)
)
def test_region_of_a_resized_image_is_where_the_whole_one_has_it(
    size: tuple[int, int], long_side: int, crop: int, share: float
) -> None:
    where = place(*size, Draw(long_side, False, (share, share), np.array(IDENTITY, np.float32)), crop)
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.stack([y * 255 / size[0], x * 255 / size[1], np.zeros(size)], axis=-1).astype(np.uint8)
    whole = cv2.resize(image, where.resized[::-1], interpolation=cv2.INTER_LINEAR)
    region = resize_region(image, where.resized, where.start, where.size)
    assert region.shape[:2] == where.size
    (top, left), (height, width) = where.start, where.size
    expected = whole[top : top + height, left : left + width]
    assert np.abs(region.astype(int) - expected).max() <= 2 + 300 // min(*size, *where.resized)


@pytest.mark.parametrize("resized", [501, 499, 505, 448, 450, 617, 768, 1000])
def test_region_lies_exactly_where_the_whole_resized_image_has_it(resized: int) -> None:
    # Fine texture: a shift by half a pixel would change it by 30 and more.
    y, x = np.mgrid[:90, :500]
    image = np.repeat((128 + 100 * np.sin(x) * np.cos(y / 2))[..., None], 3, axis=2).astype(np.uint8)
    height = round(90 * resized / 500)
    whole = cv2.resize(image, (resized, height), interpolation=cv2.INTER_CUBIC).astype(int)
    for start in range(0, resized - 60, 37):
        region = resize_region(image, (height, resized), (0, start), (height, 60))
        assert np.abs(region - whole[:, start : start + 60]).mean() < 4
