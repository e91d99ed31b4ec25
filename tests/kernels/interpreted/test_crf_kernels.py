"""crf_kernels against dense kernels in float64."""

from __future__ import annotations

import pytest
import torch
from seam_kernels import crf_kernels, dense_crf, dense_crf_reference


def inputs(shape, device):
    generator = torch.Generator().manual_seed(sum(shape))
    batch, _, height, width = shape
    prob = torch.rand(shape, generator=generator).to(device)
    image = (255 * torch.rand(batch, 3, height, width, generator=generator)).round().to(device)
    return prob, image


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 21, 12, 12)])
def test_mean_field_matches_dense_kernels(shape, stride, device):
    prob, image = inputs(shape, device)
    expected = dense_crf_reference(prob.double(), image.double(), num_iters=3, source_stride=stride)
    got = dense_crf(prob, image, num_iters=3, source_stride=stride, impl="triton")
    assert (got.double() - expected).abs().max() <= 1e-3


def test_sum_matches_float64_over_many_labels_and_wide_values(device):
    generator = torch.Generator().manual_seed(0)
    values = 1e6 * torch.randn(2, 130, 37, generator=generator).to(device)
    points = [4 * torch.randn(2, 5, count, generator=generator).to(device) for count in (37, 150)]
    got = crf_kernels.gaussian_sum(values, *points)
    distance = torch.cdist(points[1].double().transpose(1, 2), points[0].double().transpose(1, 2))
    expected = values.double() @ torch.exp(-distance.square() / 2).transpose(1, 2)
    assert (got.double() - expected).norm() <= 2e-3 * expected.norm()


def test_gradient_of_scores_matches_reference(device):
    prob, image = inputs((1, 3, 4, 5), device)
    prob.requires_grad_()
    wide = prob.detach().double().requires_grad_()
    got = torch.autograd.grad(dense_crf(prob, image, num_iters=2, impl="triton")[:, 0].sum(), prob)[0]
    expected = torch.autograd.grad(dense_crf_reference(wide, image.double(), 2)[:, 0].sum(), wide)[0]
    assert (got.double() - expected).norm() <= 5e-3 * expected.norm()


def test_empty_batch_gives_an_empty_result(device):
    prob, image = inputs((0, 2, 3, 4), device)
    assert dense_crf(prob, image, impl="triton").shape == prob.shape
