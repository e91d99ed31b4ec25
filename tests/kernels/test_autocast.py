"""All operations under torch.autocast and on tensors without elements: numbers, dtypes and gradients stay."""

from __future__ import annotations

import pytest
import torch
from seam_kernels import dense_crf, edge_affinity, half_plane_offsets, pcm_attention, random_walk, random_walk_packed

RADIUS = 3
PLANES = len(half_plane_offsets(RADIUS))


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def crf(impl, dtype):
    image = 100 + 30 * random(1, 3, 5, 6, seed=1)
    return lambda prob: dense_crf(prob, image, num_iters=3, impl=impl), [random(1, 2, 5, 6).to(dtype)]


def pcm(impl, dtype):
    return lambda *x: pcm_attention(*x, impl=impl), [random(2, 3, 12).to(dtype), random(2, 5, 12, seed=1).to(dtype)]


def edges(impl, dtype):
    return lambda x: edge_affinity(x, radius=RADIUS, impl=impl), [random(1, 4, 8, 7).to(dtype)]


def walk(impl, dtype):
    inputs = [random(1, 2, 6, 5).to(dtype), random(1, PLANES, 6, 5, seed=1).to(dtype)]
    return lambda *x: random_walk(*x, radius=RADIUS, num_steps=5, impl=impl), inputs


def packed(impl, dtype):
    _, inputs = walk(impl, dtype)
    options = {"radius": RADIUS, "num_steps": 5, "impl": impl}
    return lambda cam, affinity: random_walk_packed([cam[0]], [affinity[0]], **options)[0], inputs


def results(operation, *, autocast, inside=False):
    """Result and gradients; `inside`: the backward pass under autocast, too."""
    call, inputs = operation
    inputs = [x.clone().requires_grad_() for x in inputs]
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        out = call(*inputs)
        weight = random(*out.shape, seed=2).to(out.dtype)
        if inside:
            return [out, *torch.autograd.grad((out * weight).sum(), inputs)]
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("operation", [crf, pcm, edges, walk, packed])
def test_autocast_changes_no_bit(operation, impl, dtype, autocast):
    plain = results(operation(impl, dtype), autocast=None)
    assert all(x.dtype == dtype for x in plain)
    # Not inside where torch's own backward is in the way: of products (reference), of torch.split with another 16 bits.
    split = operation is packed and dtype.itemsize == 2 and dtype != autocast
    for inside in (False, True) if impl == "torch" and not split else (False,):
        for got, expected in zip(results(operation(impl, dtype), autocast=autocast, inside=inside), plain, strict=True):
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_lattice_does_not_see_autocast(autocast):
    pytest.importorskip("pydensecrf")
    call, (prob,) = crf("lattice", torch.float32)
    plain = call(prob)
    with torch.autocast("cpu", autocast):
        assert torch.equal(call(prob), plain)


EMPTY = [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), (0, 0, 0, 0)]


@pytest.mark.parametrize("shape", EMPTY)
@pytest.mark.parametrize("impl", ["lattice", "torch", "reference", "auto"])
def test_crf_without_elements_is_empty(shape, impl, capfd):
    if impl == "lattice":
        pytest.importorskip("pydensecrf")
    out = dense_crf(torch.rand(shape), torch.rand(shape[0], 3, *shape[2:]), impl=impl)
    assert out.shape == shape
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("shape", EMPTY)
@pytest.mark.parametrize("impl", ["torch", "reference", "auto"])
def test_other_operations_without_elements_are_empty(shape, impl):
    batch, channels, height, width = shape
    affinity = torch.rand(batch, PLANES, height, width)
    assert random_walk(torch.rand(shape), affinity, radius=RADIUS, impl=impl).shape == shape
    cam = torch.rand(batch, channels, height * width)
    assert pcm_attention(cam, torch.rand(batch, 5, height * width), impl=impl).shape == cam.shape
    if channels:
        edge = edge_affinity(torch.rand(shape), radius=RADIUS, impl=impl)
        assert edge.shape == (batch, PLANES, height, width)
    else:
        with pytest.raises(ValueError, match="at least one channel"):
            edge_affinity(torch.rand(shape), radius=RADIUS, impl=impl)


@pytest.mark.parametrize("impl", ["lattice", "torch", "reference"])
def test_single_pixel_and_single_class(impl):
    if impl == "lattice":
        pytest.importorskip("pydensecrf")
    image = torch.full((1, 3, 1, 1), 7.0)
    prob = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1)
    # One pixel hears itself alone: log p + (compat + compat) p for one iteration.
    energy = prob.log() + 13 * prob
    torch.testing.assert_close(dense_crf(prob, image, num_iters=1, impl=impl), energy.softmax(1), rtol=0, atol=2e-3)
    assert torch.equal(dense_crf(torch.rand(1, 1, 2, 3), torch.rand(1, 3, 2, 3), impl=impl), torch.ones(1, 1, 2, 3))
