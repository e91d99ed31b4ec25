"""Small networks for the tests of models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from seam_dist.models import SEAM
from seam_dist.models.backbones.base import Backbone
from seam_dist.models.backbones.resnet38d import ResNet38d


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def randomize_norms() -> Callable[[Backbone], Backbone]:
    """Give BatchNorm statistics and affine parameters that matter, as trained ones do, and freeze."""

    def randomize(backbone: Backbone) -> Backbone:
        for norm in backbone.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.2)
                norm.running_mean.normal_(std=0.2)
                norm.running_var.uniform_(0.5, 1.5)
        backbone.freeze(batchnorm=True, stem=True)
        return backbone

    return randomize


@pytest.fixture
def make_resnet38d(randomize_norms: Callable[[Backbone], Backbone]) -> Callable[..., Backbone]:
    """Return a maker of equal frozen networks of width 1/8."""

    def make(**settings: object) -> Backbone:
        torch.manual_seed(0)
        return randomize_norms(ResNet38d(width=1 / 8, **settings))

    return make


@pytest.fixture
def seam(make_resnet38d: Callable[..., Backbone]) -> SEAM:
    return SEAM(make_resnet38d(), 3, pcm_channels=(8, 12))
