"""Normalization of batches: zero padding, memory format, one graph."""

from __future__ import annotations

from functools import partial

import kit
import numpy as np
import pytest
import torch

from seam_dist.config.schema import AugmentConfig
from seam_dist.data.augment.color import IDENTITY
from seam_dist.data.augment.geometry import draw
from seam_dist.data.augment.normalize import normalize_images
from seam_dist.data.order import sample_generator

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(image: torch.Tensor, valid: torch.Tensor, color: torch.Tensor | None, last: bool) -> torch.Tensor:
    return normalize_images(image, valid, color, torch.from_numpy(MEAN), torch.from_numpy(STD), channels_last=last)


@pytest.mark.parametrize("last", [True, False])
def test_padding_is_zero_after_normalization_and_pixels_are_normalized(last: bool) -> None:
    image = torch.from_numpy(np.stack([kit.pixels(n) for n in range(2)])).permute(0, 3, 1, 2)
    valid = torch.tensor([[3, 5, 20, 33], [0, 0, 30, 40]], dtype=torch.int32)
    normalized = normalize(image, valid, torch.tensor([IDENTITY] * 2), last)
    expected = (image.numpy() / 255 - MEAN[:, None, None]) / STD[:, None, None]
    assert normalized.dtype == torch.float32
    assert normalized.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    inside = normalized[0, :, 3:20, 5:33].numpy()
    assert np.allclose(inside, expected[0, :, 3:20, 5:33], atol=1e-5)
    assert np.allclose(normalized[1].numpy(), expected[1], atol=1e-5)
    outside = normalized[0].clone()
    outside[:, 3:20, 5:33] = 0
    assert not outside.any()
    assert torch.equal(normalized, normalize(image, valid, None, last))


@pytest.mark.slow
def test_normalization_traces_without_a_break() -> None:
    image = torch.from_numpy(np.stack([kit.pixels(n) for n in range(2)])).permute(0, 3, 1, 2)
    valid = torch.tensor([[3, 5, 20, 33], [0, 0, 30, 40]], dtype=torch.int32)
    color = torch.from_numpy(np.stack([draw(sample_generator(0, n), AugmentConfig()).color for n in range(2)]))
    compiled = torch.compile(partial(normalize, last=True), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(image, valid, color), normalize(image, valid, color, True))
