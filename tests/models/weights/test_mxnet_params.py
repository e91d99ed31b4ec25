from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seam_dist.models import SEAM
from seam_dist.models.backbones.base import Backbone
from seam_dist.models.backbones.resnet38d import ResNet38d
from seam_dist.models.weights.load import load_weights
from seam_dist.models.weights.mxnet_params import read_mxnet_params, resnet38d_name

FLAGS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.uint8: 3, torch.int32: 4, torch.int8: 5}
FLAGS |= {torch.int64: 6, torch.bool: 7, torch.int16: 8, torch.bfloat16: 12}


def _array_bytes(array: Tensor, version: int, storage: int = 0) -> bytes:
    """Write one array in a version of the format: 0 is the oldest, without a magic number of its own."""
    shape = list(array.shape)
    if version == 0:
        out = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    else:
        out = struct.pack("<I", 0xF993FAC7 + version)
        out += struct.pack("<i", storage) if version > 1 else b""
        out += struct.pack(f"<i{len(shape)}q", len(shape), *shape)
    if not shape and version < 3:
        return out
    out += struct.pack("<iii", 1, 0, FLAGS[array.dtype])
    return out + bytes(array.contiguous().flatten().view(torch.uint8).tolist())


def _list_bytes(arrays: dict[str, Tensor], version: int) -> bytes:
    out = struct.pack("<QQQ", 0x112, 0, len(arrays))
    out += b"".join(_array_bytes(array, version) for array in arrays.values())
    out += struct.pack("<Q", len(arrays))
    for name in arrays:
        out += struct.pack("<Q", len(name.encode())) + name.encode()
    return out


def _examples() -> dict[str, Tensor]:
    return {
        "arg:conv1a_weight": torch.randn(4, 3, 3, 3),
        **{f"arg:{str(dtype).split('.')[1]}": torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype) for dtype in FLAGS},
        "aux:Zahl äöü": torch.arange(5.0),
    }


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_reads_every_version_and_dtype(tmp_path: Path, version: int) -> None:
    expected = _examples()
    path = tmp_path / "w.params"
    path.write_bytes(_list_bytes(expected, version))
    arrays = read_mxnet_params(path)
    shapes = read_mxnet_params(path, values=False)
    assert {name: (a.shape, a.dtype) for name, a in shapes.items()} == {
        name: (a.shape, a.dtype) for name, a in arrays.items()
    }
    assert {array.device.type for array in shapes.values()} == {"meta"}
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        assert torch.equal(arrays[name], array), name


@pytest.mark.parametrize("version", [0, 1, 2])
def test_array_without_dimensions_is_empty_before_version_3(tmp_path: Path, version: int) -> None:
    path = tmp_path / "w.params"
    path.write_bytes(_list_bytes({"none": torch.tensor(1.0), "after": torch.ones(2)}, version))
    arrays = read_mxnet_params(path)
    assert arrays["none"].numel() == 0
    assert torch.equal(arrays["after"], torch.ones(2))


def test_version_3_knows_scalars_and_empty_arrays(tmp_path: Path) -> None:
    path = tmp_path / "w.params"
    path.write_bytes(_list_bytes({"scalar": torch.tensor(2.5), "empty": torch.ones(0, 3), "after": torch.ones(2)}, 3))
    arrays = read_mxnet_params(path)
    assert arrays["scalar"] == 2.5
    assert arrays["empty"].shape == (0, 3)
    assert torch.equal(arrays["after"], torch.ones(2))


@pytest.mark.parametrize("version", [0, 2])
def test_file_cut_anywhere_is_refused_by_name(tmp_path: Path, version: int) -> None:
    whole = _list_bytes({"arg:a": torch.ones(2, 3), "arg:b": torch.ones(1)}, version)
    path = tmp_path / "cut.params"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.params is not a whole MXNet \.params file"):
            read_mxnet_params(path)


