"""Tests of the Triton kernels themselves: on the GPU where there is one, else by Triton's interpreter.

Triton decides at its first import whether it interprets, so the tests of this folder are collected only where a GPU is
present or TRITON_INTERPRET=1 was set from the start; tests/kernels/test_triton.py starts such a process.
"""

from __future__ import annotations

import os

import pytest
import torch

collect_ignore_glob = [] if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """Fill what torch.empty and its kin return with NaN, so that an element nobody writes is seen."""

    def poisoned(function):
        def wrapper(*args, **kwargs):
            result = function(*args, **kwargs)
            return result.fill_(float("nan")) if result.is_floating_point() else result

        return wrapper

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
