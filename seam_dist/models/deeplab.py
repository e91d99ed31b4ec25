"""The final segmentation network: DeepLabv1 (LargeFOV) as published, or DeepLabv3+, on any backbone.

PARITY.md section 7; Chen et al., "Semantic image segmentation with deep convolutional nets and fully connected CRFs",
2015, and "Encoder-decoder with atrous separable convolution", 2018 (here with ordinary convolutions). Differences from
the published retraining: dropout drops whole channels, so that its masks can belong to samples (the published code
drops single elements); at output stride 16 every dilation is halved. Parameter names are this project's own: weight
files of DeepLab code elsewhere do not load, those of a backbone or of SEAM do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from textwrap import shorten
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from seam_dist.config.schema import Config, ModelConfig
from seam_dist.models.backbones.base import Backbone, BackboneNetwork, check_normalized
from seam_dist.models.build import build_backbone, start_weights
from seam_dist.models.weights.load import PACKAGE, LoadReport, check_finite, read_weights
from seam_dist.models.weights.trained import WEIGHTS, Trained

SEAM_STAGE: Literal["train_seam"] = "train_seam"

_FOV_DILATION = 12  # of LargeFOV at output stride 8
_RATES = (6, 12, 18)  # of the atrous pyramid at output stride 16
_DECODER_CHANNELS = 48  # that conv4 is reduced to


def _conv_norm(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU of unchanged grid."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _upsample(x: Tensor, like: Tensor) -> Tensor:
    """Resize x to the height and width of `like`, as seam_dist.models.grid.resize does, but without its shortcut.

    The shortcut compares sizes; a branch on sizes cannot be exported as a program for images of any size.
    """
    return interpolate(x, (like.shape[2], like.shape[3]), mode="bilinear", align_corners=True)


def _classifier(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class LargeFOV(nn.Module):
    """DeepLabv1's head: a 3x3 convolution of dilation 12 (6 at output stride 16), a 1x1 one and the classifier."""

    def __init__(self, backbone: Backbone, num_outputs: int, *, width: int, dropout: float) -> None:
        super().__init__()
        dilation = _FOV_DILATION * 8 // backbone.output_stride
        self.fov = _conv_norm(backbone.channels[2], width, 3, dilation)
        self.mix = _conv_norm(width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(width, num_outputs)

    def forward(self, conv4: Tensor, conv6: Tensor) -> Tensor:
        """Return logits (B, C + 1, h, w) at the grid of conv6."""
        logits: Tensor = self.classifier(self.dropout(self.mix(self.fov(conv6))))
        return logits


class ImagePooling(nn.Module):
    """The pyramid's branch that sees the whole image: mean, 1x1, normalization, ReLU, spread over the grid.

    Normalized over the channels of each image (GroupNorm of one group). The published BatchNorm has one value a channel
    and image here: it fails with a single image, and with few it makes each image depend on its neighbors.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.norm = nn.GroupNorm(1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, h, w), the same vector everywhere in an image."""
        pooled = torch.relu(self.norm(self.conv(x.mean(dim=(2, 3), keepdim=True))))
        return pooled.expand(-1, -1, x.shape[2], x.shape[3])


class PyramidDecoder(nn.Module):
    """DeepLabv3+'s head: five parallel branches on conv6, then two 3x3 convolutions together with conv4.

    conv4 is the backbone's finest map, at stride 8 with the backbones here where the paper takes stride 4.
    """

    def __init__(self, backbone: Backbone, num_outputs: int, *, width: int, dropout: float) -> None:
        super().__init__()
        conv4, _, conv6 = backbone.channels
        half = max(1, width // 2)
        rates = [rate * 16 // backbone.output_stride for rate in _RATES]
        self.branches = nn.ModuleList([_conv_norm(conv6, half), *(_conv_norm(conv6, half, 3, r) for r in rates)])
        self.pooling = ImagePooling(conv6, half)
        self.project = _conv_norm(5 * half, half)
        self.reduce = _conv_norm(conv4, _DECODER_CHANNELS)
        self.decode = nn.Sequential(_conv_norm(half + _DECODER_CHANNELS, half, 3), _conv_norm(half, half, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(half, num_outputs)

    def forward(self, conv4: Tensor, conv6: Tensor) -> Tensor:
        """Return logits (B, C + 1, h, w) at the grid of conv4."""
        pyramid = self.project(torch.cat([*(branch(conv6) for branch in self.branches), self.pooling(conv6)], dim=1))
        fine = torch.cat([_upsample(pyramid, conv4), self.reduce(conv4)], dim=1)
        logits: Tensor = self.classifier(self.dropout(self.decode(fine)))
        return logits


class DeepLab(BackboneNetwork):
    """A backbone and a head; num_classes counts foreground classes, channel 0 of the logits is the background.

    The head's BatchNorm starts from nothing and learns its statistics also where the backbone's is frozen.
    """

    def __init__(self, backbone: Backbone, num_classes: int, *, network: str, width: int, dropout: float = 0.5) -> None:
        super().__init__(backbone)
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} is less than 1: the data set needs a foreground class")
        self.num_classes = num_classes
        heads = {"deeplabv1": LargeFOV, "deeplabv3plus": PyramidDecoder}
        if network not in heads:
            raise ValueError(f"network={network!r} is unknown, expected one of {', '.join(heads)}")
        self.head = heads[network](backbone, num_classes + 1, width=width, dropout=dropout)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, C + 1, H, W), float32, at the size of the normalized image (B, 3, H, W)."""
        return _upsample(self.forward_grid(image), image)

    def forward_grid(self, image: Tensor) -> Tensor:
        """Return logits (B, C + 1, h, w), float32, at the grid of the head."""
        check_normalized(image)
        features = self.backbone(image)
        logits: Tensor = self.head(features.conv4, features.conv6)
        return logits.float()


def deeplab_architecture(cfg: Config, classes: Sequence[str]) -> dict[str, Any]:
    """Return what weights of cfg's network belong to, enough to build it again; settings unset in seg are model's."""
    model = seg_model_config(cfg)
    return {
        "network": cfg.train_seg.network,
        "backbone": model.backbone,
        "backbone_width": model.width,
        "output_stride": model.output_stride,
        "width": cfg.train_seg.width,
        "align_grid": model.align_grid,
        "classes": list(classes),
    }


def build_deeplab(cfg: Config, num_classes: int) -> tuple[DeepLab, LoadReport]:
    """Return the network of cfg.train_seg for `num_classes` foreground classes and the report of loading its backbone.

    Unset in train_seg, the backbone, its weights and its stride are those of cfg.model; train_seg.pretrained=train_seam
    takes the backbone of this run's SEAM. Random weights come from torch's global generator: seed it first. Raises
    ValueError when the weights of cfg.model are for another backbone than the one asked for.
    """
    seg = cfg.train_seg
    check_seg_weights(cfg)
    model_config = seg_model_config(cfg)
    backbone = build_backbone(model_config)
    model = DeepLab(backbone, num_classes, network=seg.network, width=seg.width, dropout=seg.dropout)
    return model, start_weights(model, model_config, "train_seg")


def check_seg_weights(cfg: Config) -> None:
    """Raise ValueError when the final network would start from model.pretrained, weights of another backbone."""
    seg, source = cfg.train_seg, cfg.model.pretrained
    if seg.pretrained is None and source not in (None, PACKAGE) and seg.backbone not in (None, cfg.model.backbone):
        raise ValueError(
            f"train_seg.backbone={seg.backbone} is not model.backbone={cfg.model.backbone}, which "
            f"model.pretrained={source} is for: set train_seg.pretrained"
        )


def load_deeplab(trained: Trained) -> DeepLab:
    """Return the trained network in eval mode and channels_last.

    Raises ValueError when the file's tensors are not exactly the network's and finite.
    """
    weights, architecture = trained.weights, trained.architecture
    name, network = architecture["backbone"], architecture["network"]
    width, stride = architecture["backbone_width"], architecture["output_stride"]
    backbone = build_backbone(
        ModelConfig(backbone=name, width=width, output_stride=stride, freeze_batchnorm=False, freeze_stem=False)
    )
    model = DeepLab(backbone, len(trained.classes), network=network, width=architecture["width"])
    state = read_weights(weights)
    check_finite(state, weights)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} does not fit {network} on {name} ({shorten(str(error), 300)}): use weights and model.json of "
            "one training"
        ) from None
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def seg_model_config(cfg: Config) -> ModelConfig:
    """Return cfg.model with the backbone settings of cfg.train_seg; only resnet38d has a width."""
    seg = cfg.train_seg
    backbone = seg.backbone or cfg.model.backbone
    pretrained = seg.pretrained or cfg.model.pretrained
    if pretrained == SEAM_STAGE:
        pretrained = str(cfg.stage_dir(SEAM_STAGE) / "final" / WEIGHTS)
    return replace(
        cfg.model,
        backbone=backbone,
        width=cfg.model.width if backbone == cfg.model.backbone else 1.0,
        output_stride=seg.output_stride or cfg.model.output_stride,
        pretrained=pretrained,
        freeze_batchnorm=seg.freeze_batchnorm,
        freeze_stem=seg.freeze_stem,
    )
