"""Autotuning that also works without a GPU to time on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import triton


def family(arch: int | str) -> str:
    """Return the family of matrix units of an architecture, which decides which tiles fit its registers.

    "wgmma": operands from shared memory, products by warp groups (compute capability 9.0, and 10.x with its own memory
    for sums); "mma": everything in registers (8.x, 12.x); "amd": 64 KiB of shared memory, 512 registers.
    """
    if isinstance(arch, str):
        return "amd"
    return "wgmma" if 90 <= arch < 120 else "mma"


def current_family() -> str:
    """Return the family of the GPU in use; under TRITON_INTERPRET=1 any."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "mma"
    return family(triton.runtime.driver.active.get_current_target().arch)


def tuned(kernel: Any, configs: Sequence[triton.Config], key: Sequence[str]) -> Any:
    """Return `kernel` with its fastest configuration for each value of `key`; under TRITON_INTERPRET=1 the first one.

    Keys leave out sizes that change from image to image: tuning costs seconds.
    """
    chosen = configs[:1] if os.environ.get("TRITON_INTERPRET") == "1" else configs
    return triton.autotune(list(chosen), key=list(key))(kernel)
