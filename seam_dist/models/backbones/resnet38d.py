"""ResNet38d: the wide pre-activation network that SEAM was published with (PARITY.md section 1).

Wu, Shen, van den Hengel, "Wider or Deeper", 2016, model A1, with dilation in place of the last strides. Parameter names
are those of the authors' checkpoints. `conv4` and `conv5` are the normalized, rectified inputs of b5 and b6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu

from seam_dist.models.backbones.base import Backbone, Features

_NARROW = 16  # input channels below which a strided 1x1 convolution of torch may corrupt memory: see SubsampledConv1x1
# Scale of each branch's last convolution at random initialization: with BatchNorm frozen at identity the variance
# would otherwise double in every block.
_BRANCH_INIT = 0.1


def scaled_channels(channels: int, width: float) -> int:
    """Return channels * width rounded to a multiple of 8, at least 8: a bottleneck's quarter and half stay whole."""
    return max(8, 8 * round(channels * width / 8))


class SubsampledConv1x1(nn.Conv2d):
    """A 1x1 convolution with a stride, computed in training as one without on every stride-th pixel.

    torch 2.13 and 2.14 (oneDNN 3.12) write outside the weight gradient of a strided 1x1 convolution with fewer than 16
    input channels in channels_last, on processors with AVX-512 and without AMX: the heap is corrupted and the process
    dies, often much later.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B, C, H, W)."""
        if not torch.is_grad_enabled():
            return super().forward(x)
        return conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    narrow = kernel == 1 and stride > 1 and inputs < _NARROW
    conv_type = SubsampledConv1x1 if narrow else nn.Conv2d
    return conv_type(inputs, outputs, kernel, stride, kernel // 2 * dilation, dilation, bias=False)


class WideBlock(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3, added to the input, or to its 1x1 projection where the shape changes."""

    def __init__(
        self, inputs: int, mid: int, outputs: int, *, stride: int = 1, first_dilation: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = _conv(inputs, mid, 3, stride, first_dilation)
        self.bn_branch2b1 = nn.BatchNorm2d(mid)
        self.conv_branch2b1 = _conv(mid, outputs, 3, dilation=dilation)
        self.projects = inputs != outputs or stride != 1
        if self.projects:
            self.conv_branch1 = _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's output and its normalized, rectified input."""
        active = relu(self.bn_branch2a(x))
        branch = self.conv_branch2b1(relu(self.bn_branch2b1(self.conv_branch2a(active))))
        return (self.conv_branch1(active) if self.projects else x) + branch, active


class BottleneckBlock(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, dropout, 3x3, BN, ReLU, dropout, 1x1, added to the 1x1 projection of the input."""

    def __init__(self, inputs: int, outputs: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = _conv(inputs, outputs // 4, 1)
        self.bn_branch2b1 = nn.BatchNorm2d(outputs // 4)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = _conv(outputs // 4, outputs // 2, 3, dilation=dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(outputs // 2)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = _conv(outputs // 2, outputs, 1)
        self.conv_branch1 = _conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's output and its normalized, rectified input."""
        active = relu(self.bn_branch2a(x))
        branch = self.dropout_2b1(relu(self.bn_branch2b1(self.conv_branch2a(active))))
        branch = self.dropout_2b2(relu(self.bn_branch2b2(self.conv_branch2b1(branch))))
        return self.conv_branch1(active) + self.conv_branch2b2(branch), active


class ResNet38d(Backbone):
    """ResNet38d at output stride 8 (published) or 16, every channel count scaled by `width`.

    At output stride 16 b5 keeps the stride of the classification network and later dilations are halved; conv4 is
    then still at stride 8.
    """

    def __init__(self, *, width: float = 1.0, output_stride: int = 8, activation_checkpointing: bool = False) -> None:
        super().__init__(output_stride=output_stride, activation_checkpointing=activation_checkpointing)
        self.name = "resnet38d" if width == 1 else f"resnet38d of width {width:g}"
        c64, c128, c256, c512, c1024, c2048, c4096 = (scaled_channels(64 << k, width) for k in range(7))
        self.channels = (c512, c1024, c4096)
        step = 16 // output_stride  # dilation that makes up for b5's missing stride
        self.conv1a = _conv(3, c64, 3)
        self._add_wide_blocks("b2", 3, (c64, c128, c128), stride=2)
        self._add_wide_blocks("b3", 3, (c128, c256, c256), stride=2)
        self._add_wide_blocks("b4", 6, (c256, c512, c512), stride=2)
        self._add_wide_blocks("b5", 3, (c512, c512, c1024), stride=2 // step, dilation=step)
        self.b6 = BottleneckBlock(c1024, c2048, dilation=2 * step, dropout=0.3)
        self.b7 = BottleneckBlock(c2048, c4096, dilation=2 * step, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(c4096)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if name.endswith(("conv_branch2b2", "conv_branch2b1")) and not name.startswith(("b6", "b7")):
                    module.weight.data.mul_(_BRANCH_INIT)

    def _add_wide_blocks(
        self, stage: str, num_blocks: int, channels: tuple[int, int, int], *, stride: int, dilation: int = 1
    ) -> None:
        inputs, mid, outputs = channels
        self.add_module(stage, WideBlock(inputs, mid, outputs, stride=stride, dilation=dilation))
        for index in range(1, num_blocks):
            block = WideBlock(outputs, mid, outputs, first_dilation=dilation, dilation=dilation)
            self.add_module(f"{stage}_{index}", block)

    def stem(self) -> list[nn.Module]:
        """Return conv1a and the three blocks at stride 2."""
        return [self.get_submodule(name) for name in ("conv1a", "b2", "b2_1", "b2_2")]

    def forward(self, image: Tensor) -> Features:
        """Return the three feature maps of normalized images."""
        x = self.conv1a(image)
        kept = []
        for name, block in self.named_children():
            if isinstance(block, WideBlock | BottleneckBlock):
                x, active = self.run(block, x)
                if name in ("b5", "b6"):
                    kept.append(active)
        return Features(kept[0], kept[1], relu(self.bn7(x)))
