"""Choice of an operation's implementation, and the checks of tensor arguments that all operations share."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "torch", "reference"]
HAS_TRITON = importlib.util.find_spec("triton") is not None
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def triton_refusal(tensor: Tensor) -> str | None:
    """Return why no Triton kernel can take `tensor`, or None: it needs a GPU or TRITON_INTERPRET=1, and 32 bits."""
    if tensor.dtype == torch.float64:
        return 'Triton kernels take float16, bfloat16 and float32, not float64: convert the inputs or use impl="torch"'
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f'Triton kernels run on a GPU and the input is on {tensor.device}: move it there or use impl="torch"'
    if not HAS_TRITON:
        return 'the package triton is not installed: install it or use impl="torch"'
    return None


def choose_impl(op: str, impl: str, tensor: Tensor, *, has_triton: bool = True) -> str:
    """Return "triton", "torch" or "reference" for a request; "auto" takes the fastest one for `tensor` on its device.

    Raises ValueError for an unknown name, and for "triton" where `op` has no kernel or `tensor` cannot go to one.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl={impl!r} is unknown to {op}: use one of {', '.join(get_args(Impl))}")
    if impl == "auto":
        # The interpreter is for tests: on a CPU it runs only when it is asked for by name.
        return "triton" if has_triton and tensor.is_cuda and triton_refusal(tensor) is None else "torch"
    if impl == "triton":
        if not has_triton:
            raise ValueError(
                f'impl="triton": this version of {op} has no Triton kernel: use impl="auto" or impl="torch"'
            )
        refusal = triton_refusal(tensor)
        if refusal:
            raise ValueError(f'impl="triton" of {op}: {refusal}')
    return impl


def working(tensor: Tensor) -> Tensor:
    """Return the tensor in the dtype of accumulation: float32, or float64 when it is that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which torch.autocast leaves the operations on the device of `tensor` as they are written.

    Sums that are float32 by design would otherwise be taken in bfloat16, and products with `out=` meet two dtypes.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def check_tensor(name: str, tensor: Tensor, axes: str) -> None:
    """Refuse a tensor that is not floating or has not one dimension for each letter of `axes`."""
    if tensor.dim() != len(axes):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, expected {len(axes)} dimensions ({', '.join(axes)}): reshape it"
        )
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{name}.dtype={tensor.dtype} is not a floating type: convert {name} with .float()")


def check_same(name: str, tensor: Tensor, second_name: str, second: Tensor, axes: dict[int, str]) -> None:
    """Refuse two tensors that differ in dtype, device or in the size of the dimensions `axes` {index: letter}."""
    if tensor.dtype != second.dtype:
        raise ValueError(
            f"{name}.dtype={tensor.dtype} differs from {second_name}.dtype={second.dtype}: convert one with .to()"
        )
    if tensor.device != second.device:
        raise ValueError(
            f"{name} is on {tensor.device} and {second_name} on {second.device}: move them to one device with .to()"
        )
    for index, letter in axes.items():
        if tensor.shape[index] != second.shape[index]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and {second_name} {tuple(second.shape)}, expected the same "
                f"{letter} (dimension {index}): give both the same {letter}"
            )
