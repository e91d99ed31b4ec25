"""SIGKILL for all ranks at once, at random moments and in the middle of saving: nothing is lost but time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from seam_dist.config.load import load_config
from seam_dist.stages import shard
from seam_dist.training.checkpoint import find_newest, verify

NUM_KILLS = 10
STEPS = 30


def pause(process: subprocess.Popen[str], seconds: float) -> bool:
    """Let time pass; return False when the process ended in it."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
        return False
    return True


def step_reached(folder: Path) -> int:
    with suppress(FileNotFoundError, ValueError):
        return int((folder / "latest").read_text().strip().removeprefix("step-"))
    return 0


@pytest.mark.slow
def test_every_kill_leaves_a_checkpoint_and_the_run_ends_as_if_there_were_none(
    ranks: Any, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    often = {"checkpoint_every": 1, "max_steps": STEPS, "keep_checkpoints": 2}
    whole = write_config("whole", train_seam={"schedule": often})
    shard.run(load_config(whole, [], None).config)
    killed = write_config("killed", train_seam={"schedule": often})
    folder = tmp_path / "runs" / "killed" / "train_seam" / "checkpoints"
    chance = random.Random(1)
    caught_saving = 0
    for kill in range(NUM_KILLS):
        before = step_reached(folder)
        started = ranks.start(2, str(ranks.worker), str(killed))
        alive = True
        while alive and step_reached(folder) < before + chance.randint(1, 2):
            alive = pause(started[0], 0.01)
        if kill % 2:
            while alive and not list(folder.glob(".saving-*")):
                alive = pause(started[0], 0.0005)
        else:
            alive = pause(started[0], chance.uniform(0, 0.5))
        assert alive, ranks.logs()
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
        for process in started:
            process.wait(timeout=60)
        caught_saving += bool(list(folder.glob(".saving-*")))
        named = folder / (folder / "latest").read_text().strip()
        verify(named)
        assert find_newest(folder) == named
        assert step_reached(folder) > before
    assert caught_saving >= NUM_KILLS // 4
    ranks.train(2, killed)
    ranks.train(2, whole)
    curves, weights = [], []
    for name in ("killed", "whole"):
        stage = tmp_path / "runs" / name / "train_seam"
        lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        curves.append([(line["step"], line["loss/total"]) for line in lines])
        weights.append(load_file(stage / "final" / "model.safetensors"))
    assert [step for step, _ in curves[0]] == list(range(1, STEPS + 1))
    assert curves[0] == curves[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
