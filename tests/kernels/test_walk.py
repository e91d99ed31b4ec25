"""random_walk: the stencil against the dense reference, both methods, gradients, packed batches, registration."""

from __future__ import annotations

import math

import pytest
import torch
from seam_kernels import (
    edge_affinity,
    half_plane_offsets,
    random_walk,
    random_walk_packed,
    random_walk_reference,
    walk,
)
from seam_kernels.walk import chebyshev_coefficients
from torch.utils._python_dispatch import TorchDispatchMode

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 1, 9), (1, 2, 9, 1), (1, 21, 6, 6), (1, 1, 3, 2)]


def inputs(shape, *, dtype=torch.float64, radius=5, smooth=False):
    """Scores and affinities; random affinities unless `smooth`, which makes them of random features."""
    batch, _, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    cam = torch.rand(shape, generator=generator, dtype=torch.float64)
    if smooth:
        feature = torch.randn(batch, 16, height, width, generator=generator, dtype=torch.float64)
        affinity = edge_affinity(feature, radius=radius, border="full")
    else:
        planes = len(half_plane_offsets(radius))
        affinity = torch.rand(batch, planes, height, width, generator=generator, dtype=torch.float64)
    return cam.to(dtype).requires_grad_(), affinity.to(dtype).detach().requires_grad_()


def gradients(function, cam, affinity, **options):
    weight = torch.randn(cam.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(cam.dtype)
    out = (function(cam, affinity, **options) * weight).sum() + 0 * affinity.sum()
    return torch.autograd.grad(out, (cam, affinity))


def test_one_step_of_two_pixels_matches_hand_calculation():
    affinity = torch.zeros(1, 34, 1, 2)
    affinity[0, 0, 0, 0] = 0.5  # weight 0.25 with beta 2: T = [[1, .25], [.25, 1]] / 1.25
    out = random_walk(torch.tensor([[[[1.0, 0.0]]]]), affinity, beta=2, num_steps=1)
    torch.testing.assert_close(out, torch.tensor([[[[0.8, 0.2]]]]))


def test_columns_are_normalized_not_rows():
    # The middle of three pixels meets both ends: its column sum is 3, that of an end 2.
    affinity = torch.zeros(1, 34, 1, 3)
    affinity[0, 0, 0, :2] = 1
    out = random_walk(torch.tensor([[[[1.0, 0.0, 0.0]]]]), affinity, num_steps=1)
    torch.testing.assert_close(out, torch.tensor([[[[1 / 2, 1 / 3, 0.0]]]]))


@pytest.mark.parametrize("num_steps", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_walk_matches_reference(shape, num_steps):
    cam, affinity = inputs(shape)
    expected = random_walk_reference(cam, affinity, num_steps=num_steps)
    torch.testing.assert_close(random_walk(cam, affinity, num_steps=num_steps), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [0, 1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_gradient_matches_reference(shape, num_steps):
    cam, affinity = inputs(shape)
    got = gradients(random_walk, cam, affinity, num_steps=num_steps, beta=3.0)
    expected = gradients(random_walk_reference, cam, affinity, num_steps=num_steps, beta=3.0)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 17, 64, 256])
def test_chebyshev_stays_within_its_tolerance(num_steps):
    cam, affinity = inputs((1, 2, 8, 9), smooth=True)
    exact = random_walk_reference(cam, affinity, num_steps=num_steps)
    error = (random_walk(cam, affinity, num_steps=num_steps, method="chebyshev") - exact).abs().max()
    assert error <= walk.CHEBYSHEV_TOLERANCE
    if num_steps == 64:
        assert error > 1e-12, "the expansion is cut, so it cannot be exact"


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 40])
def test_chebyshev_gradient_is_that_of_its_polynomial(num_steps):
    cam, affinity = inputs((1, 2, 4, 5))
    got = gradients(random_walk, cam, affinity, num_steps=num_steps, method="chebyshev", beta=2.0)

    def polynomial(cam, affinity):
        """The cut expansion by products with the dense matrix."""
        step = [random_walk_reference(cam, affinity, num_steps=1, beta=2.0)]
        states = [cam, *step]
        coefficients = chebyshev_coefficients(num_steps)
        while len(states) < len(coefficients):
            after = random_walk_reference(states[-1], affinity, num_steps=1, beta=2.0)
            states.append(2 * after - states[-2])
        return sum(c * s for c, s in zip(coefficients, states, strict=False))

    expected = gradients(polynomial, cam, affinity)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-12)


