"""What is installed, and what the scripts and the README promise."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=;\[ ]", line.strip())[0].lower().replace("_", "-") for line in requirements}


def required() -> set[str]:
    tree = ast.parse((ROOT / "setup.py").read_text())
    constants = {
        node.targets[0].id: [item.value for item in node.value.elts if isinstance(item, ast.Constant)]  # type: ignore[attr-defined]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    }
    call = next(node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    core = next(keyword.value for keyword in call.keywords if keyword.arg == "install_requires")
    assert isinstance(core, ast.List)
    found = [str(item.value) for item in core.elts if isinstance(item, ast.Constant)]
    return names(found + [str(v) for name in ("LITE", "CRF", "DEV") for v in constants[name]])


def test_every_requirement_is_pinned() -> None:
    lines = [line for line in (ROOT / "launch/constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    unpinned = required() - names(lines)
    assert not unpinned, f"launch/constraints.txt lacks {sorted(unpinned)}"
    assert all("==" in line for line in lines)


def test_imports_of_the_packages_are_required() -> None:
    """A module that the core imports at its top is installed with the core, or is Python's own."""
    modules = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}
    import sys

    for path in [*(ROOT / "seam_dist").rglob("*.py"), *(ROOT / "kernels/seam_kernels").rglob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            found: list[str] = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found = [node.module or ""]
            for module in found:
                top = module.split(".")[0]
                if top in sys.stdlib_module_names or top in ("seam_dist", "seam_kernels"):
                    continue
                if path.name == "timm_backbone.py" and top in ("timm", "torchvision"):
                    continue
                package = modules.get(top, top).lower().replace("_", "-")
                assert package in required(), f"{path.relative_to(ROOT)} imports {top}, which setup.py does not require"


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.s*")), ids=lambda path: path.name)
def test_scripts_are_valid_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_files_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "kernels/README.md").read_text()
    for name in set(re.findall(r"\b((?:launch|configs|kernels|tests)/[\w./-]+\.\w+)", text)):
        assert (ROOT / name).exists(), f"the README names {name}"
