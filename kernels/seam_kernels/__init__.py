"""Operations of SEAM as differentiable torch.library ops; needs only torch (and triton on a GPU)."""

from seam_kernels.dispatch import Impl
from seam_kernels.pcm import pcm_attention
from seam_kernels.reference import pcm_attention_reference

__all__ = ["Impl", "pcm_attention", "pcm_attention_reference"]
