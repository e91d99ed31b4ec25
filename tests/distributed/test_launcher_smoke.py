"""Two ranks through the DeepSpeed launcher itself, as a user starts them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_two_ranks_train_under_the_deepspeed_launcher(
    ranks: Any, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(
        "smoke",
        run={"world_size": 2},
        train_seam={"schedule": {"max_steps": 2, "micro_batch_size": 3}},
        deepspeed={"zero_optimization": {"stage": 2}},
    )
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", os.devnull, "--num_accelerators", "2"),
        *("--master_addr", "127.0.0.1", "--master_port", str(ranks.free_port()), "--module", "seam_dist.cli"),
        *("--config", str(config), "--only", "shard", "--only", "train_seam"),
    ]
    process = ranks.run(0, command, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert ranks.finish([process]) == [0], ranks.logs()
    folder = tmp_path / "runs" / "smoke" / "train_seam"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert json.loads((folder / "manifest.json").read_text())["world_size"] == 2
    # Nothing of DeepSpeed's own but what its launcher says before the ranks start.
    output = ranks.logs()
    assert "untested optimizer" not in output
    assert "deprecated" not in output
