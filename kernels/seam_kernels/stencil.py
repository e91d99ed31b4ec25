"""The neighborhood that edge_affinity and random_walk share: half-plane offsets, borders, shifts of flat images.

An image of H rows and W columns is used flat, as N = H W numbers: the neighbor (dy, dx) of pixel p is p + dy W + dx,
so one shifted slice serves a whole plane. Slices that run over the end of a row pair pixels that are no neighbors;
their weight is zero (`pair_mask`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

Border = Literal["paper", "full"]


def half_plane_offsets(radius: int) -> tuple[tuple[int, int], ...]:
    """Return the offsets (dy, dx) that meet every pair of pixels closer than `radius` once; 34 for radius 5.

    dy = 0 with dx = 1 .. radius-1, then dy = 1 .. radius-1 with dx = -(radius-1) .. radius-1, dx^2 + dy^2 < radius^2.
    Source: PARITY.md section 5.
    """
    check_radius(radius)
    right = [(0, dx) for dx in range(1, radius)]
    below = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius)]
    return tuple(right + [(dy, dx) for dy, dx in below if dx * dx + dy * dy < radius * radius])


def shrunk_radius(height: int, width: int, radius: int = 5) -> int:
    """Return the radius that the published code uses on a map this small: (min edge - 1) // 2, at least 1.

    Source: PARITY.md section 5. Maps of at least 2 * radius + 1 in both directions keep `radius`.
    """
    edge = min(height, width)
    return radius if edge >= 2 * radius + 1 else max(1, min(radius, (edge - 1) // 2))


def check_radius(radius: int) -> None:
    """Refuse a radius below 1."""
    if radius < 1:
        raise ValueError(f"radius={radius} is below 1, expected the number of pixels that bounds a pair (paper: 5)")


def check_border(border: str) -> None:
    """Refuse a border rule that does not exist."""
    if border not in get_args(Border):
        raise ValueError(f"border={border!r} is unknown: use one of {', '.join(get_args(Border))}")


def from_window(
    offset: tuple[int, int], height: int, width: int, radius: int, border: str
) -> tuple[int, int, int, int]:
    """Return y0, y1, x0, x1: the pixels whose neighbor at `offset` makes a pair; empty where y0 >= y1 or x0 >= x1.

    "full": both pixels are in the image. "paper": the first one is also at least radius - 1 away from the left, right
    and bottom edges, whatever the offset.
    """
    dy, dx = offset
    if border == "paper":
        margin = radius - 1
        return 0, height - margin, margin, width - margin
    return 0, height - dy, max(0, -dx), width - max(0, dx)


@lru_cache(maxsize=64)
def pair_mask(height: int, width: int, radius: int, border: str) -> Tensor:
    """Return (K, H W) bool on the CPU: where the pair exists. Read only: callers share it."""
    offsets = half_plane_offsets(radius)
    mask = torch.zeros(len(offsets), height, width, dtype=torch.bool)
    for plane, offset in zip(mask, offsets, strict=True):
        y0, y1, x0, x1 = from_window(offset, height, width, radius, border)
        if y0 < y1 and x0 < x1:
            plane[y0:y1, x0:x1] = True
    return mask.flatten(1)


def shifts(height: int, width: int, radius: int) -> list[tuple[int, int]]:
    """Return (k, shift) of the offsets that fit in the image; the flat neighbor of p is p + shift, 0 < shift < H W."""
    return [
        (k, dy * width + dx) for k, (dy, dx) in enumerate(half_plane_offsets(radius)) if dy < height and abs(dx) < width
    ]
