"""Training of the final network: logits and cross-entropy in one forward pass (PARITY.md section 7).

    L = 1/N sum_p w_p CE(logits_p, y_p),   N = pixels with y_p != 255 in the global batch,

over all ranks and accumulation steps, as one GPU with the whole batch would compute it: images differ in how much of
them is ignored, so a mean of means would not do. N is counted from the labels before the first forward pass
(`begin_step`). The sum and its weights w_p are those of `seam_dist.losses.segmentation`.

Dropout does not depend on the split into micro-batches; live BatchNorm statistics do: they are those of a micro-batch,
on GPUs of the micro-batches of all ranks together (`synchronize_batchnorm`). CPU ranks and accumulation steps keep
statistics of their own, and the main rank's running statistics are kept; with another number of them a training comes
out differently.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seam_dist.artifacts.layout import LABEL_TYPES, label_folder
from seam_dist.artifacts.stage import StageError, input_fingerprint
from seam_dist.cluster.distributed import World, all_reduce_sum
from seam_dist.config.schema import IGNORE_INDEX, Config
from seam_dist.data.loader import make_label_map_loader
from seam_dist.losses.segmentation import segmentation_sums
from seam_dist.models import DeepLab, LoadReport, build_deeplab, deeplab_architecture
from seam_dist.models.deeplab import SEAM_STAGE
from seam_dist.training.task import Batch, Loader, TrainModule, TrainTask


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


class SegTask(TrainTask[DeepLab]):
    """Train the final network on images and label maps alone; image-level labels went into the pseudo-labels.

    train_seg.labels=masks trains on the true masks instead, the fully supervised bound.
    """

    stage = "train_seg"

    @property
    def labels(self) -> Path | None:
        """Folder of label tars that train_seg.labels names, None for the masks in the shards."""
        if self.cfg.train_seg.labels == "masks":
            return None
        return label_folder(self.cfg, LABEL_TYPES[self.cfg.train_seg.labels])

    @property
    def settings(self) -> Sequence[str]:
        """Settings that the weights depend on; with live BatchNorm they depend on the micro-batches, too."""
        settings = [
            *("train_seg", "model.backbone", "model.width", "model.pretrained", "model.output_stride"),
            *("model.align_grid", "run.seed", "data.train_split", "data.streams", "data.shuffle_shards"),
        ]
        if self.cfg.model.activation_checkpointing and not self.cfg.train_seg.freeze_batchnorm:
            # A block that runs twice counts its batch twice in its running statistics.
            settings.append("model.activation_checkpointing")
        return settings

    @property
    def architecture(self) -> Mapping[str, Any]:
        """What weights of the final network belong to."""
        return deeplab_architecture(self.cfg, self.manifest.classes)

    def inputs(self) -> Mapping[str, str]:
        """Return the fingerprints of shards and labels; raise StageError when a label tar of the split is missing."""
        cfg = self.cfg
        fingerprints = {"shards": input_fingerprint(cfg.shards_dir, "shard")}
        if cfg.train_seg.pretrained == SEAM_STAGE:
            fingerprints[SEAM_STAGE] = input_fingerprint(cfg.stage_dir(SEAM_STAGE), SEAM_STAGE)
        if self.labels is None:
            return fingerprints
        label_type = LABEL_TYPES[cfg.train_seg.labels]
        stage = label_type.stage
        fingerprints[stage] = input_fingerprint(cfg.stage_dir(stage), stage)
        missing = self.missing_labels(self.labels)
        if missing is not None:
            raise StageError(
                f"train_seg.labels={cfg.train_seg.labels} needs {missing}, which stage {stage} did not write: run it "
                f"again with {label_type.remedy} that include {self.split.name!r}, or change train_seg.labels"
            )
        return fingerprints

    def build(self) -> tuple[DeepLab, LoadReport]:
        """Return the network and the report of its start weights."""
        return build_deeplab(self.cfg, self.manifest.num_classes)

    def module(self, network: DeepLab, world: World) -> SegModule:
        """Return what takes the training steps of the network, whose BatchNorm is synchronized where it can be."""
        synchronize_batchnorm(network, world)
        return SegModule(network, self.cfg)

    def loader(self, world: World, start_sample: int, micro_batch_size: int) -> Loader:
        """Return images with label maps."""
        return make_label_map_loader(
            self.cfg,
            self.manifest,
            world.rank,
            world.size,
            start_sample,
            micro_batch_size,
            labels=self.labels,
            stage=self.stage,
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
