"""The whole pipeline on two ranks, one of them killed in a training and in an inference stage: the end is the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.config.schema import STAGES

pytestmark = pytest.mark.slow

CONFIG = """
run: {{name: {name}, dir: {runs}, threads: 1, timeout_s: 120}}
source: {{kind: synthetic, num_images: [24, 8], num_classes: 2, image_size: [64, 48]}}
data: {{streams: 4, samples_per_shard: 2, shards: {runs}/shards}}
augment: {{resize_long: [48, 64], crop_size: 48}}
model: {{backbone: resnet38d, width: 0.0625, freeze_batchnorm: true}}
loss: {{second_view_scale: 0.5}}
train_seam: {{schedule: {{global_batch_size: 4, max_steps: 6, log_every: 1}}}}
infer_cam: {{scales: [1.0], flip: false}}
train_affinity:
  schedule: {{global_batch_size: 4, max_steps: 24, log_every: 1, checkpoint_every: 2}}
  crop_size: 48
  radius: 3
random_walk: {{num_steps: 8}}
train_seg:
  schedule: {{global_batch_size: 4, max_steps: 6, log_every: 1}}
  crop_size: 48
  width: 16
  freeze_batchnorm: true
infer_seg: {{scales: [1.0], flip: false}}
"""
OUTPUTS = (
    *("infer_cam/cams", "infer_cam/crf", "infer_cam/affinity", "train_affinity/final", "random_walk/labels"),
    *("random_walk/labels_crf", "train_seg/final", "infer_seg/labels", "infer_seg/labels_crf"),
)


def start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "seam_dist.cli", "--ranks", "2", "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_a_rank(process: subprocess.Popen[str], rank: int, is_time: Callable[[], bool]) -> str:
    """Kill one rank with SIGKILL when it is time; return what the job printed until it ended."""
    deadline = time.monotonic() + 600
    while not is_time():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the stage was never reached"
        time.sleep(0.002)
    of_rank = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK") == str(rank) and "seam_dist.cli" in " ".join(child.cmdline())
    ]
    os.kill(min(child.pid for child in of_rank), signal.SIGKILL)
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0, output
    return output


def digests(run: Path) -> dict[str, str]:
    # model.json has the run's own name and folder, so the weights alone are compared.
    files = (path for folder in OUTPUTS for path in (run / folder).glob("*") if path.name != "model.json")
    return {str(path.relative_to(run)): sha256_file(path) for path in files}


def test_a_killed_rank_costs_time_and_nothing_else(tmp_path: Path) -> None:
    configs = {}
    for name in ("whole", "killed"):
        configs[name] = tmp_path / f"{name}.yaml"
        configs[name].write_text(CONFIG.format(name=name, runs=tmp_path / "runs"))
    process = start(configs["whole"])
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output

    run = tmp_path / "runs" / "killed"
    latest = run / "train_affinity" / "checkpoints" / "latest"
    kill_a_rank(start(configs["killed"]), 1, lambda: latest.is_file() and latest.read_text().strip() >= "step-00000006")
    assert not (run / "train_affinity" / "manifest.json").exists()
    labels = run / "random_walk" / "labels"
    output = kill_a_rank(start(configs["killed"]), 0, lambda: labels.is_dir() and any(labels.glob("*.tar")))
    resumed = re.search(r"train_affinity: resuming at step (\d+)", output)
    assert resumed is not None
    assert 6 <= int(resumed[1]) < 24
    assert not (run / "random_walk" / "manifest.json").exists()
    process = start(configs["killed"])
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output

    expected, after_kills = digests(tmp_path / "runs" / "whole"), digests(run)
    assert after_kills == expected
    assert {Path(name).parts[0] for name in after_kills} == {name.split("/")[0] for name in OUTPUTS}
    for stage in STAGES[1:]:
        assert read_json(run / stage / "manifest.json")["stage"] == stage
