"""What results were made from and with: checksums of inputs, versions, the machine and the memory that it took."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as lower-case hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on: Python, the libraries and this package."""
    installed = {"python": platform.python_version()}
    for name in ("seam-dist", "torch", "triton", "deepspeed", "webdataset", "numpy"):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def machine() -> dict[str, Any]:
    """Return number of ranks, device and the most memory held on host and device since `reset_peak_memory`, GiB."""
    on_gpu = torch.cuda.is_available()
    return {
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "host_peak_gib": _host_peak_gib(),
        "device_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if on_gpu else None,
    }


def reset_peak_memory() -> None:
    """Measure the peak memory of host and device from now on, as far as the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _host_peak_gib() -> float | None:
    """Return the most memory that this process has held since the reset, GiB; None where the system does not say."""
    with contextlib.suppress(OSError):
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if peak:
            return round(int(peak[1]) / 2**20, 3)
    return None
