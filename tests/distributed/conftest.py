"""Starts ranks as a launcher does, without the launcher's seconds, and ends all of them with the test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml


class Ranks:
    """Processes that a test started; their output is in rank<r>.log."""

    worker = Path(__file__).parent / "train_many.py"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def free_port(self) -> int:
        """Return a port that nobody listens on."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def start(self, num_ranks: int, *arguments: str) -> list[subprocess.Popen[str]]:
        """Run `python ARGUMENTS` as each rank of a job, in a session of its own."""
        port = str(self.free_port())
        ranks = []
        for rank in range(num_ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
            own = {name: str(value) for name, value in place.items()}
            environment = {**os.environ, **own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
            ranks.append(self.run(rank, [sys.executable, *arguments], environment))
        return ranks

    def run(self, rank: int, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        """Run one command in a session of its own."""
        with open(self.folder / f"rank{rank}.log", "a") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
            )
        self.started.append(process)
        return process

    def finish(self, ranks: list[subprocess.Popen[str]], timeout_s: float = 400) -> list[int]:
        """Wait for all ranks and return their exit codes."""
        try:
            return [process.wait(timeout=timeout_s) for process in ranks]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"ranks hang:\n{self.logs()}") from None

    def train(self, num_ranks: int, *configs: Path) -> None:
        """Run stage train_seam for each configuration in turn, and insist that all ranks exit with 0."""
        codes = self.finish(self.start(num_ranks, str(self.worker), *map(str, configs)))
        assert codes == [0] * num_ranks, self.logs()

    def logs(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(path.read_text()[-4000:] for path in sorted(self.folder.glob("rank*.log")))

    def kill(self) -> None:
        """End what is left of every session."""
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    """Yield a starter of ranks; all processes end with the test."""
    starter = Ranks(tmp_path)
    yield starter
    starter.kill()


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Return write(name, **sections): a small training on synthetic scenes as a YAML file, its shards shared by all."""

    def write(name: str, **sections: dict[str, Any]) -> Path:
        settings: dict[str, dict[str, Any]] = {
            "run": {"name": name, "dir": str(tmp_path / "runs"), "threads": 1, "timeout_s": 200.0},
            "source": {"kind": "synthetic", "num_images": [24, 2], "num_classes": 3, "image_size": [64, 48]},
            "data": {"streams": 12, "samples_per_shard": 2, "shards": str(tmp_path / "shards")},
            "augment": {"resize_long": [32, 48], "crop_size": 32},
            "model": {"backbone": "resnet38d", "width": 0.0625, "freeze_stem": False},
            "loss": {"second_view_scale": 0.5},
            "train_seam": {
                "schedule": {"global_batch_size": 12, "max_steps": 4, "lr": 1e-3, "log_every": 1, "keep_checkpoints": 9}
            },
        }
        for section, values in sections.items():
            merged = settings.setdefault(section, {})
            # The schedule of a training is a section of its own.
            schedule = {**merged.get("schedule", {}), **values.get("schedule", {})}
            merged.update({**values, "schedule": schedule} if schedule else values)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write
