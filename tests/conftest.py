"""Shared by all tests: one thread a process, and no surprises from the environment of the caller."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _single_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: Any) -> None:
    """End the run when a test takes its worker process with it: what else it damaged is unknown."""
    sched.config.hook.pytest_runtest_logreport(report=report)
    sched.config.pluginmanager.getplugin("dsession").nodemanager.EXIT_TIMEOUT = 1  # else each worker gets 10 s
    pytest.exit(f"a worker process died in {crashitem}", returncode=1)
