from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kit import authors_state_dict, changed
from seam_kernels import edge_affinity
from torch.nn.functional import conv2d, elu, interpolate

from seam_dist.config.schema import Config, ModelConfig, ScheduleConfig, TrainAffinityConfig
from seam_dist.models import SEAM, AffinityNet, affinity_architecture, build_affinity_net, parameter_groups
from seam_dist.models.backbones.base import Backbone
from seam_dist.models.backbones.resnet38d import ResNet38d
from seam_dist.models.weights.load import load_weights

CHANNELS = (4, 6, 10)
HEADS = {"f8_3.weight", "f8_4.weight", "f8_5.weight", "f9.weight"}


@pytest.fixture
def net(make_resnet38d: Callable[..., Backbone]) -> AffinityNet:
    return AffinityNet(make_resnet38d(), channels=CHANNELS)


def test_features_equal_the_published_formula(net: AffinityNet) -> None:
    """PARITY.md section 1: ELU after each branch and after f9, 1x1, no bias."""
    image = torch.randn(2, 3, 72, 96)
    features = net.eval().backbone(image)
    branches = [elu(conv2d(x, layer.weight)) for x, layer in zip(features, (net.f8_3, net.f8_4, net.f8_5), strict=True)]
    expected = elu(conv2d(torch.cat(branches, dim=1), net.f9.weight))
    feature = net.forward_grid(image)
    assert feature.shape == (2, sum(CHANNELS), 9, 12)
    torch.testing.assert_close(feature, expected)
    assert feature.min() < 0  # a ReLU would have none


@pytest.mark.parametrize("border", ["paper", "full"])
def test_forward_gives_the_affinities_of_the_features(net: AffinityNet, border: str) -> None:
    image = torch.randn(1, 3, 96, 104)
    net.eval()
    expected = edge_affinity(net.forward_grid(image), radius=5, border=border)
    torch.testing.assert_close(net(image, border), expected)


def test_radius_shrinks_with_a_small_grid(net: AffinityNet) -> None:
    assert net.eval()(torch.randn(1, 3, 40, 96)).shape == (1, 4, 5, 12)  # grid of 5 rows: radius 2
    assert (net.pair_radius(56, 56), net.pair_radius(5, 12)) == (5, 2)


def test_finer_maps_come_to_the_grid_of_conv6(make_resnet38d: Callable[..., Backbone]) -> None:
    net = AffinityNet(make_resnet38d(output_stride=16), channels=CHANNELS).eval()
    image = torch.randn(1, 3, 96, 96)
    conv4, conv5, conv6 = net.backbone(image)
    assert conv4.shape[2] > conv6.shape[2] == 6
    small = [interpolate(x, (6, 6), mode="bilinear", align_corners=True) for x in (conv4, conv5)]
    layers = (net.f8_3, net.f8_4, net.f8_5)
    branches = [elu(layer(x)) for x, layer in zip((*small, conv6), layers, strict=True)]
    torch.testing.assert_close(net.forward_grid(image), elu(net.f9(torch.cat(branches, dim=1))))


def test_gradient_reaches_the_backbone_through_every_branch(net: AffinityNet) -> None:
    """Not detached, unlike SEAM's PCM branch."""
    for silent in (("f8_4", "f8_5"), ("f8_3", "f8_5"), ("f8_3", "f8_4")):
        net.zero_grad()
        for name in ("f8_3", "f8_4", "f8_5"):
            getattr(net, name).requires_grad_(name not in silent)
        kept = {name: getattr(net, name).weight.detach().clone() for name in silent}
        with torch.no_grad():
            for name in silent:
                getattr(net, name).weight.zero_()
        net.forward_grid(torch.randn(1, 3, 64, 64)).square().sum().backward()
        gradient = net.backbone.b4.conv_branch2a.weight.grad
        assert gradient is not None, silent
        assert gradient.abs().sum() > 0, silent
        with torch.no_grad():
            for name, weight in kept.items():
                getattr(net, name).weight.copy_(weight)


