"""pcm_attention: the row-blocked path against the dense reference, its gradients, its memory, its registration."""

from __future__ import annotations

import pytest
import torch
from kit import LargestTensor
from seam_kernels import pcm, pcm_attention, pcm_attention_reference

SHAPES = [(1, 1, 3), (2, 1, 16), (63, 2, 195), (131, 21, 192), (131, 2, 3), (63, 21, 16)]


def inputs(num_pixels, num_classes, num_channels, *, batch=2, dtype=torch.float64, grad=True):
    generator = torch.Generator().manual_seed(num_pixels * 1000 + num_channels)
    cam = torch.rand(batch, num_classes, num_pixels, generator=generator, dtype=torch.float64).to(dtype)
    feature = torch.randn(batch, num_channels, num_pixels, generator=generator, dtype=torch.float64).to(dtype)
    return cam.requires_grad_(grad), feature.requires_grad_(grad)


def gradients(function, cam, feature, weight):
    return torch.autograd.grad((function(cam, feature) * weight).sum(), (cam, feature))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 rows, so that small shapes have several, the last one ragged."""
    monkeypatch.setattr(pcm, "_BLOCK_ELEMENTS", 1)


def test_reference_of_two_pixels_matches_hand_calculation():
    # Unit features (1, 0) and (0.6, 0.8): S = [[1, .6], [.6, 1]], column sums 1.6.
    feature = torch.tensor([[[1.0, 3.0], [0.0, 4.0]]], dtype=torch.float64)
    cam = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    out = pcm_attention_reference(cam, feature, eps=0.0)
    torch.testing.assert_close(out, torch.tensor([[[1 / 1.6, 0.6 / 1.6]]], dtype=torch.float64))


def test_opposite_features_do_not_exchange_scores():
    feature = torch.tensor([[[1.0, -1.0]]])
    cam = torch.tensor([[[0.75, 0.25]]])
    torch.testing.assert_close(pcm_attention(cam, feature, eps=0.0), cam)


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 2, 4), (9, 3, 7)])
def test_reference_passes_gradcheck(shape):
    cam, feature = inputs(*shape)
    assert torch.autograd.gradcheck(pcm_attention_reference, (cam, feature))


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_path_matches_reference(shape, small_blocks):
    cam, feature = inputs(*shape)
    torch.testing.assert_close(pcm_attention(cam, feature), pcm_attention_reference(cam, feature), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_gradient_matches_reference(shape, small_blocks):
    cam, feature = inputs(*shape)
    weight = torch.randn(cam.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    got = gradients(pcm_attention, cam, feature, weight)
    expected = gradients(pcm_attention_reference, cam, feature, weight)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12)


def test_non_contiguous_inputs_give_the_same_numbers(small_blocks):
    cam, feature = inputs(63, 3, 16)
    strided_cam = cam.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    strided_feature = torch.stack([feature.detach(), feature.detach()], dim=-1)[..., 0].requires_grad_()
    assert not strided_cam.is_contiguous()
    assert not strided_feature.is_contiguous()
    weight = torch.randn(2, 63, 3, dtype=torch.float64).transpose(1, 2)
    got = gradients(pcm_attention, strided_cam, strided_feature, weight)
    expected = gradients(pcm_attention_reference, cam, feature, weight)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 4, 0), (2, 0, 4, 5)])
def test_empty_input_gives_an_empty_result_and_gradient(shape):
    batch, num_classes, num_channels, num_pixels = shape
    cam = torch.rand(batch, num_classes, num_pixels)
    feature = torch.rand(batch, num_channels, num_pixels, requires_grad=True)
    out = pcm_attention(cam, feature)
    assert out.shape == cam.shape
    assert torch.autograd.grad(out.sum(), feature)[0].shape == feature.shape


def test_all_zero_features_give_zeros_and_finite_gradients():
    cam = torch.rand(1, 2, 7, requires_grad=True)
    feature = torch.zeros(1, 3, 7, requires_grad=True)
    out = pcm_attention(cam, feature)
    assert torch.equal(out, torch.zeros_like(out))
    for gradient in torch.autograd.grad(out.sum(), (cam, feature)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_one_zero_feature_column_has_the_reference_gradient():
    cam, feature = inputs(9, 2, 4)
    feature = feature.detach().clone()
    feature[:, :, 3] = 0
    feature.requires_grad_()
    weight = torch.rand(2, 2, 9, dtype=torch.float64)
    got = gradients(pcm_attention, cam, feature, weight)
    expected = gradients(pcm_attention_reference, cam, feature, weight)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(dtype):
    cam, feature = inputs(131, 21, 192, dtype=dtype, grad=False)
    exact = pcm_attention_reference(cam.double(), feature.double())
    out = pcm_attention(cam, feature)
    assert out.dtype == dtype
    plain = (pcm_attention_reference(cam, feature).double() - exact).abs().max()
    assert (out.double() - exact).abs().max() <= 2 * plain + 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_gradient_errs_at_most_twice_as_much_as_plain_torch(dtype):
    cam, feature = inputs(131, 21, 192, dtype=dtype)
    weight = torch.randn(cam.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    exact_inputs = [x.detach().double().requires_grad_() for x in (cam, feature)]
    exact = gradients(pcm_attention_reference, *exact_inputs, weight.double())
    plain = gradients(pcm_attention_reference, cam, feature, weight)
    got = gradients(pcm_attention, cam, feature, weight)
    for g, p, e in zip(got, plain, exact, strict=True):
        assert g.dtype == dtype
        assert (g.double() - e).norm() <= 2 * (p.double() - e).norm() + 1e-12


@pytest.mark.parametrize("asks", ["cam", "feature"])
def test_only_the_asked_gradient_is_computed(asks, monkeypatch):
    cam, feature = inputs(9, 2, 4, grad=False)
    asked = cam if asks == "cam" else feature
    asked.requires_grad_()
    seen = []
    monkeypatch.setattr(pcm, "_pcm_backward", lambda *a, f=pcm._pcm_backward: seen.append(f(*a)) or seen[-1])
    pcm_attention(cam, feature).square().sum().backward()
    assert [x.numel() > 0 for x in seen[0]] == [asks == "cam", asks == "feature"]
    reference = [x.detach().clone().requires_grad_() for x in (cam, feature)]
    pcm_attention_reference(*reference).square().sum().backward()
    torch.testing.assert_close(asked.grad, reference[asks == "feature"].grad)


def test_no_tensor_reaches_n_by_n_in_either_direction():
    cam, feature = torch.rand(1, 2, 1200), torch.randn(1, 8, 1200)
    with LargestTensor() as dense:
        pcm_attention(cam, feature, impl="reference")
    assert dense.largest >= 1200 * 1200, "the probe must see a dense matrix"
    with LargestTensor() as mode:
        # The functions behind the operators: a mode does not see inside an operator.
        out, colsum = pcm._pcm_forward._init_fn(cam, feature, 1e-5)
        pcm._pcm_backward._init_fn(out, cam, feature, out, colsum, 1e-5, True, True)
    # The two buffers of the backward pass share one allocation of two blocks.
    assert 2 * 8 * 1200 < mode.largest <= 2 * pcm._BLOCK_ELEMENTS < 1200 * 1200


def test_twice_in_a_row_gives_the_same_bits():
    cam, feature = inputs(131, 3, 16, dtype=torch.float32)
    weight = torch.rand(2, 3, 131)
    first, second = (gradients(pcm_attention, cam, feature, weight) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_passes(dtype):
    cam, feature = inputs(20, 3, 4, dtype=dtype)
    torch.library.opcheck(pcm._pcm_forward, (cam, feature, 1e-5))
    out, colsum = pcm._pcm_forward(cam, feature, 1e-5)
    arguments = [x.detach() for x in (torch.ones_like(out), cam, feature, out, colsum)]
    for needs in [(True, True), (False, True), (True, False)]:
        torch.library.opcheck(pcm._pcm_backward, (*arguments, 1e-5, *needs))


def test_compiles_into_one_graph_with_its_gradient():
    cam, feature = inputs(20, 3, 4)
    compiled = torch.compile(lambda c, f: pcm_attention(c, f).square(), fullgraph=True, backend="aot_eager")
    weight = torch.rand(2, 3, 20, dtype=torch.float64)
    got = gradients(compiled, cam, feature, weight)
    expected = gradients(lambda c, f: pcm_attention_reference(c, f).square(), cam, feature, weight)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


CAM, FEATURE = torch.rand(2, 3, 5), torch.rand(2, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((CAM[0], FEATURE), {}, r"cam has shape \(3, 5\), expected 3 dimensions \(B, C, N\)"),
        ((CAM, FEATURE[..., None]), {}, r"feature has shape \(2, 4, 5, 1\), expected 3 dimensions \(B, D, N\)"),
        ((CAM.int(), FEATURE), {}, r"cam.dtype=torch.int32 is not a floating type"),
        ((CAM, FEATURE.bfloat16()), {}, r"cam.dtype=torch.float32 differs from feature.dtype=torch.bfloat16"),
        ((CAM, FEATURE.to("meta")), {}, r"cam is on cpu and feature on meta: move them"),
        ((CAM, FEATURE[:1]), {}, r"expected the same B \(dimension 0\)"),
        ((CAM, FEATURE[..., :4]), {}, r"expected the same N \(dimension 2\)"),
        ((CAM, FEATURE), {"eps": -1.0}, r"eps=-1.0 is negative"),
        ((CAM, FEATURE), {"impl": "cuda"}, r"impl='cuda' is unknown to pcm_attention: use one of auto, triton"),
        ((CAM, FEATURE), {"impl": "triton"}, r"Triton kernels run on a GPU and the input is on cpu"),
    ],
)
def test_bad_arguments_are_refused_with_their_remedy(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        pcm_attention(*arguments, **options)
