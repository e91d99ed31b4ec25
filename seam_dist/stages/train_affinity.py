"""Stage train_affinity: train AffinityNet on the affinity labels of infer_cam, or resume (PARITY.md section 5).

Leaves checkpoints/, metrics.jsonl, tensorboard/ and, at the end, final/model.safetensors with final/model.json.
"""

from __future__ import annotations

from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.training.affinity_task import build_affinity_task
from seam_dist.training.run import run_training


def run(cfg: Config) -> None:
    """Train to the end of the schedule; a finished stage is skipped unless train_affinity.schedule.resume is never.

    Raises SystemExit with 128 + the signal's number after a checkpoint when SIGINT or SIGTERM ended it, so that a
    scheduler sees an unfinished job, and StageError when infer_cam made no labels to train on.
    """
    world = init_world(cfg)
    run_training(build_affinity_task(cfg, load_manifest(cfg.shards_dir)), world)
