"""Sizes of scaled images and of grids, and the resize between grids."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate


def scaled_size(size: tuple[int, int], scale: float, *, align: int | None = None) -> tuple[int, int]:
    """Return (height, width) times `scale`, rounded half to even as Python and the published code do, at least 1.

    `align` rounds to the nearest k * align + 1, k >= 1, instead: there the cells of a grid of that stride lie on the
    pixels where align_corners=True looks for them.
    """
    if align is not None:
        height, width = (max(1, round((side * scale - 1) / align)) * align + 1 for side in size)
        return height, width
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return x resized to `size`, bilinear with align_corners=True, as everywhere in the published network."""
    if (x.shape[2], x.shape[3]) == size:
        return x
    return interpolate(x, size, mode="bilinear", align_corners=True)
