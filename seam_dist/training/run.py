"""What the training stages share: open and lock the stage, resume, train to the end, write the final weights.

A stage that trains leaves checkpoints/, metrics.jsonl, tensorboard/ and, at the end, final/model.safetensors with
final/model.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from seam_dist.artifacts.atomic import atomic_file, write_json
from seam_dist.artifacts.stage import StageRun, open_stage
from seam_dist.cluster.distributed import World, on_main
from seam_dist.cluster.signals import StopRequest
from seam_dist.config.load import flatten
from seam_dist.config.schema import Config, ScheduleConfig
from seam_dist.models import LoadReport, parameter_groups
from seam_dist.training.checkpoint import Checkpoints, TrainState, lock
from seam_dist.training.engine import Batch, fit, num_steps, start_training
from seam_dist.training.logger import TrainLogger

# Settings of a schedule on which the trained weights do not depend, apart from rounding.
IGNORED_SCHEDULE = (
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "micro_batch_size",
    "resume",
)

# Stage -> the section of the settings that holds its schedule.
SECTIONS = {name: f"{name}.schedule" for name in ("train_seam", "train_affinity", "train_seg")}

Model = TypeVar("Model", bound=nn.Module)


class Loader(Iterator[Batch], Protocol):
    """Batches of one rank, without end."""

    def close(self) -> None:
        """End the loader's processes."""


def run_training(
    cfg: Config,
    world: World,
    stage_name: str,
    schedule: ScheduleConfig,
    *,
    settings: Sequence[str],
    ignored: Sequence[str],
    inputs: Callable[[], Mapping[str, str]],
    facts: Mapping[str, Any],
    num_samples: int,
    build: Callable[[], tuple[Model, LoadReport]],
    wrap: Callable[[Model, Config], nn.Module],
    loader: Callable[[Config, int, int], Loader],
) -> None:
    """Train a network to the end of `schedule`, or resume there; a finished stage is skipped unless resume is never.

    Every rank calls it.

    Args:
        schedule: takes the place of cfg.train_seam.schedule for `wrap`, `loader` and the engine.
        settings, ignored: dotted keys that the trained weights depend on, and those below them that change nothing.
        inputs: name -> fingerprint of each input; called on the main rank. Raises StageError for what is missing.
        facts: what weights belong to: a checkpoint with other facts is refused. With "classes", the class names.
        num_samples: of the training split; gives the steps of an epoch.
        build: returns the network whose weights are kept, after torch.manual_seed(run.seed).
        wrap: makes of it the module for DeepSpeed: (batch, warm-up factor) -> named losses.
        loader: (cfg, first global sample, images a micro-batch) -> batches of this rank.

    Raises SystemExit with 128 + the signal's number after a checkpoint when SIGINT or SIGTERM ended the training, so
    that a supervisor sees an unfinished job.
    """
    train_cfg = replace(cfg, train_seam=replace(cfg.train_seam, schedule=schedule))
    section = SECTIONS[stage_name]
    with ExitStack() as stack:

        def open_and_lock() -> tuple[StageRun, bool]:
            stage = open_stage(cfg, stage_name, settings=settings, ignore=ignored, inputs=inputs(), precious=True)
            done = stage.is_done() and schedule.resume != "never"
            if not done:
                stack.enter_context(lock(stage.dir))
                (stage.dir / "manifest.json").unlink(missing_ok=True)
            return stage, done

        stage, done = on_main(open_and_lock, world)
        if done:
            if world.is_main:
                print(f"{stage_name}: done already, see {stage.dir}")
            return
        torch.manual_seed(cfg.run.seed)
        model, report = build()
        checkpoints = Checkpoints(
            stage.dir / "checkpoints", world, architecture=facts, config=flatten(cfg), keep=schedule.keep_checkpoints
        )
        state = checkpoints.load(schedule.resume, model)
        if world.is_main:
            print(report if state is None else f"{stage_name}: going on from step {state.step}", flush=True)
        max_steps = num_steps(schedule, num_samples, section=section)
        training = start_training(
            wrap(model, train_cfg),
            model,
            parameter_groups(model, schedule),
            train_cfg,
            world,
            max_steps=max_steps,
            resume=state,
            section=section,
        )
        stack.callback(training.close)
        stop = stack.enter_context(StopRequest())
        batches = loader(train_cfg, 0 if state is None else state.samples, training.micro_batch_size)
        stack.callback(batches.close)
        logger = TrainLogger(
            stage.dir,
            world,
            name=stage_name,
            max_steps=max_steps,
            batch_size=schedule.global_batch_size,
            step=training.step,
            log_every=schedule.log_every,
        )
        stack.enter_context(logger)
        signum = fit(training, batches, checkpoints, logger, stop)
        if signum:
            raise SystemExit(128 + signum)
        final = training.state()

        def finish() -> None:
            outputs = write_model(stage.dir / "final", final, cfg, facts, str(report))
            device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
            metrics = stage.dir / "metrics.jsonl"
            stage.finish([*outputs, metrics], step=training.step, world_size=world.size, device=device)

        on_main(finish, world)


def write_model(folder: Path, state: TrainState, cfg: Config, facts: Mapping[str, Any], report: str) -> list[Path]:
    """Write the trained weights and what is needed to build their network again; return the two paths."""
    weights, description = folder / "model.safetensors", folder / "model.json"
    with atomic_file(weights) as temporary:
        save_file(state.weights, temporary, metadata={"format": "pt"})
    write_json(
        description,
        {
            "schema": 1,
            "architecture": dict(facts),
            "classes": facts["classes"],
            "config": flatten(cfg),
            "step": state.step,
            "samples": state.samples,
            "pretrained": report,
        },
    )
    return [weights, description]