def test_chebyshev_degrees_are_the_stated_ones():
    assert [len(chebyshev_coefficients(n)) - 1 for n in (64, 256)] == [34, 70]
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    value = sum(c * torch.cos(k * torch.arccos(x)) for k, c in enumerate(chebyshev_coefficients(64)))
    assert (value - x**64).abs().max() <= walk.CHEBYSHEV_TOLERANCE


def test_reference_passes_gradcheck():
    cam, affinity = inputs((1, 2, 3, 4), radius=2)
    check = torch.autograd.gradcheck
    assert check(lambda c, a: random_walk_reference(c, a, radius=2, beta=2.0, num_steps=3), (cam, affinity))


def test_scores_of_a_constant_map_stay_constant():
    _, affinity = inputs((1, 1, 9, 9))
    ones = torch.ones(1, 1, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(random_walk(ones, affinity), ones)


def test_entries_that_leave_the_image_are_ignored_and_have_no_gradient():
    cam, affinity = inputs((1, 1, 3, 4))
    poisoned = affinity.detach().clone()
    outside = edge_affinity(torch.zeros(1, 1, 3, 4, dtype=torch.float64), border="full") == 0
    poisoned[outside] = 0.9
    poisoned.requires_grad_()
    clean = affinity.detach().masked_fill(outside, 0)
    torch.testing.assert_close(random_walk(cam, poisoned), random_walk_reference(cam, clean))
    assert gradients(random_walk, cam, poisoned)[1][outside].abs().max() == 0


@pytest.mark.parametrize("method", ["exact", "chebyshev"])
def test_packed_images_of_different_sizes_match_single_ones(method):
    shapes = [(2, 4, 5), (1, 1, 1), (3, 6, 3), (1, 2, 9)]
    pairs = [inputs((1, *shape), radius=3) for shape in shapes]
    cams, affinities = [[x[0].detach().requires_grad_() for x in column] for column in zip(*pairs, strict=True)]
    outs = random_walk_packed(cams, affinities, radius=3, num_steps=9, method=method)
    singles = [
        random_walk(c[None], a[None], radius=3, num_steps=9, method=method)[0]
        for c, a in zip(cams, affinities, strict=True)
    ]
    sources = [*cams, *affinities]
    for got, expected in zip(outs, singles, strict=True):
        assert torch.equal(got, expected)
    got = torch.autograd.grad(sum(x.square().sum() for x in outs), sources)
    expected = torch.autograd.grad(sum(x.square().sum() for x in singles), sources)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


def test_packed_list_without_images_is_empty():
    assert random_walk_packed([], []) == []


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4)])
def test_empty_input_gives_an_empty_result_and_gradient(shape):
    cam, affinity = inputs(shape)
    assert random_walk(cam, affinity).shape == shape
    for gradient, source in zip(gradients(random_walk, cam, affinity), (cam, affinity), strict=True):
        assert gradient.shape == source.shape


def test_non_contiguous_inputs_give_the_same_numbers():
    cam, affinity = inputs((2, 3, 4, 5))
    strided = [x.detach().to(memory_format=torch.channels_last).requires_grad_() for x in (cam, affinity)]
    for g, e in zip(gradients(random_walk, *strided), gradients(random_walk, cam, affinity), strict=True):
        torch.testing.assert_close(g, e)


def test_nan_and_inf_scores_are_not_hidden():
    cam, affinity = inputs((1, 2, 5, 5))
    cam = cam.detach()
    cam[0, 0, 2, 2], cam[0, 1, 0, 0] = math.nan, math.inf
    out = random_walk(cam, affinity, num_steps=3)
    assert torch.isnan(out[0, 0, 2, 2])
    assert not torch.isfinite(out[0, 1]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["exact", "chebyshev"])
def test_low_precision_is_accumulated_in_float32(dtype, method):
    cam, affinity = inputs((1, 2, 7, 6), dtype=dtype)
    exact = random_walk_reference(cam.double(), affinity.double())
    out = random_walk(cam, affinity, method=method)
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() <= torch.finfo(dtype).eps + 2e-5
    wide = [x.detach().double().requires_grad_() for x in (cam, affinity)]
    got, expected = gradients(random_walk, cam, affinity, method=method), gradients(random_walk_reference, *wide)
    cut = 1e-3 if method == "chebyshev" else 1e-4  # the derivative of the cut expansion errs more than its value
    for g, e in zip(got, expected, strict=True):
        assert (g.double() - e).norm() <= (4 * torch.finfo(dtype).eps + cut) * e.norm()


