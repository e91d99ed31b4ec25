from __future__ import annotations

import copy
import math

import pytest
import torch
from kit import Probe
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, multilabel_soft_margin_loss

from seam_dist.config.schema import ModelConfig
from seam_dist.models import SEAM
from seam_dist.models.backbones.base import Features
from seam_dist.models.backbones.lite0 import Lite0
from seam_dist.models.seam import pcm_input_cam


def _bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize with aligned corners, pixel by pixel, in float64."""
    out = torch.empty(*x.shape[:2], *size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            y = i * (x.shape[2] - 1) / (size[0] - 1) if size[0] > 1 else 0.0
            z = j * (x.shape[3] - 1) / (size[1] - 1) if size[1] > 1 else 0.0
            y0, z0 = min(math.floor(y), max(x.shape[2] - 2, 0)), min(math.floor(z), max(x.shape[3] - 2, 0))
            y1, z1 = min(y0 + 1, x.shape[2] - 1), min(z0 + 1, x.shape[3] - 1)
            v, w = y - y0, z - z0
            top = (1 - w) * x[:, :, y0, z0] + w * x[:, :, y0, z1]
            bottom = (1 - w) * x[:, :, y1, z0] + w * x[:, :, y1, z1]
            out[:, :, i, j] = (1 - v) * top + v * bottom
    return out


def _read_parity(weights: dict[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the published network from its weights under the authors' names, step by step in float64."""
    w = {name.removeprefix("backbone."): tensor.double() for name, tensor in weights.items()}

    def active(x: Tensor, norm: str) -> Tensor:
        mean, var = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
        return batch_norm(x, mean, var, w[f"{norm}.weight"], w[f"{norm}.bias"], eps=1e-5).clamp(min=0)

    def conv(x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        return conv2d(x, weight, stride=stride, padding=(weight.shape[2] // 2) * dilation, dilation=dilation)

    def wide(x: Tensor, b: str, stride: int = 1, first: int = 1, second: int = 1) -> tuple[Tensor, Tensor]:
        a = active(x, f"{b}.bn_branch2a")
        side = conv(a, f"{b}.conv_branch1", stride) if f"{b}.conv_branch1.weight" in w else x
        y = active(conv(a, f"{b}.conv_branch2a", stride, first), f"{b}.bn_branch2b1")
        return side + conv(y, f"{b}.conv_branch2b1", 1, second), a

    def narrow(x: Tensor, b: str, dilation: int) -> tuple[Tensor, Tensor]:
        a = active(x, f"{b}.bn_branch2a")
        y = active(conv(a, f"{b}.conv_branch2a"), f"{b}.bn_branch2b1")
        y = active(conv(y, f"{b}.conv_branch2b1", 1, dilation), f"{b}.bn_branch2b2")
        return conv(a, f"{b}.conv_branch1") + conv(y, f"{b}.conv_branch2b2"), a

    image = image.double()
    x = conv(image, "conv1a")
    for stage, blocks in (("b2", 3), ("b3", 3), ("b4", 6)):
        x, _ = wide(x, stage, stride=2)
        for k in range(1, blocks):
            x, _ = wide(x, f"{stage}_{k}")
    x, conv4 = wide(x, "b5", first=1, second=2)
    for k in (1, 2):
        x, _ = wide(x, f"b5_{k}", first=2, second=2)
    x, conv5 = narrow(x, "b6", 4)
    x, _ = narrow(x, "b7", 4)
    cam = conv(active(x, "bn7"), "fc8")

    b, c, h, wd = cam.shape
    clean = torch.zeros_like(cam)
    for n in range(b):
        for k in range(c):
            positive = cam[n, k].clamp(min=0)
            clean[n, k] = (positive - 1e-5).clamp(min=0) / (positive.max() + 1e-5)
        for i in range(h):
            for j in range(wd):
                top = max(float(clean[n, k, i, j]) for k in range(1, c))
                clean[n, 0, i, j] = 1 - top
                for k in range(1, c):
                    if clean[n, k, i, j] < top:
                        clean[n, k, i, j] = 0
    parts = [_bilinear(image, (h, wd)), conv(conv4, "f8_3").clamp(min=0), conv(conv5, "f8_4").clamp(min=0)]
    f = conv(torch.cat(parts, dim=1), "f9").reshape(b, -1, h * wd)
    f = f / (f.square().sum(dim=1, keepdim=True).sqrt() + 1e-5)
    affinity = (f.transpose(1, 2) @ f).clamp(min=0)
    affinity = affinity / (affinity.sum(dim=1, keepdim=True) + 1e-5)
    refined = (clean.reshape(b, c, h * wd) @ affinity).reshape(b, c, h, wd)
    size = (image.shape[2], image.shape[3])
    return _bilinear(cam, size), _bilinear(refined, size)


def test_forward_is_the_published_network(seam: SEAM) -> None:
    image = torch.randn(2, 3, 41, 49)
    with torch.no_grad():
        cam, refined = seam.eval()(image)
    expected_cam, expected_refined = _read_parity(seam.state_dict(), image)
    assert expected_refined[:, 1:].std() > 0.01  # the comparison below is about something
    torch.testing.assert_close(cam.double(), expected_cam, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(refined.double(), expected_refined, rtol=1e-5, atol=1e-5)


def test_pcm_input_cam_by_hand() -> None:
    cam = torch.tensor([[[[9.0, 9.0, 9.0]], [[2.0, -1.0, 1.0]], [[1.0, 4.0, 2.0]]]])
    out = pcm_input_cam(cam)
    # channel maxima 2 and 4; at the last pixel both channels give about a half, and only the larger stays
    first = [(2 - 1e-5) / (2 + 1e-5), 0.0, (1 - 1e-5) / (2 + 1e-5)]
    second = [(1 - 1e-5) / (4 + 1e-5), (4 - 1e-5) / (4 + 1e-5), (2 - 1e-5) / (4 + 1e-5)]
    assert second[2] > first[2]
    expected = [[1 - first[0], 1 - second[1], 1 - second[2]], [first[0], 0.0, 0.0], [0.0, second[1], second[2]]]
    torch.testing.assert_close(out[0, :, 0], torch.tensor(expected), rtol=0, atol=1e-7)


def test_pcm_input_cam_keeps_ties_and_its_argument() -> None:
    cam = torch.tensor([[[[0.0, 0.0]], [[3.0, 1.0]], [[3.0, 1.0]]]], requires_grad=True)
    before = cam.detach().clone()
    out = pcm_input_cam(cam)
    assert torch.equal(out[0, 1], out[0, 2])
    assert out[0, 1].min() > 0.3
    assert not out.requires_grad
    torch.testing.assert_close(cam.detach(), before, rtol=0, atol=0)


def test_refined_cam_trains_only_the_pcm_branch(seam: SEAM) -> None:
    seam.train()
    seam(torch.randn(1, 3, 33, 41)).cam_refined.square().sum().backward()
    trained = {name for name, p in seam.named_parameters() if p.grad is not None}
    assert trained == {"f8_3.weight", "f8_4.weight", "f9.weight"}
    assert all(seam.get_parameter(name).grad.abs().sum() > 0 for name in trained)


def test_classification_trains_the_backbone_but_no_background_row(seam: SEAM) -> None:
    seam.train()
    cam, _ = seam(torch.randn(2, 3, 33, 41))
    # channel 0 is put into the loss on purpose: it must not learn even then
    multilabel_soft_margin_loss(cam.mean(dim=(2, 3)), torch.ones(2, 4)).backward()
    gradient = seam.fc8.weight.grad
    assert torch.all(gradient[0] == 0)
    assert torch.all(gradient[1:].flatten(1).abs().sum(dim=1) > 0)
    for name, parameter in seam.backbone.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
    assert all(seam.get_parameter(name).grad is None for name in ("f8_3.weight", "f8_4.weight", "f9.weight"))


def test_names_and_shapes_are_the_published_ones_at_full_width() -> None:
    from seam_dist.models.backbones.resnet38d import ResNet38d

    with torch.device("meta"):
        model = SEAM(ResNet38d(), 20)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if not n.startswith("backbone.")}
    assert shapes == {
        "fc8.weight": (21, 4096, 1, 1),
        "f8_3.weight": (64, 512, 1, 1),
        "f8_4.weight": (128, 1024, 1, 1),
        "f9.weight": (192, 195, 1, 1),
    }


def test_initial_weights_have_the_published_spread() -> None:
    model = SEAM(Lite0(), 20)
    for layer, gain in ((model.fc8, 1), (model.f9, 4)):
        bound = gain * math.sqrt(6 / (layer.in_channels + layer.out_channels))
        assert 0.9 * bound < layer.weight.abs().max() <= bound
    for layer in (model.f8_3, model.f8_4):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.in_channels), rel=0.1)


def test_outputs_are_the_grid_maps_upsampled_with_aligned_corners(seam: SEAM) -> None:
    image = torch.randn(1, 3, 23, 35)
    with torch.no_grad():
        grid, full = seam.eval().forward_grid(image), seam(image)
    assert grid.cam.shape == grid.cam_refined.shape == (1, 4, 3, 5)
    for small, large in zip(grid, full, strict=True):
        torch.testing.assert_close(large.double(), _bilinear(small.double(), (23, 35)), rtol=1e-5, atol=1e-5)


def test_one_pixel_image_passes(seam: SEAM) -> None:
    out = seam.eval()(torch.randn(1, 3, 1, 1))
    assert out.cam.shape == out.cam_refined.shape == (1, 4, 1, 1)
    assert torch.isfinite(out.cam_refined).all()


def test_finer_feature_map_is_resized_to_the_grid() -> None:
    model = SEAM(Probe(), 2, pcm_channels=(5, 7)).eval()
    image = torch.randn(1, 3, 65, 49)
    conv4, conv5, _ = model.backbone(image)
    assert conv4.shape[2:] == (9, 7)
    small = _bilinear(conv4.double(), (5, 4)).float()
    model.backbone.forward = lambda _: Features(small, conv5, torch.ones(1, 10, 5, 4))
    expected = model.forward_grid(image).cam_refined
    model.backbone.forward = lambda _: Features(conv4, conv5, torch.ones(1, 10, 5, 4))
    torch.testing.assert_close(model.forward_grid(image).cam_refined, expected)


def test_centerd_features_ignore_a_constant_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def attention(cam: Tensor, feature: Tensor, **_: object) -> Tensor:
        seen.append(feature)
        return cam

    monkeypatch.setattr("seam_dist.models.seam.pcm_attention", attention)
    for pcm_center in (False, True):
        torch.manual_seed(0)
        SEAM(Probe(), 2, pcm_center=pcm_center).eval()(torch.ones(1, 3, 33, 33) + torch.randn(1, 3, 33, 33))
    plain, centerd = seen
    assert plain.mean(dim=2).abs().max() > 0.1
    torch.testing.assert_close(centerd, plain - plain.mean(dim=2, keepdim=True))


def test_without_pcm_there_is_no_branch_and_no_refined_cam() -> None:
    model = SEAM(Probe(), 2, pcm=False)
    assert model(torch.randn(1, 3, 20, 20)).cam_refined is None
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"backbone", "fc8"}


