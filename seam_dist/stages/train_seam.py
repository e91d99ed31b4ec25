"""Stage train_seam: train the network from image labels, from the newest checkpoint if there is one.

Leaves checkpoints/, metrics.jsonl, tensorboard/ and, at the end, final/model.safetensors with final/model.json.
"""

from __future__ import annotations

from typing import Any

from seam_dist.artifacts.stage import input_fingerprint
from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.loader import make_classification_loader
from seam_dist.data.manifest import Manifest, load_manifest
from seam_dist.models import build_seam
from seam_dist.training.run import IGNORED_SCHEDULE, run_training
from seam_dist.training.seam_task import TrainModule

# What the trained weights depend on, apart from rounding: not the number of ranks, not the ZeRO stage.
_SETTINGS = (
    "model",
    "augment",
    "loss",
    "train_seam",
    "run.seed",
    "data.train_split",
    "data.streams",
    "data.shuffle_shards",
)
_IGNORED = (
    "train_seam.pictures_every",
    "model.activation_checkpointing",
    "model.channels_last",
    "model.pcm_impl",
    *(f"train_seam.schedule.{name}" for name in IGNORED_SCHEDULE),
)


def run(cfg: Config) -> None:
    """Train to the end of the schedule, or resume there; a finished stage is skipped unless train_seam.schedule.resume is never.

    Raises SystemExit with 128 + the signal's number after a checkpoint when SIGINT or SIGTERM ended it, so that a
    supervisor sees an unfinished job.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    split = manifest.split(cfg.data.train_split)
    run_training(
        cfg,
        world,
        "train_seam",
        cfg.train_seam.schedule,
        settings=_SETTINGS,
        ignored=_IGNORED,
        inputs=lambda: {"shards": input_fingerprint(cfg.shards_dir, "shard")},
        facts=architecture(cfg, manifest),
        num_samples=split.num_samples,
        build=lambda: build_seam(cfg, manifest.num_classes),
        wrap=TrainModule,
        loader=lambda cfg, start, micro: make_classification_loader(
            cfg, manifest, world.rank, world.size, start, micro
        ),
    )


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
