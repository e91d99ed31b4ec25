"""Stage train_seg: train the final segmentation network on pseudo-labels, from the newest checkpoint if there is one.

It trains on images and label maps alone; image-level labels went into the pseudo-labels. train_seg.labels=masks trains on the
true masks instead, the fully supervised bound. Leaves what every training stage leaves. PARITY.md section 7.
"""

from __future__ import annotations

from pathlib import Path

from seam_dist.artifacts.layout import LABEL_TYPES, label_folder
from seam_dist.artifacts.stage import StageError, input_fingerprint
from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.loader import make_label_map_loader
from seam_dist.data.manifest import Manifest, load_manifest
from seam_dist.models import DeepLab, build_deeplab, deeplab_facts
from seam_dist.models.deeplab import SEAM_STAGE
from seam_dist.training.run import IGNORED_SCHEDULE, run_training
from seam_dist.training.seg_task import SegModule, synchronize_batchnorm

# What the trained weights depend on, apart from rounding. With live BatchNorm they depend on the split into
# micro-batches, too: see seam_dist.training.seg_task.
_SETTINGS = (
    *("train_seg", "model.backbone", "model.width", "model.pretrained", "model.output_stride", "model.align_grid"),
    *("run.seed", "data.train_split", "data.streams", "data.shuffle_shards"),
)


def run(cfg: Config) -> None:
    """Train to the end of the schedule, or resume there; a finished stage is skipped unless train_seg.schedule.resume is never.

    Raises StageError when the labels are not made, and SystemExit with 128 + the signal's number after a checkpoint
    when SIGINT or SIGTERM ended it, so that a supervisor sees an unfinished job.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    labels = folder_of_labels(cfg)

    settings = list(_SETTINGS)
    if cfg.model.activation_checkpointing and not cfg.train_seg.freeze_batchnorm:
        # A block that runs twice counts its batch twice in its running statistics.
        settings.append("model.activation_checkpointing")

    def wrap(model: DeepLab, train_cfg: Config) -> SegModule:
        synchronize_batchnorm(model, world)
        return SegModule(model, train_cfg)

    run_training(
        cfg,
        world,
        "train_seg",
        cfg.train_seg.schedule,
        settings=settings,
        ignored=[f"train_seg.schedule.{name}" for name in IGNORED_SCHEDULE],
        inputs=lambda: _inputs(cfg, manifest),
        facts=deeplab_facts(cfg, manifest.classes),
        num_samples=manifest.split(cfg.data.train_split).num_samples,
        build=lambda: build_deeplab(cfg, manifest.num_classes),
        wrap=wrap,
        loader=lambda cfg, start, micro: make_label_map_loader(
            cfg, manifest, world.rank, world.size, start, micro, labels=labels, stage="train_seg"
        ),
    )


def folder_of_labels(cfg: Config) -> Path | None:
    """Return the folder of label tars that cfg.train_seg.labels names, None for the masks in the shards."""
    if cfg.train_seg.labels == "masks":
        return None
    return label_folder(cfg, LABEL_TYPES[cfg.train_seg.labels])


def _inputs(cfg: Config, manifest: Manifest) -> dict[str, str]:
    """Return the fingerprints of shards and labels; raise StageError when a label tar of the split is missing."""
    inputs = {"shards": input_fingerprint(cfg.shards_dir, "shard")}
    if cfg.train_seg.pretrained == SEAM_STAGE:
        inputs[SEAM_STAGE] = input_fingerprint(cfg.stage_dir(SEAM_STAGE), SEAM_STAGE)
    folder = folder_of_labels(cfg)
    if folder is None:
        return inputs
    label_type = LABEL_TYPES[cfg.train_seg.labels]
    stage = label_type.stage
    inputs[stage] = input_fingerprint(cfg.stage_dir(stage), stage)
    split = manifest.split(cfg.data.train_split)
    missing = [shard.file for shard in split.shards if not (folder / shard.file).is_file()]
    if missing:
        raise StageError(
            f"train_seg.labels={cfg.train_seg.labels} needs {folder / missing[0]}, which stage {stage} did not write: "
            f"run it again with {label_type.remedy} that include {split.name!r}, or change train_seg.labels"
        )
    return inputs
