from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from seam_dist.config.schema import ModelConfig
from seam_dist.models import SEAM
from seam_dist.models.backbones.timm_cnn import TimmBackbone
from seam_dist.models.build import build_backbone


@pytest.fixture(scope="module")
def timm() -> Iterator[None]:
    """Make timm importable beside a torch whose torchvision comes from another build, or skip."""
    library = None
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            # Its compiled operators are absent; declared ones are enough, for nothing here calls them.
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    pytest.importorskip("timm", exc_type=ImportError)
    yield
    del library


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_network_has_three_maps_at_the_stride(name: str, stride: int) -> None:
    backbone = build_backbone(ModelConfig(backbone=f"timm:{name}", output_stride=stride))
    features = backbone.eval()(torch.randn(1, 3, 65, 97))
    assert backbone.channels == tuple(f.shape[1] for f in features)
    assert features.conv6.shape[2:] == (-(-65 // stride), -(-97 // stride))
    out = SEAM(backbone, 3).eval()(torch.randn(1, 3, 65, 97))
    assert out.cam.shape == out.cam_refined.shape == (1, 4, 65, 97)


@pytest.mark.usefixtures("timm")
def test_stem_and_batchnorm_are_frozen() -> None:
    backbone = build_backbone(ModelConfig(backbone="timm:resnet10t", output_stride=16)).train()
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert "net.layer1.0.conv1.weight" in trained
    assert not any(name.startswith(("net.conv1", "net.bn1")) for name in trained)
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training or m.weight.requires_grad for m in norms)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet10x", "unknown to timm .*, near it is .*resnet1"),
        ("vit_tiny_patch16_224", "cannot be built as a features_only network of output stride 16"),
    ],
)
def test_network_that_does_not_serve_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name, output_stride=16)


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"needs the package timm, which is not installed.*seam-dist\[timm\]"):
        build_backbone(ModelConfig(backbone="timm:resnet10t", output_stride=16))
