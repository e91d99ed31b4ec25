"""The loss of the final network from logits and label maps (PARITY.md section 7).

    sum_p w_p CE(logits_p, y_p)   over the pixels p with y_p != 255

w_p is background_weight where y_p is background, 1 elsewhere; with confidence times the network's own softmax
probability of y_p without gradient. The weights are not normalized to a mean of 1: a batch whose labels the network
doubts counts less than one it agrees with. The caller divides by the number of pixels in the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from seam_dist.config.schema import IGNORE_INDEX


def segmentation_sums(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    confidence: bool = False,
    background_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy and the number of right pixels, both float32, over pixels that are not 255.

    logits (B, C + 1, H, W) float32, target (B, H, W) int64. With label smoothing e a pixel's target is (1 - e) at its
    label plus e / (C + 1) everywhere; with `confidence` each pixel counts as much as its label is probable now; a pixel
    of label 0 counts `background_weight` times.
    """
    losses = cross_entropy(logits, target, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing, reduction="none")
    if confidence:
        plain = losses
        if label_smoothing:
            plain = cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none")
        losses = losses * torch.exp(-plain.detach())
    if background_weight != 1:
        losses = torch.where(target == 0, background_weight * losses, losses)
    with torch.no_grad():
        hits = (logits.argmax(dim=1) == target).sum().float()  # no class is IGNORE_INDEX
    return losses.sum(), hits
