"""walk_kernels against the dense reference in float64, and against the stencil of walk.py for Chebyshev gradients."""

from __future__ import annotations

import math

import pytest
import torch
from seam_kernels import half_plane_offsets, random_walk, random_walk_packed, walk_kernels

SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 2, 1, 9), (1, 5, 9, 1)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of pixels on small images."""
    monkeypatch.setattr(walk_kernels, "STEP_BLOCK", 16)
    monkeypatch.setattr(walk_kernels, "_classes_of_a_program", lambda *_: 4)
    monkeypatch.setattr(walk_kernels, "PIXEL_BLOCK", 16)


def inputs(shape, device, dtype=torch.float32, radius=2):
    generator = torch.Generator().manual_seed(sum(shape))
    batch, _, height, width = shape
    cam = torch.rand(shape, generator=generator)
    affinity = torch.rand(batch, len(half_plane_offsets(radius)), height, width, generator=generator)
    return cam.to(device, dtype).requires_grad_(), affinity.to(device, dtype).requires_grad_()


def run(cam, affinity, impl, **options):
    out = random_walk(cam, affinity, radius=2, impl=impl, **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out, *torch.autograd.grad((out * weight).sum() + 0 * affinity.sum(), (cam, affinity))


def close(got, expected, tolerance):
    for g, e in zip(got, expected, strict=True):
        assert (g.double() - e).norm() <= tolerance * e.norm() + 1e-6


@pytest.mark.parametrize("num_steps", [0, 1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_walk_and_gradients_match_reference(shape, num_steps, device):
    cam, affinity = inputs(shape, device)
    wide = [x.detach().double().requires_grad_() for x in (cam, affinity)]
    expected = run(*wide, "reference", num_steps=num_steps, beta=3.0)
    close(run(cam, affinity, "triton", num_steps=num_steps, beta=3.0), expected, 1e-5)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 6])
def test_chebyshev_walk_and_gradients_match_the_stencil(num_steps, device):
    cam, affinity = inputs((1, 3, 4, 5), device)
    wide = [x.detach().double().requires_grad_() for x in (cam, affinity)]
    expected = run(*wide, "torch", num_steps=num_steps, method="chebyshev")
    close(run(cam, affinity, "triton", num_steps=num_steps, method="chebyshev"), expected, 2e-5)


def test_beta_one_has_the_gradient_of_the_reference(device):
    cam, affinity = inputs((1, 1, 3, 4), device)
    wide = [x.detach().double().requires_grad_() for x in (cam, affinity)]
    close(run(cam, affinity, "triton", num_steps=2, beta=1.0), run(*wide, "reference", num_steps=2, beta=1.0), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_cost_little(dtype, device):
    cam, affinity = inputs((1, 2, 5, 6), device, dtype)
    wide = [x.detach().double().requires_grad_() for x in (cam, affinity)]
    close(run(cam, affinity, "triton", num_steps=4), run(*wide, "reference", num_steps=4), 2 * torch.finfo(dtype).eps)


def test_packed_images_of_different_sizes_match_single_ones(device):
    shapes = [(2, 4, 5), (1, 1, 1), (5, 6, 3), (0, 2, 2), (1, 2, 9)]
    pairs = [inputs((1, *shape), device) for shape in shapes]
    cams, affinities = [[x[0].detach().requires_grad_() for x in column] for column in zip(*pairs, strict=True)]
    options = {"radius": 2, "num_steps": 5, "impl": "triton"}
    outs = random_walk_packed(cams, affinities, **options)
    singles = [random_walk(c[None], a[None], **options)[0] for c, a in zip(cams, affinities, strict=True)]
    for got, expected in zip(outs, singles, strict=True):
        assert torch.equal(got, expected)
    got = torch.autograd.grad(sum(x.square().sum() for x in outs), [*cams, *affinities])
    expected = torch.autograd.grad(sum(x.square().sum() for x in singles), [*cams, *affinities])
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("classes", [1, 2])
def test_several_classes_of_a_program_walk_alike(classes, device, monkeypatch):
    cam, affinity = inputs((1, 5, 4, 5), device)
    alone = run(cam, affinity, "triton", num_steps=3)
    monkeypatch.setattr(walk_kernels, "_classes_of_a_program", lambda *_: classes)
    for g, e in zip(run(cam, affinity, "triton", num_steps=3), alone, strict=True):
        torch.testing.assert_close(g, e)


def test_nan_scores_are_not_hidden(device):
    cam, affinity = (x.detach() for x in inputs((1, 1, 5, 5), device))
    cam[0, 0, 2, 2] = math.nan
    assert torch.isnan(random_walk(cam, affinity, radius=2, num_steps=1, impl="triton")[0, 0, 2, 2])


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4)])
def test_empty_input_gives_an_empty_result_and_gradient(shape, device):
    cam, affinity = inputs(shape, device)
    for got, source in zip(run(cam, affinity, "triton"), (cam, cam, affinity), strict=True):
        assert got.shape == source.shape
