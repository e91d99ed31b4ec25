"""Sizes of scaled images."""

from __future__ import annotations

import pytest

from seam_dist.models.grid import scaled_size


def test_scaled_size_rounds_half_to_even():
    assert scaled_size((375, 501), 0.5) == (188, 250)
    assert scaled_size((1, 1), 0.25) == (1, 1)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((240, 320), 1.0, (241, 321)), ((193, 193), 0.5, (97, 97)), ((9, 20), 0.3, (17, 17))],
)
def test_aligned_size_is_the_nearest_multiple_of_the_stride_plus_one(size, scale, expected):
    assert scaled_size(size, scale, align=16) == expected
