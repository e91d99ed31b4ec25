"""Networks: backbones, SEAM, AffinityNet, the final network, and the reading of weight files."""

from seam_dist.models.affinity_net import AffinityNet, affinity_facts, affinity_stride, build_affinity_net
from seam_dist.models.backbones.base import Backbone, Features
from seam_dist.models.build import build_backbone, build_seam, parameter_groups, seam_architecture
from seam_dist.models.deeplab import DeepLab, build_deeplab, deeplab_facts, load_deeplab
from seam_dist.models.seam import SEAM, SEAMOutput
from seam_dist.models.weights.load import LoadReport, load_weights

__all__ = [
    "SEAM",
    "AffinityNet",
    "Backbone",
    "DeepLab",
    "Features",
    "LoadReport",
    "SEAMOutput",
    "affinity_facts",
    "affinity_stride",
    "build_affinity_net",
    "build_backbone",
    "build_deeplab",
    "build_seam",
    "deeplab_facts",
    "load_deeplab",
    "load_weights",
    "parameter_groups",
    "seam_architecture",
]
