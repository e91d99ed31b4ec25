"""The operations as their equations read: dense, any floating dtype, differentiated by autograd.

They are the oracles of tests and benchmarks, so they are written for clarity, at the cost of memory and time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seam_kernels.stencil import from_window, half_plane_offsets


def pcm_attention_reference(cam: Tensor, feature: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Return `cam` propagated along the cosine similarity of `feature`, from a dense N x N matrix.

    cam (B, C, N), feature (B, D, N) -> (B, C, N):
    F = feature / (norm over D + eps), S = relu(F^T F), out = cam S / (column sum of S + eps).
    Source: PARITY.md section 1, row PCM (SEAM, Wang et al. 2020, equation 7, as the published code computes it).
    """
    norm = torch.linalg.vector_norm(feature, dim=1, keepdim=True)
    unit = feature / (norm + eps)
    similarity = torch.relu(unit.transpose(1, 2) @ unit)  # [B, N, N]
    return (cam @ similarity) / (similarity.sum(dim=1, keepdim=True) + eps)


def edge_affinity_reference(feature: Tensor, *, radius: int = 5, border: str = "paper") -> Tensor:
    """Return exp(-mean over D of abs(f(y, x) - f(y + dy, x + dx))) for each half-plane offset (dy, dx).

    feature (B, D, H, W) -> (B, K, H, W), zero where the border rule has no pair. Source: PARITY.md section 5.
    """
    height, width = feature.shape[2:]
    planes = []
    for dy, dx in half_plane_offsets(radius):
        plane = feature.new_zeros(feature.shape[0], height, width)
        y0, y1, x0, x1 = from_window((dy, dx), height, width, radius, border)
        if y0 < y1 and x0 < x1:
            near = feature[:, :, y0:y1, x0:x1]
            far = feature[:, :, y0 + dy : y1 + dy, x0 + dx : x1 + dx]
            plane[:, y0:y1, x0:x1] = torch.exp(-(near - far).abs().mean(dim=1))
        planes.append(plane)
    return torch.stack(planes, dim=1) if planes else feature.new_zeros(feature.shape[0], 0, height, width)


def edge_matrix(affinity: Tensor, radius: int) -> Tensor:
    """Return the symmetric (B, N, N) matrix of `affinity` (B, K, H, W), zero on its diagonal and beyond the radius."""
    batch, _, height, width = affinity.shape
    matrix = affinity.new_zeros(batch, height * width, height * width)
    pixel = torch.arange(height * width, device=affinity.device).view(height, width)
    for plane, (dy, dx) in zip(affinity.unbind(1), half_plane_offsets(radius), strict=True):
        y0, y1, x0, x1 = from_window((dy, dx), height, width, radius, "full")
        if y0 < y1 and x0 < x1:
            near = pixel[y0:y1, x0:x1].flatten()
            far = pixel[y0 + dy : y1 + dy, x0 + dx : x1 + dx].flatten()
            matrix[:, near, far] = plane[:, y0:y1, x0:x1].flatten(1)
    symmetric: Tensor = matrix + matrix.transpose(1, 2)
    return symmetric


def random_walk_reference(
    cam: Tensor, affinity: Tensor, *, radius: int = 5, beta: float = 8.0, num_steps: int = 64
) -> Tensor:
    """Return cam times the num_steps-th power of the column-normalized (affinity^beta + I), all dense.

    cam (B, C, H, W), affinity (B, K, H, W) -> (B, C, H, W). Source: PARITY.md section 6.
    """
    pixels = cam.shape[2] * cam.shape[3]
    weights = edge_matrix(affinity**beta, radius) + torch.eye(pixels, dtype=cam.dtype, device=cam.device)
    transition = weights / weights.sum(dim=1, keepdim=True)
    walked: Tensor = cam.flatten(2) @ torch.linalg.matrix_power(transition, num_steps)
    return walked.view(cam.shape)


def dense_crf_reference(
    prob: Tensor,
    image: Tensor,
    num_iters: int = 10,
    gaussian: tuple[float, float] = (3.0, 3.0),
    bilateral: tuple[float, float, float] = (80.0, 13.0, 10.0),
    source_stride: int = 1,
) -> Tensor:
    """Return mean-field probabilities from dense N x N kernels.

    gaussian is (sxy, compat), bilateral (sxy, srgb, compat).

    prob (B, C, H, W), image (B, 3, H, W) in 0..255 -> (B, C, H, W). Only every source_stride-th pixel in both
    directions sends bilateral messages. Source: PARITY.md section 4.
    """
    height, width = prob.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], dim=-1).view(1, -1, 2).to(prob)
    color = image.to(prob.dtype).flatten(2).transpose(1, 2)
    sends = ((y % source_stride == 0) & (x % source_stride == 0)).flatten().to(prob)
    kernels = []
    apart = (place[:, :, None] - place[:, None]).square().sum(-1)  # [1, N, N]
    kernels.append((gaussian[1], torch.exp(-apart / (2 * gaussian[0] ** 2))))
    shade = (color[:, :, None] - color[:, None]).square().sum(-1)
    both = torch.exp(-apart / (2 * bilateral[0] ** 2) - shade / (2 * bilateral[1] ** 2))
    kernels.append((bilateral[2], both * sends))
    log_prob = prob.clamp(1e-5, 1).log().flatten(2)
    q = log_prob.softmax(dim=1)
    for _ in range(num_iters):
        energy = log_prob
        for compat, kernel in kernels:
            norm = (kernel.sum(dim=2) + 1e-20).rsqrt().unsqueeze(1)  # [B, 1, N]
            energy = energy + compat * norm * ((norm * q) @ kernel.transpose(1, 2))
        q = energy.softmax(dim=1)
    return q.view(prob.shape)
