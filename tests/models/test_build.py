from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seam_dist.config.schema import Config, LossConfig, ModelConfig, ScheduleConfig
from seam_dist.models import SEAM, build_seam, parameter_groups
from seam_dist.models.backbones.lite0 import Lite0
from seam_dist.models.backbones.resnet38d import ResNet38d
from seam_dist.models.build import build_backbone

SMALL = {"backbone": "resnet38d", "width": 1 / 8}


def test_backbone_follows_the_configuration() -> None:
    resnet = build_backbone(ModelConfig(**SMALL, output_stride=16, activation_checkpointing=True))
    assert isinstance(resnet, ResNet38d)
    assert resnet.channels == (64, 128, 512)
    assert (resnet.output_stride, resnet.activation_checkpointing) == (16, True)
    assert not resnet.conv1a.weight.requires_grad
    lite = build_backbone(ModelConfig(backbone="lite0", output_stride=8, freeze_stem=False, freeze_batchnorm=False))
    assert isinstance(lite, Lite0)
    assert all(p.requires_grad for p in lite.parameters())


def test_width_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.width=0.5 has no effect on lite0"):
        build_backbone(ModelConfig(backbone="lite0", width=0.5))


@pytest.mark.parametrize(
    ("ablation", "pcm"), [("cam", False), ("er", False), ("pcm", True), ("ecr", True), ("full", True)]
)
def test_pcm_is_built_for_the_ablations_that_use_it(ablation: str, pcm: bool) -> None:
    model, _ = build_seam(Config(model=ModelConfig(**SMALL), loss=LossConfig(ablation=ablation)), 2)
    assert model.pcm is pcm
    assert (model(torch.randn(1, 3, 16, 16)).cam_refined is not None) is pcm


def test_seam_follows_the_configuration() -> None:
    settings = ModelConfig(**SMALL, pcm_channels=(6, 10), pcm_center=True, pcm_impl="reference", channels_last=True)
    model, report = build_seam(Config(model=settings), 7)
    assert model.fc8.weight.shape == (8, 512, 1, 1)
    assert model.f9.weight.shape == (16, 19, 1, 1)
    assert (model.pcm_center, model.pcm_impl) == (True, "reference")
    assert model.backbone.b3.conv_branch2a.weight.is_contiguous(memory_format=torch.channels_last)
    assert "random weights with frozen layers" in str(report)


def test_configured_weights_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "imagenet.pth"
    torch.save(ResNet38d(width=1 / 8).state_dict(), path)
    cfg = Config(model=ModelConfig(**SMALL, pretrained=str(path)))
    model, report = build_seam(cfg, 2)
    assert len(report.matched) == 191
    assert model.pretrained_names
    assert "frozen" not in str(report)


def test_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_seam(Config(model=ModelConfig(**SMALL)), 2)[0].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def _groups(model: SEAM) -> dict[str, tuple[set[str], float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, ScheduleConfig(lr=0.1, lr_multipliers=(1, 2, 10, 20), weight_decay=0.3))
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    return {g["name"]: ({names[id(p)] for p in g["params"]}, g["lr"], g["weight_decay"]) for g in groups}


def test_pretrained_backbone_and_new_heads_are_the_two_published_groups(seam: SEAM) -> None:
    seam.pretrained_names = {name for name, _ in seam.named_parameters() if name.startswith("backbone.")}
    groups = _groups(seam)
    assert set(groups) == {"pretrained_weights", "new_weights"}
    names, lr, decay = groups["pretrained_weights"]
    assert all(name.startswith("backbone.") and "conv" in name for name in names)
    assert "backbone.b3.conv_branch2a.weight" in names
    assert "backbone.b2.conv_branch2a.weight" not in names
    assert (lr, decay) == (pytest.approx(0.1), 0.3)
    assert groups["new_weights"] == (
        {"fc8.weight", "f8_3.weight", "f8_4.weight", "f9.weight"},
        pytest.approx(1.0),
        0.3,
    )


def test_random_backbone_is_new(seam: SEAM) -> None:
    assert set(_groups(seam)) == {"new_weights"}


def test_biases_and_trained_batchnorm_have_no_decay(seam: SEAM) -> None:
    seam.backbone.conv1a = torch.nn.Conv2d(3, 8, 3, padding=1)
    for parameter in seam.parameters():
        parameter.requires_grad_(True)
    seam.pretrained_names = {"backbone.bn7.weight", "backbone.bn7.bias", "backbone.conv1a.weight"}
    groups = _groups(seam)
    assert groups["pretrained_weights"] == ({"backbone.conv1a.weight"}, pytest.approx(0.1), 0.3)
    assert groups["pretrained_biases"] == ({"backbone.bn7.weight", "backbone.bn7.bias"}, pytest.approx(0.2), 0.0)
    names, lr, decay = groups["new_biases"]
    assert {"backbone.conv1a.bias", "backbone.b3.bn_branch2a.weight"} <= names
    assert (lr, decay) == (pytest.approx(2.0), 0.0)
