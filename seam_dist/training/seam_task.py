"""Training of SEAM: both views, PCM and the losses in one forward pass (PARITY.md sections 1 and 2)."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from seam_dist.artifacts.stage import input_fingerprint
from seam_dist.cluster.distributed import World
from seam_dist.config.schema import Config
from seam_dist.data.loader import make_classification_loader
from seam_dist.data.manifest import Manifest
from seam_dist.losses.seam import seam_loss
from seam_dist.models import SEAM, SEAMOutput, build_seam, seam_architecture
from seam_dist.models.grid import scaled_size
from seam_dist.models.seam import present_channels
from seam_dist.training.task import SAMPLE_SETTINGS, Batch, TrainModule, TrainTask


class SeamModule(TrainModule[SEAM]):
    """The losses of SEAM on the batches of `seam_dist.data.loader`."""

    stage = "train_seam"

    def __init__(self, model: SEAM, cfg: Config) -> None:
        super().__init__(model, cfg)
        self.pictures_every = cfg.train_seam.pictures_every
        self.warmup = 1.0

    def begin_step(self, batches: Sequence[MutableMapping[str, Any]], step: int, world: World) -> None:
        """Set the warm-up of the step; add to each micro-batch the CAM channels that its losses read.

        PCM refines those channels alone; losses and gradients are the same with and without the entry "channels".
        """
        self.warmup = warmup_factor(step, self.cfg.loss.warmup_steps)
        for batch in batches:
            batch["channels"] = present_channels(batch["label"])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the float32 losses of a batch by name: "loss", the total, and the terms in use, unweighted."""
        self.keys.sample_number = batch["sample_number"]
        image = self.normalized(batch, batch["color"])
        channels, loss = batch.get("channels"), self.cfg.loss
        view1 = self._cams(image, channels)
        view2 = None
        if loss.ablation != "cam":
            size = second_view_size(image.shape[2], self.cfg)
            view2 = self._cams(interpolate(image, (size, size), mode="bilinear", align_corners=True), channels)
        with torch.autocast(image.device.type, enabled=False):
            losses = seam_loss(
                view1,
                view2,
                batch["label"],
                ablation=loss.ablation,
                er_weight=self.warmup * loss.er_weight,
                ecr_weight=self.warmup * loss.ecr_weight,
                min_pool_weight=loss.min_pool_weight,
                ecr_top=loss.ecr_top,
            )
        # Only the total is trained; the rest is for the log and needs no graph.
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}

    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the first view in 0..1, its CAMs and its refined CAMs, if there are any."""
        image = self.normalized(batch, batch["color"])
        output = self._cams(image)
        return image * self.std[:, None, None] + self.mean[:, None, None], output.cam, output.cam_refined

    def _cams(self, image: Tensor, channels: Tensor | None = None) -> SEAMOutput:
        with self.network_precision(image.device):
            output: SEAMOutput = self.model(image, channels)
        return output


def build_seam_task(cfg: Config, manifest: Manifest) -> TrainTask[SEAM]:
    """Return the training of SEAM from image-level labels."""
    return TrainTask(
        cfg=cfg,
        stage="train_seam",
        split=manifest.split(cfg.data.train_split),
        architecture=seam_architecture(cfg, manifest.classes),
        settings=("model", "augment", "loss", "train_seam", *SAMPLE_SETTINGS),
        ignored=(
            *("train_seam.pictures_every", "model.activation_checkpointing"),
            *("model.channels_last", "model.pcm_impl"),
        ),
        inputs=lambda: {"shards": input_fingerprint(cfg.shards_dir, "shard")},
        build=lambda: build_seam(cfg, manifest.num_classes),
        module=lambda network, world: SeamModule(network, cfg),
        loader=partial(make_classification_loader, cfg, manifest),
    )


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Return the factor on the weights of ER and ECR at `step`: from 0 linearly to 1 at `warmup_steps`."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def second_view_size(side: int, cfg: Config) -> int:
    """Return the side of the second view in pixels: rounded down as published, or aligned (model.align_grid)."""
    scale = cfg.loss.second_view_scale
    if cfg.model.align_grid:
        return scaled_size((side, side), scale, align=cfg.model.output_stride)[0]
    return max(1, int(side * scale))
