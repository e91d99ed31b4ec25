"""edge_affinity: the flat shifted path against the reference, border rules, gradients, memory, registration."""

from __future__ import annotations

import math

import pytest
import torch
from kit import LargestTensor
from seam_kernels import edge_affinity, edge_affinity_reference, edges, half_plane_offsets, shrunk_radius

SHAPES = [(1, 3, 1, 1), (2, 5, 7, 11), (1, 16, 13, 10), (2, 3, 1, 9), (1, 3, 9, 1), (1, 2, 3, 2), (1, 195, 9, 10)]
BORDERS = ["paper", "full"]


def feature_of(shape, *, dtype=torch.float64, grad=True):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


def gradient(function, feature, weight, **options):
    # The second term keeps the graph of the reference where there is no pair at all.
    return torch.autograd.grad((function(feature, **options) * weight).sum() + 0 * feature.sum(), feature)[0]


def weight_for(feature, radius=5):
    planes = len(half_plane_offsets(radius))
    shape = (feature.shape[0], planes, *feature.shape[2:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(feature.dtype)


@pytest.fixture
def small_buffer(monkeypatch):
    """One channel at a time, so that few channels are several blocks."""
    monkeypatch.setattr(edges, "_BUFFER_ELEMENTS", 1)


def test_offsets_of_radius_five_are_the_34_of_the_paper_in_order():
    offsets = half_plane_offsets(5)
    assert len(offsets) == 34
    assert offsets[:5] == ((0, 1), (0, 2), (0, 3), (0, 4), (1, -4))
    assert [sum(dy == row for dy, _ in offsets) for row in range(5)] == [4, 9, 9, 7, 5]
    assert offsets[-1] == (4, 2)


def test_offsets_meet_every_neighbor_of_the_disc_once():
    met = [sign * dy * 100 + sign * dx for dy, dx in half_plane_offsets(4) for sign in (1, -1)]
    disc = [y * 100 + x for y in range(-3, 4) for x in range(-3, 4) if 0 < x * x + y * y < 16]
    assert sorted(met) == sorted(disc)


def test_radius_shrinks_on_small_maps_as_published():
    assert [shrunk_radius(56, edge) for edge in (11, 10, 9, 7, 5, 3, 1)] == [5, 4, 4, 3, 2, 1, 1]


def test_two_pixels_match_hand_calculation():
    feature = torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]])  # mean difference (1 + 3) / 2
    affinity = edge_affinity(feature, border="full")
    assert affinity.shape == (1, 34, 1, 2)
    assert affinity[0, 0, 0, 0].item() == pytest.approx(math.exp(-2))
    assert affinity.count_nonzero() == 1


def test_paper_border_keeps_the_published_number_of_pairs():
    affinity = edge_affinity(torch.zeros(1, 1, 56, 56))
    assert affinity.sum().item() == 84864
    assert affinity[0, :, :52, 4:52].sum().item() == 84864


