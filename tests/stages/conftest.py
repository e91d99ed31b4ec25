"""The independent, slow version of the stages, for the tests beside it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def dense_reading() -> ModuleType:
    """Return dense_reading.py as a module; tests are no package that it could be imported from."""
    spec = importlib.util.spec_from_file_location("dense_reading", Path(__file__).with_name("dense_reading.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
