"""What people's files, settings and machines look like: every input works, warns or is refused, with the right words.

The rows are in the modules beside this one, a reader each: `CASES` lists of `Case`.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"inputs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = [case for path in sorted(HERE.glob("cases_*.py")) for case in _load(path).CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_input(case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if case.refused is not None:
        with pytest.raises(ValueError) as refusal:
            case.run(tmp_path)
        assert re.search(case.refused, str(refusal.value)), str(refusal.value)
        return
    value, warnings = case.run(tmp_path)
    assert value == case.works
    assert len(warnings) == (case.warns is not None), warnings
    assert case.warns is None or re.search(case.warns, warnings[0]), warnings


def test_every_row_has_its_own_name() -> None:
    doubled = [name for name, count in Counter(case.name for case in CASES).items() if count > 1]
    assert not doubled
