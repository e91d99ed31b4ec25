"""The module that DeepSpeed trains for the final network: normalization, logits, cross-entropy, in one forward pass.

    L = 1/N sum_p w_p CE(logits_p, y_p),   N = pixels with y_p != 255 in the global batch,

over all ranks and accumulation steps, as one GPU with the whole batch would compute it: images differ in how much of
them is ignored, so a mean of means would not do. N is counted from the labels before the first forward pass
(`begin_step`). w_p is seg.background_weight where y_p is background, 1 elsewhere; with seg.confidence times the
network's own softmax probability of y_p without gradient. The weights are not normalized to a mean of 1: a batch whose
labels the network doubts counts less than one it agrees with.

Dropout belongs to the sample (`seam_dist.training.seam_task`), so it does not depend on the split into micro-batches. Live
BatchNorm statistics do: they are those of a micro-batch, on GPUs of the micro-batches of all ranks together
(`synchronize_batchnorm`). CPU ranks and accumulation steps keep statistics of their own, and the main rank's running
statistics are kept; with another number of them a training comes out differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from seam_dist.cluster.distributed import World, all_reduce_sum
from seam_dist.config.schema import IGNORE_INDEX, Config
from seam_dist.data.augment.normalize import normalize_images
from seam_dist.models.deeplab import DeepLab
from seam_dist.models.dropout import DropoutKeys, key_dropout


class SegModule(nn.Module):
    """What deepspeed.initialize gets: batch in, named losses out."""

    def __init__(self, model: DeepLab, cfg: Config) -> None:
        super().__init__()
        self.model = model
        self.cfg = cfg
        self.keys = DropoutKeys(cfg.run.seed)
        key_dropout(model, self.keys)
        self._scale: float | None = None
        # Buffers that move with the module and stay out of its state dict: they belong to the backbone, not to the run.
        self.register_buffer("mean", torch.tensor(model.backbone.mean), persistent=False)
        self.register_buffer("std", torch.tensor(model.backbone.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def begin_step(self, batches: Sequence[Mapping[str, Any]], world: World) -> None:
        """Count the labeled pixels of an optimizer step: of all its micro-batches on all ranks."""
        count = sum(int((batch["target"] != IGNORE_INDEX).sum()) for batch in batches)
        total = int(all_reduce_sum(torch.tensor(count), world))
        # DeepSpeed takes the mean over ranks and accumulation steps of what should be a sum.
        self._scale = world.size * len(batches) / max(1, total)

    def forward(self, batch: Mapping[str, Any], warmup: float = 1.0) -> dict[str, Tensor]:
        """Return float32 "loss" and "accuracy", whose means over the parts of the step are those of the global batch.

        `batch` is what the joint loader yields, moved to the device: image (B, 3, S, S) uint8, valid,
        sample_number and target (B, S, S) uint8. `warmup` has no effect here. Without labeled pixels the loss is 0.
        """
        assert self._scale is not None, "begin_step comes before the forward pass"
        self.keys.sample_number = batch["sample_number"]
        image = normalize_images(
            batch["image"],
            batch["valid"],
            None,  # the loader shifts the colors
            self.mean,
            self.std,
            channels_last=self.cfg.model.channels_last,
        )
        bf16 = self.cfg.train_seam.schedule.precision == "bf16"
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits: Tensor = self.model(image)
        target = batch["target"].long()
        seg = self.cfg.train_seg
        with torch.autocast(image.device.type, enabled=False):
            loss, hits = segmentation_sums(
                logits.float(),
                target,
                label_smoothing=seg.label_smoothing,
                confidence=seg.confidence,
                background_weight=seg.background_weight,
            )
        return {"loss": loss * self._scale, "accuracy": hits * self._scale}


def segmentation_sums(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    confidence: bool = False,
    background_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy and the number of right pixels, both float32, over pixels that are not 255.

    logits (B, C + 1, H, W) float32, target (B, H, W) int64. With label smoothing e a pixel's target is (1 - e) at its
    label plus e / (C + 1) everywhere; with `confidence` each pixel counts as much as its label is probable now; a pixel
    of label 0 counts `background_weight` times.
    """
    losses = cross_entropy(logits, target, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing, reduction="none")
    valid = target != IGNORE_INDEX
    if confidence:
        plain = losses
        if label_smoothing:
            plain = cross_entropy(logits, target, ignore_index=IGNORE_INDEX, reduction="none")
        losses = losses * torch.exp(-plain.detach())
    if background_weight != 1:
        losses = torch.where(target == 0, background_weight * losses, losses)
    with torch.no_grad():
        hits = ((logits.argmax(dim=1) == target) & valid).sum().float()
    return losses.sum(), hits


def synchronize_batchnorm(model: DeepLab, world: World) -> int:
    """Let live BatchNorm layers use the statistics of all ranks' micro-batches; return how many were changed.

    Only on several GPU ranks: torch has no such layer for CPUs. Frozen layers stay as they are. Raises ValueError for a
    BatchNorm of the backbone's own kind, which does more than BatchNorm.
    """
    if world.size == 1 or world.device.type != "cuda":
        return 0
    live = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, _BatchNorm) and child.training and not isinstance(child, nn.SyncBatchNorm)
    ]
    for parent, name, child in live:
        if type(child) is not nn.BatchNorm2d:
            raise ValueError(
                f"train_seg.freeze_batchnorm=false: {model.backbone.name} has layers of kind {type(child).__name__}, which "
                "cannot use the statistics of several ranks: set train_seg.freeze_batchnorm=true, or take another backbone"
            )
        setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
    return len(live)
