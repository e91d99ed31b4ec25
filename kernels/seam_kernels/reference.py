"""The operations as their equations read: dense, any floating dtype, differentiated by autograd.

They are the oracles of tests and benchmarks, so they trade memory and time for being obviously right.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
