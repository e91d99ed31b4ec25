"""The module that DeepSpeed trains: normalization, both views, SEAM and the losses in one forward pass.

Dropout is keyed by the sample: its mask is a function of (seed, sample number, layer, grid, channel). A resumed run,
another number of ranks or another split into micro batches therefore draws the same masks for the same images.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from seam_dist.cluster.distributed import World
from seam_dist.config.schema import Config
from seam_dist.data.augment.normalize import normalize_images
from seam_dist.losses.seam import seam_losses
from seam_dist.models.dropout import DropoutKeys, key_dropout
from seam_dist.models.grid import scaled_size
from seam_dist.models.seam import SEAM, SEAMOutput, present_channels


def second_view_size(side: int, cfg: Config) -> int:
    """Return the side of the second view in pixels: rounded down as published, or aligned (model.align_grid)."""
    scale = cfg.loss.second_view_scale
    if cfg.model.align_grid:
        return scaled_size((side, side), scale, align=cfg.model.output_stride)[0]
    return max(1, int(side * scale))


class TrainModule(nn.Module):
    """What deepspeed.initialize gets: batch in, named losses out."""

    def __init__(self, model: SEAM, cfg: Config) -> None:
        super().__init__()
        self.model = model
        self.cfg = cfg
        self.keys = DropoutKeys(cfg.run.seed)
        key_dropout(model, self.keys)
        # Buffers that move with the module and stay out of its state dict: they belong to the backbone, not to the run.
        self.register_buffer("mean", torch.tensor(model.backbone.mean), persistent=False)
        self.register_buffer("std", torch.tensor(model.backbone.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def begin_step(self, batches: Sequence[MutableMapping[str, Any]], _world: World) -> None:
        """Add to each micro-batch, still on the CPU, the CAM channels that its losses read: PCM refines those alone."""
        for batch in batches:
            batch["channels"] = present_channels(batch["label"])

    def forward(self, batch: Mapping[str, Any], warmup: float) -> dict[str, Tensor]:
        """Return the float32 losses of a batch by name: "loss", the total, and the terms in use.

        `batch` is what the loader yields, moved to the device; `warmup` in 0..1 scales the ER and ECR weights. Losses
        and gradients are the same with and without the entry "channels" of begin_step.
        """
        self.keys.sample_number = batch["sample_number"]
        image = self.images(batch)
        channels = batch.get("channels")
        first = self._cams(image, channels)
        second = None
        if self.cfg.loss.ablation != "cam":
            size = second_view_size(image.shape[2], self.cfg)
            second = self._cams(interpolate(image, (size, size), mode="bilinear", align_corners=True), channels)
        with torch.autocast(image.device.type, enabled=False):
            losses = seam_losses(first, second, batch["label"], self.cfg.loss, warmup)
        # Only the total is trained; the rest is for the log and needs no graph.
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}

    def images(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the normalized first view (B, 3, S, S), float32."""
        return normalize_images(
            batch["image"],
            batch["valid"],
            batch["color"],
            self.mean,
            self.std,
            channels_last=self.cfg.model.channels_last,
        )

    def pictures(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the first view in 0..1 and its CAMs; call it in eval mode, on every rank."""
        image = self.images(batch)
        output = self._cams(image)
        return image * self.std[:, None, None] + self.mean[:, None, None], output.cam, output.cam_refined

    def _cams(self, image: Tensor, channels: Tensor | None = None) -> SEAMOutput:
        bf16 = self.cfg.train_seam.schedule.precision == "bf16"
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bf16):
            output: SEAMOutput = self.model(image, channels)
        return output
