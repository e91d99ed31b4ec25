"""Stage train_affinity: train AffinityNet on the affinity labels of infer_cam (PARITY.md section 5).

Leaves checkpoints/, metrics.jsonl, tensorboard/ and, at the end, final/model.safetensors with final/model.json.
"""

from __future__ import annotations

from collections.abc import Mapping

from seam_dist.artifacts.stage import StageError, input_fingerprint
from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.loader import make_label_map_loader
from seam_dist.data.manifest import load_manifest
from seam_dist.models import affinity_facts, build_affinity_net
from seam_dist.training.affinity_task import AffinityModule
from seam_dist.training.run import IGNORED_SCHEDULE, run_training

# What the trained weights depend on, apart from rounding: not the number of ranks, not the ZeRO stage.
_SETTINGS = ("model", "train_affinity", "run.seed", "data.train_split", "data.streams", "data.shuffle_shards")
_JITTER = ("augment.brightness", "augment.contrast", "augment.saturation", "augment.hue")
_IGNORED = (
    "model.activation_checkpointing",
    "model.channels_last",
    # Of SEAM alone:
    "model.align_grid",
    "model.dropout",
    "model.pcm_center",
    "model.pcm_channels",
    "model.pcm_grid",
    "model.pcm_impl",
    *(f"train_affinity.schedule.{name}" for name in IGNORED_SCHEDULE),
)


def run(cfg: Config) -> None:
    """Train to the end of affinity's schedule, or resume there; a finished stage is skipped unless resume is never.

    Raises SystemExit with 128 + the signal's number after a checkpoint when SIGINT or SIGTERM ended it, and StageError
    when infer_cam is not finished or made no affinity labels.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    split = manifest.split(cfg.data.train_split)
    labels = cfg.stage_dir("infer_cam") / "affinity"

    def inputs() -> Mapping[str, str]:
        found = {
            "shards": input_fingerprint(cfg.shards_dir, "shard"),
            "infer_cam": input_fingerprint(labels.parent, "infer_cam"),
        }
        if not labels.is_dir():
            raise StageError(
                f"{labels} is missing, so infer_cam made no affinity labels: set infer_cam.crf=true and run "
                "`--stage infer_cam` again"
            )
        missing = next((shard.file for shard in split.shards if not (labels / shard.file).is_file()), None)
        if missing is not None:
            raise StageError(
                f"{labels / missing} is missing, so infer_cam made no affinity labels of split {split.name!r}: add it "
                "to infer_cam.splits and run `--stage infer_cam` again"
            )
        return found

    run_training(
        cfg,
        world,
        "train_affinity",
        cfg.train_affinity.schedule,
        settings=(*_SETTINGS, *_JITTER) if cfg.train_affinity.jitter else _SETTINGS,
        ignored=_IGNORED,
        inputs=inputs,
        facts=affinity_facts(cfg, manifest.classes),
        num_samples=split.num_samples,
        build=lambda: build_affinity_net(cfg),
        wrap=AffinityModule,
        loader=lambda cfg, start, micro: make_label_map_loader(
            cfg, manifest, world.rank, world.size, start, micro, labels=labels, stage="train_affinity"
        ),
    )
