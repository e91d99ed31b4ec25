"""Labels from scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seam_dist.inference.pseudo_labels import background_score, block_means, choose_classes, predict_labels


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_background_is_the_power_of_what_the_classes_leave(make):
    score = background_score(make([0.5, 1.0, 1.2, -0.5]), 4.0)
    np.testing.assert_allclose(score, [0.0625, 0, 0, 1.5**4])


def test_blocks_count_what_lies_outside_as_zero():
    means = block_means(torch.ones(1, 5, 3), 4)
    torch.testing.assert_close(means, torch.tensor([[[0.75], [0.1875]]]))


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_the_first_of_equal_scores_wins(make):
    scores = make([[[0.5, 0.2, 0.1, 0.3]], [[0.5, 0.7, 0.1, 0.3]], [[0.1, 0.7, 0.8, 0.2]]])
    labels = choose_classes(scores, (4, 9))
    assert labels.tolist() == [[0, 4, 9, 0]]
    assert labels.dtype == np.uint8


def test_labels_follow_the_first_largest_score_above_the_threshold():
    cam = torch.tensor([[[0.25, 0.5, 0.9]], [[0.1, 0.5, 0.95]]])
    assert predict_labels(cam, [3, 7], 0.25).tolist() == [[0, 3, 7]]
    assert predict_labels(torch.zeros(0, 2, 3), [], 0.5).tolist() == [[0, 0, 0], [0, 0, 0]]
