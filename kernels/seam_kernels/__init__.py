"""Operations of SEAM as differentiable torch.library ops; needs only torch (and triton on a GPU)."""

from seam_kernels.crf import dense_crf
from seam_kernels.dispatch import Impl
from seam_kernels.edges import edge_affinity
from seam_kernels.pcm import pcm_attention
from seam_kernels.reference import (
    dense_crf_reference,
    edge_affinity_reference,
    pcm_attention_reference,
    random_walk_reference,
)
from seam_kernels.stencil import half_plane_offsets, shrunk_radius
from seam_kernels.walk import random_walk, random_walk_packed

__all__ = [
    "Impl",
    "dense_crf",
    "dense_crf_reference",
    "edge_affinity",
    "edge_affinity_reference",
    "half_plane_offsets",
    "pcm_attention",
    "pcm_attention_reference",
    "random_walk",
    "random_walk_packed",
    "random_walk_reference",
    "shrunk_radius",
]
