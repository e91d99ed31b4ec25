"""The command with --ranks: the DeepSpeed launcher for real, and how it reports signals and lost ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

CONFIG = """
run: {{name: tiny, dir: {runs}, threads: 1, timeout_s: 120}}
source: {{kind: synthetic, num_images: [16, 4], num_classes: 2, image_size: [64, 48]}}
data: {{streams: 2, samples_per_shard: 8}}
augment: {{resize_long: [48, 64], crop_size: 48}}
model: {{backbone: resnet38d, width: 0.0625}}
loss: {{second_view_scale: 0.5}}
train_seam: {{schedule: {{global_batch_size: 4, max_steps: {steps}, log_every: 1, checkpoint_every: 5}}}}
infer_cam: {{scales: [1.0], flip: false}}
"""


def write_config(folder: Path, steps: int) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.format(runs=folder / "runs", steps=steps))
    return path


def start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "seam_dist.cli", "--ranks", "2", "--config", str(config)]
    return subprocess.Popen(
        [*command, "--only", "shard", "--only", "train_seam"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(config: Path, step: int, process: subprocess.Popen[str]) -> None:
    metrics = config.parent / "runs/tiny/train_seam/metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.is_file() and metrics.read_text().count("\n") >= step):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "training did not start"


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    ranks = []
    for child in psutil.Process(process.pid).children(recursive=True):
        if "RANK" in child.environ() and "seam_dist.cli" in " ".join(child.cmdline()):
            ranks.append(child)
    return ranks


def steps_of(config: Path) -> list[int]:
    lines = (config.parent / "runs/tiny/train_seam/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_terminated_training_saves_says_so_and_resumes(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=60)
    process = start(config)
    wait_for_step(config, 3, process)
    ranks = ranks_of(process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    checkpoints = tmp_path / "runs/tiny/train_seam/checkpoints"
    saved = int((checkpoints / "latest").read_text().strip().removeprefix("step-"))
    assert saved >= 3
    assert output.count(f"train_seam: stopped at step {saved} by SIGTERM, checkpoint saved") == 1
    assert output.count("seam-dist: stopped by SIGTERM") == 1
    again = start(config)
    output = again.communicate(timeout=400)[0]
    assert again.returncode == 0, output
    assert f"resuming at step {saved}" in output
    assert steps_of(config) == list(range(1, 61))


def test_lost_rank_ends_the_job_with_an_error(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=2000)
    process = start(config)
    wait_for_step(config, 6, process)
    os.kill(max(rank.pid for rank in ranks_of(process)), signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode not in (0, None), output
    assert (tmp_path / "runs/tiny/train_seam/checkpoints/latest").read_text().startswith("step-")
