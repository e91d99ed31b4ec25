"""Labels of the final network: scales, mirror images, strips, batches and the CRF."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from kit import changed
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from seam_dist.config.schema import Config, InferSegConfig, ModelConfig, TrainSegConfig
from seam_dist.data.shards import Sample
from seam_dist.inference import segmentation as seg_inference
from seam_dist.inference.segmentation import (
    Prediction,
    infer_labels,
    predict_samples,
    probabilities,
    refine_in_order,
)
from seam_dist.models import DeepLab, build_deeplab

CLASSES = ("cat", "dog", "hen")


def settings(network: Any = "deeplabv1") -> Config:
    return Config(
        model=ModelConfig(width=1 / 16, output_stride=8),
        train_seg=changed(TrainSegConfig(), network=network, width=8, dropout=0.0),
    )


@pytest.fixture(params=["deeplabv1", "deeplabv3plus"])
def model(request: pytest.FixtureRequest) -> DeepLab:
    torch.manual_seed(0)
    model = build_deeplab(settings(request.param), len(CLASSES))[0].eval()
    nn.init.normal_(model.head.classifier.weight, std=1.0)
    return model


def sample(number: int, size: tuple[int, int]) -> Sample:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return Sample(f"image-{number}", image, (), None, f"image-{number}")


def slow_logits(model: DeepLab, image: np.ndarray, scales: tuple[float, ...], flip: bool) -> torch.Tensor:
    """One scale and one direction at a time, logits at full size, averaged in float64."""
    height, width = image.shape[:2]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.backbone.mean, model.backbone.std))
    total, count = torch.zeros(1, len(CLASSES) + 1, height, width, dtype=torch.float64), 0
    for scale in scales:
        pixels = np.array(Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.BICUBIC))
        normal = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
        for turned in (False, True)[: 1 + flip]:
            with torch.no_grad():
                logits = model(normal.flip(-1)[None] if turned else normal[None])
            full = interpolate(logits.double(), (height, width), mode="bilinear", align_corners=True)
            total += full.flip(-1) if turned else full
            count += 1
    return (total / count)[0]


@pytest.mark.parametrize("flip", [True, False])
def test_mean_over_scales_and_mirror_images_matches_the_slow_order(model: DeepLab, flip: bool) -> None:
    cfg = InferSegConfig(scales=(0.5, 0.75, 1.0, 1.5), flip=flip, batch_size=2)
    samples = [sample(0, (33, 47)), sample(1, (40, 31)), sample(2, (33, 47))]
    predictions = sorted(predict_samples(model, samples, cfg), key=lambda prediction: prediction.index)
    assert [prediction.sample.key for prediction in predictions] == [s.key for s in samples]
    for prediction, each in zip(predictions, samples, strict=True):
        expected = slow_logits(model, each.image, cfg.scales, flip)
        top = expected.topk(2, dim=0).values
        clear = (top[0] - top[1] > 1e-4).numpy()
        assert clear.mean() > 0.99
        assert np.array_equal(prediction.labels[clear], expected.argmax(dim=0).numpy()[clear])
        assert len(np.unique(prediction.labels)) > 1
        assert prediction.refined is None
        (alone,) = infer_labels(model, [each.image], scales=cfg.scales, flip=flip)
        assert np.array_equal(alone[clear], prediction.labels[clear])
        images = seg_inference.scaled_images([each.image], cfg.scales)
        grids = [grid[0] for grid in seg_inference.grid_logits(model, images, flip=flip)]
        sizes = [(image.shape[2], image.shape[3]) for image in images]
        size = each.image.shape[:2]
        torch.testing.assert_close(
            seg_inference.mean_logits(grids, sizes, size), expected.float(), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            probabilities(grids, sizes, size), expected.softmax(dim=0).float(), rtol=1e-4, atol=1e-4
        )


def test_strips_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    grids = [torch.randn(4, 5, 6), torch.randn(4, 9, 11)]
    scaled, size = [(36, 44), (72, 88)], (37, 45)
    labels = seg_inference.label_image(grids, scaled, size)
    scores = probabilities(grids, scaled, size)
    assert labels.shape == size
    monkeypatch.setattr(seg_inference, "_STRIP", 4 * size[1] * 5)
    assert len(seg_inference._strips(grids, size)) == 8
    assert np.array_equal(seg_inference.label_image(grids, scaled, size), labels)
    torch.testing.assert_close(probabilities(grids, scaled, size), scores)
    torch.testing.assert_close(scores.sum(dim=0), torch.ones(size))


class RecordingCrf:
    """Takes the last class everywhere, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: dict[int, tuple[Any, ...]] = {}

    def submit(self, function: Any, image: Any, *arguments: Any) -> Future[Any]:
        self.asked[id(image)] = arguments
        future: Future[Any] = Future()
        future.set_result(np.full(image.shape[:2], arguments[1][-1], np.uint8))
        return future


