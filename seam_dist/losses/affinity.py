"""The loss of AffinityNet from affinities and labels of a grid (PARITY.md section 5).

    loss = bg / 4 + fg / 4 + neg / 2,   each = sum over its pairs of l(a) / (number of its pairs + 1e-5)

with l = -log(a + 1e-5) for pairs of one class and -log(1 + 1e-5 - a) for pairs of two. The numbers are those of the
global batch. Pairs are never gathered: each of the K planes compares two views of the same label map.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from seam_kernels.stencil import from_window, half_plane_offsets
from torch import Tensor

from seam_dist.config.schema import IGNORE_INDEX

EPS = 1e-5
NONE, BACKGROUND, FOREGROUND, NEGATIVE = range(4)
WEIGHTS: Mapping[str, float] = {"bg": 0.25, "fg": 0.25, "neg": 0.5}


def pair_types(labels: Tensor, *, radius: int, border: str) -> Tensor:
    """Return uint8 (B, K, h, w), as edge_affinity orders the pairs: NONE, BACKGROUND, FOREGROUND or NEGATIVE.

    labels (B, h, w) hold class indices, 0 background, 255 ignored. A pair exists where the border rule says so and
    neither side is ignored; it is BACKGROUND when both are 0, FOREGROUND when both are the same class, else NEGATIVE.
    """
    if labels.dim() != 3 or labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}, expected class indices (B, h, w)")
    batch, height, width = labels.shape
    offsets = half_plane_offsets(radius)
    types = torch.zeros(batch, len(offsets), height, width, dtype=torch.uint8, device=labels.device)
    for k, offset in enumerate(offsets):
        y0, y1, x0, x1 = from_window(offset, height, width, radius, border)
        if y0 >= y1 or x0 >= x1:
            continue
        first = labels[:, y0:y1, x0:x1]
        second = labels[:, y0 + offset[0] : y1 + offset[0], x0 + offset[1] : x1 + offset[1]]
        same_class = torch.where(first == 0, BACKGROUND, FOREGROUND)
        pairs = torch.where(first == second, same_class, NEGATIVE)
        types[:, k, y0:y1, x0:x1] = pairs.masked_fill_((first == IGNORE_INDEX) | (second == IGNORE_INDEX), NONE)
    return types


def pair_counts(labels: Tensor, *, radius: int, border: str) -> Tensor:
    """Return the numbers of background, foreground and negative pairs, (3,) int64."""
    types = pair_types(labels, radius=radius, border=border)
    return torch.bincount(types.flatten(), minlength=4)[1:]


def affinity_losses(affinity: Tensor, labels: Tensor, counts: Tensor, *, radius: int, border: str) -> dict[str, Tensor]:
    """Return "loss" and its terms "bg", "fg", "neg", float32, of a part of the global batch.

    affinity (B, K, h, w) float32 from edge_affinity with the same radius and border; labels (B, h, w); counts (3,) of
    the global batch, of which these images are a part: the losses of all parts add up to that of the batch.
    """
    types = pair_types(labels, radius=radius, border=border)
    if affinity.shape != types.shape:
        raise ValueError(
            f"affinity has shape {tuple(affinity.shape)}, labels {tuple(labels.shape)}, expected (B, "
            f"{types.shape[1]}, h, w) and (B, h, w): make the labels at the output stride of the network"
        )
    affinity = affinity.float()
    # Pairs that do not exist have affinity 0 and a finite logarithm, so that a weight of 0 takes them out.
    value = torch.where(types == NEGATIVE, 1 + EPS - affinity, affinity + EPS).log()
    denominators = counts.to(affinity.device, torch.float32) + EPS
    terms = {
        name: -torch.where(types == pair_type, value, 0).sum() / denominators[pair_type - 1]
        for pair_type, name in enumerate(WEIGHTS, start=BACKGROUND)
    }
    total = torch.stack([weight * terms[name] for name, weight in WEIGHTS.items()]).sum()
    return {"loss": total, **terms}
