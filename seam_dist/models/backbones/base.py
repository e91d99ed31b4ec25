"""What every backbone gives to the heads: three feature maps, their widths, a stride and what is frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """Feature maps (B, channels, h, w) of one image batch; conv4 and conv5 may have finer grids than conv6."""

    conv4: Tensor
    conv5: Tensor
    conv6: Tensor


def check_normalized(image: Tensor) -> None:
    """Raise ValueError unless `image` can be a batch of normalized images."""
    if image.dim() != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise ValueError(
            f"image is {image.dtype} of shape {list(image.shape)}, expected floating point (B, 3, H, W): "
            "normalize it with normalize_images first"
        )


class Backbone(nn.Module):
    """A network from normalized images (B, 3, H, W) to `Features`, conv6 at 1 / output_stride of their size.

    Sizes are rounded up (some networks of timm round down). Subclasses set `name`, `channels` of conv4, conv5, conv6
    and, where they differ from ImageNet's, `mean` and `std` (of pixel values in 0..1), and define the stem.
    """

    name: str
    channels: tuple[int, int, int]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __init__(self, *, output_stride: int, activation_checkpointing: bool = False) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride={output_stride} is not 8 or 16: set model.output_stride to one of them")
        self.output_stride = output_stride
        self.activation_checkpointing = activation_checkpointing
        self._eval_modules: list[nn.Module] = []

    def stem(self) -> list[nn.Module]:
        """Return the first layers, which published training leaves as they are."""
        raise NotImplementedError

    def package_weights(self) -> dict[str, Tensor]:
        """Return the weights that a Python package ships for this network, under this module's parameter names.

        Raises ValueError when there are none.
        """
        raise ValueError(
            f"model.pretrained=package: no package ships weights for {self.name}, expected backbone lite0 or "
            "timm:<name>: give the path of a weight file"
        )

    def freeze(self, *, batchnorm: bool, stem: bool) -> None:
        """Stop gradients to BatchNorm's affine parameters and to the stem, and keep their statistics for good.

        Frozen BatchNorm stays in eval mode through every later call of `train` (PARITY.md section 1).
        """
        frozen_stem = self.stem() if stem else []
        for module in frozen_stem:
            module.requires_grad_(False)
        places = [self] if batchnorm else frozen_stem
        self._eval_modules = [
            module for place in places for module in place.modules() if isinstance(module, _BatchNorm)
        ]
        for norm in self._eval_modules:
            norm.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Switch training mode; frozen BatchNorm stays in eval mode."""
        super().train(mode)
        for module in self._eval_modules:
            module.eval()
        return self

    def run(self, block: Callable[..., Any], *inputs: Tensor) -> Any:
        """Call a block, storing only its inputs for the backward pass when activation checkpointing is on."""
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def forward(self, image: Tensor) -> Features:
        """Return the three feature maps of normalized images."""
        raise NotImplementedError


class BackboneNetwork(nn.Module):
    """A backbone with heads beside it; `pretrained_names` are the backbone parameters that came from weights."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.pretrained_names: set[str] = set()
