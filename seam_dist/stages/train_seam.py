"""Stage train_seam: train the network from image labels, from the newest checkpoint if there is one.

Leaves checkpoints/, metrics.jsonl, tensorboard/ and, at the end, final/model.safetensors with final/model.json.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from seam_dist.artifacts import StageRun, input_fingerprint, open_stage
from seam_dist.checkpoint import Checkpoints, TrainState, lock
from seam_dist.config import Config
from seam_dist.data.manifest import Manifest, load_manifest
from seam_dist.data.stream import make_loader
from seam_dist.distributed import World, init_world, on_main
from seam_dist.engine import fit, num_steps, start_training
from seam_dist.files import atomic_file, write_json
from seam_dist.logger import TrainLogger
from seam_dist.models import build_seam, parameter_groups
from seam_dist.settings import flatten
from seam_dist.supervision import StopRequest
from seam_dist.train_module import TrainModule

# What the trained weights depend on, apart from rounding: not the number of ranks, not the ZeRO stage.
_SETTINGS = ("model", "augment", "loss", "train", "run.seed", "data.train_split", "data.streams", "data.shuffle_shards")
_IGNORED = (
    "augment.color_on",
    "model.activation_checkpointing",
    "model.channels_last",
    "model.pcm_impl",
    "train.checkpoint_every",
    "train.images_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.micro_batch_size",
    "train.resume",
)


def run(cfg: Config) -> None:
    """Train to the end of the schedule, or resume there; a finished stage is skipped unless train.resume is never.

    Raises SystemExit with 128 + the signal's number after a checkpoint when SIGINT or SIGTERM ended it, so that a
    supervisor sees an unfinished job.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    split = manifest.split(cfg.data.train_split)
    with ExitStack() as stack:
        stage, done = _open(cfg, world, stack)
        if done:
            if world.is_main:
                print(f"train_seam: done already, see {stage.dir}")
            return
        torch.manual_seed(cfg.run.seed)
        model, report = build_seam(cfg, manifest.num_classes)
        facts = architecture(cfg, manifest)
        checkpoints = Checkpoints(
            stage.dir / "checkpoints", world, architecture=facts, config=flatten(cfg), keep=cfg.train.keep_checkpoints
        )
        state = checkpoints.load(cfg.train.resume, model)
        if world.is_main:
            print(report if state is None else f"train_seam: going on from step {state.step}", flush=True)
        max_steps = num_steps(cfg.train, split.num_samples)
        module = TrainModule(model, cfg)
        groups = parameter_groups(model, cfg.train)
        training = start_training(module, model, groups, cfg, world, max_steps=max_steps, resume=state)
        stack.callback(training.close)
        stop = stack.enter_context(StopRequest())
        start_sample = 0 if state is None else state.samples
        loader = make_loader(cfg, manifest, world.rank, world.size, start_sample, training.micro_batch_size)
        stack.callback(loader.close)
        logger = TrainLogger(
            stage.dir,
            world,
            max_steps=max_steps,
            batch_size=cfg.train.global_batch_size,
            step=training.step,
            log_every=cfg.train.log_every,
        )
        stack.enter_context(logger)
        signum = fit(training, loader, checkpoints, logger, stop)
        if signum:
            raise SystemExit(128 + signum)
        final = training.state()

        def finish() -> None:
            outputs = write_model(stage.dir / "final", final, cfg, facts, str(report))
            device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
            metrics = stage.dir / "metrics.jsonl"
            stage.finish([*outputs, metrics], step=training.step, world_size=world.size, device=device)

        on_main(finish, world)


def architecture(cfg: Config, manifest: Manifest) -> dict[str, Any]:
    """Return the facts that weights belong to: a checkpoint with others is refused."""
    return {
        "backbone": cfg.model.backbone,
        "width": cfg.model.width,
        "output_stride": cfg.model.output_stride,
        "pcm_channels": list(cfg.model.pcm_channels),
        "pcm_center": cfg.model.pcm_center,
        "pcm_grid": cfg.model.pcm_grid,
        "align_grid": cfg.model.align_grid,
        "pcm": cfg.loss.ablation not in ("cam", "er"),
        "classes": list(manifest.classes),
    }


def write_model(folder: Path, state: TrainState, cfg: Config, facts: dict[str, Any], report: str) -> list[Path]:
    """Write the trained weights and what is needed to build their network again; return the two paths."""
    weights, description = folder / "model.safetensors", folder / "model.json"
    with atomic_file(weights) as temporary:
        save_file(state.weights, temporary, metadata={"format": "pt"})
    write_json(
        description,
        {
            "schema": 1,
            "architecture": facts,
            "classes": facts["classes"],
            "config": flatten(cfg),
            "step": state.step,
            "samples": state.samples,
            "pretrained": report,
        },
    )
    return [weights, description]


def _open(cfg: Config, world: World, stack: ExitStack) -> tuple[StageRun, bool]:
    """Open and lock the stage on the main rank; tell whether it is done."""

    def open_and_lock() -> tuple[StageRun, bool]:
        inputs = {"shards": input_fingerprint(cfg.shards_dir, "shard")}
        stage = open_stage(cfg, "train_seam", settings=_SETTINGS, ignore=_IGNORED, inputs=inputs, precious=True)
        done = stage.is_done() and cfg.train.resume != "never"
        if not done:
            stack.enter_context(lock(stage.dir))
            (stage.dir / "manifest.json").unlink(missing_ok=True)
        return stage, done

    return on_main(open_and_lock, world)
