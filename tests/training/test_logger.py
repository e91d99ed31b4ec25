from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seam_dist.cluster.distributed import World
from seam_dist.config.schema import ScheduleConfig
from seam_dist.training.logger import TrainLogger, cam_rows, drop_lines_after


def world(rank: int) -> World:
    return World(rank=rank, size=2, local_rank=rank, local_size=2, device=torch.device("cpu"))


def logger(folder: Path, *, rank: int = 0, log_every: int = 2, step: int = 0) -> TrainLogger:
    schedule = ScheduleConfig(global_batch_size=8, log_every=log_every)
    return TrainLogger(folder, world(rank), "train_seam", schedule, max_steps=5, step=step)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {event.step: event.value for event in events.Scalars("loss/total")}


def test_lines_hold_what_the_report_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logger(tmp_path) as log:
        for step in range(1, 6):
            log.log(step, {"loss": 1.5, "cls": 0.5}, lr=0.01)
    lines = records(tmp_path)
    # Every second step, and the last one.
    assert [record["step"] for record in lines] == [2, 4, 5]
    assert set(lines[0]) == {"step", "time_s", "images_per_s", "lr", "loss/total", "loss/cls", "memory/peak_gib"}
    assert (lines[0]["loss/total"], lines[0]["loss/cls"], lines[0]["lr"]) == (1.5, 0.5, 0.01)
    assert lines[0]["images_per_s"] > 0
    assert 0 < lines[0]["memory/peak_gib"] < 1000
    bar = capsys.readouterr().err
    assert "5/5" in bar
    assert "images/s" in bar
    assert "total=1.500" in bar


def test_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    with logger(tmp_path, log_every=1) as log:
        for step in (1, 2, 3):
            log.log(step, {"loss": float(step)}, lr=0.01)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "time')  # killed while writing
    with logger(tmp_path, log_every=1, step=1) as log:
        for step in (2, 3):
            log.log(step, {"loss": 10.0 * step}, lr=0.01)
    assert [(record["step"], record["loss/total"]) for record in records(tmp_path)] == [(1, 1), (2, 20), (3, 30)]
    times = [record["time_s"] for record in records(tmp_path)]
    assert times == sorted(times)
    assert scalars(tmp_path) == {1: 1, 2: 20, 3: 30}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with logger(tmp_path, rank=1) as log:
        log.log(1, {"loss": 1.0}, lr=0.01)
        log.pictures(1, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), None, torch.zeros(1, 2))
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_drop(tmp_path: Path) -> None:
    assert drop_lines_after(tmp_path / "metrics.jsonl", 3) == 0
    assert not (tmp_path / "metrics.jsonl").exists()


def test_pictures_show_the_labeled_class_beside_the_image() -> None:
    images = torch.full((2, 3, 4, 6), 0.5)
    cam = torch.zeros(2, 3, 4, 6)
    cam[0, 1, 0, 0] = 9.0  # the class of the label
    cam[0, 2, 3, 5] = 99.0  # another one
    refined = torch.zeros(2, 3, 4, 6)
    refined[0, 1, 2, 2] = 9.0
    label = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    grid = cam_rows(images, cam, refined, label)
    assert grid.shape == (2 * 4, 3 * 6, 3)
    assert grid.dtype == np.uint8
    assert (grid[:, :6] == 128).all()
    first, second = grid[:4, 6:12], grid[:4, 12:]
    dark = round(0.4 * 0.5 * 255)
    assert first[0, 0].min() > 200
    assert (first[3, 5] == dark).all()
    assert second[2, 2].min() > 200
    assert (second[0, 0] == dark).all()
    # Without PCM there are two columns; at most four rows.
    assert cam_rows(images, cam, None, label).shape == (8, 12, 3)
    assert cam_rows(images.repeat(4, 1, 1, 1), cam.repeat(4, 1, 1, 1), None, label.repeat(4, 1)).shape == (16, 12, 3)


def test_pictures_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with logger(tmp_path) as log:
        log.pictures(3, torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.ones(2, 2))
    images = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("cam")
    assert [(image.step, image.width, image.height) for image in images] == [(3, 24, 16)]
