"""Any features_only network of timm (extra `timm`) as a backbone.

conv6, conv5 and conv4 are its three deepest feature maps. timm is imported when a network is built, never before.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from seam_dist.config.packages import require_package
from seam_dist.models.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, Features

_PROBE_SIZE = 64


class TimmBackbone(Backbone):
    """A timm network dilated to output stride 8 or 16, with random weights.

    Raises ValueError when timm cannot be imported, does not know the name, or cannot give three feature maps at this
    stride.
    """

    def __init__(self, model: str, *, output_stride: int = 16, activation_checkpointing: bool = False) -> None:
        super().__init__(output_stride=output_stride, activation_checkpointing=activation_checkpointing)
        self.name = f"timm:{model}"
        self._model = model
        self.net: Any = self._create(pretrained=False)
        info = self.net.feature_info
        reductions, channels = info.reduction(), info.channels()
        if len(reductions) < 3 or reductions[-1] != output_stride:
            raise ValueError(
                f"model.backbone={self.name} gives feature maps at strides {reductions}, expected three or more that "
                f"end at {output_stride}: choose another network or model.output_stride"
            )
        self.channels = (channels[-3], channels[-2], channels[-1])
        settings = getattr(self.net, "pretrained_cfg", None) or {}
        self.mean = tuple(settings.get("mean", IMAGENET_MEAN))
        self.std = tuple(settings.get("std", IMAGENET_STD))
        self._stem = self._find_stem()
        if activation_checkpointing:
            if not hasattr(self.net, "set_grad_checkpointing"):
                raise ValueError(
                    f"model.activation_checkpointing=true: {self.name} has no checkpointing: set it to false"
                )
            self.net.set_grad_checkpointing(True)

    def _create(self, *, pretrained: bool) -> Any:
        # torchvision built for another torch raises RuntimeError when timm imports it.
        require_package("timm", extra="timm", needed_by=f"model.backbone={self.name}")
        timm = importlib.import_module("timm")
        if not timm.is_model(self._model.split(".")[0]):
            near = ", ".join(difflib.get_close_matches(self._model, timm.list_models(), n=4)) or "nothing"
            raise ValueError(
                f"model.backbone={self.name} is unknown to timm {timm.__version__}: correct the name, near it is {near}"
            )
        try:
            settings = {"features_only": True, "output_stride": self.output_stride, "pretrained": pretrained}
            return timm.create_model(self._model, **settings)
        except (TypeError, NotImplementedError, RuntimeError, AssertionError) as error:
            raise ValueError(
                f"model.backbone={self.name} cannot be built as a features_only network of output stride "
                f"{self.output_stride} ({error}): choose another network, for example timm:resnet50"
            ) from None

    def stem(self) -> list[nn.Module]:
        """Return the modules whose parameters all lie before the first feature map."""
        return self._stem

    def _find_stem(self) -> list[nn.Module]:
        self.net.eval()  # the probe must not touch BatchNorm's statistics
        first = self.net(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE))[0].sum()
        self.net.train()
        names, parameters = zip(*self.net.named_parameters(), strict=True)
        gradients = torch.autograd.grad(first, parameters, allow_unused=True)
        early = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
        return [
            module
            for path, module in self.net.named_modules()
            if (own := [f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)])
            and early.issuperset(own)
        ]

    def forward(self, image: Tensor) -> Features:
        """Return the three deepest feature maps of normalized images."""
        conv4, conv5, conv6 = self.net(image)[-3:]
        return Features(conv4, conv5, conv6)

    def package_weights(self) -> dict[str, Tensor]:
        """Return timm's weights of this network (timm downloads them, or finds them in its cache)."""
        net = self._create(pretrained=True)
        return {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
