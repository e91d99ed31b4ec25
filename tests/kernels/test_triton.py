"""The Triton kernels where no GPU is at hand: run by the interpreter, and compiled to machine code ahead of time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
INTERPRETED = Path(__file__).parent / "interpreted"


def run(command, **environment):
    """Run a process of its own, as Triton decides at import whether it interprets; return its output."""
    paths = os.pathsep.join([str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def interpret(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=0", *arguments]
    return run(command, TRITON_INTERPRET="1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present: the folder runs on it directly")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("op", ["pcm", "edges", "walk", "crf"])
def test_interpreted_kernels_match_their_references(op):
    report = interpret("-m", "not slow", str(INTERPRETED / f"test_{op}_kernels.py"))
    assert " passed" in report
    # The only thing that the interpreter cannot do: products of bfloat16.
    assert (" 1 skipped" in report) == (op == "pcm")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present: the folder runs on it directly")
@pytest.mark.timeout(3600)
def test_interpreted_kernels_match_their_references_on_more_shapes():
    assert " passed" in interpret("-m", "slow", str(INTERPRETED))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_kernel_compiles_for(target):
    """The script fails where a product has no matrix instruction or no configuration fits in shared memory."""
    report = run([sys.executable, "kernels/compile_all.py", "--targets", target], TRITON_INTERPRET="0")
    for kernel in ("pcm_forward", "pcm_backward", "edge_backward", "walk_steps", "walk_pairs", "crf_gaussian_sum"):
        assert kernel in report
    matrix = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "v_mfma"}[target]
    assert any(matrix in line for line in report.splitlines() if "pcm_forward" in line and "bf16" in line)
