"""What is installed, and that the scripts are valid."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).parent.parent


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=;\[ ]", line.strip())[0].lower().replace("_", "-") for line in requirements}


def requirements(*extras: str) -> set[str]:
    """Names of what setup.py requires, and of what these extras add."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    arguments = setup.call_args.kwargs
    return names([*arguments["install_requires"], *(line for e in extras for line in arguments["extras_require"][e])])


def test_every_requirement_is_pinned() -> None:
    lines = [line for line in (ROOT / "launch/constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    unpinned = requirements("dev") - names(lines)
    assert not unpinned, f"launch/constraints.txt lacks {sorted(unpinned)}"
    assert all("==" in line for line in lines)


def test_imports_of_the_packages_are_required() -> None:
    """A module that a file imports at its top is installed without any extra, or is Python's own."""
    packages = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}
    core = requirements()
    for path in [*(ROOT / "seam_dist").rglob("*.py"), *(ROOT / "kernels/seam_kernels").rglob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for top in {module.split(".")[0] for module in modules} - sys.stdlib_module_names:
                if top in ("seam_dist", "seam_kernels"):
                    continue
                package = packages.get(top, top).lower().replace("_", "-")
                assert package in core, f"{path.relative_to(ROOT)} imports {top}, which setup.py does not require"


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.s*")), ids=lambda path: path.name)
def test_scripts_are_valid_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