def test_heads_stay_float32_under_autocast(net: AffinityNet) -> None:
    image = torch.randn(1, 3, 96, 96)
    dtypes = []
    hook = net.backbone.b4.register_forward_hook(lambda m, i, output: dtypes.append(output[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net.eval()(image)
    hook.remove()
    assert dtypes == [torch.bfloat16]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, net(image), rtol=0.1, atol=0.05)


def test_authors_checkpoint_loads_whole(net: AffinityNet, tmp_path: Path) -> None:
    state = authors_state_dict(net)
    assert HEADS | {"conv1a.weight", "bn7.running_var"} <= set(state)
    torch.save(state, tmp_path / "resnet38_aff.pth")
    loaded = AffinityNet(ResNet38d(width=1 / 8), channels=CHANNELS)
    report = load_weights(loaded, tmp_path / "resnet38_aff.pth", require_heads=True)
    assert report.new == report.unexpected == ()
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_weights_without_its_heads_are_no_trained_network(net: AffinityNet, seam: SEAM, tmp_path: Path) -> None:
    torch.save(authors_state_dict(seam), tmp_path / "seam.pth")
    with pytest.raises(ValueError, match=r"does not fit AffinityNet.*f8_3\.weight is .*f8_5\.weight"):
        load_weights(net, tmp_path / "seam.pth", require_heads=True)


def settings(**affinity: object) -> Config:
    return Config(
        model=ModelConfig(width=1 / 8),
        train_affinity=changed(TrainAffinityConfig(), channels=CHANNELS, crop_size=96, **affinity),
    )


def test_published_sizes() -> None:
    with torch.device("meta"):
        model = AffinityNet(ResNet38d())
    shapes = {name: tuple(p.shape[:2]) for name, p in model.named_parameters() if name in HEADS}
    assert shapes == {
        "f8_3.weight": (64, 512),
        "f8_4.weight": (128, 1024),
        "f8_5.weight": (256, 4096),
        "f9.weight": (448, 448),
    }


def test_built_network_follows_the_settings() -> None:
    model, report = build_affinity_net(settings())
    assert model.backbone.output_stride == 8
    assert "random weights with frozen layers" in str(report)
    finer = replace(settings(output_stride=16, radius=3), model=ModelConfig(width=1 / 8, freeze_stem=False))
    model, _ = build_affinity_net(finer)
    assert (model.backbone.output_stride, model.radius) == (16, 3)
    assert affinity_architecture(finer, ["a", "b"]) == {
        "network": "affinity",
        "backbone": "resnet38d",
        "width": 1 / 8,
        "output_stride": 16,
        "channels": list(CHANNELS),
        "classes": ["a", "b"],
    }
    with pytest.raises(ValueError, match=r"greater than 0"):
        TrainAffinityConfig(channels=(4, 0, 1))


def test_pretrained_backbone_and_new_heads_have_their_learning_rates(tmp_path: Path) -> None:
    source, _ = build_affinity_net(settings())
    backbone = {name: value for name, value in authors_state_dict(source).items() if name not in HEADS}
    torch.save(backbone, tmp_path / "imagenet.pth")
    cfg = replace(settings(), model=ModelConfig(width=1 / 8, pretrained=str(tmp_path / "imagenet.pth")))
    model, report = build_affinity_net(cfg)
    assert set(report.missing) == HEADS
    groups = {group["name"]: group for group in parameter_groups(model, ScheduleConfig(lr=0.01))}
    assert set(groups) == {"pretrained_weights", "new_weights"}  # no bias anywhere, BatchNorm frozen
    assert groups["new_weights"]["lr"] == pytest.approx(0.1)
    assert len(groups["new_weights"]["params"]) == 4
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    assert id(model.backbone.conv1a.weight) in frozen


def test_unnormalized_images_are_refused(net: AffinityNet) -> None:
    with pytest.raises(ValueError, match=r"image is torch\.uint8 .* normalize it"):
        net(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
