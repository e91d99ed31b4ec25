"""Reads the weight files of MXNet (`.params`) without MXNet, and translates the names of ResNet38d's weights.

A file is a little-endian NDArray list: u64 0x112, u64 0, u64 count, the arrays, u64 count of names, then each name as
u64 length and bytes. An array starts with a u32 that gives its version:
  0xF993FAC8 (v1)  u32 ndim, i64 sizes
  0xF993FAC9 (v2)  i32 storage type (0: dense), then as v1
  0xF993FACA (v3)  i32 storage type, i32 ndim, i64 sizes
  anything else    it is ndim itself, followed by u32 sizes (files of MXNet before 0.11)
followed by i32 device type, i32 device number, i32 dtype flag and the values. A dense array without dimensions is
empty in v1, v2 and the oldest form: nothing follows its shape. Sparse arrays are refused.
"""

from __future__ import annotations

import math
import re
import struct
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DENSE = 0
_MAX_DIMS = 32
_MAX_NAME_BYTES = 4096
_DTYPES = {0: torch.float32, 1: torch.float64, 2: torch.float16, 3: torch.uint8, 4: torch.int32, 5: torch.int8}
_DTYPES |= {6: torch.int64, 7: torch.bool, 8: torch.int16, 12: torch.bfloat16}


class _Reader:
    """Takes bytes from the front of a file and refuses to go past its end."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
        self.file = file
        self.path = path
        self.left = path.stat().st_size

    def error(self, what: str) -> ValueError:
        return ValueError(
            f"{self.path} is not a whole MXNet .params file ({what} before byte {self.file.tell()}): "
            "copy or download it again"
        )

    def take(self, num_bytes: int, what: str) -> bytearray:
        if num_bytes > self.left:
            raise self.error(f"{what} needs {num_bytes} bytes, {self.left} are left,")
        self.left -= num_bytes
        data = bytearray(num_bytes)
        self.file.readinto(data)
        return data

    def skip(self, num_bytes: int, what: str) -> None:
        if num_bytes > self.left:
            raise self.error(f"{what} needs {num_bytes} bytes, {self.left} are left,")
        self.left -= num_bytes
        self.file.seek(num_bytes, 1)

    def number(self, code: str, what: str) -> int:
        value: int = struct.unpack("<" + code, self.take(struct.calcsize(code), what))[0]
        return value


def _read_array(reader: _Reader, values: bool) -> Tensor:
    magic = reader.number("I", "array header")
    if magic in (_V2, _V3):
        storage = reader.number("i", "storage type")
        if storage != _DENSE:
            raise ValueError(f"{reader.path} holds a sparse array (storage type {storage}): save dense weights instead")
    versioned = magic in (_V1, _V2, _V3)
    num_dims, code = (reader.number("i", "number of dimensions"), "q") if versioned else (magic, "I")
    if not 0 <= num_dims <= _MAX_DIMS:
        raise reader.error(f"an array claims {num_dims} dimensions")
    shape = [reader.number(code, "array size") for _ in range(num_dims)]
    if any(size < 0 for size in shape):
        raise reader.error(f"an array claims shape {shape}")
    if not shape and magic != _V3:
        return torch.empty(0)
    reader.take(8, "device")
    flag = reader.number("i", "dtype")
    if flag not in _DTYPES:
        raise reader.error(f"an array has dtype flag {flag}, known are {sorted(_DTYPES)},")
    dtype = _DTYPES[flag]
    num_values = math.prod(shape)
    if not values:
        reader.skip(num_values * dtype.itemsize, f"array of shape {shape}")
        return torch.empty(shape, dtype=dtype, device="meta")
    data = reader.take(num_values * dtype.itemsize, f"array of shape {shape}")
    return torch.frombuffer(data, dtype=dtype).reshape(shape) if num_values else torch.empty(shape, dtype=dtype)


def read_mxnet_params(path: Path, *, values: bool = True) -> dict[str, Tensor]:
    """Return the named arrays of a `.params` file, names as they stand in it (`arg:...`, `aux:...`).

    Without `values` they are on the meta device: their shapes alone are read.

    Raises ValueError for a file that is truncated, is not an NDArray list, has no names or holds sparse arrays.
    """
    with open(path, "rb") as file:
        reader = _Reader(file, path)
        magic = reader.number("Q", "list header")
        if magic != _LIST_MAGIC:
            raise ValueError(
                f"{path} starts with {magic:#x}, expected {_LIST_MAGIC:#x}: it is not an MXNet .params file; "
                "give it its true suffix (.pth or .safetensors)"
            )
        reader.take(8, "list header")
        arrays = [_read_array(reader, values) for _ in range(reader.number("Q", "number of arrays"))]
        names = []
        for _ in range(reader.number("Q", "number of names")):
            length = reader.number("Q", "name length")
            if length > _MAX_NAME_BYTES:
                raise reader.error(f"a name claims {length} bytes")
            names.append(reader.take(length, "name").decode("utf-8", errors="replace"))
    if len(names) != len(arrays):
        raise ValueError(f"{path} has {len(arrays)} arrays and {len(names)} names, expected a name for each array")
    return dict(zip(names, arrays, strict=True))


_PARAMETERS = {"weight": "weight", "gamma": "weight", "beta": "bias"}
_PARAMETERS |= {"moving_mean": "running_mean", "moving_var": "running_var"}
_BLOCK_NAME = re.compile(r"(res|bn)(\d)[a-z](\d*)_(branch\w+?)_(weight|gamma|beta|moving_mean|moving_var)")


def resnet38d_name(name: str) -> str:
    """Return ResNet38d's parameter name for the name of an array in the published ImageNet `.params` file.

    `arg:res2b1_branch2a_weight` -> `b2_1.conv_branch2a.weight`, `aux:bn2a_branch2a_moving_var` ->
    `b2.bn_branch2a.running_var`; a name that is not part of the network (the ImageNet classifier) is returned without
    its `arg:` or `aux:`.
    """
    bare = name.removeprefix("arg:").removeprefix("aux:")
    layer, _, last = bare.partition("_")
    if layer in ("conv1a", "bn7") and last in _PARAMETERS:
        return f"{layer}.{_PARAMETERS[last]}"
    if match := _BLOCK_NAME.fullmatch(bare):
        layer, stage, index, branch, last = match.groups()
        block = f"b{stage}_{index}" if index else f"b{stage}"
        return f"{block}.{'conv' if layer == 'res' else 'bn'}_{branch}.{_PARAMETERS[last]}"
    return bare