@pytest.mark.parametrize("mode", ["autocast", "parameters"])
def test_bfloat16_backbone_gives_float32_maps_and_gradients(mode: str) -> None:
    model = SEAM(Probe(), 2).eval()
    exact = model(image := torch.randn(1, 3, 33, 33))
    low = copy.deepcopy(model).bfloat16() if mode == "parameters" else model
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        out = low(image)
    assert out.cam.dtype == out.cam_refined.dtype == torch.float32
    torch.testing.assert_close(out.cam, exact.cam, rtol=0.05, atol=0.02)
    (out.cam.sum() + out.cam_refined.sum()).backward()
    assert torch.isfinite(low.f9.weight.grad).all()


def test_head_stays_float32_under_autocast() -> None:
    model = SEAM(Probe(), 2).eval()
    features = model.backbone(image := torch.randn(1, 3, 33, 33))
    model.backbone.forward = lambda _: features
    exact = model(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(image)
    torch.testing.assert_close(out.cam, exact.cam, rtol=0, atol=0)
    torch.testing.assert_close(out.cam_refined, exact.cam_refined, rtol=0, atol=0)


def test_dropout_acts_in_training_only() -> None:
    model = SEAM(Probe(), 2, pcm=False)
    image = torch.randn(1, 3, 33, 33)
    model.train()
    assert not torch.equal(model(image).cam, model(image).cam)
    model.eval()
    torch.testing.assert_close(model(image).cam, model(image).cam, rtol=0, atol=0)


def test_channels_last_changes_nothing(seam: SEAM) -> None:
    image = torch.randn(2, 3, 33, 41)
    with torch.no_grad():
        expected = seam.eval()(image)
        out = seam.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(out.cam, expected.cam, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.cam_refined, expected.cam_refined, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
    ids=["no batch", "gray", "uint8"],
)
def test_image_that_is_not_normalized_rgb_is_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected floating point \(B, 3, H, W\)"):
        SEAM(Probe(), 2)(image)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes=0"):
        SEAM(Probe(), 0)
    with pytest.raises(ValueError, match=r"greater than 0"):
        ModelConfig(pcm_channels=(0, 4))


def test_pcm_on_the_grid_of_conv4_spreads_the_resized_cam() -> None:
    torch.manual_seed(0)
    coarse = SEAM(Probe(), 3, pcm_channels=(4, 8)).eval()
    fine = SEAM(Probe(), 3, pcm_channels=(4, 8), pcm_grid="conv4").eval()
    with torch.no_grad():
        coarse.backbone.first.bias.add_(10)  # conv4 is positive everywhere: no pixel is without a feature
    fine.load_state_dict(coarse.state_dict())
    image = torch.randn(2, 3, 33, 49)
    cam, refined = fine.forward_grid(image)
    assert torch.equal(cam, coarse.forward_grid(image).cam)
    assert refined is not None
    assert refined.shape == (2, 4, 5, 7)  # conv4's grid, twice as fine as the CAM's 3 x 4
    # With features that are equal everywhere, PCM gives every pixel the mean of the map that it spreads.
    with torch.no_grad():
        fine.f9.weight.zero_()
        fine.f9.weight[:, 3] = 1.0
        fine.f8_3.weight.zero_()
        fine.f8_3.weight[0] = 1.0
    spread = pcm_input_cam(torch.nn.functional.interpolate(cam, (5, 7), mode="bilinear", align_corners=True))
    flat = fine.forward_grid(image).cam_refined
    assert flat is not None
    torch.testing.assert_close(flat, spread.mean(dim=(2, 3), keepdim=True).expand_as(flat), rtol=1e-3, atol=1e-4)
