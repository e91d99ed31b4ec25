"""Stage train_seg: train the final network on pseudo-labels, or resume (PARITY.md section 7).

Leaves checkpoints/, metrics.jsonl, tensorboard/ and, at the end, final/model.safetensors with final/model.json.
"""

from __future__ import annotations

from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.training.run import run_training
from seam_dist.training.seg_task import build_seg_task


def run(cfg: Config) -> None:
    """Train to the end of the schedule; a finished stage is skipped unless train_seg.schedule.resume is never.

    Raises SystemExit with 128 + the signal's number after a checkpoint when SIGINT or SIGTERM ended it, so that a
    scheduler sees an unfinished job, and StageError when an earlier stage made no labels to train on.
    """
    world = init_world(cfg)
    run_training(build_seg_task(cfg, load_manifest(cfg.shards_dir)), world)
