"""The built wheel alone, outside the checkout, is enough to run the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "seam_dist", "kernels", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy: the build writes beside its sources, and what earlier builds left there would get into the wheel.
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
            )
        else:
            shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    install = ["install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    return folder


def seam_dist(installed: Path, cwd: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "seam_dist.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_every_source_file_and_nothing_that_is_not_one(wheel: Path) -> None:
    """Data files come by patterns in setup.py: one that none of them names is missing only where it is installed."""
    with zipfile.ZipFile(wheel) as archive:
        content = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = set()
    for source, target in (("seam_dist", "seam_dist"), ("kernels/seam_kernels", "seam_kernels")):
        files = [path for path in (ROOT / source).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        expected |= {f"{target}/{path.relative_to(ROOT / source)}" for path in files if path.suffix != ".md"}
    expected |= {f"seam_dist/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert content == expected


def test_installed_command_finds_configs_and_presets_by_name(installed: Path, tmp_path: Path) -> None:
    text = seam_dist(installed, tmp_path, "--config", "demo", "--preset", "paper", "--print-config")
    assert "name: demo-seam" in text
    assert f"{installed}/seam_dist/configs/demo.yaml:" in text
    assert f"{installed}/seam_dist/configs/presets/paper.yaml:" in text


def test_a_file_of_the_user_finds_the_installed_presets(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "pets.yaml").write_text("preset: small\nrun: {name: pets}\n")
    text = seam_dist(installed, tmp_path, "--config", "pets.yaml", "--print-config")
    assert "name: pets" in text
    assert f"{installed}/seam_dist/configs/presets/small.yaml:" in text


def test_installed_package_runs_a_stage(installed: Path, tmp_path: Path) -> None:
    small = ["source.num_images=[2,1]", "source.image_size=[64,48]", "run.device=cpu", "data.shards=data"]
    seam_dist(installed, tmp_path, "--config", "demo", *small, "--only", "shard")
    assert (tmp_path / "data" / "manifest.json").is_file()
