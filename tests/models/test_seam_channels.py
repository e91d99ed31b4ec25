"""PCM for the channels that a batch's losses read alone: the same losses and gradients as for all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from training_kit import one_rank

from seam_dist.config.schema import AugmentConfig, Config, LossConfig, ModelConfig
from seam_dist.data.augment.color import IDENTITY
from seam_dist.models import SEAM, build_seam
from seam_dist.models.seam import present_channels
from seam_dist.training.seam_task import SeamModule

_SIDE, _CLASSES = 40, 5
_LABELS = {
    "some": [[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0]],
    "one image without a class": [[0.0, 0.0, 1.0, 0.0, 0.0], [0.0] * 5],
    "none": [[0.0] * 5, [0.0] * 5],
    "all": [[1.0] * 5, [0.0, 0.0, 1.0, 0.0, 0.0]],
}


def _batch(label: Tensor) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "image": torch.randint(0, 256, (2, 3, _SIDE, _SIDE), generator=generator, dtype=torch.uint8),
        "valid": torch.tensor([[0, 0, _SIDE, _SIDE]] * 2, dtype=torch.int32),
        "color": torch.tensor(IDENTITY).repeat(2, 1),
        "label": label,
        "sample_number": torch.arange(2),
    }


def _module(ablation: Any) -> SeamModule:
    cfg = Config(
        augment=AugmentConfig(crop_size=_SIDE),
        model=ModelConfig(width=1 / 16),
        loss=LossConfig(second_view_scale=0.6, ablation=ablation),
    )
    model, _ = build_seam(cfg, _CLASSES)
    with torch.no_grad():
        model.fc8.weight.mul_(20)  # maps that differ between channels
    return SeamModule(model, cfg).train()


@pytest.mark.parametrize("ablation", ["pcm", "ecr", "full"])
@pytest.mark.parametrize("label", _LABELS.values(), ids=_LABELS)
def test_losses_and_gradients_do_not_change(label: list[list[float]], ablation: str) -> None:
    module = _module(ablation)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    results = []
    for shortcut in (False, True):
        batch = _batch(torch.tensor(label))
        if shortcut:
            module.begin_step([batch], 0, one_rank())
            assert len(batch["channels"]) == 1 + int(batch["label"].any(dim=0).sum())
        losses = module(batch)
        gradients = torch.autograd.grad(losses["loss"], list(parameters.values()), allow_unused=True)
        results.append((losses, gradients))
    (losses, gradients), (losses_short, gradients_short) = results
    for name, value in losses.items():
        torch.testing.assert_close(losses_short[name], value, rtol=1e-6, atol=1e-7)
    for name, full, short in zip(parameters, gradients, gradients_short, strict=True):
        assert (full is None) == (short is None), name
        if full is not None:
            assert (short - full).norm() <= 1e-5 * full.norm() + 1e-8, name


def test_channels_asked_for_are_those_of_the_whole_map_and_the_others_zero(seam: SEAM) -> None:
    image = torch.randn(2, 3, 41, 41)
    label = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    channels = present_channels(label)
    assert channels.tolist() == [0, 2]
    with torch.no_grad():
        whole, part = seam.eval()(image), seam(image, channels)
    assert torch.equal(part.cam, whole.cam)
    torch.testing.assert_close(part.cam_refined[:, channels], whole.cam_refined[:, channels], rtol=1e-6, atol=1e-7)
    assert part.cam_refined[:, [1, 3]].abs().max() == 0
    assert whole.cam_refined[:, 1].abs().max() > 0


def test_pictures_show_absent_classes_too() -> None:
    module = _module("full").eval()
    batch = _batch(torch.tensor(_LABELS["some"]))
    module.begin_step([batch], 0, one_rank())
    refined = module.pictures(batch)[2]
    assert refined is not None
    assert refined[:, [2, 3, 5]].abs().max() > 0
