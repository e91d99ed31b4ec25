"""Train one task from start to end: open and lock its stage, resume, train, write the final weights.

A stage that trains leaves checkpoints/, metrics.jsonl, tensorboard/ and, at the end, final/model.safetensors with
final/model.json.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from seam_dist.artifacts.atomic import atomic_file, write_json
from seam_dist.artifacts.lock import stage_lock
from seam_dist.artifacts.stage import StageRun, open_stage
from seam_dist.cluster.distributed import World, on_main
from seam_dist.cluster.signals import StopRequest
from seam_dist.config.load import flatten
from seam_dist.config.schema import Config
from seam_dist.training.checkpoint import CheckpointStore, TrainState
from seam_dist.training.engine import fit, num_steps, start_training
from seam_dist.training.logger import TrainLogger
from seam_dist.training.task import TrainTask

# Settings of a schedule on which the trained weights do not depend, apart from rounding.
_IGNORED = ("checkpoint_every", "keep_checkpoints", "log_every", "micro_batch_size", "resume")


def run_training(task: TrainTask[Any], world: World) -> None:
    """Train to the end of the task's schedule; a finished stage is skipped unless its schedule.resume is never.

    Every rank calls it. Raises StageError when inputs are missing, when the stage was trained with other settings or
    when another process trains it, and SystemExit with 128 + the signal's number after a checkpoint when SIGINT or
    SIGTERM ended the training, so that a scheduler sees an unfinished job.
    """
    cfg, stage, schedule = task.cfg, task.stage, task.cfg.schedule_of(task.stage)
    ignored = (*task.ignored, *(f"{stage}.schedule.{name}" for name in _IGNORED))
    with ExitStack() as stack:

        def open_and_lock() -> tuple[StageRun, bool]:
            stack.enter_context(stage_lock(cfg.run_dir, stage))
            opened = open_stage(cfg, stage, settings=task.settings, ignore=ignored, inputs=task.inputs(), precious=True)
            done = opened.is_done() and schedule.resume != "never"
            if not done:
                (opened.dir / "manifest.json").unlink(missing_ok=True)
            return opened, done

        opened, done = on_main(open_and_lock, world)
        if done:
            if world.is_main:
                print(f"{stage}: done already, see {opened.dir}")
            return
        torch.manual_seed(cfg.run.seed)
        network, report = task.build()
        checkpoints = CheckpointStore(
            opened.dir / "checkpoints",
            world,
            stage=stage,
            architecture=dict(task.architecture),
            config=flatten(cfg),
            keep=schedule.keep_checkpoints,
        )
        state = checkpoints.load(schedule.resume, network)
        if world.is_main:
            print(report if state is None else f"{stage}: resuming at step {state.step}", flush=True)
        max_steps = num_steps(schedule, task.split.num_samples, stage=stage)
        training = start_training(task.module(network, world), world, max_steps=max_steps, resume=state)
        stack.callback(training.engine.destroy)  # its memory is free for what this process does next
        stop = stack.enter_context(StopRequest())
        batches = task.loader(world.rank, world.size, training.samples, training.micro_batch_size)
        stack.callback(batches.close)
        logger = stack.enter_context(TrainLogger(opened.dir, world, stage, schedule, max_steps, training.step))
        signum = fit(training, batches, checkpoints, logger, stop)
        if signum:
            if world.is_main:
                saved = f"{stage}: stopped at step {training.step} by {signal.Signals(signum).name}, checkpoint saved"
                print(f"{saved}: the same command resumes", flush=True)
            raise SystemExit(128 + signum)
        final = training.state()

        def finish() -> None:
            outputs = write_model(opened.dir / "final", final, cfg, task.architecture, str(report))
            device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
            outputs.append(opened.dir / "metrics.jsonl")
            opened.finish(outputs, step=training.step, world_size=world.size, device=device)

        on_main(finish, world)


def write_model(
    folder: Path, state: TrainState, cfg: Config, architecture: Mapping[str, Any], report: str
) -> list[Path]:
    """Write the trained weights and what is needed to build their network again; return the two paths."""
    weights, description = folder / "model.safetensors", folder / "model.json"
    with atomic_file(weights) as temporary:
        save_file(state.weights, temporary, metadata={"format": "pt"})
    write_json(
        description,
        {
            "schema": 1,
            "architecture": dict(architecture),
            "classes": architecture["classes"],
            "config": flatten(cfg),
            "step": state.step,
            "samples": state.samples,
            "pretrained": report,
        },
    )
    return [weights, description]
