"""SEAM: a classifier whose 1x1 weights give the CAM, and the pixel correlation module (PCM) that refines it.

PARITY.md section 1; Wang et al., "Self-supervised Equivariant Attention Mechanism", CVPR 2020, section 3.3. The losses
are elsewhere. Where the paper and the published code differ (the paper masks the PCM's input with image labels), the
code is followed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from seam_kernels import Impl, pcm_attention
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu

from seam_dist.models.backbones.base import Backbone, BackboneNetwork, Features, check_normalized
from seam_dist.models.grid import resize

EPS = 1e-5


class SEAMOutput(NamedTuple):
    """CAMs (B, C + 1, h, w) in float32, channel 0 background; `cam_refined` is None without PCM."""

    cam: Tensor
    cam_refined: Tensor | None


def pcm_input_cam(cam: Tensor) -> Tensor:
    """Return the cleaned CAM that PCM spreads, (B, C + 1, H, W), soft values in 0..1, without gradient.

    Each channel is rectified and divided by its spatial maximum + 1e-5 (no minimum is subtracted). Channel 0 becomes
    1 - the largest foreground value; foreground values below the largest of their pixel become 0, ties stay. Image
    labels are not used. PARITY.md section 1, "PCM input CAM".
    """
    with torch.no_grad():
        rectified = relu(cam)
        peak = rectified.amax(dim=(2, 3), keepdim=True) + EPS
        foreground = (relu(rectified - EPS) / peak)[:, 1:]
        strongest = foreground.amax(dim=1, keepdim=True)
        foreground = foreground.masked_fill(foreground < strongest, 0)
        return torch.cat([1 - strongest, foreground], dim=1)


def present_channels(label: Tensor) -> Tensor:
    """Return the CAM channels that the losses of a batch read, int64: 0, and 1 + each class of multi-hot (B, C) labels.

    Every loss multiplies the refined maps by the label (the background by 1) before it compares channels, and PCM
    refines each channel alone: all remaining channels may as well be 0. The result is on the device of the label; give
    labels on the CPU, since with a GPU the processor would wait for it.
    """
    return torch.cat([label.new_zeros(1, dtype=torch.int64), label.any(dim=0).nonzero()[:, 0] + 1])


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution without bias that computes in float32 whatever the dtype of its input and weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the float32 result."""
        return conv2d(x.float(), self.weight.float())


class Classifier(Conv1x1):
    """The CAM classifier; row 0, the background, never gets gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the raw CAM (B, C + 1, h, w) in float32."""
        weight = self.weight.float()
        return conv2d(x.float(), torch.cat([weight[:1].detach(), weight[1:]]))


class SEAM(BackboneNetwork):
    """A backbone with the CAM classifier fc8 and, if `pcm`, the PCM branch f8_3, f8_4, f9.

    num_classes counts foreground classes; fc8 has num_classes + 1 rows, as published. `pcm_channels` are the widths
    of f8_3 and f8_4; f9 has their sum. `pcm_center` subtracts each feature's spatial mean before PCM's cosine
    (published: no); `pcm_grid` "conv4" runs PCM at the resolution of that feature map, which may be finer than the
    CAM's (published: "output", the CAM's).

    The PCM branch sees conv4 and conv5 detached and the CAM without gradient: losses on cam_refined train only the
    branch itself.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        pcm: bool = True,
        pcm_channels: tuple[int, int] = (64, 128),
        pcm_center: bool = False,
        pcm_grid: Literal["output", "conv4"] = "output",
        pcm_impl: Impl = "auto",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(backbone)
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} is less than 1: the data set needs a foreground class")
        self.num_classes = num_classes
        self.pcm = pcm
        self.pcm_center = pcm_center
        self.pcm_grid = pcm_grid
        self.pcm_impl: Impl = pcm_impl
        conv4, conv5, conv6 = backbone.channels
        self.dropout7 = nn.Dropout2d(dropout)
        self.fc8 = Classifier(conv6, num_classes + 1)
        nn.init.xavier_uniform_(self.fc8.weight)
        if pcm:
            self.f8_3 = Conv1x1(conv4, pcm_channels[0])
            self.f8_4 = Conv1x1(conv5, pcm_channels[1])
            self.f9 = Conv1x1(3 + sum(pcm_channels), sum(pcm_channels))
            nn.init.kaiming_normal_(self.f8_3.weight)
            nn.init.kaiming_normal_(self.f8_4.weight)
            nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, image: Tensor, channels: Tensor | None = None) -> SEAMOutput:
        """Return both CAMs at the size of the normalized image (B, 3, H, W).

        `channels` names the channels that the refined CAM is wanted for, see present_channels; the others are 0 there.
        """
        cam, refined = self.forward_grid(image, channels)
        size = (image.shape[2], image.shape[3])
        return SEAMOutput(resize(cam, size), None if refined is None else resize(refined, size))

    def forward_grid(self, image: Tensor, channels: Tensor | None = None) -> SEAMOutput:
        """Return both CAMs at the grid of the backbone's conv6; with pcm_grid "conv4" the refined one at conv4's."""
        check_normalized(image)
        # DeepSpeed's bf16 mode converts parameters but not inputs.
        features: Features = self.backbone(image.to(self.fc8.weight.dtype))
        with torch.autocast(image.device.type, enabled=False):
            cam = self.fc8(self.dropout7(features.conv6))
            return SEAMOutput(cam, self._refine(cam, features, image.float(), channels) if self.pcm else None)

    def _refine(self, cam: Tensor, features: Features, image: Tensor, channels: Tensor | None) -> Tensor:
        if self.pcm_grid == "conv4":
            cam = resize(cam, (features.conv4.shape[2], features.conv4.shape[3]))
        size = (cam.shape[2], cam.shape[3])
        conv4 = resize(features.conv4.detach().float(), size)
        conv5 = resize(features.conv5.detach().float(), size)
        branches = [resize(image, size), relu(self.f8_3(conv4)), relu(self.f8_4(conv5))]
        feature = self.f9(torch.cat(branches, dim=1)).flatten(2)  # [B, D, N]
        if self.pcm_center:
            feature = feature - feature.mean(dim=2, keepdim=True)
        spread = pcm_input_cam(cam).flatten(2)  # [B, C + 1, N]
        if channels is None or len(channels) == spread.shape[1]:
            refined: Tensor = pcm_attention(spread, feature, eps=EPS, impl=self.pcm_impl)
        else:
            wanted = pcm_attention(spread.index_select(1, channels), feature, eps=EPS, impl=self.pcm_impl)
            refined = torch.zeros_like(spread).index_copy(1, channels, wanted)
        return refined.view(cam.shape)
