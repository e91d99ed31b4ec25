"""The loss of the final network against a slow reading of its equation, pixel by pixel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from seam_dist.losses.segmentation import segmentation_sums


def slow_loss(
    logits: Tensor, target: Tensor, smoothing: float, confidence: bool, background: float = 1.0
) -> tuple[float, int, int]:
    """Pixel by pixel, in Python."""
    total, hits, count = 0.0, 0, 0
    for b in range(target.shape[0]):
        for y in range(target.shape[1]):
            for x in range(target.shape[2]):
                label = int(target[b, y, x])
                if label == 255:
                    continue
                scores = [float(v) for v in logits[b, :, y, x]]
                high = max(scores)
                norm = high + math.log(sum(math.exp(v - high) for v in scores))
                shares = [smoothing / len(scores) + (1 - smoothing) * (k == label) for k in range(len(scores))]
                loss = sum(share * (norm - score) for share, score in zip(shares, scores, strict=True))
                weight = background if label == 0 else 1
                total += weight * loss * (math.exp(scores[label] - norm) if confidence else 1)
                hits += scores.index(high) == label
                count += 1
    return total, hits, count


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("background", [1.0, 0.3])
def test_sums_match_a_pixel_by_pixel_reading(smoothing: float, confidence: bool, background: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(2, 3 + 1, 5, 7, generator=generator)
    target = torch.randint(0, 3 + 1, (2, 5, 7), generator=generator)
    target[0, :2] = 255
    weights: dict[str, Any] = {"confidence": confidence, "background_weight": background}
    loss, hits = segmentation_sums(logits, target, label_smoothing=smoothing, **weights)
    expected, expected_hits, _ = slow_loss(logits.double(), target, smoothing, confidence, background)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert int(hits) == expected_hits


def test_confidence_carries_no_gradient() -> None:
    logits = torch.randn(1, 4, 2, 2, requires_grad=True)
    target = torch.tensor([[[0, 3], [2, 255]]])
    loss, _ = segmentation_sums(logits, target, confidence=True)
    (gradient,) = torch.autograd.grad(loss, logits)
    probability = logits.detach().softmax(dim=1)
    onehot = torch.nn.functional.one_hot(target.clamp(max=3), 4).permute(0, 3, 1, 2)
    weight = (probability * onehot).sum(dim=1, keepdim=True) * (target != 255)[:, None]
    torch.testing.assert_close(gradient, weight * (probability - onehot))
