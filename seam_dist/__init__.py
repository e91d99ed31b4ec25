"""Distributed training of SEAM (Wang et al., CVPR 2020), weakly supervised segmentation, and its Python API.

    import seam_dist as seam

seam.load loads a trained network of a run, seam.SEAM builds a new one, seam.seam_loss computes the losses of two views,
seam.ShardDataset reads shards for torch's DataLoader. Classes are names or ids from 1; 0 is the background. Each of
these is imported at its first use, so that `import seam_dist` alone does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seam_dist.api import SEAMModel as SEAM  # noqa: N814
    from seam_dist.api import load
    from seam_dist.data.dataset import ShardDataset
    from seam_dist.losses.seam import seam_loss

__version__ = "0.1.0"
__all__ = ["SEAM", "ShardDataset", "load", "seam_loss"]

_PLACES = {
    "SEAM": ("seam_dist.api", "SEAMModel"),
    "ShardDataset": ("seam_dist.data.dataset", "ShardDataset"),
    "load": ("seam_dist.api", "load"),
    "seam_loss": ("seam_dist.losses.seam", "seam_loss"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
