"""The published augmentation in its published order, by Pillow alone: slow, what the fast one is compared with.

Resize the whole image, flip, jitter its color, normalize, crop with zero padding (PARITY.md section 2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from seam_dist.data.augment.color import BRIGHTNESS, CONTRAST, HUE, SATURATION, operation_order
from seam_dist.data.augment.geometry import Draw, place


def augment_exact(
    image: Image.Image, choice: Draw, crop_size: int, mean: NDArray[np.float32], std: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the normalized crop (3, S, S) float32 of an RGB image; `mean` and `std` (3) in units of 0..1."""
    where = place(image.height, image.width, choice, crop_size)
    image = image.resize((where.resized[1], where.resized[0]), Image.Resampling.BICUBIC)
    if choice.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = jitter_exact(image, choice.color)
    pixels = (np.array(image, np.float32) / 255 - mean) / std
    out = np.zeros((crop_size, crop_size, 3), np.float32)
    (y, x), (height, width), (top, left) = where.start, where.size, where.offset
    out[top : top + height, left : left + width] = pixels[y : y + height, x : x + width]
    return np.ascontiguousarray(out.transpose(2, 0, 1))


def jitter_exact(image: Image.Image, color: NDArray[np.float32]) -> Image.Image:
    """Apply one row of jitter parameters as torchvision's ColorJitter does to a Pillow image."""
    enhance = {BRIGHTNESS: ImageEnhance.Brightness, CONTRAST: ImageEnhance.Contrast, SATURATION: ImageEnhance.Color}
    for operation in operation_order(color):
        value = float(color[operation])
        if operation in enhance:
            image = enhance[operation](image).enhance(value)
        elif operation == HUE and value:
            hue, saturation, brightness = image.convert("HSV").split()
            turned = np.array(hue, np.int32) + int(value * 255)
            hue = Image.fromarray((turned % 256).astype(np.uint8))
            image = Image.merge("HSV", (hue, saturation, brightness)).convert("RGB")
    return image
