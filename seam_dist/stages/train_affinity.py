"""Stage train_affinity: train AffinityNet on the affinity labels of infer_cam, or resume (PARITY.md section 5)."""

from __future__ import annotations

from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.training.affinity_task import build_affinity_task
from seam_dist.training.run import run_training


def run(cfg: Config) -> None:
    """Train to the end of the schedule; see `run_training` for what is skipped and raised."""
    world = init_world(cfg)
    run_training(build_affinity_task(cfg, load_manifest(cfg.shards_dir)), world)