def test_claimed_size_beyond_the_file_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "w.params"
    path.write_bytes(struct.pack("<QQQIiiqqiii", 0x112, 0, 1, 0xF993FAC9, 0, 2, 1 << 40, 1 << 20, 1, 0, 0))
    with pytest.raises(ValueError, match="are left"):
        read_mxnet_params(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04\x00\x00\x00\x00zip!", "expected 0x112: it is not an MXNet"),
        (struct.pack("<QQQ", 0x112, 0, 1) + _array_bytes(torch.ones(2), 2, storage=1), "holds a sparse array"),
        (struct.pack("<QQQIiiqiii", 0x112, 0, 1, 0xF993FAC9, 0, 1, 2, 1, 0, 99), "dtype flag 99"),
        (struct.pack("<QQQIii", 0x112, 0, 1, 0xF993FAC9, 0, -1), "claims -1 dimensions"),
        (struct.pack("<QQQIiiq", 0x112, 0, 1, 0xF993FAC9, 0, 1, -2), r"claims shape \[-2\]"),
        (
            struct.pack("<QQQ", 0x112, 0, 1) + _array_bytes(torch.ones(2), 2) + struct.pack("<Q", 0),
            "1 arrays and 0 names",
        ),
        (struct.pack("<QQQQQ", 0x112, 0, 0, 1, 1 << 60), "a name claims"),
    ],
    ids=["magic", "sparse", "dtype", "dims", "size", "names", "name length"],
)
def test_foreign_or_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "w.params"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_mxnet_params(path)


@pytest.mark.parametrize(
    ("name_in_file", "name"),
    [
        ("arg:conv1a_weight", "conv1a.weight"),
        ("arg:res2a_branch1_weight", "b2.conv_branch1.weight"),
        ("arg:res4b5_branch2b1_weight", "b4_5.conv_branch2b1.weight"),
        ("arg:bn6a_branch2b2_gamma", "b6.bn_branch2b2.weight"),
        ("arg:bn5b2_branch2a_beta", "b5_2.bn_branch2a.bias"),
        ("aux:bn7a_branch2b1_moving_mean", "b7.bn_branch2b1.running_mean"),
        ("aux:bn3b1_branch2a_moving_var", "b3_1.bn_branch2a.running_var"),
        ("arg:bn7_gamma", "bn7.weight"),
        ("aux:bn7_moving_var", "bn7.running_var"),
        ("arg:linear1000_bias", "linear1000_bias"),
    ],
)
def test_names_of_the_imagenet_file_are_translated(name_in_file: str, name: str) -> None:
    assert resnet38d_name(name_in_file) == name


def _mxnet_name(name: str) -> str:
    """Return the name that the ImageNet file has for one of our parameters: the inverse, written apart."""
    templates = {"weight": "arg:{}_gamma", "bias": "arg:{}_beta"}
    templates |= {"running_mean": "aux:{}_moving_mean", "running_var": "aux:{}_moving_var"}
    *place, last = name.split(".")
    if place[0] in ("conv1a", "bn7"):
        return (templates[last] if place[0] == "bn7" else "arg:{}_weight").format(place[0])
    block, layer = place
    stage, _, index = block[1:].partition("_")
    layer_type, _, branch = layer.partition("_")
    letter = f"b{index}" if index else "a"
    if layer_type == "conv":
        return f"arg:res{stage}{letter}_{branch}_weight"
    return templates[last].format(f"bn{stage}{letter}_{branch}")


def test_imagenet_file_fills_the_whole_backbone(tmp_path: Path, make_resnet38d: Callable[..., Backbone]) -> None:
    trained = make_resnet38d()
    arrays = {_mxnet_name(n): t for n, t in trained.state_dict().items() if not n.endswith("num_batches_tracked")}
    arrays |= {"arg:linear1000_weight": torch.ones(10, 512), "arg:linear1000_bias": torch.ones(10)}
    path = tmp_path / "ilsvrc.params"
    with open(path, "wb") as file:
        file.write(struct.pack("<QQQ", 0x112, 0, len(arrays)))
        for array in arrays.values():
            shape = struct.pack(f"<I{array.dim()}I", array.dim(), *array.shape)
            file.write(shape + struct.pack("<iii", 1, 0, 0) + array.numpy().tobytes())
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            file.write(struct.pack("<Q", len(name)) + name.encode())
    model = SEAM(ResNet38d(width=1 / 8), 3)
    report = load_weights(model, path)
    assert set(report.new) == {"fc8.weight", "f8_3.weight", "f8_4.weight", "f9.weight"}
    assert set(report.unexpected) == {"linear1000_weight", "linear1000_bias"}
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(model.backbone.state_dict()[name], tensor, rtol=0, atol=0)
    assert sum(math.prod(t.shape) for t in model.backbone.parameters()) > 1_000_000
