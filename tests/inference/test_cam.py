"""CAMs of images: accumulation over scales and mirror images against the published order, normalization, batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from seam_dist.artifacts.cam_file import store_cam, upsample_cam
from seam_dist.config.schema import Config, InferCamConfig, LossConfig, ModelConfig
from seam_dist.data.shards import Sample
from seam_dist.inference.cam import infer_cams, infer_samples, normalize_cam, sum_scales
from seam_dist.inference.pseudo_labels import predict_labels
from seam_dist.models import SEAM, build_seam
from seam_dist.models.grid import scaled_size

SIZE = (37, 50)
SCALES = (0.5, 1.0, 1.5, 2.0)


def grid_maps(seed, size=SIZE, scales=SCALES, num_classes=2, stride=8):
    """(map, map of the mirrored image, scaled size) at each scale, as a network with that stride gives them."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for scale in scales:
        scaled = scaled_size(size, scale)
        shape = (num_classes, *(-(-side // stride) for side in scaled))
        parts.append((*(torch.randn(shape, generator=generator) for _ in range(2)), scaled))
    return parts


def published_normalized(parts, size):
    """Sum and normalization in the published order: every map to full size first, mirrored ones turned there."""
    total = 0
    for plain, mirrored, scaled in parts:
        for grid, flip in ((plain, False), (mirrored, True)):
            at_scale = interpolate(grid[None].double(), scaled, mode="bilinear", align_corners=True)
            full = interpolate(at_scale, size, mode="bilinear", align_corners=False)[0].numpy()
            total = total + (np.flip(full, axis=-1) if flip else full)
    total[total < 0] = 0
    high, low = total.max((1, 2), keepdims=True), total.min((1, 2), keepdims=True)
    total[total < low + 1e-5] = 0
    return (total - low - 1e-5) / (high - low + 1e-5)


def full_size(parts, size=SIZE):
    folded = [plain + mirrored.flip(-1) for plain, mirrored, _ in parts]
    return normalize_cam(sum_scales(folded, [scaled for _, _, scaled in parts], size))


def test_accumulation_matches_the_published_order():
    parts = grid_maps(0)
    np.testing.assert_allclose(full_size(parts).numpy(), published_normalized(parts, SIZE), rtol=0, atol=2e-6)


def test_normalization_matches_hand_calculation():
    out = normalize_cam(torch.tensor([[[-1.0, 0.0, 1.0, 3.0]]], dtype=torch.float64))
    expected = torch.tensor([[[-1e-5, -1e-5, 1 - 1e-5, 3 - 1e-5]]], dtype=torch.float64) / (3 + 1e-5)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=0)


def test_normalization_zeroes_the_minimum_and_leaves_its_input():
    total = torch.tensor([[[2.0, 2.000001, 3.0]]], dtype=torch.float64)
    before = total.clone()
    out = normalize_cam(total)
    expected = torch.tensor([[[-2 - 1e-5, -2 - 1e-5, 1 - 1e-5]]], dtype=torch.float64) / (1 + 1e-5)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=0)
    assert torch.equal(total, before)


def test_a_class_without_any_score_is_background():
    assert (normalize_cam(torch.full((1, 2, 2), -3.0)) < 0).all()


def realistic(seed, size=(375, 500)):
    """A full-size map of two classes with details of about 32 pixels and noise of its own at every scale."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 2, size[0] // 32 + 2, size[1] // 32 + 2, generator=generator)
    parts = []
    for scale in SCALES:
        scaled = scaled_size(size, scale)
        grid = [-(-side // 8) for side in scaled]
        smooth = interpolate(base, grid, mode="bicubic", align_corners=True)[0]
        parts.append((smooth + 0.15 * torch.randn(smooth.shape, generator=generator), scaled))
    return normalize_cam(sum_scales(*zip(*parts, strict=True), size))


@pytest.mark.parametrize(("stride", "mean", "largest", "labels"), [(8, 0.010, 0.18, 0.02), (4, 0.003, 0.09, 0.005)])
def test_stored_map_stays_near_the_full_size_map(stride, mean, largest, labels):
    errors, wrong = [], []
    for seed in range(3):
        full = realistic(seed)
        back = upsample_cam(store_cam(full, stride), (375, 500))
        errors.append((full.clamp_min(0) - back).abs())
        wrong.append((predict_labels(full, [1, 2], 0.26) != predict_labels(back, [1, 2], 0.26)).mean())
    error = torch.stack(errors)
    assert error.mean() < mean
    assert error.max() < largest
    assert np.mean(wrong) < labels


@pytest.fixture(scope="module", params=["full", "cam"])
def model(request: pytest.FixtureRequest) -> SEAM:
    torch.manual_seed(0)
    cfg = Config(model=ModelConfig(width=0.05, pcm_channels=(8, 8)), loss=LossConfig(ablation=request.param))
    model = build_seam(cfg, 3)[0].eval()
    torch.nn.init.normal_(model.fc8.weight, std=5)
    return model


def samples_of_many_sizes() -> list[Sample]:
    rng = np.random.default_rng(0)
    sizes = [(32, 40), (40, 32), (32, 40), (32, 40), (24, 24)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return [Sample(f"s{i}", image, (1, 1 + i % 3)[i % 3 == 0 :], None, "") for i, image in enumerate(images)]


def test_batches_give_the_maps_of_single_images(model):
    samples = samples_of_many_sizes()
    cfg = InferCamConfig(scales=(0.5, 1.0), batch_size=2)
    batched = sorted(infer_samples(model, samples, cfg), key=lambda each: each[0])
    assert [each.key for _, each, _ in batched] == ["s0", "s1", "s2", "s3", "s4"]
    peaks = []
    for (_, _, maps), sample in zip(batched, samples, strict=True):
        (alone,) = infer_cams(model, [sample.image], [sample.classes], scales=cfg.scales)
        assert alone.cam.shape == (len(sample.classes), *sample.image.shape[:2])
        peaks.append(float(alone.cam.max()))
        torch.testing.assert_close(maps.cam, alone.cam, atol=2e-3, rtol=0)
        assert (alone.plain is None) == (not model.pcm)
        if alone.plain is not None:
            torch.testing.assert_close(maps.plain, alone.plain, atol=2e-3, rtol=0)
            assert not torch.equal(alone.plain, alone.cam)
    assert 0.9 < max(peaks) < 1


def test_flip_and_alignment_reach_the_network(model):
    image = samples_of_many_sizes()[0].image
    sizes = []
    forward = model.forward_grid
    model.forward_grid = lambda pixels: (sizes.append(tuple(pixels.shape[2:])), forward(pixels))[1]
    try:
        (both,) = infer_cams(model, [image], [[2]], scales=[1.0])
        (one,) = infer_cams(model, [image], [[2]], scales=[1.0], flip=False, align=8)
        (turned,) = infer_cams(model, [image[:, ::-1]], [[2]], scales=[1.0])
    finally:
        del model.forward_grid
    assert sizes == [(32, 40)] * 2 + [(33, 41)] + [(32, 40)] * 2
    assert not torch.allclose(both.cam, one.cam, atol=1e-3)
    torch.testing.assert_close(turned.cam.flip(-1), both.cam, atol=1e-4, rtol=0)


def test_an_image_without_classes_gets_empty_maps(model):
    (maps,) = infer_cams(model, [np.zeros((24, 32, 3), np.uint8)], [[]], scales=[0.5, 1.0])
    assert maps.cam.shape == (0, 24, 32)
    assert maps.plain is None or maps.plain.shape == (0, 24, 32)
