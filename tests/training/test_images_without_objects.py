"""Training steps on batches in which no image shows an object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from training_kit import BATCH, CLASSES, SIDE, begin_training, noise_batches, seam_config

from seam_dist.config.training import Ablation
from seam_dist.training.logger import cam_rows


def empty_batches() -> Iterator[dict[str, Any]]:
    def label(number: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"label": torch.zeros(CLASSES)}

    return noise_batches(SIDE, BATCH, 0, label)


@pytest.mark.parametrize("ablation", get_args(Ablation))
def test_a_step_on_empty_images_alone_lowers_all_scores(ablation: Ablation) -> None:
    training = begin_training(seam_config(ablation, max_steps=6, lr=1e-2))
    batches = list(zip(range(3), [next(empty_batches())] * 3, strict=True))
    terms = [training.train_step(iter([batch])) for _, batch in batches]
    assert all(np.isfinite(value) for step in terms for value in step.values())
    assert all(step.get(name, 0) == 0 for step in terms for name in ("min_pool", "er"))
    assert terms[2]["cls"] < terms[1]["cls"] < terms[0]["cls"]
    assert all(bool(torch.isfinite(weight).all()) for weight in training.module.model.parameters())


def test_pictures_of_empty_images_are_dark() -> None:
    images = torch.ones(2, 3, 4, 5)
    cam = torch.rand(2, CLASSES + 1, 4, 5)
    rows = cam_rows(images, cam, cam, torch.zeros(2, CLASSES))
    assert rows.shape == (2 * 4, 3 * 5, 3)
    assert (rows[:, :5] == 255).all()
    assert (rows[:, 5:] == 102).all()  # 0.4 of the image under a map of zeros
