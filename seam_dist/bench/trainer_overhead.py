"""How much a step of the trainer costs beyond a bare PyTorch loop over the same model, on one rank.

Both train SEAM on ResNet38d, full losses, with the same SGD groups. The bare loop is forward, backward, step and a
read of the loss. Steps alternate between the two, so that a busy machine slows both alike; the median of the ratios of
neighbors counts. `--clock cpu` counts the processor's time instead, for a machine that others use, too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import torch

from seam_dist.cluster.distributed import World, init_world, shutdown
from seam_dist.cluster.signals import StopRequest, Watchdog
from seam_dist.config.load import from_tree
from seam_dist.config.schema import Config
from seam_dist.data.augment.color import IDENTITY
from seam_dist.models import build_seam, parameter_groups
from seam_dist.training.engine import start_training
from seam_dist.training.logger import TrainLogger
from seam_dist.training.seam_task import SeamModule

_CLASSES = 4


def measure_steps(
    batch_size: int, crop_size: int, width: float, rounds: int, clock: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Return the seconds of each step of the bare loop and of the trainer, in pairs."""
    # Noise teaches nothing: a small rate keeps the weights finite.
    schedule = {"global_batch_size": batch_size, "max_steps": 10**6, "lr": 1e-6}
    settings = {"run": {"threads": 1}, "augment": {"crop_size": crop_size}, "model": {"width": width}}
    settings |= {"loss": {"second_view_scale": 0.5}, "train_seam": {"schedule": schedule}}
    cfg = from_tree(settings)
    world = init_world(cfg)
    torch.manual_seed(0)
    batch = random_batch(batch_size, crop_size)
    bare = bare_step(cfg, batch, world)
    training = start_training(build_module(cfg), world, max_steps=10**6)
    seconds: tuple[list[float], list[float]] = ([], [])
    with (
        tempfile.TemporaryDirectory() as folder,
        StopRequest() as stop,
        Watchdog(cfg.run.timeout_s) as watchdog,
        TrainLogger(Path(folder), world, "train_seam", cfg.train_seam.schedule, max_steps=10**6) as logger,
    ):

        def trainer() -> None:
            losses = training.train_step(repeat(batch), stop)
            watchdog.feed()
            logger.log(training.step, losses, lr=training.lr)

        for index in range(rounds + 2):
            for which in (0, 1) if index % 2 else (1, 0):
                start = clock()
                (bare, trainer)[which]()
                if index >= 2:
                    seconds[which].append(clock() - start)
    training.engine.destroy()
    shutdown(world)
    return seconds


def build_module(cfg: Config) -> SeamModule:
    """Return SEAM with random weights and its losses."""
    return SeamModule(build_seam(cfg, _CLASSES)[0], cfg)


def bare_step(cfg: Config, batch: dict[str, Any], world: World) -> Callable[[], None]:
    """Return a plain PyTorch training step on a fixed batch."""
    module, schedule = build_module(cfg), cfg.train_seam.schedule
    module.train()
    batch = dict(batch)
    module.begin_step([batch], 0, world)  # PCM of the same channels as in the trainer
    groups = parameter_groups(module.model, schedule)
    optimizer = torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)

    def step() -> None:
        losses = module(batch)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        float(losses["loss"].detach())

    return step


def random_batch(batch_size: int, crop_size: int) -> dict[str, Any]:
    """Return a batch of noise in the form that the loader gives."""
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 256, (batch_size, 3, crop_size, crop_size), generator=generator, dtype=torch.uint8),
        "valid": torch.tensor([[0, 0, crop_size, crop_size]], dtype=torch.int32).repeat(batch_size, 1),
        "color": torch.tensor(IDENTITY).repeat(batch_size, 1),
        "label": (torch.rand(batch_size, _CLASSES, generator=generator) < 0.5).float(),
        "key": [f"noise-{index}" for index in range(batch_size)],
        "sample_number": torch.arange(batch_size),
    }


def main() -> None:
    """Print both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--crop-size", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    bare, trainer = measure_steps(args.batch_size, args.crop_size, args.width, args.rounds, clock)
    ratio = statistics.median(b / a for a, b in zip(bare, trainer, strict=True))
    print(
        f"bare loop {statistics.median(bare) * 1e3:.1f} ms, trainer {statistics.median(trainer) * 1e3:.1f} ms, "
        f"median of paired ratios {ratio:.3f} ({args.rounds} rounds, {args.clock} time)"
    )


if __name__ == "__main__":
    main()
