"""What several tests of stages use: the slow version of the stages, a world that is left again, a set that changes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import changing_set
import pytest

from seam_dist.cluster.distributed import init_world, shutdown
from seam_dist.config.schema import Config


@pytest.fixture(scope="session")
def dense_reading() -> ModuleType:
    """Return dense_reading.py as a module; tests are no package that it could be imported from."""
    spec = importlib.util.spec_from_file_location("dense_reading", Path(__file__).with_name("dense_reading.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def own_world() -> Iterator[None]:
    """Leave the world that the stages of a test file joined, so that the next file joins its own."""
    yield
    shutdown(init_world(Config()))


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert without worker processes, which would cost more than tiny images."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A plain folder of tiny images, for tests that change it; others have a `root` of their own."""
    return changing_set.make_set(tmp_path / "set")


@pytest.fixture
def cfg(tmp_path: Path, root: Path) -> Config:
    """Settings of a run that converts `root`."""
    return changing_set.config(tmp_path, root)
