"""A picture of an image's labels: the classes in their colors over the image, and below it what each color means."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seam_dist.report.pictures import Image as Pixels
from seam_dist.report.pictures import class_colors, with_rims

_IGNORED = 255
_OPACITY = 0.55
_MARGIN = 4  # pixels around a legend's entries


def draw_overlay(image: Pixels, labels: Pixels, classes: Sequence[str]) -> Pixels:
    """Return RGB (H + legend, W, 3): `labels` (H, W) over `image` (H, W, 3), and the names of the classes in it.

    `classes` are the foreground names, the first has id 1; each has a white rim, and the background is left as it is.
    Without a class in the labels there is no legend.
    """
    mixed = cv2.addWeighted(class_colors()[labels], _OPACITY, image, 1 - _OPACITY, 0)
    painted = with_rims(np.where((labels > 0)[..., None], mixed, image).astype(np.uint8), labels)
    ids = [int(index) for index in np.unique(labels) if 0 < index < _IGNORED]
    return np.concatenate([painted, _legend(ids, classes, image.shape[1])])


def _legend(ids: Sequence[int], classes: Sequence[str], width: int) -> Pixels:
    """Return (legend, width, 3): a colored square and a name for each class, in as many lines as it takes."""
    size = max(10, width // 40)
    font = ImageFont.load_default(size)
    places: list[tuple[int, int, str]] = []
    x = y = _MARGIN
    for index in ids:
        name = classes[index - 1]
        length = size + _MARGIN + int(font.getlength(name)) + 2 * _MARGIN
        if x > _MARGIN and x + length > width:
            x, y = _MARGIN, y + size + _MARGIN
        places.append((x, y, name))
        x += length
    height = y + size + 2 * _MARGIN if ids else 0
    band = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(band)
    for index, (left, top, name) in zip(ids, places, strict=True):
        red, green, blue = (int(value) for value in class_colors()[index])
        pen.rectangle((left, top, left + size, top + size), fill=(red, green, blue), outline="black")
        pen.text((left + size + _MARGIN, top), name, fill="black", font=font)
    return np.array(band, np.uint8).reshape(height, width, 3)
