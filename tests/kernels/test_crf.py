"""dense_crf: blocks of the exact sum against dense kernels, strides, gradients, the lattice where it is installed."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from seam_kernels import crf, dense_crf, dense_crf_reference

SHAPES = [(1, 1, 1, 1), (1, 2, 1, 7), (2, 3, 5, 6), (1, 21, 7, 3)]


def inputs(shape, *, dtype=torch.float64, flat=False):
    batch, _, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    prob = torch.rand(shape, generator=generator, dtype=torch.float64)
    # Colors within a few standard deviations of 13, so that kernels are neither all 0 nor all 1.
    image = 100 + 30 * torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)
    return prob.to(dtype), (torch.full_like(image, 100) if flat else image).round()


def test_two_pixels_of_one_color_match_hand_calculation():
    prob = torch.tensor([[[[0.8, 0.4]], [[0.2, 0.6]]]], dtype=torch.float64)
    image = torch.full((1, 3, 1, 2), 50.0)
    k = math.exp(-1 / 2)  # one apart with both widths 1
    out = dense_crf(
        prob, image, num_iters=1, gaussian_sxy=1, gaussian_compat=2, bilateral_sxy=1, bilateral_compat=5, impl="torch"
    )
    first = [math.log(0.8) + 7 * (0.8 + k * 0.4) / (1 + k), math.log(0.2) + 7 * (0.2 + k * 0.6) / (1 + k)]
    assert out[0, 0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(first[1] - first[0])), rel=1e-6)


def test_color_edges_stop_messages():
    prob = torch.full((1, 2, 1, 8), 0.5)
    prob[0, 0, 0, 0], prob[0, 1, 0, 0] = 0.9, 0.1
    image = torch.zeros(1, 3, 1, 8)
    image[..., 4:] = 255
    out = dense_crf(prob, image, gaussian_compat=0, impl="torch")
    assert out[0, 0, 0, 3] > 0.6
    assert out[0, 0, 0, 5].item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_match_dense_kernels(shape, stride, monkeypatch):
    monkeypatch.setattr(crf, "_BLOCK_ELEMENTS", 1)
    prob, image = inputs(shape)
    expected = dense_crf_reference(prob, image, source_stride=stride)
    got = dense_crf(prob, image, source_stride=stride, impl="torch")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradient_of_scores_matches_reference(stride):
    prob, image = inputs((2, 3, 4, 5))
    prob.requires_grad_()
    weight = torch.randn(prob.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = {"num_iters": 2, "source_stride": stride}
    got = torch.autograd.grad((dense_crf(prob, image, impl="torch", **options) * weight).sum(), prob)[0]
    expected = torch.autograd.grad((dense_crf_reference(prob, image, **options) * weight).sum(), prob)[0]
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_reference_passes_gradcheck():
    prob, image = inputs((1, 2, 2, 3))
    prob = (0.1 + 0.8 * prob).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: dense_crf_reference(p, image, 2), prob)


def test_options_reach_the_model_of_the_reference():
    prob, image = inputs((1, 3, 5, 6))
    got = dense_crf(
        prob, image, num_iters=3, gaussian_sxy=2, gaussian_compat=1, bilateral_sxy=4, bilateral_srgb=20,
        bilateral_compat=6, impl="torch",
    )  # fmt: skip
    torch.testing.assert_close(got, dense_crf_reference(prob, image, 3, (2, 1), (4, 20, 6)))
    dense = dense_crf(prob, image, num_iters=3, impl="reference")
    torch.testing.assert_close(dense, dense_crf_reference(prob, image, 3))


def test_no_iteration_gives_the_clipped_scores_normalized():
    prob = torch.tensor([0.0, 0.5, 2.0]).view(1, 3, 1, 1)
    out = dense_crf(prob, torch.zeros(1, 3, 1, 1), num_iters=0, impl="torch")
    torch.testing.assert_close(out.flatten(), torch.tensor([1e-5, 0.5, 1.0]) / 1.50001)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype):
    prob, image = inputs((1, 3, 9, 8), dtype=dtype)
    exact = dense_crf_reference(prob.double(), image)
    out = dense_crf(prob, image, impl="torch")
    assert out.dtype == dtype
    assert (out.double() - exact).abs().max() <= torch.finfo(dtype).eps + 1e-5


def test_bytes_and_floats_of_one_image_give_the_same_numbers():
    prob, image = inputs((1, 2, 4, 5), dtype=torch.float32)
    assert torch.equal(dense_crf(prob, image.byte(), impl="torch"), dense_crf(prob, image.float(), impl="torch"))


def test_non_contiguous_inputs_give_the_same_numbers():
    prob, image = inputs((2, 3, 4, 5))
    strided = [x.to(memory_format=torch.channels_last) for x in (prob, image)]
    torch.testing.assert_close(dense_crf(*strided, impl="torch"), dense_crf(prob, image, impl="torch"))


def test_empty_batch_and_nan_scores():
    assert dense_crf(torch.rand(0, 2, 3, 4), torch.rand(0, 3, 3, 4), impl="torch").shape == (0, 2, 3, 4)
    prob = torch.rand(1, 2, 3, 4)
    prob[0, 0, 1, 1] = math.nan
    assert torch.isnan(dense_crf(prob, torch.zeros(1, 3, 3, 4), impl="torch")).all()


def test_opcheck_passes():
    generator = torch.Generator().manual_seed(0)
    values, sources, targets = (torch.rand(2, *size, generator=generator) for size in ((3, 4), (5, 4), (5, 6)))
    torch.library.opcheck(crf._gaussian_sum, (values.requires_grad_(), sources, targets, "torch"))


def test_compiles_into_one_graph():
    prob, image = inputs((1, 2, 4, 5))
    compiled = torch.compile(
        lambda p, i: dense_crf(p, i, num_iters=2, impl="torch"), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(prob, image), dense_crf(prob, image, num_iters=2, impl="torch"))


def test_auto_is_exact_without_the_lattice_and_where_a_gradient_is_asked_for(monkeypatch):
    prob, image = inputs((1, 2, 4, 5))
    exact = dense_crf(prob, image, impl="torch")
    assert torch.equal(dense_crf(prob.requires_grad_(), image), exact)
    for name in ("pydensecrf", "pydensecrf.densecrf"):
        monkeypatch.setitem(sys.modules, name, None)
    assert torch.equal(dense_crf(prob.detach(), image), exact)
    with pytest.raises(ValueError, match=r"needs the package pydensecrf2, which is not installed: .*impl=\"torch\""):
        dense_crf(prob, image, impl="lattice")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "raise ImportError('libfoo.so.1: cannot open\\nshared object')",
            "ImportError: libfoo.so.1: cannot open shared",
        ),
        ("raise ValueError('numpy.dtype size changed')", "ValueError: numpy.dtype size changed"),
        ("raise AttributeError('_ARRAY_API not found')", "AttributeError: _ARRAY_API not found"),
        ("raise SystemError('initialization failed')", "SystemError: initialization failed"),
        ("import package_that_is_not_there", "No module named 'package_that_is_not_there'"),
    ],
)
def test_a_broken_lattice_is_named_and_auto_warns(line, message, monkeypatch, tmp_path):
    (tmp_path / "pydensecrf").mkdir()
    (tmp_path / "pydensecrf" / "__init__.py").write_text("")
    (tmp_path / "pydensecrf" / "densecrf.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("pydensecrf", "pydensecrf.densecrf"):
        monkeypatch.setitem(sys.modules, name, None)  # what the test imports goes with it
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(crf, "_broken", [])
    prob, image = inputs((1, 2, 4, 5))
    for _ in range(2):
        with pytest.raises(ValueError, match=f"pydensecrf2, which is broken.*{message}.*--no-cache-dir"):
            dense_crf(prob, image, impl="lattice")
    with pytest.warns(UserWarning, match="pydensecrf2 is broken"):
        assert torch.equal(dense_crf(prob, image), dense_crf(prob, image, impl="torch"))


def test_lattice_is_near_the_exact_sum():
    pytest.importorskip("pydensecrf")
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    image[..., 12:] = 200
    prob = (0.3 + 0.4 * torch.rand(1, 2, 24, 24, generator=generator)).float()
    prob[:, 0, :, :12] += 0.2
    exact = dense_crf(prob, image, num_iters=3, impl="torch")
    lattice = dense_crf(prob, image, num_iters=3, impl="lattice")
    assert torch.equal(dense_crf(prob, image, num_iters=3), lattice)
    assert (exact - lattice).abs().mean() < 0.05
    with pytest.raises(ValueError, match="has no gradient"):
        dense_crf(prob.requires_grad_(), image, impl="lattice")
    with pytest.raises(ValueError, match="has no source_stride=2"):
        dense_crf(prob.detach(), image, impl="lattice", source_stride=2)


PROB, IMAGE = torch.rand(1, 2, 3, 4), torch.rand(1, 3, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((PROB[0], IMAGE), {}, r"prob has shape \(2, 3, 4\), expected 4 dimensions \(B, C, H, W\)"),
        ((PROB.int(), IMAGE), {}, r"prob.dtype=torch.int32 is not a floating type"),
        ((PROB, IMAGE.int()), {}, r"image.dtype=torch.int32 is not a floating type"),
        ((PROB, IMAGE[:, :2]), {}, r"image has shape \(1, 2, 3, 4\), expected \(1, 3, 3, 4\)"),
        ((PROB, IMAGE.to("meta")), {}, r"image is on meta and prob on cpu"),
        ((PROB, IMAGE.clone().requires_grad_()), {}, r"image asks for a gradient"),
        ((PROB, IMAGE), {"bilateral_srgb": 0.0}, r"bilateral_srgb=0.0 is not above 0"),
        ((PROB, IMAGE), {"num_iters": -1}, r"num_iters=-1 is negative"),
        ((PROB, IMAGE), {"source_stride": 0}, r"source_stride=0 is below 1"),
        ((PROB, IMAGE), {"impl": "cuda"}, r"impl='cuda' is unknown to dense_crf"),
    ],
)
def test_bad_arguments_are_refused_with_their_remedy(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(*arguments, **options)
