"""The losses of SEAM as pure functions (PARITY.md section 2; SEAM, Wang et al. 2020, section 3.4).

Maps are float32 CAMs at image size, (B, C + 1, H, W), channel 0 the background; labels are multi-hot (B, C) over the
foreground classes. Every loss is a mean of per-sample values, so that data-parallel averaging over ranks of equal batch
is exact. Nothing is written in place. Where paper and published code differ, the code is followed.
"""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from seam_dist.config.training import Ablation

_EPS = 1e-5


def max_norm(cam: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return the CAM scaled to 0..1 within each sample and channel, then resized to `size` (align_corners=True).

    With x = relu(cam), m and M its extremes over H and W: relu(x - m - 1e-5) / (M - m + 1e-5). Differentiable, also
    through m and M. The division follows the resize: it is the same number, and the resized map is the smaller one.
    """
    flat = cam.flatten(2)
    with torch.no_grad():
        where = torch.stack([flat.argmin(dim=2), flat.argmax(dim=2)], dim=2)
    # Full-size passes decide the time: relu of the extremes is the extremes of relu; one gather of both has one
    # gradient map, not two; adding the negative spares the subtraction's negated gradient.
    low, high = F.relu(flat.gather(2, where))[..., None, None].unbind(dim=2)
    shifted = F.relu(cam + -(low + _EPS))
    if size is not None and cam.shape[2:] != size:
        shifted = F.interpolate(shifted, size, mode="bilinear", align_corners=True)
    return shifted / (high - low + _EPS)


def max_onehot(cam: Tensor) -> Tensor:
    """Return the CAM with every foreground value that is not its pixel's foreground maximum set to 0; ties stay."""
    foreground = cam[:, 1:]
    highest = foreground.amax(dim=1, keepdim=True)
    return torch.cat([cam[:, :1], torch.where(foreground == highest, foreground, 0)], dim=1)


def classification_loss(cam: Tensor, label: Tensor) -> Tensor:
    """Return the multilabel soft margin loss of the CAM's spatial mean over its foreground channels.

    The mean over samples and classes of -[y log s(x) + (1 - y) log s(-x)], s the logistic function.
    """
    return F.binary_cross_entropy_with_logits(cam.mean(dim=(2, 3))[:, 1:], label)


def min_pooling_loss(cam_refined: Tensor, label: Tensor) -> Tensor:
    """Return the mean, after relu, of the lowest quarter of each image's strongest foreground score.

    The map is used as it comes (not scaled to 0..1), times the label; k = H * W // 4 pixels of each
    image count, at least one.
    """
    k = max(1, cam_refined.shape[2] * cam_refined.shape[3] // 4)
    # The background stays in as zeros: the relu below makes it one, and a slice of the map would cost a copy backward.
    score = (cam_refined * F.pad(label, (1, 0))[..., None, None]).max(dim=1).values.flatten(1)
    return F.relu(score.topk(k, dim=1, largest=False, sorted=False).values).mean()


def scaled_foreground(cam: Tensor, label: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the foreground channels of max_norm(cam) at `size`, (B, C, h, w), zero where the label is."""
    return max_norm(cam, size)[:, 1:] * label[..., None, None]


def ecr_loss(
    foreground1: Tensor, foreground2: Tensor, refined1: Tensor, refined2: Tensor, label: Tensor, top: float = 0.2
) -> Tensor:
    """Return ECR: each view's refined map against the other view's plain one; the two directions are summed.

    The plain maps are those of `scaled_foreground` at one size h x w, the refined ones (B, C + 1, H, W) as the network
    gives them. The target is max_onehot of the plain map, with 1 - max foreground as its background, and takes no
    gradient. Of each sample's absolute differences over all C + 1 channels the largest share `top` counts:
    k = int((C + 1) * h * w * top), at least one.
    """
    size = (foreground2.shape[2], foreground2.shape[3])
    labels = F.pad(label, (1, 0), value=1.0)[..., None, None]  # the background is present in every image
    total = foreground1.new_zeros(())
    for plain, refined in ((foreground2, refined1), (foreground1, refined2)):
        plain = plain.detach()
        target = max_onehot(torch.cat([1 - plain.amax(dim=1, keepdim=True), plain], dim=1))
        differences = (target - max_norm(refined, size) * labels).abs().flatten(1)
        k = max(1, int(differences.shape[1] * top))
        total = total + differences.topk(k, dim=1, sorted=False).values.mean()
    return total


def seam_loss(
    view1: tuple[Tensor, Tensor | None],
    view2: tuple[Tensor, Tensor | None] | None,
    label: Tensor,
    *,
    ablation: Ablation = "full",
    er_weight: float = 1.0,
    ecr_weight: float = 1.0,
    min_pool_weight: float = 1.0,
    ecr_top: float = 0.2,
) -> dict[str, Tensor]:
    """Return the weighted total "loss" and its terms in use, unweighted: "cls", "min_pool", "er" and "ecr".

    view1 and view2 are the classifier's and PCM's map of the two views; view2 is None for the ablation "cam" alone.
    total = cls + min_pool_weight * min_pool + er_weight * er + ecr_weight * ecr; cls and min_pool are means over the
    views. Terms: cam: cls of one view; er: cls, er; pcm: cls, er, min_pool; ecr: cls, ecr, min_pool; full: all.
    Raises ValueError for an unknown ablation, a missing view or refined map, or a label of another width.
    """
    if ablation not in get_args(Ablation):
        raise ValueError(f"ablation={ablation!r} is unknown: use one of {', '.join(get_args(Ablation))}")
    cam1 = view1[0]
    expected = (cam1.shape[0], cam1.shape[1] - 1)
    if label.shape != expected:
        raise ValueError(
            f"label has shape {tuple(label.shape)}, expected {expected}: give one column a foreground class, without "
            "the background"
        )
    if ablation == "cam":
        cls = classification_loss(cam1, label)
        return {"loss": cls, "cls": cls}
    if view2 is None:
        raise ValueError(f"view2=None, but ablation={ablation} compares two views: pass the second view's maps")
    cam2 = view2[0]
    refined = [maps for _, maps in (view1, view2) if maps is not None]
    if ablation != "er" and len(refined) < 2:
        raise ValueError(f"ablation={ablation} needs the refined maps, but they are None: build SEAM with pcm=True")
    terms = {"cls": (classification_loss(cam1, label) + classification_loss(cam2, label)) / 2}
    total = terms["cls"]
    size = (cam2.shape[2], cam2.shape[3])
    foreground1, foreground2 = (scaled_foreground(cam, label, size) for cam in (cam1, cam2))
    if ablation != "er":
        terms["min_pool"] = (min_pooling_loss(refined[0], label) + min_pooling_loss(refined[1], label)) / 2
        total = total + min_pool_weight * terms["min_pool"]
    if ablation != "ecr":
        terms["er"] = (foreground1 - foreground2).abs().mean()  # absent classes count as equal
        total = total + er_weight * terms["er"]
    if ablation in ("ecr", "full"):
        terms["ecr"] = ecr_loss(foreground1, foreground2, refined[0], refined[1], label, ecr_top)
        total = total + ecr_weight * terms["ecr"]
    return {"loss": total, **terms}
