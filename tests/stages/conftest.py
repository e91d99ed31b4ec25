"""What several tests of stages use: the independent, slow version of the stages, and a world that is left again."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

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
