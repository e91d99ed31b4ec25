"""launch/demo.sh from its first line to the report, at a fraction of its size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_demo_ends_with_its_tables_and_a_report(tmp_path: Path) -> None:
    small = (
        *("source.num_images=[16,8]", "data.samples_per_shard=4", "source.image_size=[128,96]", "run.threads=1"),
        *(f"{stage}.schedule.max_steps=2" for stage in ("train_seam", "train_affinity", "train_seg")),
        *(f"run.dir={tmp_path}/runs", f"data.shards={tmp_path}/shards", f"report.compare=[{tmp_path}/runs/demo-cam]"),
    )
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", str(ROOT / "launch/demo.sh"), *small], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    for row in ("CAM only, CAM", "SEAM, refined CAM", "random walk + CRF", "final network + CRF", "Done in"):
        assert row in result.stdout, row
    assert (tmp_path / "runs/demo-seam/report/report.html").is_file()
