"""pcm_kernels against the dense reference in float64 on the same (rounded) inputs."""

from __future__ import annotations

import math

import pytest
import torch
from seam_kernels import pcm_attention, pcm_attention_reference, pcm_kernels

# N, C, D: single pixels, primes, several blocks; every way to split D, C + 1 and 2 (C + 1) into pieces.
SHAPES = [(1, 1, 3), (2, 2, 16), (63, 2, 40), (131, 21, 192)]
MORE = [(131, 81, 195), (63, 21, 3), (200, 1, 192), (131, 31, 64)]
TOLERANCE = 2e-3  # tf32 on a GPU


def inputs(shape, device, dtype=torch.float32, batch=1):
    num_pixels, num_classes, num_channels = shape
    generator = torch.Generator().manual_seed(sum(shape))
    cam = torch.rand(batch, num_classes, num_pixels, generator=generator).to(device, dtype)
    # A common part keeps most similarities away from 0, where rounding flips the mask of the gradient.
    feature = torch.randn(batch, num_channels, num_pixels, generator=generator) + 0.7
    return cam.requires_grad_(), feature.to(device, dtype).requires_grad_()


def gradients(cam, feature, impl):
    weight = torch.randn(cam.shape, generator=torch.Generator().manual_seed(3)).to(cam)
    out = pcm_attention(cam, feature, impl=impl)
    return out, *torch.autograd.grad((out * weight).sum(), (cam, feature))


def check(shape, device, batch=1):
    cam, feature = inputs(shape, device, batch=batch)
    wide = [x.detach().double().requires_grad_() for x in (cam, feature)]
    expected = gradients(*wide, "reference")
    got = gradients(cam, feature, "triton")
    for name, g, e in zip(("out", "cam", "feature"), got, expected, strict=True):
        # A mask that flips near S = 0 adds to the error of the feature's gradient.
        limit = TOLERANCE * (4 if name == "feature" else 1)
        assert (g.double() - e).norm() <= limit * e.norm() + 1e-7, name


@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradients_match_reference(shape, device):
    check(shape, device)


@pytest.mark.slow
@pytest.mark.parametrize("shape", MORE)
def test_more_shapes_match_reference(shape, device):
    check(shape, device, batch=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(dtype, device):
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("needs a GPU: tl.dot of Triton's interpreter multiplies the bit patterns of bfloat16")
    cam, feature = inputs((70, 5, 48), device, dtype)
    exact = gradients(*(x.detach().double().requires_grad_() for x in (cam, feature)), "reference")
    plain = gradients(cam, feature, "reference")
    for g, p, e in zip(gradients(cam, feature, "triton"), plain, exact, strict=True):
        assert g.dtype == dtype
        assert (g.double() - e).norm() <= 2 * (p.double() - e).norm()


def test_tiny_gradients_survive_float16(device):
    cam, feature = inputs((40, 3, 16), device, torch.float16)
    out = pcm_attention(cam, feature, impl="triton")
    weight = torch.full_like(out, 6e-8)
    weight[:, :, ::2] = 0
    small = torch.autograd.grad(out, feature, weight)[0]
    wide = [x.detach().double().requires_grad_() for x in (cam, feature)]
    exact = torch.autograd.grad(pcm_attention_reference(*wide), wide[1], weight.double())[0]
    # float16 holds such gradients as multiples of 6e-8 only; the kernel may not lose more than that.
    assert (small.double() - exact).abs().max() <= 6e-8


@pytest.mark.parametrize("asks", ["cam", "feature"])
def test_only_the_asked_gradient_is_computed(asks, device):
    cam, feature = (x.detach() for x in inputs((5, 2, 16), device))
    out, colsum = pcm_kernels.forward(cam, feature, 1e-5)
    dcam, dfeature = pcm_kernels.backward(out, cam, feature, out, colsum, 1e-5, asks == "cam", asks == "feature")
    assert (dcam.numel() > 0, dfeature.numel() > 0) == (asks == "cam", asks == "feature")


def test_non_contiguous_inputs_give_the_same_numbers(device):
    cam, feature = (x.detach() for x in inputs((9, 3, 16), device))
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (cam, feature)]
    assert torch.equal(pcm_attention(*strided, impl="triton"), pcm_attention(cam, feature, impl="triton"))


def test_zero_features_give_zeros_and_zero_gradients(device):
    cam = torch.rand(1, 2, 7, device=device).requires_grad_()
    feature = torch.zeros(1, 3, 7, device=device).requires_grad_()
    for value in gradients(cam, feature, "triton"):
        assert torch.equal(value, torch.zeros_like(value))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_are_not_hidden(bad, device):
    cam, feature = (x.detach() for x in inputs((9, 2, 16), device))
    feature[0, 0, 4] = bad
    assert torch.isnan(pcm_attention(cam, feature, impl="triton")).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 4, 0), (2, 0, 4, 5)])
def test_empty_input_gives_an_empty_result_and_gradient(shape, device):
    batch, num_classes, num_channels, num_pixels = shape
    cam = torch.rand(batch, num_classes, num_pixels, device=device)
    feature = torch.rand(batch, num_channels, num_pixels, device=device, requires_grad=True)
    out = pcm_attention(cam, feature, impl="triton")
    assert out.shape == cam.shape
    assert torch.equal(torch.autograd.grad(out.sum(), feature)[0], torch.zeros_like(feature))


def test_pieces_pad_the_sizes_that_matter_little():
    sizes = (1, 16, 22, 44, 82, 164, 192, 195, 256)
    expected = [(16, 0), (16, 0), (32, 0), (32, 16), (64, 32), (128, 64), (128, 64), (256, 0), (256, 0)]
    assert [pcm_kernels.pieces(size) for size in sizes] == expected


def test_too_wide_shapes_are_refused(device):
    with pytest.raises(ValueError, match="at most D=256 channels and C=127 classes, not D=300, C=2"):
        pcm_attention(torch.rand(1, 2, 3, device=device), torch.rand(1, 300, 3, device=device), impl="triton")
