"""Segmentation scores of CAMs for all background thresholds at once, from one histogram.

A pixel is background at threshold t when its largest foreground score is not above t (PARITY.md section 8: argmax over
[t, scores], ties to the background); otherwise it is the class of that score, the first one of equals. So a pixel's
prediction changes with t at its score alone, and counting pixels by (true class, best foreground class, number of
thresholds below the score) holds the confusion matrix of every threshold, exactly.

Classes: 0 the background, 1 .. C the foreground. In the scores of a split a class without a true pixel has no IoU (NaN)
and is left out of the mean, so that the mean is over the same classes at every threshold and for every type of labels;
pixels that are wrongly predicted as such a class cost the true class its IoU. In an image's own score a class that is
predicted and not there counts as 0. The published code gives 0 to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seam_dist.config.schema import IGNORE_INDEX


@dataclass(frozen=True)
class Scores:
    """Per-class scores, (..., C + 1) float64 in 0..1, NaN where a ratio has no pixels, and their mean IoU (...)."""

    iou: Tensor
    precision: Tensor
    recall: Tensor
    miou: Tensor


def scores_from_counts(hits: Tensor, predicted: Tensor, truth: Tensor) -> Scores:
    """Return the scores of int64 pixel counts (..., C + 1): right ones, predicted ones, true ones.

    iou = hits / (predicted + truth - hits), precision = hits / predicted, recall = hits / truth; 0 / 0 is NaN. miou is
    the mean over the classes that have an IoU: all but those that are neither true nor predicted anywhere. A class that
    is only predicted counts as 0, as in published evaluations.
    """
    hits, predicted, truth = (count.double() for count in (hits, predicted, truth))
    iou = hits / (predicted + truth - hits)
    return Scores(iou=iou, precision=hits / predicted, recall=hits / truth, miou=iou.nanmean(dim=-1))


def scores_from_confusion(confusion: Tensor) -> Scores:
    """Return the scores of a confusion matrix (..., C + 1, C + 1), true classes in rows, predicted ones in columns."""
    hits = confusion.diagonal(dim1=-2, dim2=-1)
    return scores_from_counts(hits, confusion.sum(dim=-2), confusion.sum(dim=-1))


def class_lists(scores: Scores, *index: int) -> dict[str, list[float | None]]:
    """Return IoU, precision and recall at `index` as JSON lists over the classes, background first; NaN is None."""
    lists = {"iou": scores.iou, "precision": scores.precision, "recall": scores.recall}
    return {name: [number_or_none(value) for value in values[index].tolist()] for name, values in lists.items()}


def absent_classes(recall: Sequence[float | None], classes: Sequence[str]) -> list[str]:
    """Return the names of the classes without true pixels: those without a recall, in a list of `class_lists`."""
    names = ("background", *classes)
    return [name for name, value in zip(names, recall, strict=False) if value is None]


def number_or_none(value: float) -> float | None:
    """Return None for NaN, which JSON does not have, and any other number as it is."""
    return None if math.isnan(value) else value


def threshold_grid(num_thresholds: int, *extra: float) -> list[float]:
    """Return k / num_thresholds for k = 0 .. num_thresholds - 1 and the extra thresholds, ascending, each once."""
    return sorted({k / num_thresholds for k in range(num_thresholds)} | set(extra))


def _first_largest(cam: Tensor) -> tuple[Tensor, Tensor]:
    """Return index (H, W) int32 and value of the largest of K maps.

    Not argmax: of equal scores the first wins by the rule, which argmax does not promise.
    """
    score = cam[0].float()
    best = torch.zeros(score.shape, dtype=torch.int32)
    for k in range(1, len(cam)):
        best.masked_fill_(cam[k] > score, k)
        score = torch.maximum(score, cam[k].float())
    return best, score


class ThresholdHistogram:
    """Counts pixels by true class, best foreground class and score, for exact scores at every one of `thresholds`.

    Scores and thresholds are compared as float32, as in the published code. Counts are int64. Histograms of parts of a
    split add up, over images and over ranks.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float]) -> None:
        bounds = torch.tensor(list(thresholds), dtype=torch.float32)
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} is less than 1: give the number of foreground classes")
        if len(bounds) == 0 or bool((bounds.diff() <= 0).any()):
            raise ValueError(f"thresholds={list(thresholds)} must be ascending and at least one: sort them")
        self.num_classes = num_classes
        self.thresholds = list(thresholds)
        self._bounds = bounds
        # [true class, best foreground class - 1, number of thresholds below the score]
        self.counts = torch.zeros(num_classes + 1, num_classes, len(bounds) + 1, dtype=torch.int64)

    def update(self, cam: Tensor, classes: Sequence[int], mask: NDArray[np.uint8]) -> Tensor:
        """Count one image; return its own mean IoU at each threshold, (T,) float64, NaN where no pixel counts.

        cam (K, H, W) float: scores of the K present classes; classes: their ids from 1, ascending; mask (H, W) uint8:
        true classes, 255 is left out. Without classes every pixel is background at all thresholds.
        Raises ValueError for sizes that differ, ids or mask values out of range, and scores that are not finite.
        """
        self._check(cam, classes, mask)
        # int32 throughout: time goes by bytes. Ignored pixels get a row of their own, which is dropped.
        rows = np.arange(256, dtype=np.int32)
        rows[IGNORE_INDEX] = self.num_classes + 1
        truth = torch.from_numpy(rows[mask].ravel())
        size = (self.num_classes + 2, max(1, len(classes)), len(self._bounds) + 1)
        index = truth * (size[1] * size[2])
        if len(classes):
            best, score = _first_largest(cam)
            above = torch.bucketize(score.flatten(), self._bounds, out_int32=True)  # the thresholds below the score
            index += above.add_(best.flatten(), alpha=size[2])
        counts = torch.bincount(index, minlength=size[0] * size[1] * size[2]).view(size)[:-1]
        columns = [c - 1 for c in classes] or [0]
        self.counts[:, columns] += counts
        return self._scores(counts, columns).miou

    def scores(self) -> Scores:
        """Return the scores at every threshold: per class (T, C + 1), mean IoU (T,)."""
        return self._scores(self.counts, list(range(self.num_classes)))

    def _scores(self, counts: Tensor, columns: Sequence[int]) -> Scores:
        """Return the scores of counts (C + 1, K, T + 1) whose K columns are the foreground classes `columns` + 1."""
        low = counts.cumsum(dim=2)[:, :, :-1]  # [C + 1, K, T]: not above threshold t
        high = counts.sum(dim=2, keepdim=True) - low
        shape = (len(self._bounds), self.num_classes + 1)
        hits, predicted = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        hits[:, 0] = low[0].sum(dim=0)
        predicted[:, 0] = low.sum(dim=(0, 1))
        ids = torch.tensor(columns) + 1
        hits[:, ids] = high[ids, torch.arange(len(columns))].T
        predicted[:, ids] = high.sum(dim=0).T
        return scores_from_counts(hits, predicted, counts.sum(dim=(1, 2)))

    def _check(self, cam: Tensor, classes: Sequence[int], mask: NDArray[np.uint8]) -> None:
        expected = (len(classes), *mask.shape)
        if tuple(cam.shape) != expected:
            raise ValueError(
                f"cam has shape {tuple(cam.shape)}, expected {expected} for {len(classes)} classes and the mask: "
                "upsample it to the mask's size"
            )
        if list(classes) != sorted({c for c in classes if 1 <= c <= self.num_classes}):
            raise ValueError(
                f"classes={list(classes)}, expected ascending ids within 1 .. {self.num_classes}: use the data set "
                "that the CAMs were made for"
            )
        largest = int(mask[mask != IGNORE_INDEX].max(initial=0))
        if largest > self.num_classes:
            raise ValueError(f"mask holds class {largest}, expected 0 .. {self.num_classes} or 255: correct the mask")
        if not bool(torch.isfinite(cam).all()):
            raise ValueError("cam holds NaN or infinity: run `--only infer_cam` again with finite weights")
