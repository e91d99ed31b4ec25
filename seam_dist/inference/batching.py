"""Images through a network: those of one size together, at several scales, mirrored, in parts that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from seam_dist.config.inference import check_scales
from seam_dist.data.augment.normalize import normalize_images
from seam_dist.data.shards import Sample
from seam_dist.models import SEAM, AffinityNet, DeepLab
from seam_dist.models.grid import scaled_size

T = TypeVar("T")
Network = SEAM | AffinityNet | DeepLab
Pixels = NDArray[np.uint8]

# Pixels that go through the network at once: a CPU gains nothing from batches beyond it and needs about 1 KB a pixel.
PIXELS_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 23}
_WAITING = 8  # batches' worth of decoded images that wait for others of their size


def by_size(samples: Iterable[Sample], batch_size: int) -> Iterator[list[tuple[int, Sample]]]:
    """Yield batches of (place in the stream, sample) with images of equal size, at most `batch_size` each.

    At most 8 batches' worth of samples wait for their like; then the largest group goes as it is.
    """
    groups: dict[tuple[int, ...], list[tuple[int, Sample]]] = {}
    for item in enumerate(samples):
        group = groups.setdefault(item[1].image.shape, [])
        group.append(item)
        full = len(group) == batch_size
        if full or sum(map(len, groups.values())) >= _WAITING * batch_size:
            yield groups.pop(item[1].image.shape if full else max(groups, key=lambda size: len(groups[size])))
    yield from groups.values()


def scaled_images(
    images: Sequence[Pixels], scales: Sequence[float], *, align: int | None = None, longest: int | None = None
) -> list[Tensor]:
    """Return for each scale the images of one size resized together, uint8 (B, 3, h, w); bicubic as published.

    Sizes fit grids of stride `align`. Scales of images longer than `longest` pixels are relative to that length. Raises
    ValueError for wrong scales.
    """
    check_scales(scales)
    size = (images[0].shape[0], images[0].shape[1])
    factor = 1.0 if longest is None else min(1.0, longest / max(size))
    result = []
    for scale in scales:
        height, width = scaled_size(size, scale * factor, align=align)
        # Pillow's kernel is the published one; OpenCV's differs by up to 30 gray levels at edges when shrinking.
        resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in images]
        result.append(torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2))
    return result


@torch.inference_mode()
def network_maps(
    network: Network,
    images: Tensor,
    forward: Callable[[Tensor], Sequence[Tensor]],
    *,
    flip: bool = False,
    stride: int = 1,
) -> list[Tensor]:
    """Return what `forward` makes of uint8 images (B, 3, H, W): maps (B, C, h, w), on the network's device.

    forward: is given images as `network_input` returns them. flip: the maps of the mirrored images are turned back and
    added.
    """
    device = next(network.parameters()).device
    height, width = (side + -side % stride for side in images.shape[2:])
    parts = []
    for part in torch.split(images, max(1, PIXELS_AT_ONCE[device.type] // (height * width))):
        pixels = network_input(network, part, stride=stride)
        maps = forward(pixels)
        if flip:
            maps = [own + mirrored.flip(-1) for own, mirrored in zip(maps, forward(pixels.flip(-1)), strict=True)]
        parts.append(maps)
    return [torch.cat(same) for same in zip(*parts, strict=True)]


def network_input(network: Network, images: Tensor, *, stride: int = 1) -> Tensor:
    """Return images (B, 3, H, W) of values 0..255 as the network takes them, on its device and in its memory format.

    They are padded with zeros at the right and the bottom to multiples of `stride`.
    """
    height, width = images.shape[2:]
    padded = pad(images.to(next(network.parameters()).device), (0, -width % stride, 0, -height % stride))
    mean, std = torch.tensor(network.backbone.mean), torch.tensor(network.backbone.std)
    # A weight of 1x1 is in both formats at once, so the stem's says it.
    stem = next(p for p in network.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] * p.shape[3] > 1)
    channels_last = stem.is_contiguous(memory_format=torch.channels_last)
    valid = torch.tensor([[0, 0, height, width]], dtype=torch.int32)
    return normalize_images(padded, valid, None, mean, std, channels_last=channels_last)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = thread.submit(next, items, None)
            yield item
