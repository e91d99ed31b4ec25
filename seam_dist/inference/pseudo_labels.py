"""Labels from scores: background scores, block means and the choice of a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def predict_labels(cam: Tensor, classes: Sequence[int], threshold: float) -> NDArray[np.uint8]:
    """Return class ids (H, W) of a map (K, H, W): the largest score's class where it is above `threshold`."""
    if len(classes) == 0:
        return np.zeros(tuple(cam.shape[1:]), np.uint8)
    scores = cam.float().numpy()
    ids: NDArray[np.uint8] = np.asarray(classes, np.uint8)[scores.argmax(axis=0)]
    ids[scores.max(axis=0) <= np.float32(threshold)] = 0
    return ids
