"""What the tests of checkpoints do in processes of their own, which die or are refused while they save."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from seam_dist.training import checkpoint
from seam_dist.training.checkpoint import CheckpointError, CheckpointStore, TrainState

_FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}


def save_with_little_room(store: CheckpointStore, state: TrainState) -> None:
    """Save where the kernel refuses every byte beyond 300 in a file, as on a full disk; exit 0 if the error says so."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    try:
        store.save(state)
    except CheckpointError as error:
        sys.exit(0 if "could not be written" in str(error) and "is intact" in str(error) else 1)
    sys.exit(2)


def save_and_die(store: CheckpointStore, state: TrainState, operation: int) -> None:
    """Save, and be killed before the given file operation."""
    left = operation

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _FILE_EVENTS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    store.save(state)
    os._exit(0)


def save_half_and_die(store: CheckpointStore, state: TrainState) -> None:
    """Be killed when half of the weights are written."""

    def half(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = half  # type: ignore[assignment]
    store.save(state)
