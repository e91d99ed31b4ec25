"""Training of the final network: logits and cross-entropy in one forward pass (PARITY.md section 7).

    L = 1/N sum_p w_p CE(logits_p, y_p),   N = pixels with y_p != 255 in the global batch,

over all ranks and accumulation steps, as one GPU with the whole batch would compute it: images differ in how much of
them is ignored, so a mean of means would not do. `seam_dist.losses.segmentation` has the sum and its weights w_p.

Live BatchNorm statistics are those of a micro-batch, on GPUs of the micro-batches of all ranks together. CPU ranks and
accumulation steps keep statistics of their own, and the main rank's running statistics are kept; with another number of
them a training comes out differently.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seam_dist.artifacts.layout import LABEL_TYPES, label_folder
from seam_dist.artifacts.stage import input_fingerprint
from seam_dist.cluster.distributed import World, all_reduce_sum
from seam_dist.config.schema import IGNORE_INDEX, Config
from seam_dist.data.loader import make_label_map_loader
from seam_dist.data.manifest import Manifest
from seam_dist.losses.segmentation import segmentation_sums
from seam_dist.models import DeepLab, build_deeplab, deeplab_architecture
from seam_dist.models.deeplab import SEAM_STAGE
from seam_dist.training.task import SAMPLE_SETTINGS, Batch, TrainModule, TrainTask, check_labels


class SegModule(TrainModule[DeepLab]):
    """The loss of the final network on images with label maps."""

    stage = "train_seg"

    def __init__(self, model: DeepLab, cfg: Config) -> None:
        super().__init__(model, cfg)
        self._scale: float | None = None

    def begin_step(self, batches: Sequence[MutableMapping[str, Any]], step: int, world: World) -> None:
        """Count the labeled pixels of an optimizer step: of all its micro-batches on all ranks."""
        count = sum(int((batch["target"] != IGNORE_INDEX).sum()) for batch in batches)
        total = int(all_reduce_sum(torch.tensor(count), world))
        # DeepSpeed takes the mean over ranks and accumulation steps of what should be a sum.
        self._scale = world.size * len(batches) / max(1, total)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return float32 "loss" and "accuracy", whose means over the parts of the step are those of the global batch.

        Without labeled pixels the loss is 0.
        """
        assert self._scale is not None, "begin_step comes before the forward pass"
        self.keys.sample_number = batch["sample_number"]
        image = self.normalized(batch, None)  # the loader shifts the colors
        with self.network_precision(image.device):
            logits: Tensor = self.model(image)
        seg = self.cfg.train_seg
        with torch.autocast(image.device.type, enabled=False):
            loss, hits = segmentation_sums(
                logits.float(),
                batch["target"].long(),
                label_smoothing=seg.label_smoothing,
                confidence=seg.confidence,
                background_weight=seg.background_weight,
            )
        return {"loss": loss * self._scale, "accuracy": hits * self._scale}


def build_seg_task(cfg: Config, manifest: Manifest) -> TrainTask[DeepLab]:
    """Return the training of the final network on images and label maps; image-level labels went into those.

    train_seg.labels=masks trains on the true masks instead, the fully supervised bound.
    """
    split, seg = manifest.split(cfg.data.train_split), cfg.train_seg
    label_type = None if seg.labels == "masks" else LABEL_TYPES[seg.labels]
    labels = None if label_type is None else label_folder(cfg, label_type)

    def inputs() -> Mapping[str, str]:
        fingerprints = {"shards": input_fingerprint(cfg.shards_dir, "shard")}
        if seg.pretrained == SEAM_STAGE:
            fingerprints[SEAM_STAGE] = input_fingerprint(cfg.stage_dir(SEAM_STAGE), SEAM_STAGE)
        if label_type is not None and labels is not None:
            stage = label_type.stage
            fingerprints[stage] = input_fingerprint(cfg.stage_dir(stage), stage)
            use = f"change train_seg.labels={seg.labels}, or run `--only {stage}` again with {label_type.remedy}"
            check_labels(labels, split, use)
        return fingerprints

    def module(network: DeepLab, world: World) -> SegModule:
        synchronize_batchnorm(network, world)
        return SegModule(network, cfg)

    # A block that runs twice counts its batch twice in live running statistics.
    twice = cfg.model.activation_checkpointing and not seg.freeze_batchnorm
    return TrainTask(
        cfg=cfg,
        stage="train_seg",
        split=split,
        architecture=deeplab_architecture(cfg, manifest.classes),
        # With live BatchNorm the weights depend on the micro-batches, too.
        settings=(
            *("train_seg", "model.backbone", "model.width", "model.pretrained", "model.output_stride"),
            *("model.align_grid", *SAMPLE_SETTINGS, *(("model.activation_checkpointing",) if twice else ())),
        ),
        inputs=inputs,
        build=lambda: build_deeplab(cfg, manifest.num_classes),
        module=module,
        loader=partial(make_label_map_loader, cfg, manifest, labels=labels, stage="train_seg"),
    )


def synchronize_batchnorm(model: DeepLab, world: World) -> int:
    """Let live BatchNorm layers use the statistics of all ranks' micro-batches; return how many were changed.

    Only on several GPU ranks: torch has no such layer for CPUs. Frozen layers stay as they are. Raises ValueError for a
    BatchNorm class of the backbone's own, which does more than BatchNorm.
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
                f"train_seg.freeze_batchnorm=false: {model.backbone.name} has layers of type {type(child).__name__}, "
                "which cannot use the statistics of several ranks: set train_seg.freeze_batchnorm=true, or use another "
                "backbone"
            )
        setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
    return len(live)
