"""Networks: backbones, SEAM, AffinityNet, the final network, and the reading of weight files."""

from seam_dist.models.affinity_net import (
    AffinityNet,
    affinity_architecture,
    affinity_stride,
    build_affinity_net,
    load_affinity_net,
)
from seam_dist.models.build import build_seam, load_seam, parameter_groups, seam_architecture
from seam_dist.models.deeplab import DeepLab, build_deeplab, deeplab_architecture, load_deeplab
from seam_dist.models.seam import SEAM, SEAMOutput
from seam_dist.models.weights.load import LoadReport
from seam_dist.models.weights.trained import Trained, find_trained, trained_for

__all__ = [
    "SEAM",
    "AffinityNet",
    "DeepLab",
    "LoadReport",
    "SEAMOutput",
    "Trained",
    "affinity_architecture",
    "affinity_stride",
    "build_affinity_net",
    "build_deeplab",
    "build_seam",
    "deeplab_architecture",
    "find_trained",
    "load_affinity_net",
    "load_deeplab",
    "load_seam",
    "parameter_groups",
    "seam_architecture",
    "trained_for",
]
