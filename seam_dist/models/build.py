"""Builds the network that a configuration describes, and sorts its parameters for the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from seam_dist.config.schema import Config, ModelConfig, ScheduleConfig
from seam_dist.models.backbones.base import Backbone, BackboneNetwork
from seam_dist.models.backbones.lite0 import Lite0
from seam_dist.models.backbones.resnet38d import ResNet38d
from seam_dist.models.backbones.timm_cnn import TimmBackbone
from seam_dist.models.seam import SEAM
from seam_dist.models.weights.load import LoadReport, load_trained, load_weights
from seam_dist.models.weights.trained import Trained

# The settings of `model` that weights of SEAM belong to.
_OF_MODEL = ("backbone", "width", "output_stride", "pcm_channels", "pcm_center", "pcm_grid", "align_grid")


def build_backbone(cfg: ModelConfig) -> Backbone:
    """Return the backbone with random weights, frozen as configured.

    Raises ValueError for a setting that this backbone would ignore, or an extra that is not installed.
    """
    if cfg.width != 1 and cfg.backbone != "resnet38d":
        raise ValueError(f"model.width={cfg.width:g} has no effect on {cfg.backbone}: set it to 1 or use resnet38d")
    backbone: Backbone
    stride, checkpointing = cfg.output_stride, cfg.activation_checkpointing
    if cfg.backbone == "resnet38d":
        backbone = ResNet38d(width=cfg.width, output_stride=stride, activation_checkpointing=checkpointing)
    elif cfg.backbone == "lite0":
        backbone = Lite0(output_stride=stride, activation_checkpointing=checkpointing)
    else:
        name = cfg.backbone.removeprefix("timm:")
        backbone = TimmBackbone(name, output_stride=stride, activation_checkpointing=checkpointing)
    backbone.freeze(batchnorm=cfg.freeze_batchnorm, stem=cfg.freeze_stem)
    return backbone


def build_seam(cfg: Config, num_classes: int) -> tuple[SEAM, LoadReport]:
    """Return SEAM for `num_classes` foreground classes and the report of loading cfg.model.pretrained.

    Ablations "cam" and "er" are built without PCM. Random weights come from torch's global generator: seed it first.
    """
    model = _random_seam(cfg.model, num_classes, pcm=cfg.loss.ablation not in ("cam", "er"))
    return model, start_weights(model, cfg.model)


def _random_seam(cfg: ModelConfig, num_classes: int, *, pcm: bool) -> SEAM:
    return SEAM(
        build_backbone(cfg),
        num_classes,
        pcm=pcm,
        pcm_channels=cfg.pcm_channels,
        pcm_center=cfg.pcm_center,
        pcm_grid=cfg.pcm_grid,
        pcm_impl=cfg.pcm_impl,
        dropout=cfg.dropout,
    )


def seam_architecture(cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """Return what weights of cfg's SEAM belong to, enough to build it again."""
    return {
        **{name: getattr(cfg.model, name) for name in _OF_MODEL},
        "pcm_channels": list(cfg.model.pcm_channels),
        "pcm": cfg.loss.ablation not in ("cam", "er"),
        "classes": list(classes),
    }


def load_seam(trained: Trained, cfg: ModelConfig | None = None) -> SEAM:
    """Return the trained SEAM in eval mode; `cfg` gives what its architecture leaves open (memory format, pcm_impl)."""
    values = {name: trained.architecture[name] for name in _OF_MODEL}
    cfg = replace(cfg or ModelConfig(), **values | {"pcm_channels": tuple(values["pcm_channels"])})
    model = _random_seam(cfg, len(trained.classes), pcm=bool(trained.architecture["pcm"]))
    return load_trained(model, trained.weights, channels_last=cfg.channels_last)


def start_weights(model: BackboneNetwork, cfg: ModelConfig, section: str = "model") -> LoadReport:
    """Bring a new network to its memory format, load cfg.pretrained into it and report it.

    Without it the weights stay random, and the report warns of frozen layers, which the settings of `section` freeze.
    """
    if cfg.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.pretrained is not None:
        return load_weights(model, cfg.pretrained)
    note = f"random weights with frozen layers: set {section}.freeze_batchnorm=false and {section}.freeze_stem=false"
    return LoadReport(
        source="nothing",
        missing=tuple(name for name, _ in model.named_parameters()),
        notes=(note,) if cfg.freeze_batchnorm or cfg.freeze_stem else (),
    )


def parameter_groups(model: BackboneNetwork, cfg: ScheduleConfig) -> list[dict[str, Any]]:
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
    members: list[list[nn.Parameter]] = [[], [], [], []]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = id(parameter) in norms or name.endswith(".bias")
            members[2 * (name not in model.pretrained_names) + is_bias].append(parameter)
    names = ("pretrained_weights", "pretrained_biases", "new_weights", "new_biases")
    decays = (cfg.weight_decay, 0.0) * 2
    return [
        {"params": params, "lr": cfg.lr * factor, "weight_decay": decay, "name": name}
        for params, factor, decay, name in zip(members, cfg.lr_multipliers, decays, names, strict=True)
        if params
    ]