class States(TorchDispatchMode):
    """Counts the step results that are alive at once."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.alive, self.most = shape, set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.clone.default and result.shape == self.shape:
            import weakref

            key = id(result)
            self.alive.add(key)
            weakref.finalize(result, self.alive.discard, key)
            self.most = max(self.most, len(self.alive))
        return result


@pytest.mark.parametrize(("method", "most"), [("exact", 25), ("chebyshev", 6)])
def test_backward_keeps_few_states(method, most):
    cam, affinity = inputs((1, 2, 3, 4), radius=2)
    settings = ([2], [3], [4], 2, 8.0, 100, method, "torch", True, True)
    flat = [x.detach().reshape(-1) for x in (cam, cam, affinity)]
    with States((2, 12)) as states:
        walk._walk_backward._init_fn(*flat, *settings)  # the function behind the operator: a mode sees inside it
    assert 0 < states.most <= most


@pytest.mark.parametrize("asks", ["cam", "affinity"])
def test_only_the_asked_gradient_is_computed(asks, monkeypatch):
    cam, affinity = (x.detach() for x in inputs((1, 2, 4, 4)))
    (cam if asks == "cam" else affinity).requires_grad_()
    seen = []
    monkeypatch.setattr(walk, "_walk_backward", lambda *a, f=walk._walk_backward: seen.append(f(*a)) or seen[-1])
    random_walk(cam, affinity, num_steps=2).square().sum().backward()
    assert [x.numel() > 0 for x in seen[0]] == [asks == "cam", asks == "affinity"]


def test_twice_in_a_row_gives_the_same_bits():
    cam, affinity = inputs((1, 2, 7, 7), dtype=torch.float32)
    first, second = (gradients(random_walk, cam, affinity) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("method", ["exact", "chebyshev"])
def test_opcheck_passes(method):
    cam, affinity = inputs((2, 2, 3, 4), radius=2)
    settings = ([2, 2], [3, 3], [4, 4], 2, 8.0, 3, method, "torch")
    flat = cam.reshape(-1).detach().requires_grad_(), affinity.reshape(-1).detach().requires_grad_()
    torch.library.opcheck(walk._walk_forward, (*flat, *settings))
    plain = [x.detach() for x in flat]
    torch.library.opcheck(walk._walk_backward, (torch.rand_like(plain[0]), *plain, *settings, True, True))
    torch.library.opcheck(walk._walk_backward, (torch.rand_like(plain[0]), *plain, *settings, False, True))


def test_compiles_into_one_graph_with_its_gradient():
    cam, affinity = inputs((1, 2, 4, 5), radius=2)

    def squared(cam, affinity):
        return random_walk(cam, affinity, radius=2, num_steps=4).square()

    compiled = torch.compile(squared, fullgraph=True, backend="aot_eager")
    for g, e in zip(gradients(compiled, cam, affinity), gradients(squared, cam, affinity), strict=True):
        torch.testing.assert_close(g, e)


CAM, AFFINITY = torch.rand(1, 2, 5, 6), torch.rand(1, 34, 5, 6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((CAM[0], AFFINITY), {}, r"cam has shape \(2, 5, 6\), expected 4 dimensions \(B, C, H, W\)"),
        ((CAM, AFFINITY[0]), {}, r"affinity has shape \(34, 5, 6\), expected 4 dimensions \(B, K, H, W\)"),
        ((CAM, AFFINITY[..., :5]), {}, r"expected the same W \(dimension 3\)"),
        ((CAM, AFFINITY.double()), {}, r"cam.dtype=torch.float32 differs from affinity.dtype=torch.float64"),
        ((CAM, AFFINITY.to("meta")), {}, r"cam is on cpu and affinity on meta"),
        ((CAM, AFFINITY[:, :33]), {}, r"affinity has 33 planes \(dimension 1\), expected 34 for radius=5"),
        ((CAM, AFFINITY), {"radius": -2}, r"radius=-2 is below 1"),
        ((CAM, AFFINITY), {"beta": 0.0}, r"beta=0.0 is not above 0"),
        ((CAM, AFFINITY), {"num_steps": -1}, r"num_steps=-1 is negative"),
        ((CAM, AFFINITY), {"method": "lanczos"}, r"method='lanczos' is unknown: use one of exact, chebyshev"),
        ((CAM, AFFINITY), {"impl": "cuda"}, r"impl='cuda' is unknown to random_walk"),
        ((CAM, AFFINITY), {"impl": "reference", "method": "chebyshev"}, r'impl="reference" has no method'),
    ],
)
def test_bad_arguments_are_refused_with_their_remedy(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        random_walk(*arguments, **options)


def test_packed_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="cams has 1 images and affinities 0"):
        random_walk_packed([CAM[0]], [])
    with pytest.raises(ValueError, match=r"cams\[i\] has shape \(1, 2, 5, 6\), expected 3 dimensions"):
        random_walk_packed([CAM], [AFFINITY])
