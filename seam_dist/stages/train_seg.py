"""Stage train_seg: train the final network on pseudo-labels, or resume (PARITY.md section 7)."""

from __future__ import annotations

from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.training.run import run_training
from seam_dist.training.seg_task import build_seg_task


def run(cfg: Config) -> None:
    """Train to the end of the schedule; see `run_training` for what is skipped and raised."""
    world = init_world(cfg)
    run_training(build_seg_task(cfg, load_manifest(cfg.shards_dir)), world)
