"""Training of AffinityNet: affinities and their loss in one forward pass (PARITY.md section 5).

The loss divides by numbers of pairs in the global batch, which are counted from the labels before the first forward
pass. So N ranks, or accumulation, give the gradient of one rank with the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from seam_dist.artifacts.stage import input_fingerprint
from seam_dist.cluster.distributed import World, all_reduce_sum
from seam_dist.config.schema import Config
from seam_dist.data.loader import make_label_map_loader
from seam_dist.data.manifest import Manifest
from seam_dist.losses.affinity import affinity_losses, pair_counts
from seam_dist.models import AffinityNet, affinity_architecture, build_affinity_net
from seam_dist.training.task import SAMPLE_SETTINGS, Batch, TrainModule, TrainTask, check_labels


class AffinityModule(TrainModule[AffinityNet]):
    """The loss of AffinityNet on images with affinity labels."""

    stage = "train_affinity"

    def __init__(self, model: AffinityNet, cfg: Config) -> None:
        super().__init__(model, cfg)
        self._counts: Tensor | None = None
        self._parts = 1

    def begin_step(self, batches: Sequence[MutableMapping[str, Any]], step: int, world: World) -> None:
        """Count the pairs of an optimizer step: of all its micro-batches on all ranks."""
        counts = [pair_counts(batch["target"], **self._pairs(batch["target"])) for batch in batches]
        self._counts = all_reduce_sum(torch.stack(counts).sum(dim=0), world)
        self._parts = world.size * len(batches)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return float32 "loss", "bg", "fg", "neg"; their means over the parts of the step are those of the batch."""
        assert self._counts is not None, "begin_step comes before the forward pass"
        self.keys.sample_number = batch["sample_number"]
        image = self.images(batch)
        with self.network_precision(image.device):
            affinity = self.model(image, self.cfg.train_affinity.border)
        with torch.autocast(image.device.type, enabled=False):
            losses = affinity_losses(affinity, batch["target"], self._counts, **self._pairs(batch["target"]))
        # DeepSpeed takes the mean over ranks and accumulation steps of what should be a sum. Only the total is trained.
        return {name: (value if name == "loss" else value.detach()) * self._parts for name, value in losses.items()}

    def images(self, batch: Batch) -> Tensor:
        """Return the normalized crops, black outside the image as published."""
        return self.normalized(batch, batch["color"] if self.cfg.train_affinity.jitter else None, padding="black")

    def _pairs(self, target: Tensor) -> dict[str, Any]:
        """Return radius and border for a grid of labels (B, h, w)."""
        radius = self.model.pair_radius(target.shape[1], target.shape[2])
        return {"radius": radius, "border": self.cfg.train_affinity.border}


def build_affinity_task(cfg: Config, manifest: Manifest) -> TrainTask[AffinityNet]:
    """Return the training of AffinityNet on the affinity labels of infer_cam."""
    split = manifest.split(cfg.data.train_split)
    labels = cfg.stage_dir("infer_cam") / "affinity"
    jitter = ("augment.brightness", "augment.contrast", "augment.saturation", "augment.hue")
    of_seam = ("align_grid", "dropout", "pcm_center", "pcm_channels", "pcm_grid", "pcm_impl")

    def inputs() -> Mapping[str, str]:
        fingerprints = {
            "shards": input_fingerprint(cfg.shards_dir, "shard"),
            "infer_cam": input_fingerprint(labels.parent, "infer_cam"),
        }
        check_labels(labels, split, "run `--only infer_cam` again with infer_cam.crf=true and infer_cam.splits")
        return fingerprints

    return TrainTask(
        cfg=cfg,
        stage="train_affinity",
        split=split,
        architecture=affinity_architecture(cfg, manifest.classes),
        settings=("model", "train_affinity", *SAMPLE_SETTINGS, *(jitter if cfg.train_affinity.jitter else ())),
        ignored=[f"model.{name}" for name in ("activation_checkpointing", "channels_last", *of_seam)],
        inputs=inputs,
        build=lambda: build_affinity_net(cfg),
        module=lambda network, world: AffinityModule(network, cfg),
        loader=partial(make_label_map_loader, cfg, manifest, labels=labels, stage="train_affinity"),
    )
