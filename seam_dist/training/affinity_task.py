"""The module that DeepSpeed trains for AffinityNet: normalization, affinities and their loss in one forward pass.

The loss divides by numbers of pairs in the global batch, which are known from the labels alone: `begin_step` counts
them over all micro-batches and ranks before the first forward pass. So N ranks, or accumulation, give the gradient of
one rank with the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seam_dist.cluster.distributed import World, all_reduce_sum
from seam_dist.config.schema import Config
from seam_dist.data.augment.normalize import normalize_images
from seam_dist.losses.affinity import affinity_losses, pair_counts
from seam_dist.models.affinity_net import AffinityNet
from seam_dist.models.dropout import DropoutKeys, key_dropout


class AffinityModule(nn.Module):
    """What deepspeed.initialize gets: batch in, named losses out; batches are those of the joint loader."""

    def __init__(self, model: AffinityNet, cfg: Config) -> None:
        super().__init__()
        self.model = model
        self.cfg = cfg
        self.keys = DropoutKeys(cfg.run.seed)
        key_dropout(model, self.keys)
        self._counts: Tensor | None = None
        self._parts = 1
        # Buffers that move with the module and stay out of its state dict: they belong to the backbone, not to the run.
        self.register_buffer("mean", torch.tensor(model.backbone.mean), persistent=False)
        self.register_buffer("std", torch.tensor(model.backbone.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def begin_step(self, batches: Sequence[Mapping[str, Any]], world: World) -> None:
        """Count the pairs of an optimizer step: of all its micro-batches on all ranks."""
        counts = [pair_counts(batch["target"], **self._pairs(batch["target"])) for batch in batches]
        self._counts = all_reduce_sum(torch.stack(counts).sum(dim=0), world)
        self._parts = world.size * len(batches)

    def forward(self, batch: Mapping[str, Any], warmup: float = 1.0) -> dict[str, Tensor]:
        """Return float32 "loss", "bg", "fg" and "neg", whose means over the parts of the step are the batch's losses.

        `batch` is what the joint loader yields, moved to the device. `warmup` has no effect here.
        """
        assert self._counts is not None, "begin_step comes before the forward pass"
        self.keys.sample_number = batch["sample_number"]
        bf16 = self.cfg.train_seam.schedule.precision == "bf16"
        image = self.images(batch)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bf16):
            affinity = self.model(image, self.cfg.train_affinity.border)
        with torch.autocast(image.device.type, enabled=False):
            losses = affinity_losses(affinity, batch["target"], self._counts, **self._pairs(batch["target"]))
        # DeepSpeed takes the mean over ranks and accumulation steps of what should be a sum. Only the total is trained.
        return {name: (value if name == "loss" else value.detach()) * self._parts for name, value in losses.items()}

    def images(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the normalized crops (B, 3, S, S), float32, black outside the image as published."""
        return normalize_images(
            batch["image"],
            batch["valid"],
            batch["color"] if self.cfg.train_affinity.jitter else None,
            self.mean,
            self.std,
            channels_last=self.cfg.model.channels_last,
            padding="black",
        )

    def _pairs(self, target: Tensor) -> dict[str, Any]:
        """Return radius and border for a grid of labels (B, h, w)."""
        radius = self.model.pair_radius(target.shape[1], target.shape[2])
        return {"radius": radius, "border": self.cfg.train_affinity.border}
