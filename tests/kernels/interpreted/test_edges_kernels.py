"""edges_kernels against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
from seam_kernels import edge_affinity

SHAPES = [(1, 3, 1, 1), (2, 5, 7, 11), (1, 2, 1, 9), (1, 2, 9, 1), (1, 9, 12, 13)]


def run(feature, impl, **options):
    affinity = edge_affinity(feature, impl=impl, **options)
    weight = torch.randn(affinity.shape, generator=torch.Generator().manual_seed(1)).to(affinity)
    return affinity, torch.autograd.grad((affinity * weight).sum() + 0 * feature.sum(), feature)[0]


def check(shape, device, dtype, tolerance, **options):
    feature = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)
    got = run(feature.requires_grad_(), "triton", **options)
    expected = run(feature.detach().double().requires_grad_(), "reference", **options)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == dtype
        torch.testing.assert_close(g.double(), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("border", ["paper", "full"])
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradient_match_reference(shape, border, device):
    check(shape, device, torch.float32, 1e-6, border=border)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_matches_reference_on_the_rounded_inputs(dtype, device):
    check((1, 8, 6, 7), device, dtype, 2 * torch.finfo(dtype).eps, border="full")


@pytest.mark.parametrize("radius", [1, 2, 7])
def test_other_radii_match_reference(radius, device):
    check((1, 3, 9, 8), device, torch.float32, 1e-6, radius=radius, border="full")


def test_non_contiguous_input_gives_the_same_numbers(device):
    feature = torch.randn(1, 5, 6, 7).to(device)
    strided = feature.to(memory_format=torch.channels_last)
    assert torch.equal(edge_affinity(strided, impl="triton"), edge_affinity(feature, impl="triton"))


def test_equal_features_have_affinity_one_and_no_gradient(device):
    affinity, gradient = run(torch.zeros(1, 3, 6, 6, device=device, requires_grad=True), "triton", border="full")
    assert set(affinity.unique().tolist()) == {0.0, 1.0}
    assert gradient.abs().max() == 0


def test_nan_reaches_its_own_pairs_only(device):
    feature = torch.rand(1, 2, 9, 9).to(device)
    feature[0, 0, 0, 0] = math.nan
    affinity = edge_affinity(feature, impl="triton", border="full")
    assert torch.isnan(affinity[0, 0, 0, 0])
    assert not torch.isnan(affinity[:, :, 1:]).any()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5)])
def test_empty_input_gives_an_empty_result_and_gradient(shape, device):
    feature = torch.rand(shape, device=device).requires_grad_()
    affinity, gradient = run(feature, "triton")
    assert affinity.shape == (shape[0], 34, *shape[2:])
    assert gradient.shape == shape
