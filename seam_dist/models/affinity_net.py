"""AffinityNet: features of grid cells whose L1 distance says whether two neighboring cells have one class.

PARITY.md section 1, row AffinityNet; Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level
Supervision", CVPR 2018, as SEAM's code uses it: three feature maps of the backbone are reduced, joined and mixed, all
of it trained, the backbone included. It starts from ImageNet's weights, not from SEAM's. Parameter names are those of
the authors' resnet38_aff checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from seam_kernels import edge_affinity
from seam_kernels.stencil import shrunk_radius
from torch import Tensor, nn
from torch.nn.functional import elu

from seam_dist.config.schema import Config, ModelConfig
from seam_dist.models.backbones.base import Backbone, BackboneNetwork, Features, check_normalized
from seam_dist.models.build import build_backbone, start_weights
from seam_dist.models.grid import resize
from seam_dist.models.seam import Conv1x1
from seam_dist.models.weights.load import LoadReport, load_trained
from seam_dist.models.weights.trained import Trained


class AffinityNet(BackboneNetwork):
    """A backbone with the branches f8_3, f8_4 and f8_5, one for each of its feature maps, and f9 over all of them.

    `channels` are the widths of the branches; f9 has their sum. `radius` bounds the pairs, in cells.
    """

    def __init__(self, backbone: Backbone, *, channels: tuple[int, int, int] = (64, 128, 256), radius: int = 5) -> None:
        super().__init__(backbone)
        self.radius = radius
        self.f8_3, self.f8_4, self.f8_5 = (
            Conv1x1(inputs, outputs) for inputs, outputs in zip(backbone.channels, channels, strict=True)
        )
        self.f9 = Conv1x1(sum(channels), sum(channels))
        for branch in (self.f8_3, self.f8_4, self.f8_5):
            nn.init.kaiming_normal_(branch.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, image: Tensor, border: Literal["paper", "full"] = "full") -> Tensor:
        """Return the affinities (B, K, h, w) of normalized images, as edge_affinity does; float32, in 0..1.

        K belongs to the radius, which is smaller on grids below 2 * radius + 1 cells: see `pair_radius`.
        """
        feature = self.forward_grid(image)
        radius = self.pair_radius(feature.shape[2], feature.shape[3])
        with torch.autocast(image.device.type, enabled=False):
            return edge_affinity(feature, radius=radius, border=border)

    def pair_radius(self, height: int, width: int) -> int:
        """Return the radius on a grid of that size."""
        return shrunk_radius(height, width, self.radius)

    def forward_grid(self, image: Tensor) -> Tensor:
        """Return the features (B, sum of channels, h, w) of normalized images at the grid of conv6, float32."""
        check_normalized(image)
        features: Features = self.backbone(image.to(self.f9.weight.dtype))
        size = (features.conv6.shape[2], features.conv6.shape[3])
        with torch.autocast(image.device.type, enabled=False):
            branches = [
                elu(branch(resize(feature.float(), size)))
                for branch, feature in zip((self.f8_3, self.f8_4, self.f8_5), features, strict=True)
            ]
            return elu(self.f9(torch.cat(branches, dim=1)))


def affinity_stride(cfg: Config) -> Literal[8, 16]:
    """Return the pixels a cell of the affinity grid."""
    return cfg.train_affinity.output_stride or cfg.model.output_stride


def affinity_architecture(cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """Return what weights of cfg's AffinityNet belong to: a checkpoint of another architecture is refused."""
    return {
        "network": "affinity",
        "backbone": cfg.model.backbone,
        "width": cfg.model.width,
        "output_stride": affinity_stride(cfg),
        "channels": list(cfg.train_affinity.channels),
        "classes": list(classes),
    }


def build_affinity_net(cfg: Config) -> tuple[AffinityNet, LoadReport]:
    """Return the network of cfg.train_affinity on cfg.model's backbone and the report of loading cfg.model.pretrained.

    Random weights come from torch's global generator: seed it first.
    """
    backbone = build_backbone(replace(cfg.model, output_stride=affinity_stride(cfg)))
    model = AffinityNet(backbone, channels=cfg.train_affinity.channels, radius=cfg.train_affinity.radius)
    return model, start_weights(model, cfg.model)


def load_affinity_net(trained: Trained, cfg: ModelConfig | None = None, *, radius: int = 5) -> AffinityNet:
    """Return the trained network in eval mode; `cfg` gives what its architecture leaves open (the memory format)."""
    names = ("backbone", "width", "output_stride")
    cfg = replace(cfg or ModelConfig(), **{name: trained.architecture[name] for name in names})
    first, second, third = trained.architecture["channels"]
    model = AffinityNet(build_backbone(cfg), channels=(first, second, third), radius=radius)
    return load_trained(model, trained.weights, channels_last=cfg.channels_last)
