"""Scores of predicted labels against a folder of true masks, each named like its image.

A mask that cannot be used is named and left out; it never ends the prediction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from seam_dist.artifacts.outputs import printable
from seam_dist.config.phrases import count_of
from seam_dist.data.image_folder import check_readable, list_images
from seam_dist.data.masks import decode_mask
from seam_dist.evaluation.label_scores import confusion_matrix
from seam_dist.evaluation.metrics import scores_from_confusion
from seam_dist.evaluation.text_table import aligned


class MaskFolder:
    """The masks of images, and the confusion matrix of the labels that were compared with them.

    keys: the names of the images, `sub/folder/stem`. Raises ValueError when `folder` is missing or holds no mask of any
    of the images.
    """

    def __init__(self, folder: Path, keys: Collection[str], classes: Sequence[str], *, max_pixels: int) -> None:
        listed = list_images(folder, "--masks", suffixes=(".png",), with_outputs=True)
        self._masks = {key: path for key, path in listed.images.items() if key in keys}
        if not self._masks:
            expected = printable(next(iter(keys), "NAME"))
            first = printable(next(iter(listed.images), ""))
            there = f"{len(listed.images)} .png files, the first {first}.png" if listed.images else "no .png file"
            raise ValueError(
                f"--masks {printable(folder)} holds no mask of any image, expected {expected}.png and so on, found "
                f"{there}: give a folder whose masks are named like the images"
            )
        self._classes, self._max_pixels = classes, max_pixels
        self.confusion = torch.zeros(len(classes) + 1, len(classes) + 1, dtype=torch.int64)
        self.num_scored = 0
        self.notes = listed.notes()
        without = [key for key in keys if key not in self._masks]
        if without:
            number = count_of(len(without), "image has", "images have")
            self.notes.append(f"{number} no mask, the first {printable(without[0])}")
        unused = [key for key in listed.images if key not in self._masks]
        if unused:
            number = count_of(len(unused), "mask has", "masks have")
            self.notes.append(f"{number} no image, the first {printable(unused[0])}")

    def add(self, key: str, labels: NDArray[np.uint8]) -> None:
        """Compare the labels (H, W) of an image with its mask, if there is one.

        Raises ValueError or OSError, which name the mask, when it cannot be used; it counts for nothing then.
        """
        path = self._masks.get(key)
        if path is None:
            return
        try:
            check_readable(path)
            mask = decode_mask(path.read_bytes(), max_pixels=self._max_pixels, num_classes=len(self._classes))
            self.confusion += confusion_matrix(labels, mask, len(self.confusion))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ValueError(f"mask {printable(path)} is left out of the scores: {reason}") from None
        self.num_scored += 1

    def format_scores(self) -> str:
        """Return the IoU of each class and their mean, in percent, over the masks that could be used."""
        if self.num_scored == 0:
            return "no mask could be used: no scores"
        scores = scores_from_confusion(self.confusion)
        names = ["background", *self._classes]
        rows = [(f"  {name}", f"{100 * iou:6.2f}") for name, iou in zip(names, scores.iou.tolist(), strict=True)]
        number = count_of(self.num_scored, "image with a mask", "images with masks")
        return f"mIoU {100 * float(scores.miou):.2f} over {number}\n{aligned(rows, num_left=1)}"
