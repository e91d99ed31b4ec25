"""The loop around the steps: checkpoints on schedule, signals, pictures."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from training_kit import begin_training, seam_batches, seam_config, seam_module

from seam_dist.cluster.signals import StopRequest
from seam_dist.config.schema import Config
from seam_dist.training.checkpoint import CheckpointError, CheckpointStore
from seam_dist.training.engine import Training, fit
from seam_dist.training.logger import TrainLogger


def store(folder: Path, training: Training) -> CheckpointStore:
    return CheckpointStore(folder, training.world, stage="train_seam", architecture={}, config={}, keep=5)


def parts_of_a_job(folder: Path, cfg: Config) -> tuple[Training, CheckpointStore, TrainLogger]:
    training = begin_training(cfg)
    logger = TrainLogger(folder, training.world, "train_seam", cfg.train_seam.schedule, max_steps=6)
    return training, store(folder / "checkpoints", training), logger


def test_fit_saves_on_schedule_and_at_the_end(tmp_path: Path) -> None:
    training, checkpoints, logger = parts_of_a_job(tmp_path, seam_config(checkpoint_every=4))
    with StopRequest() as stop, logger:
        assert fit(training, seam_batches(), checkpoints, logger, stop) == 0
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_after_the_step_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    training, checkpoints, logger = parts_of_a_job(tmp_path, seam_config(log_every=1))

    def interrupted() -> Iterator[dict[str, Any]]:
        for index, batch in enumerate(seam_batches()):
            if index == 1:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    with StopRequest() as stop, logger:
        assert fit(training, interrupted(), checkpoints, logger, stop) == number
    assert signal.getsignal(number) is before
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000002\n"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_other_architecture_cannot_be_loaded(tmp_path: Path) -> None:
    training = begin_training(seam_config())
    store(tmp_path, training).save(training.state())
    model = seam_module(seam_config("full")).model
    with pytest.raises(CheckpointError, match=r"f8_3\.weight is missing there"):
        store(tmp_path, training).load("auto", model)


@pytest.mark.parametrize(("every", "steps"), [(4, [4, 6]), (0, [6]), (None, [])])
def test_pictures_come_as_often_as_the_module_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int | None, steps: list[int]
) -> None:
    training, checkpoints, logger = parts_of_a_job(tmp_path, seam_config("full"))
    training.module.pictures_every = every
    drawn: list[int] = []
    monkeypatch.setattr(logger, "pictures", lambda step, *pictures: drawn.append(step))
    with StopRequest() as stop, logger:
        fit(training, seam_batches(), checkpoints, logger, stop)
    assert drawn == steps
