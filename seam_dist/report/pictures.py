"""Pictures for the report: class colors, heat maps and their encoding as data URIs."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from seam_dist.artifacts.label_file import voc_palette

Image = NDArray[np.uint8]


def class_colors() -> Image:
    """Return the PASCAL VOC palette, (256, 3) uint8 RGB."""
    return np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)


def heat_map(image: Image, score: NDArray[np.float32]) -> Image:
    """Return a score (H, W) in 0..1 in the colors of viridis over the image (H, W, 3), which shows through as gray."""
    levels = (np.clip(np.nan_to_num(score), 0, 1) * 255 + 0.5).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return _tint(image, np.asarray(heat, np.uint8), 0.7)


def label_map(image: Image, mask: Image) -> Image:
    """Return a class index map (H, W) over the image as gray: class colors with a white rim, background darkened."""
    colored = class_colors()[mask]
    painted = np.where((mask == 0)[..., None], _tint(image, np.zeros_like(image), 0.55), _tint(image, colored, 0.75))
    return with_rims(np.asarray(painted, np.uint8), mask)


def with_rims(painted: Image, mask: Image) -> Image:
    """Return the picture (H, W, 3) with a white rim inside each class of the mask (H, W)."""
    # The palette's first colors are dark: without the rim they would sink into a dark image.
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return np.where((edge & (mask > 0))[..., None], np.uint8(255), painted)


def shrink(image: Image, longest: int = 320) -> Image:
    """Return the image with its long side at most `longest` pixels."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def data_uri(image: Image) -> str:
    """Return an RGB image as a JPEG data URI, its long side at most 320 pixels."""
    return _encoded("jpeg", cv2.cvtColor(shrink(image), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])


def heat_scale_uri() -> str:
    """Return the colors of heat_map from 0 to 1, left to right, as a PNG data URI."""
    ramp = np.linspace(0, 255, 128).astype(np.uint8)[None].repeat(8, axis=0)
    return _encoded("png", cv2.applyColorMap(ramp, cv2.COLORMAP_VIRIDIS), [])


def _encoded(image_format: str, image: Any, options: list[int]) -> str:
    done, data = cv2.imencode(f".{image_format}", image, options)
    assert done
    return f"data:image/{image_format};base64,{base64.b64encode(data.tobytes()).decode()}"


def _tint(image: Image, color: Image, weight: float) -> Image:
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(color, weight, gray, 1 - weight, 0), np.uint8)