def test_crf_gets_the_softmax_of_all_classes_and_the_image(model: DeepLab) -> None:
    crf = RecordingCrf()
    cfg = InferSegConfig(scales=(1.0,), flip=False, crf_num_iters=3, crf_bilateral_sxy=7.0)
    samples = [sample(n, (24, 24 + 8 * (n % 2))) for n in range(5)]
    predictions = sorted(predict_samples(model, samples, cfg, crf=crf), key=lambda p: p.index)
    assert len(predictions) == len(crf.asked) == 5
    for prediction in predictions:
        scores, classes, iters, sxy = crf.asked[id(prediction.sample.image)]
        assert (list(classes), iters, sxy) == ([1, 2, 3], 3, 7.0)
        assert scores.shape == (4, *prediction.labels.shape)
        np.testing.assert_allclose(scores.sum(axis=0), 1, rtol=1e-5)
        assert np.array_equal(scores.argmax(axis=0), prediction.labels)
        assert prediction.refined is not None
        assert (prediction.refined.result() == 3).all()


def test_labels_of_the_crf_come_in_the_order_of_the_images() -> None:
    futures: list[Future[Any]] = [Future() for _ in range(3)]
    predictions = [
        Prediction(n, sample(n, (2, 3)), np.zeros((2, 3), np.uint8), refined=future) for n, future in enumerate(futures)
    ]
    drawn: list[int] = []

    def stream() -> Iterator[Prediction]:
        for prediction in predictions:
            drawn.append(prediction.index)
            yield prediction
            if prediction.index == 1:
                for number in (1, 0):
                    futures[number].set_result(np.full((2, 3), number + 1, np.uint8))
        futures[2].set_result(np.full((2, 3), 3, np.uint8))

    refined = refine_in_order(stream())
    first, labels = next(refined)
    assert (first.index, labels[0, 0]) == (0, 1)
    assert not futures[2].done()
    assert drawn == [0, 1, 2]  # nothing waits for a CRF while images are left
    assert [(prediction.index, labels[0, 0]) for prediction, labels in refined] == [(1, 2), (2, 3)]


def test_long_images_are_predicted_smaller_at_their_own_size() -> None:
    torch.manual_seed(0)
    model = build_deeplab(settings(), len(CLASSES))[0].eval()
    large, small = sample(0, (40, 80)), sample(1, (20, 40))
    cfg = InferSegConfig(scales=(1.0,), flip=False)
    seen: list[tuple[int, ...]] = []
    forward = model.forward_grid
    model.forward_grid = lambda image: (seen.append(tuple(image.shape[2:])), forward(image))[1]  # type: ignore[method-assign]
    predictions = list(predict_samples(model, [large, small], cfg, longest=40))
    assert {p.sample.key: p.labels.shape for p in predictions} == {"image-0": (40, 80), "image-1": (20, 40)}
    assert seen == [(20, 40), (20, 40)]


def test_large_images_of_a_batch_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [(n, sample(n, (10, 10))) for n in range(5)]
    assert [len(part) for part in seg_inference._parts(batch, 250)] == [2, 2, 1]
    assert [len(part) for part in seg_inference._parts(batch, 1)] == [1] * 5
