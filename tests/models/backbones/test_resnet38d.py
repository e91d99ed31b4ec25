from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from seam_dist.models.backbones.resnet38d import ResNet38d, _conv, scaled_channels

Make = Callable[..., ResNet38d]


def test_full_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        backbone = ResNet38d()
    wide = [  # (input, middle, output, projected) of every wide block
        *[(64, 128, 128, True), (128, 128, 128, False), (128, 128, 128, False)],
        *[(128, 256, 256, True), (256, 256, 256, False), (256, 256, 256, False)],
        *[(256, 512, 512, True), *[(512, 512, 512, False)] * 5],
        *[(512, 512, 1024, True), *[(1024, 512, 1024, False)] * 2],
    ]
    expected = 3 * 64 * 9
    for inputs, middle, outputs, projected in wide:
        expected += 9 * inputs * middle + 9 * middle * outputs + 2 * (inputs + middle)
        expected += inputs * outputs if projected else 0
    for inputs, outputs in ((1024, 2048), (2048, 4096)):
        quarter, half = outputs // 4, outputs // 2
        expected += inputs * quarter + 9 * quarter * half + half * outputs + inputs * outputs
        expected += 2 * (inputs + quarter + half)
    expected += 2 * 4096
    count = sum(p.numel() for p in backbone.parameters())
    assert count == expected == 105_070_912
    assert backbone.channels == (512, 1024, 4096)


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(64, 1, 64), (64, 1 / 8, 8), (64, 0.01, 8), (512, 0.3, 152)]
)
def test_width_scales_channels_in_steps_of_eight(channels: int, width: float, expected: int) -> None:
    assert scaled_channels(channels, width) == expected


@pytest.mark.parametrize("size", [(33, 47), (16, 9), (1, 1)])
def test_grid_is_the_image_divided_by_the_stride_rounded_up(size: tuple[int, int], make_resnet38d: Make) -> None:
    image = torch.randn(1, 3, *size)
    for stride in (8, 16):
        conv4, conv5, conv6 = make_resnet38d(output_stride=stride)(image)
        grid = tuple(-(-s // stride) for s in size)
        assert conv6.shape == (1, 512, *grid)
        assert conv5.shape == (1, 128, *grid)
        assert conv4.shape == (1, 64, *(-(-s // 8) for s in size))


def test_stride_8_agrees_with_stride_16_on_its_cells(make_resnet38d: Make) -> None:
    image = torch.randn(1, 3, 49, 65)
    fine = make_resnet38d(output_stride=8).eval()(image)
    coarse = make_resnet38d(output_stride=16).eval()(image)
    torch.testing.assert_close(fine.conv4, coarse.conv4)
    torch.testing.assert_close(fine.conv5[..., ::2, ::2], coarse.conv5)
    torch.testing.assert_close(fine.conv6[..., ::2, ::2], coarse.conv6)


def test_dilations_are_the_published_ones() -> None:
    modules = dict(ResNet38d(width=1 / 8).named_modules())
    dilated = {name: m.dilation[0] for name, m in modules.items() if isinstance(m, nn.Conv2d) and m.dilation[0] > 1}
    assert dilated == {
        "b5.conv_branch2b1": 2,
        **{f"b5_{k}.conv_branch2{x}": 2 for k in (1, 2) for x in ("a", "b1")},
        "b6.conv_branch2b1": 4,
        "b7.conv_branch2b1": 4,
    }
    strides = {name for name, m in modules.items() if isinstance(m, nn.Conv2d) and m.stride[0] == 2}
    assert strides == {f"{b}.{c}" for b in ("b2", "b3", "b4") for c in ("conv_branch1", "conv_branch2a")}
    dropout = {name: m.p for name, m in modules.items() if isinstance(m, nn.Dropout2d)}
    assert dropout == {f"{b}.dropout_2b{k}": p for b, p in (("b6", 0.3), ("b7", 0.5)) for k in (1, 2)}


def test_frozen_set_is_the_stem_and_every_batchnorm(make_resnet38d: Make) -> None:
    backbone = make_resnet38d()
    stem = ("conv1a.", "b2.", "b2_1.", "b2_2.")
    norms = {f"{name}." for name, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, parameter in backbone.named_parameters():
        frozen = name.startswith(stem) or any(name.startswith(norm) for norm in norms)
        assert parameter.requires_grad is not frozen, name
    assert norms


def test_frozen_batchnorm_stays_in_eval_mode_through_train(make_resnet38d: Make) -> None:
    backbone = make_resnet38d()
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    nn.Sequential(backbone).train()
    assert backbone.b6.dropout_2b1.training
    backbone(torch.randn(2, 3, 17, 17))
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    for name, buffer in backbone.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)


def test_batchnorm_outside_the_stem_can_be_left_to_train() -> None:
    backbone = ResNet38d(width=1 / 8)
    backbone.freeze(batchnorm=False, stem=True)
    backbone.train()
    assert backbone.b3.bn_branch2a.training
    assert backbone.b3.bn_branch2a.weight.requires_grad
    assert not backbone.b2.bn_branch2a.training
    assert not backbone.b2.bn_branch2a.weight.requires_grad


def test_activation_checkpointing_changes_no_gradient(make_resnet38d: Make) -> None:
    image = torch.randn(1, 3, 33, 33)
    gradients = []
    for activation_checkpointing in (False, True):
        backbone = make_resnet38d(activation_checkpointing=activation_checkpointing).train()
        torch.manual_seed(1)  # dropout
        conv4, conv5, conv6 = backbone(image)
        (conv4.square().sum() + conv5.square().sum() + conv6.square().sum()).backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad})
    assert all(g is not None and g.abs().sum() > 0 for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_activation_checkpointing_stores_less(make_resnet38d: Make) -> None:
    image = torch.randn(1, 3, 65, 65)
    stored = []
    for activation_checkpointing in (False, True):
        backbone = make_resnet38d(activation_checkpointing=activation_checkpointing).train()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            backbone(image)
        stored.append(sum(sizes))
    assert stored[1] < stored[0] / 3


def test_output_stride_32_is_refused() -> None:
    with pytest.raises(ValueError, match="output_stride=32 is not 8 or 16"):
        ResNet38d(width=1 / 8, output_stride=32)


def test_random_network_keeps_the_scale_of_its_input() -> None:
    backbone = ResNet38d(width=1 / 8).eval()
    assert 0.1 < backbone(torch.randn(1, 3, 65, 65)).conv6.std() < 10


@pytest.mark.parametrize("inputs", [4, 8, 12])
def test_narrow_strided_projection_has_the_right_weight_gradient(inputs: int) -> None:
    """torch 2.13 writes outside this gradient of nn.Conv2d in channels_last (AVX-512 without AMX)."""
    for _ in range(8):
        conv = _conv(inputs, 8, 1, stride=2).to(memory_format=torch.channels_last)
        assert type(conv) is not nn.Conv2d
        x = torch.randn(8, inputs, 88, 88)
        conv(x.contiguous(memory_format=torch.channels_last)).square().sum().backward()
        weight = conv.weight.detach().double().contiguous().requires_grad_()
        conv2d(x.double(), weight, stride=2).square().sum().backward()
        torch.testing.assert_close(conv.weight.grad, weight.grad.float(), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("width", [1.0, 0.5, 0.25])
def test_widths_in_use_keep_plain_convolutions(width: float) -> None:
    with torch.device("meta"):
        backbone = ResNet38d(width=width)
    assert all(type(module) is nn.Conv2d for module in backbone.modules() if isinstance(module, nn.Conv2d))
