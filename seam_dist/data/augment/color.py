"""Color jitter of the published augmentation (PARITY.md section 2): parameters on the host, pixels on the device.

Brightness, contrast and saturation blend the image with black, with the mean gray of the whole image and with its own
gray; hue turns the color circle of HSV. Their order is random. Each step ends in whole numbers of 0..255, truncated
as in Pillow, whose behavior this follows (torchvision's ColorJitter on Pillow images).

An image's jitter is one row of eight float32 numbers:

    0 brightness factor    1 contrast factor    2 saturation factor    3 hue shift in revolutions, -0.5 to 0.5
    4 mean gray (0..255) of the whole image just before contrast
    5, 6, 7 the positions of brightness, contrast and saturation in the order: 0 to 3; hue has the one that is left

IDENTITY changes nothing. The mean gray travels with the image because a crop does not know it; it is taken from every
n-th pixel of the decoded image after the steps that come before contrast.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seam_dist.config.schema import AugmentConfig
from seam_dist.data.images import Pixels

Floats = NDArray[np.float32]

IDENTITY: Final = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 2.0)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

_GRAY = (0.299, 0.587, 0.114)
_SUBSAMPLED_SIDE = 64  # of the longer side, pixels, that the mean gray is taken from
_EPS = 2.0**-10  # keeps a sum that is a whole number from being truncated to the one below by float rounding


def operation_order(color: Floats) -> list[int]:
    """Return the operations of one row of parameters, first to last."""
    positions = [int(position) for position in color[5:8]]
    positions.append(6 - sum(positions))
    return [positions.index(position) for position in range(4)]


def complete_jitter(color: Floats, image: Pixels, cfg: AugmentConfig) -> Floats:
    """Return the jitter of a crop of `image` (the whole one, uint8 RGB) from drawn factors; IDENTITY when it is off."""
    if not any((cfg.brightness, cfg.contrast, cfg.saturation, cfg.hue)):
        return np.array(IDENTITY, np.float32)
    scale = min(1.0, _SUBSAMPLED_SIDE / max(image.shape[:2]))
    sides = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    few = np.asarray(cv2.resize(image, sides, interpolation=cv2.INTER_NEAREST), np.uint8)
    order = operation_order(color)
    for operation in order[: order.index(CONTRAST)]:
        few = _apply(few, operation, float(color[operation]))
    color = color.copy()
    color[4] = np.floor(np.dot(cv2.mean(few)[:3], _GRAY) + 0.5)
    return color


def _apply(image: Pixels, operation: int, factor: float) -> Pixels:
    """Return uint8 RGB pixels after brightness, saturation or hue."""
    if operation == HUE:
        steps = round(factor * 256) % 256
        if steps == 0:
            return image
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(steps)  # wraps around, as the circle does
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), np.uint8)
    if factor == 1:
        return image
    matrix = np.zeros((3, 4), np.float32)
    matrix[:, :3] = np.eye(3) * factor
    # OpenCV rounds to the nearest whole number; half a step less truncates instead.
    matrix[:, 3] = _EPS - 0.5
    if operation == SATURATION:
        matrix[:, :3] += (1 - factor) * np.array(_GRAY, np.float32)
    return np.asarray(cv2.transform(image, matrix), np.uint8)


def jitter(image: Tensor, color: Tensor) -> Tensor:
    """Apply (B, 8) parameters to (B, 3, H, W) float images of whole numbers 0..255; return the same.

    Free of branches on data, so that it compiles and does not wait for the device: three blends, each of them skipped
    by factors of 1 where hue came first, then hue, then the blends after it.
    """
    color = color.to(image.device, torch.float32)
    positions = torch.cat([color[:, 5:8], 6 - color[:, 5:8].sum(1, keepdim=True)], dim=1)
    hue_position = positions[:, HUE]
    for position in (0, 1, 2):
        image = _blend(image, color, positions == position, active=hue_position > position)
    image = torch.where(_spread(color[:, HUE] == 0), image, _rotate_hue(image, color[:, HUE]))
    for position in (1, 2, 3):
        image = _blend(image, color, positions == position, active=hue_position < position)
    return image


def _spread(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _blend(image: Tensor, color: Tensor, chosen: Tensor, active: Tensor) -> Tensor:
    """Blend each image by its operation of this position (`chosen`, (B, 4)), or leave it where not `active`."""
    one, zero = torch.ones_like(color[:, 0]), torch.zeros_like(color[:, 0])
    chosen = chosen & active[:, None]
    factor = torch.where(chosen[:, :3], color[:, :3], one[:, None]).prod(1)
    to_mean = torch.where(chosen[:, CONTRAST], (1 - factor) * color[:, 4], zero)
    to_gray = torch.where(chosen[:, SATURATION], 1 - factor, zero)
    blended = image * _spread(factor) + _gray(image) * _spread(to_gray) + _spread(to_mean)
    return torch.floor(blended.clamp(0, 255) + _EPS)


def _gray(image: Tensor) -> Tensor:
    """Return (B, 1, H, W) gray in whole numbers."""
    red, green, blue = image.unbind(1)
    return torch.floor(red * _GRAY[0] + green * _GRAY[1] + blue * _GRAY[2] + 0.5)[:, None]


def _rotate_hue(image: Tensor, shift: Tensor) -> Tensor:
    red, green, blue = image.unbind(1)
    value = image.amax(1)
    chroma = value - image.amin(1)
    inverse = 1 / chroma.clamp(min=1)  # chroma is a whole number; where it is 0 the hue does not matter
    sector = torch.where(
        value == red,
        (green - blue) * inverse,
        torch.where(value == green, (blue - red) * inverse + 2, (red - green) * inverse + 4),
    )
    sector = sector + 6 * shift[:, None, None]
    channels = []
    for start in (5, 3, 1):
        k = torch.remainder(sector + start, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.floor(torch.stack(channels, dim=1) + 0.5)
