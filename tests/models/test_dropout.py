"""Dropout whose masks belong to samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from seam_dist.models.dropout import DropoutKeys, SampleDropout2d, key_dropout


def dropped(numbers: list[int], *, seed: int = 0, layer: int = 0, side: int = 2, channels: int = 2048) -> torch.Tensor:
    keys = DropoutKeys(seed)
    keys.sample_number = torch.tensor(numbers)
    module = SampleDropout2d(0.3, layer, keys).train()
    return module(torch.ones(len(numbers), channels, side, side))


def test_dropout_belongs_to_the_sample() -> None:
    together = dropped([5, 6, 7])
    assert torch.equal(together, torch.cat([dropped([5]), dropped([6, 7])]))
    assert torch.equal(dropped([7, 5])[0], together[2])
    kept = together != 0
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.03)
    assert together.max() == pytest.approx(1 / 0.7)
    # Whole channels.
    assert bool((kept == kept[:, :, :1, :1]).all())


@pytest.mark.parametrize("seed", [2, 12345, 2**31, 2**63])
def test_dropout_takes_every_seed(seed: int) -> None:
    assert float((dropped([5], seed=seed) != 0).float().mean()) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("change", [{"numbers": [6]}, {"seed": 1}, {"layer": 1}, {"side": 3}])
def test_dropout_masks_are_independent(change: dict[str, Any]) -> None:
    one = dropped([5])[:, :, 0, 0] != 0
    two = dropped(**{"numbers": [5], **change})[:, :, 0, 0] != 0
    # Two independent masks agree with probability 0.7^2 + 0.3^2.
    assert float((one == two).float().mean()) == pytest.approx(0.58, abs=0.05)
    channels = one.float().flatten()
    assert abs(float(torch.corrcoef(torch.stack([channels[:-1], channels[1:]]))[0, 1])) < 0.08


def test_every_dropout_layer_gets_its_own_key() -> None:
    model = nn.Sequential(nn.Dropout2d(0.1), nn.Sequential(nn.Dropout2d(0.2)), nn.Dropout(0.3))
    key_dropout(model, DropoutKeys(0))
    layers = [module for module in model.modules() if isinstance(module, SampleDropout2d)]
    assert [(module.p, module.layer) for module in layers] == [(0.1, 0), (0.2, 1)]
    x = torch.ones(1, 4, 2, 2)
    assert torch.equal(model.eval()(x), x)
