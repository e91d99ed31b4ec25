"""A test that kills its process ends the run of launch/test.sh and is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_dead_worker_ends_the_run_and_its_test_is_named(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_0.py").write_text("import os\n\ndef test_deadly():\n    os.abort()\n")
    for letter in "abc":
        many = "@pytest.mark.parametrize('i', range(40))\ndef test_slow(i):\n    time.sleep(0.5)\n"
        (tmp_path / f"test_{letter}.py").write_text(f"import time\n\nimport pytest\n\n\n{many}")
    line = next(
        line for line in (ROOT / "launch/test.sh").read_text().splitlines() if "--dist" in line and "pytest" in line
    )
    mode = line.split("--dist ")[1].split()[0]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", mode, "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode != 0
    assert "a worker process died in test_0.py::test_deadly" in result.stdout
    assert "120 passed" not in result.stdout, "the rest ran on"
