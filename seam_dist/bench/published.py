"""The published forms of steps that this project computes otherwise: readable, slow, what benchmarks compare with.

SEAM with dense N x N matrices, its losses as PARITY.md section 2 reads, and AffinityNet's loss from gathered pairs. The
augmentation is in published_augmentation.py, since these run where OpenCV is not installed.
"""

from __future__ import annotations

import torch
from seam_kernels import half_plane_offsets
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, multilabel_soft_margin_loss, pad, relu

from seam_dist.models import SEAM, SEAMOutput
from seam_dist.models.backbones.base import Features
from seam_dist.models.grid import resize
from seam_dist.models.seam import EPS, pcm_input_cam


class PublishedSEAM(SEAM):
    """SEAM whose PCM builds the similarity of all pixel pairs, normalizes it and multiplies the CAM by it."""

    def _refine(self, cam: Tensor, features: Features, image: Tensor, channels: Tensor | None) -> Tensor:
        size = (cam.shape[2], cam.shape[3])
        conv4, conv5 = features.conv4.detach(), features.conv5.detach()
        branches = [resize(image, size), relu(self.f8_3(conv4)), relu(self.f8_4(conv5))]
        feature = self.f9(torch.cat(branches, dim=1)).flatten(2)
        feature = feature / (torch.norm(feature, dim=1, keepdim=True) + EPS)
        similarity = relu(torch.matmul(feature.transpose(1, 2), feature))
        similarity = similarity / (torch.sum(similarity, dim=1, keepdim=True) + EPS)
        refined: Tensor = torch.matmul(pcm_input_cam(cam).flatten(2), similarity)
        return refined.view(cam.shape)


def _max_norm(cam: Tensor) -> Tensor:
    positive = relu(cam)
    low = positive.amin(dim=(2, 3), keepdim=True)
    high = positive.amax(dim=(2, 3), keepdim=True)
    return relu(positive - low - EPS) / (high - low + EPS)


def published_loss(first: SEAMOutput, second: SEAMOutput, label: Tensor) -> Tensor:
    """Return the total loss of SEAM as PARITY.md section 2 reads, operation by operation, at full size."""
    n = label.shape[0]
    with_background = pad(label, (1, 0), value=1.0)[:, :, None, None]
    size = (second.cam.shape[2], second.cam.shape[3])
    total = label.new_zeros(())
    maps = []
    for view in (first, second):
        assert view.cam_refined is not None
        pooled = adaptive_avg_pool2d(view.cam, 1)[:, 1:, 0, 0]
        strongest = (view.cam_refined * with_background)[:, 1:].amax(dim=1).flatten(1)
        k = strongest.shape[1] // 4
        lowest = torch.topk(strongest, k, dim=1, largest=False).values
        total = total + (multilabel_soft_margin_loss(pooled, label) + relu(lowest).sum() / (k * n)) / 2
        cam = resize(_max_norm(view.cam), size) * with_background
        refined = resize(_max_norm(view.cam_refined), size) * with_background
        target = torch.cat([1 - cam[:, 1:].amax(dim=1, keepdim=True), cam[:, 1:]], dim=1)
        maps.append((cam, refined, target))
    (cam1, refined1, target1), (cam2, refined2, target2) = maps
    total = total + (cam1[:, 1:] - cam2[:, 1:]).abs().mean()
    for target, refined in ((target2, refined1), (target1, refined2)):
        onehot = target.detach().clone()
        onehot[:, 1:][onehot[:, 1:] != onehot[:, 1:].amax(dim=1, keepdim=True)] = 0
        difference = (onehot - refined).abs().flatten(1)
        total = total + torch.topk(difference, int(difference.shape[1] * 0.2), dim=1).values.mean()
    return total


def gathered_loss(feature: Tensor, labels: Tensor, *, radius: int) -> Tensor:
    """Return AffinityNet's loss from gathered pairs (PARITY.md section 5).

    The second side of every pair is a copy: 34 copies of the features at radius 5.
    """
    batch, channels, height, width = feature.shape
    margin = radius - 1
    index = torch.arange(height * width).view(height, width)
    first = index[: height - margin, margin : width - margin].flatten()
    second = torch.cat([first + dy * width + dx for dy, dx in half_plane_offsets(radius)])
    flat = feature.view(batch, channels, -1)
    first_side = flat.index_select(2, first).unsqueeze(2)
    second_side = flat.index_select(2, second).view(batch, channels, -1, len(first))
    affinity = torch.exp(-(second_side - first_side).abs().mean(dim=1))  # [B, K, N]
    from_label = labels.flatten(1)[:, first].unsqueeze(1)
    to_label = labels.flatten(1)[:, second].view_as(affinity)
    valid = (from_label != 255) & (to_label != 255)
    same = valid & (from_label == to_label)
    pairs = {"bg": same & (from_label == 0), "fg": same & (from_label != 0), "neg": valid & ~same}
    sums = {
        name: -(mask * torch.log(1 + EPS - affinity if name == "neg" else affinity + EPS)).sum() / (mask.sum() + EPS)
        for name, mask in pairs.items()
    }
    return sums["bg"] / 4 + sums["fg"] / 4 + sums["neg"] / 2
