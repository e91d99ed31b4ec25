"""The dilated depthwise convolution by phases against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from seam_dist.models.backbones.lite0 import DilatedDepthwiseConv2d


@pytest.mark.parametrize("size", [(13, 13), (7, 12), (1, 5), (2, 2)])
@pytest.mark.parametrize(("kernel", "dilation"), [(5, 2), (3, 2), (5, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_phases_give_the_dilated_convolution_and_its_gradients(
    size: tuple[int, int], kernel: int, dilation: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = DilatedDepthwiseConv2d(
        6, 6, kernel, padding=kernel // 2 * dilation, dilation=dilation, groups=6, bias=False, dtype=torch.float64
    )
    x = torch.randn(2, 6, *size, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    plain = conv2d(x, layer.weight, padding=layer.padding, dilation=dilation, groups=6)
    result = layer(x)
    weight = torch.randn_like(plain)
    torch.testing.assert_close(result, plain)
    gradients = torch.autograd.grad(result, (x, layer.weight), weight)
    expected_gradients = torch.autograd.grad(plain, (x, layer.weight), weight)
    torch.testing.assert_close(gradients, expected_gradients)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain)