def test_full_border_keeps_every_pair_inside_the_image():
    affinity = edge_affinity(torch.zeros(1, 1, 7, 6), border="full")
    pixels = [(y, x) for y in range(7) for x in range(6)]
    pairs = sum(0 < (y - v) ** 2 + (x - u) ** 2 < 25 for y, x in pixels for v, u in pixels) // 2
    assert affinity.sum().item() == pairs


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_path_matches_reference(shape, border, small_buffer):
    feature = feature_of(shape)
    expected = edge_affinity_reference(feature, border=border)
    torch.testing.assert_close(edge_affinity(feature, border=border), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_gradient_matches_reference(shape, border, small_buffer):
    feature = feature_of(shape)
    weight = weight_for(feature)
    got = gradient(edge_affinity, feature, weight, border=border)
    expected = gradient(edge_affinity_reference, feature, weight, border=border)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("radius", [1, 2, 7])
def test_other_radii_match_reference(radius):
    feature = feature_of((1, 3, 9, 8))
    weight = weight_for(feature, radius)
    torch.testing.assert_close(
        edge_affinity(feature, radius=radius, border="full"),
        edge_affinity_reference(feature, radius=radius, border="full"),
    )
    torch.testing.assert_close(
        gradient(edge_affinity, feature, weight, radius=radius, border="full"),
        gradient(edge_affinity_reference, feature, weight, radius=radius, border="full"),
    )


@pytest.mark.parametrize("border", BORDERS)
def test_reference_passes_gradcheck(border):
    feature = feature_of((1, 2, 6, 6))
    assert torch.autograd.gradcheck(
        lambda f: edge_affinity_reference(f, radius=3, border=border), feature, fast_mode=True
    )


def test_equal_features_have_affinity_one_and_no_gradient():
    feature = torch.zeros(1, 3, 6, 6, requires_grad=True)
    affinity = edge_affinity(feature, border="full")
    assert set(affinity.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(torch.autograd.grad(affinity.sum(), feature)[0], torch.zeros_like(feature))


def test_nan_and_inf_reach_their_own_pairs_only():
    feature = feature_of((1, 2, 9, 9), grad=False)
    clean = edge_affinity(feature, border="full")
    feature[0, 0, 0, 0], feature[0, 1, 8, 8] = math.nan, math.inf
    affinity = edge_affinity(feature, border="full")
    touched = torch.isnan(affinity) | (affinity != clean)
    assert torch.isnan(affinity[0, 0, 0, 0])
    # 16 pairs leave the corner (8 offsets go left and out); as many reach the opposite one, at an infinite distance.
    assert torch.isnan(affinity).sum() == touched.sum() / 2
    assert torch.isnan(affinity[:, :, 1:]).sum() == 0


def test_non_contiguous_input_gives_the_same_numbers():
    feature = feature_of((2, 5, 7, 6))
    strided = feature.detach().to(memory_format=torch.channels_last).requires_grad_()
    weight = weight_for(feature).transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(edge_affinity(strided), edge_affinity(feature))
    torch.testing.assert_close(gradient(edge_affinity, strided, weight), gradient(edge_affinity, feature, weight))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty_input_gives_an_empty_result_and_gradient(shape):
    feature = torch.rand(shape, requires_grad=True)
    affinity = edge_affinity(feature)
    assert affinity.shape == (shape[0], 34, *shape[2:])
    assert torch.autograd.grad(affinity.sum(), feature)[0].shape == shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(dtype):
    feature = feature_of((1, 64, 11, 10), dtype=dtype)
    weight = weight_for(feature)
    wide = feature.detach().double().requires_grad_()
    exact, plain = edge_affinity_reference(wide), edge_affinity_reference(feature)
    affinity = edge_affinity(feature)
    assert affinity.dtype == dtype
    assert (affinity.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()
    exact_gradient = gradient(edge_affinity_reference, wide, weight.double())
    plain_error = (gradient(edge_affinity_reference, feature, weight).double() - exact_gradient).norm()
    assert (gradient(edge_affinity, feature, weight).double() - exact_gradient).norm() <= 2 * plain_error


def test_no_tensor_holds_more_than_one_copy_of_the_features(monkeypatch):
    monkeypatch.setattr(edges, "_BUFFER_ELEMENTS", 1 << 10)
    feature = torch.randn(1, 64, 12, 12)
    with LargestTensor() as mode:
        # The functions behind the operators: a mode does not see inside an operator.
        affinity = edges._edge_forward._init_fn(feature, 5, "paper", "torch")
        edges._edge_backward._init_fn(affinity, feature, affinity, 5, "torch")
    assert 0 < mode.largest <= feature.numel()


def test_twice_in_a_row_gives_the_same_bits():
    feature = feature_of((1, 16, 9, 9), dtype=torch.float32)
    weight = weight_for(feature)
    first, second = (gradient(edge_affinity, feature, weight) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_passes(dtype):
    feature = feature_of((2, 3, 6, 7), dtype=dtype)
    torch.library.opcheck(edges._edge_forward, (feature, 3, "full", "torch"))
    affinity = edges._edge_forward(feature, 3, "full", "torch").detach()
    torch.library.opcheck(edges._edge_backward, (torch.rand_like(affinity), feature.detach(), affinity, 3, "torch"))


def test_compiles_into_one_graph_with_its_gradient():
    feature = feature_of((1, 4, 6, 7))
    compiled = torch.compile(lambda f: edge_affinity(f).square(), fullgraph=True, backend="aot_eager")
    weight = weight_for(feature)
    expected = gradient(lambda f: edge_affinity_reference(f).square(), feature, weight)
    torch.testing.assert_close(gradient(compiled, feature, weight), expected)


FEATURE = torch.rand(1, 2, 5, 6)


@pytest.mark.parametrize(
    ("feature", "options", "message"),
    [
        (FEATURE[0], {}, r"feature has shape \(2, 5, 6\), expected 4 dimensions \(B, D, H, W\)"),
        (FEATURE.int(), {}, r"feature.dtype=torch.int32 is not a floating type"),
        (FEATURE[:, :0], {}, r"expected at least one channel"),
        (FEATURE, {"radius": -1}, r"radius=-1 is below 1"),
        (FEATURE, {"radius": 0}, r"radius=0 is below 1"),
        (FEATURE, {"border": "wrap"}, r"border='wrap' is unknown: use one of paper, full"),
        (FEATURE, {"impl": "cuda"}, r"impl='cuda' is unknown to edge_affinity: use one of auto, triton"),
    ],
)
def test_bad_arguments_are_refused_with_their_remedy(feature, options, message):
    with pytest.raises(ValueError, match=message):
        edge_affinity(feature, **options)
