"""Builds the network that a configuration describes, and sorts its parameters for the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam_dist.config.schema import Config, ModelConfig, ScheduleConfig
from seam_dist.models.backbones.base import Backbone
from seam_dist.models.backbones.lite0 import Lite0
from seam_dist.models.backbones.resnet38d import ResNet38d
from seam_dist.models.seam import SEAM
from seam_dist.models.weights.load import LoadReport, load_weights

GROUP_NAMES = ("pretrained_weights", "pretrained_biases", "new_weights", "new_biases")


def build_backbone(cfg: ModelConfig) -> Backbone:
    """Return the backbone with random weights, frozen as configured.

    Raises ValueError for a setting that this backbone would ignore, or an extra that is not installed.
    """
    if cfg.width != 1 and cfg.backbone != "resnet38d":
        raise ValueError(f"model.width={cfg.width:g} has no effect on {cfg.backbone}: set it to 1 or use resnet38d")
    backbone: Backbone
    if cfg.backbone == "resnet38d":
        backbone = ResNet38d(
            width=cfg.width,
            output_stride=cfg.output_stride,
            activation_checkpointing=cfg.activation_checkpointing,
        )
    elif cfg.backbone == "lite0":
        backbone = Lite0(output_stride=cfg.output_stride, activation_checkpointing=cfg.activation_checkpointing)
    else:
        # timm is an extra: only networks that ask for it import it.
        from seam_dist.models.backbones.timm_cnn import TimmBackbone

        backbone = TimmBackbone(
            cfg.backbone.removeprefix("timm:"),
            output_stride=cfg.output_stride,
            activation_checkpointing=cfg.activation_checkpointing,
        )
    backbone.freeze(batchnorm=cfg.freeze_batchnorm, stem=cfg.freeze_stem)
    return backbone


def seam_architecture(cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """Return what weights of cfg's SEAM belong to: a checkpoint of another architecture is refused."""
    return {
        "backbone": cfg.model.backbone,
        "width": cfg.model.width,
        "output_stride": cfg.model.output_stride,
        "pcm_channels": list(cfg.model.pcm_channels),
        "pcm_center": cfg.model.pcm_center,
        "pcm_grid": cfg.model.pcm_grid,
        "align_grid": cfg.model.align_grid,
        "pcm": cfg.loss.ablation not in ("cam", "er"),
        "classes": list(classes),
    }


def build_seam(cfg: Config, num_classes: int, *, pretrained: bool = True) -> tuple[SEAM, LoadReport]:
    """Return SEAM for `num_classes` foreground classes and the report of loading cfg.model.pretrained.

    Ablations "cam" and "er" are built without PCM. `pretrained=False` skips the weights, for a model whose checkpoint
    comes next. Random weights come from torch's global generator: seed it first.
    """
    model = SEAM(
        build_backbone(cfg.model),
        num_classes,
        pcm=cfg.loss.ablation not in ("cam", "er"),
        pcm_channels=cfg.model.pcm_channels,
        pcm_center=cfg.model.pcm_center,
        pcm_grid=cfg.model.pcm_grid,
        pcm_impl=cfg.model.pcm_impl,
        dropout=cfg.model.dropout,
    )
    return model, start_weights(model, cfg.model, cfg.model.pretrained if pretrained else None, wanted=pretrained)


def start_weights(
    model: Any, cfg: ModelConfig, source: str | Path | None, *, wanted: bool, section: str = "model"
) -> LoadReport:
    """Bring a new network (a module with a `backbone`) to its memory format and load `source` into it; report it.

    Without a source the weights stay random; where weights were `wanted`, the report then warns of frozen layers, which
    the settings of `section` freeze.
    """
    if cfg.channels_last:
        model.to(memory_format=torch.channels_last)
    if source is not None:
        return load_weights(model, source)
    report = LoadReport(source="nothing", missing=tuple(name for name, _ in model.named_parameters()))
    if wanted and (cfg.freeze_batchnorm or cfg.freeze_stem):
        flags = f"{section}.freeze_batchnorm=false and {section}.freeze_stem=false"
        note = f"random weights with frozen layers: set {flags}"
        report = replace(report, notes=(note,))
    return report


def parameter_groups(model: nn.Module, cfg: ScheduleConfig) -> list[dict[str, Any]]:
    """Return optimizer groups {params, lr, weight_decay, name}; empty groups and frozen parameters are left out.

    lr is cfg.lr times cfg.lr_multipliers; only weights decay. New are the heads, always (PARITY.md section 2), and
    backbone parameters that did not come from weights (`model.pretrained_names`). BatchNorm's affine parameters, which
    published training never changes, count as biases when model.freeze_batchnorm is off: a decayed scale would
    shrink the features that a frozen stem gives.
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, nn.Conv2d | nn.Linear)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() <= 1
    }
    pretrained: set[str] = getattr(model, "pretrained_names", set())
    members: list[list[nn.Parameter]] = [[], [], [], []]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias = id(parameter) in norms or name.endswith(".bias")
        members[2 * (name not in pretrained) + is_bias].append(parameter)
    return [
        {
            "params": members[k],
            "lr": cfg.lr * cfg.lr_multipliers[k],
            "weight_decay": 0.0 if k % 2 else cfg.weight_decay,
            "name": GROUP_NAMES[k],
        }
        for k in range(4)
        if members[k]
    ]
