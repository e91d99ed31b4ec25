"""Labels from scores: background scores, block means and the choice of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

Scores = NDArray[np.float32]
Pixels = NDArray[np.uint8]
ScoresOrTensor = TypeVar("ScoresOrTensor", Scores, Tensor)


def background_score(strongest: ScoresOrTensor, alpha: float) -> ScoresOrTensor:
    """Return (1 - strongest)^alpha of the largest class score of each pixel, at least 0. PARITY.md section 3."""
    return (1 - strongest).clip(0) ** alpha  # type: ignore[return-value]


def block_means(scores: Tensor, stride: int) -> Tensor:
    """Return the means (C, ceil(H / s), ceil(W / s)) of blocks of s x s pixels; outside the image all scores are 0."""
    height, width = scores.shape[1:]
    return avg_pool2d(pad(scores, (0, -width % stride, 0, -height % stride)), stride)


def choose_classes(scores: Scores | Tensor, classes: Sequence[int]) -> Pixels:
    """Return the ids (H, W) of the largest of scores (K + 1, H, W) of background and `classes`; the first in a tie."""
    index = scores.argmax(0)
    if isinstance(index, Tensor):
        index = index.to(torch.uint8).cpu().numpy()
    ids: Pixels = np.array([0, *classes], np.uint8)[index]
    return ids


def predict_labels(cam: Tensor, classes: Sequence[int], threshold: float) -> Pixels:
    """Return class ids (H, W) of a map (K, H, W): the largest score's class where it is above `threshold`."""
    cam = cam.float()
    return choose_classes(torch.cat([cam.new_full((1, *cam.shape[1:]), threshold), cam]), classes)
