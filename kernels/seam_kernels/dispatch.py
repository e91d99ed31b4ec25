"""Choice of an operation's implementation, and the checks of tensor arguments that all operations share."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "torch", "reference"]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def choose_impl(op: str, impl: str, *, has_triton: bool) -> str:
    """Return "triton", "torch" or "reference" for a wish; "auto" takes the fastest one that `op` has here.

    Raises ValueError for an unknown name, and for "triton" where `op` has no Triton kernel.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl={impl!r} is unknown to {op}: use one of {', '.join(get_args(Impl))}")
    if impl == "triton" and not has_triton:
        raise ValueError(f'impl="triton": this version of {op} has no Triton kernel: use impl="auto" or impl="torch"')
    if impl == "auto":
        return "triton" if has_triton else "torch"
    return impl


def check_tensor(name: str, tensor: Tensor, axes: str) -> None:
    """Refuse a tensor that is not floating or has not one dimension for each letter of `axes`."""
    if tensor.dim() != len(axes):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, expected {len(axes)} dimensions ({', '.join(axes)}): reshape it"
        )
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{name}.dtype={tensor.dtype} is not a floating type: convert {name} with .float()")


def check_same(name: str, tensor: Tensor, other_name: str, other: Tensor, axes: dict[int, str]) -> None:
    """Refuse two tensors that differ in dtype, device or in the size of the dimensions `axes` {index: letter}."""
    if tensor.dtype != other.dtype:
        raise ValueError(
            f"{name}.dtype={tensor.dtype} differs from {other_name}.dtype={other.dtype}: convert one of them with .to()"
        )
    if tensor.device != other.device:
        raise ValueError(
            f"{name} is on {tensor.device} and {other_name} on {other.device}: move them to one device with .to()"
        )
    for index, letter in axes.items():
        if tensor.shape[index] != other.shape[index]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and {other_name} {tuple(other.shape)}, expected the same "
                f"{letter} (dimension {index}): give both the same {letter}"
            )
