"""What tests of the trainer build: a training without a stage around it, its batches, a tiny SEAM."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from kit import changed
from torch import Tensor

from seam_dist.cluster.distributed import World, init_world
from seam_dist.config.schema import AugmentConfig, Config, LossConfig, ModelConfig, RunConfig, TrainSeamConfig
from seam_dist.data.augment.color import IDENTITY
from seam_dist.models import build_seam
from seam_dist.training.checkpoint import TrainState
from seam_dist.training.engine import Training, start_training
from seam_dist.training.seam_task import SeamModule

BATCH, SIDE, CLASSES = 4, 32, 3


def one_rank(size: int = 1) -> World:
    """The first rank of a job of `size`, without the job."""
    return World(rank=0, size=size, local_rank=0, local_size=size, device=torch.device("cpu"))


def seam_config(ablation: Any = "er", **train: Any) -> Config:
    """Settings of such a training; the default losses are continuous in the weights."""
    return Config(
        run=RunConfig(threads=1),
        augment=AugmentConfig(crop_size=SIDE),
        model=ModelConfig(width=1 / 16, freeze_stem=False),
        loss=LossConfig(second_view_scale=0.5, ablation=ablation),
        train_seam=changed(TrainSeamConfig(), **{"global_batch_size": BATCH, "max_steps": 6, "lr": 1e-3, **train}),
    )


def noise_batches(
    side: int, size: int, start: int, target: Callable[[int, torch.Generator], dict[str, Tensor]]
) -> Iterator[dict[str, Any]]:
    """Batches of noise in the form of the loaders, with `target` of each sample's number.

    Sample n is the same whatever the size and the start.
    """
    for first in itertools.count(start, size):
        samples = []
        for number in range(first, first + size):
            generator = torch.Generator().manual_seed(number)
            image = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
            samples.append({"image": image, **target(number, generator)})
        yield {
            **{name: torch.stack([sample[name] for sample in samples]) for name in samples[0]},
            "valid": torch.tensor([[0, 0, side, side]], dtype=torch.int32).repeat(size, 1),
            "color": torch.tensor(IDENTITY).repeat(size, 1),
            "key": [f"image-{number}" for number in range(first, first + size)],
            "sample_number": torch.arange(first, first + size),
        }


def seam_batches(size: int = BATCH, start: int = 0) -> Iterator[dict[str, Any]]:
    """Batches of noise with random image-level labels."""

    def label(number: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"label": (torch.rand(CLASSES, generator=generator) < 0.5).float()}

    return noise_batches(SIDE, size, start, label)


def seam_module(cfg: Config) -> SeamModule:
    """SEAM with the random weights of the seed, and its losses."""
    torch.manual_seed(cfg.run.seed)
    return SeamModule(build_seam(cfg, CLASSES)[0], cfg)


def begin_training(cfg: Config, resume: TrainState | None = None) -> Training:
    """A training of that module at step 0, or where `resume` left off."""
    steps = cfg.train_seam.schedule.max_steps or 1
    return start_training(seam_module(cfg), init_world(cfg), max_steps=steps, resume=resume)
