"""Scores of all thresholds from one histogram, against a confusion matrix built threshold by threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seam_dist.evaluation.metrics import ThresholdHistogram, scores_from_confusion, threshold_grid


def brute_confusion(cam, classes, mask, threshold, num_classes):
    """The rule as the published evaluation states it: argmax over [t, cams] in float32, then count."""
    full = np.full((num_classes + 1, *mask.shape), -np.inf, np.float32)
    full[list(classes)] = np.asarray(cam, np.float32)
    full[0] = threshold
    predicted = full.argmax(axis=0)
    confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(confusion, (mask[mask != 255], predicted[mask != 255]), 1)
    return confusion


def confusion_at(histogram, index):
    """The confusion matrix at thresholds[index], from the definition of the counts."""
    background = histogram.counts[:, :, : index + 1].sum(dim=(1, 2))
    return torch.cat([background[:, None], histogram.counts[:, :, index + 1 :].sum(dim=2)], dim=1)


def brute_miou(confusion):
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.mean([h / u for h, u in zip(hits, union, strict=True) if u]) if union.any() else math.nan


def random_image(rng, thresholds, num_classes, size=(9, 11)):
    """An image whose scores lie on thresholds, one float32 step beside them, outside 0..1 and anywhere."""
    classes = sorted(
        rng.choice(np.arange(1, num_classes + 1), rng.integers(0, min(4, num_classes + 1)), False).tolist()
    )
    shape = (len(classes), *size)
    exact = rng.choice(np.asarray(thresholds, np.float32), shape)
    choice = rng.integers(0, 5, shape)
    choices = [exact, np.nextafter(exact, np.float32(2)), np.nextafter(exact, np.float32(-1))]
    cam = np.choose(choice, [*choices, rng.normal(size=shape).astype(np.float32), rng.random(shape, np.float32)])
    mask = rng.choice(np.array([0, 0, *classes, num_classes, 255], np.uint8), size)
    return torch.from_numpy(np.ascontiguousarray(cam, dtype=np.float32)), classes, mask


@given(seed=st.integers(0, 2**32 - 1), num_thresholds=st.sampled_from([2, 3, 10, 100]), num_classes=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_every_threshold_matches_brute_force(seed, num_thresholds, num_classes):
    rng = np.random.default_rng(seed)
    thresholds = threshold_grid(num_thresholds, 0.26)
    histogram = ThresholdHistogram(num_classes, thresholds)
    expected = np.zeros((len(thresholds), num_classes + 1, num_classes + 1), np.int64)
    for _ in range(3):
        cam, classes, mask = random_image(rng, thresholds, num_classes)
        own = np.stack([brute_confusion(cam, classes, mask, t, num_classes) for t in thresholds])
        expected += own
        image_miou = histogram.update(cam, classes, mask)
        np.testing.assert_allclose(image_miou, [brute_miou(c) for c in own], rtol=1e-12)
    scores = histogram.scores()
    for index in range(len(thresholds)):
        assert np.array_equal(confusion_at(histogram, index), expected[index])
        assert scores.miou[index].item() == pytest.approx(brute_miou(expected[index]), rel=1e-12)
    by_matrix = scores_from_confusion(torch.from_numpy(expected))
    for name in ("iou", "precision", "recall", "miou"):
        torch.testing.assert_close(getattr(scores, name), getattr(by_matrix, name), equal_nan=True)


def test_a_score_equal_to_the_threshold_is_background():
    histogram = ThresholdHistogram(1, threshold_grid(10))
    at = torch.tensor([[[0.3, float(np.nextafter(np.float32(0.3), np.float32(1)))]]])
    histogram.update(at, [1], np.ones((1, 2), np.uint8))
    assert confusion_at(histogram, 3).tolist() == [[0, 0], [1, 1]]
    assert confusion_at(histogram, 2).tolist() == [[0, 0], [0, 2]]


def test_equal_scores_go_to_the_first_class():
    histogram = ThresholdHistogram(3, [0.0])
    histogram.update(torch.full((2, 1, 1), 0.5), [2, 3], np.full((1, 1), 3, np.uint8))
    assert confusion_at(histogram, 0)[3].tolist() == [0, 0, 1, 0]


def test_scores_of_a_small_matrix_match_hand_calculation():
    # True: 4 background, 3 of class 1, none of class 2; predicted: 3, 3, 1 and none of class 3.
    scores = scores_from_confusion(torch.tensor([[3, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    nan = math.nan
    torch.testing.assert_close(
        torch.stack([scores.iou, scores.precision, scores.recall]),
        torch.tensor([[3 / 4, 2 / 4, 0.0, nan], [1.0, 2 / 3, 0.0, nan], [3 / 4, 2 / 3, nan, nan]]).double(),
        equal_nan=True,
    )
    assert scores.miou.item() == pytest.approx((3 / 4 + 2 / 4 + 0) / 3)


def test_a_class_that_is_only_predicted_counts_as_zero():
    scores = scores_from_confusion(torch.tensor([[3, 1, 1], [0, 2, 0], [0, 0, 0]]))
    assert scores.miou.item() == pytest.approx((3 / 5 + 2 / 3 + 0) / 3)
    histogram = ThresholdHistogram(2, [0.5])
    histogram.update(torch.ones(1, 1, 5), [2], np.array([[0, 1, 1, 1, 1]], np.uint8))
    assert histogram.scores().iou[0].tolist() == [0, 0, 0]


def test_an_image_without_classes_is_background_everywhere():
    histogram = ThresholdHistogram(2, [0.0, 0.5])
    miou = histogram.update(torch.zeros(0, 1, 3), [], np.array([[0, 0, 2]], np.uint8))
    assert confusion_at(histogram, 0).tolist() == [[2, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert miou.tolist() == pytest.approx([(2 / 3 + 0) / 2] * 2)


def test_an_image_of_ignored_pixels_counts_nothing():
    histogram = ThresholdHistogram(2, [0.5])
    assert histogram.update(torch.rand(1, 2, 2), [1], np.full((2, 2), 255, np.uint8)).isnan().all()
    assert histogram.counts.sum() == 0


def test_parts_reduced_over_ranks_equal_the_whole():
    rng = np.random.default_rng(0)
    thresholds = threshold_grid(10)
    whole, parts = ThresholdHistogram(3, thresholds), [ThresholdHistogram(3, thresholds) for _ in range(2)]
    for index in range(4):
        image = random_image(rng, thresholds, 3)
        whole.update(*image)
        parts[index % 2].update(*image)
    assert torch.equal(parts[0].counts + parts[1].counts, whole.counts)


def test_counts_do_not_overflow_32_bits():
    histogram = ThresholdHistogram(1, [0.5])
    histogram.update(torch.ones(1, 1, 2), [1], np.array([[0, 1]], np.uint8))
    histogram.counts *= 2**33
    assert confusion_at(histogram, 0).tolist() == [[0, 2**33], [0, 2**33]]
    assert histogram.scores().miou.item() == pytest.approx((0 + 1 / 2) / 2)


def test_grid_holds_the_extra_threshold_once():
    assert threshold_grid(4, 0.26) == [0.0, 0.25, 0.26, 0.5, 0.75]
    assert threshold_grid(100, 0.26) == [k / 100 for k in range(100)]


@pytest.mark.parametrize(
    ("cam", "classes", "mask", "message"),
    [
        (torch.rand(1, 2, 2), [1], np.zeros((2, 3), np.uint8), r"cam has shape \(1, 2, 2\), expected \(1, 2, 3\)"),
        (torch.rand(2, 2, 2), [1], np.zeros((2, 2), np.uint8), r"expected \(1, 2, 2\) for 1 classes"),
        (torch.rand(1, 2, 2), [4], np.zeros((2, 2), np.uint8), r"classes=\[4\], expected ascending ids within 1 .. 3"),
        (torch.rand(2, 2, 2), [2, 1], np.zeros((2, 2), np.uint8), r"classes=\[2, 1\], expected ascending"),
        (torch.rand(1, 2, 2), [1], np.full((2, 2), 7, np.uint8), r"mask holds class 7, expected 0 .. 3 or 255"),
        (torch.full((1, 2, 2), math.nan), [1], np.zeros((2, 2), np.uint8), r"cam holds NaN or infinity"),
    ],
)
def test_bad_images_are_refused(cam, classes, mask, message):
    with pytest.raises(ValueError, match=message):
        ThresholdHistogram(3, [0.5]).update(cam, classes, mask)


@pytest.mark.parametrize("thresholds", [[], [0.2, 0.1], [0.1, 0.1]])
def test_thresholds_must_ascend(thresholds):
    with pytest.raises(ValueError, match="must be ascending and at least one"):
        ThresholdHistogram(3, thresholds)


def test_a_histogram_needs_a_class():
    with pytest.raises(ValueError, match="num_classes=0 is less than 1"):
        ThresholdHistogram(0, [0.5])
