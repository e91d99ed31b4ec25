"""The direction of imports, read from the source: a layer imports the layers before it, never back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each folder may import those of the rows above its own, and of its own row where the row says so.
LAYERS: list[set[str]] = [
    {"seam_kernels"},
    {"config"},
    {"cluster", "artifacts"},
    {"data", "models", "losses"},
    {"training", "inference", "evaluation"},
    {"report"},
    {"stages"},
    {"preflight"},
    {"commands"},
    {"cli", "api"},
]
MAY_MEET = {"cluster", "artifacts"}  # of one row; neighbors of every other row do not know each other
FREE = "bench"  # imports anything, and nothing imports it
COMMUNICATION = ("torch.distributed", "deepspeed.comm")


def _level(part: str) -> int:
    return next(level for level, parts in enumerate(LAYERS) if part in parts)


def _imports(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: write the full name"
            modules.add(node.module or "")
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    return modules


def _part(module: str) -> str | None:
    """Name the part of the project that a dotted module belongs to; None for foreign modules."""
    if module.split(".")[0] == "seam_kernels":
        return "seam_kernels"
    pieces = module.split(".")
    if pieces[0] != "seam_dist" or len(pieces) < 2 or pieces[1] == "__version__":
        return None
    return pieces[1]


def _files() -> list[Path]:
    package = [p for p in (ROOT / "seam_dist").rglob("*.py") if p != ROOT / "seam_dist" / "__init__.py"]
    return sorted([*package, *(ROOT / "kernels" / "seam_kernels").rglob("*.py")])


def _own_part(path: Path) -> str:
    if ROOT / "kernels" in path.parents:
        return "seam_kernels"
    return path.relative_to(ROOT / "seam_dist").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_file_imports_only_layers_before_its_own(path: Path) -> None:
    own = _own_part(path)
    for module in _imports(path):
        part = _part(module)
        if part is None or part == own or own == FREE:
            continue
        assert part != FREE, f"{path.name} ({own}) imports {module}: nothing imports {FREE}"
        assert _level(part) <= _level(own), f"{path.name} ({own}) imports {module}, which comes after it"
        if _level(part) == _level(own):
            assert {part, own} <= MAY_MEET, f"{path.name}: {own} and {part} do not know each other"


def test_every_folder_has_its_layer() -> None:
    folders = {p.name for p in (ROOT / "seam_dist").iterdir() if (p / "__init__.py").is_file()}
    assert folders | {"cli", "api", "seam_kernels"} == set().union(*LAYERS, {FREE})


@pytest.mark.parametrize("path", sorted((ROOT / "seam_dist" / "stages").glob("*.py")), ids=lambda p: p.name)
def test_stages_do_not_import_stages(path: Path) -> None:
    others = {f"seam_dist.stages.{p.stem}" for p in path.parent.glob("*.py") if p != path and p.stem != "__init__"}
    assert not _imports(path) & others


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_distributed_talks_to_other_ranks(path: Path) -> None:
    if path == ROOT / "seam_dist" / "cluster" / "distributed.py":
        return
    used = {module for module in _imports(path) if module.startswith(COMMUNICATION)}
    assert not used, f"{path.name} imports {used}: go through seam_dist.cluster.distributed"


def test_kernels_need_only_torch_and_triton() -> None:
    allowed = {"torch", "triton", "seam_kernels", "__future__", "math", "os", "typing", "collections", "functools"}
    allowed |= {"pydensecrf", "numpy"}  # the optional lattice of dense_crf
    allowed |= {"dataclasses", "contextlib", "importlib", "enum", "itertools", "warnings"}
    for path in (ROOT / "kernels" / "seam_kernels").rglob("*.py"):
        foreign = {module.split(".")[0] for module in _imports(path)} - allowed
        assert not foreign, f"{path.name} imports {foreign}"
