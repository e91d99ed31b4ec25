"""Autotuning that also works where there is nothing to time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import triton


def tuned(kernel: Any, configs: Sequence[triton.Config], key: Sequence[str]) -> Any:
    """Return `kernel` with its fastest configuration for each value of `key`; under TRITON_INTERPRET=1 the first one.

    Keys leave out sizes that change from image to image: tuning costs seconds.
    """
    chosen = configs[:1] if os.environ.get("TRITON_INTERPRET") == "1" else configs
    return triton.autotune(list(chosen), key=list(key))(kernel)
