"""Color jitter and normalization of whole batches on the device: the last step of augmentation and of inference."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from seam_dist.data.augment.color import jitter


def normalize_images(
    image: Tensor,
    valid: Tensor,
    color: Tensor | None,
    mean: Tensor,
    std: Tensor,
    *,
    channels_last: bool,
    padding: Literal["mean", "black"] = "mean",
) -> Tensor:
    """Return jittered, normalized float32 (B, 3, S, S) from uint8 crops.

    `valid` (B, 4) int32 holds y0, x0, y1, x1; outside it the result is exactly zero, or with padding "black" that of
    a black pixel. `color` (B, 8) is the jitter of `seam_dist.data.augment.color`, None for none; `mean` and `std` (3)
    are in units of 0..1 pixel values. Runs on the device of `image` and compiles.
    """
    device = image.device
    valid = valid.to(device)
    pixels = image.to(torch.float32)
    if channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    if color is not None:
        pixels = jitter(pixels, color)
    mean, std = (value.to(device, torch.float32).view(1, 3, 1, 1) for value in (mean, std))
    pixels = (pixels / 255 - mean) / std
    rows = torch.arange(image.shape[-2], device=device)
    columns = torch.arange(image.shape[-1], device=device)
    inside_y = (rows >= valid[:, 0:1]) & (rows < valid[:, 2:3])
    inside_x = (columns >= valid[:, 1:2]) & (columns < valid[:, 3:4])
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    outside = -mean / std if padding == "black" else torch.zeros((), device=device)
    pixels = torch.where(inside, pixels, outside)
    return pixels.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
