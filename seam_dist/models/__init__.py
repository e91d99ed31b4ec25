"""Networks: backbones, SEAM, and the reading of weight files."""

from seam_dist.models.backbone import Backbone, Features
from seam_dist.models.build import build_backbone, build_seam, parameter_groups
from seam_dist.models.pretrained import LoadReport, authors_state_dict, load_weights
from seam_dist.models.seam import SEAM, SEAMOutput

__all__ = [
    "SEAM",
    "Backbone",
    "Features",
    "LoadReport",
    "SEAMOutput",
    "authors_state_dict",
    "build_backbone",
    "build_seam",
    "load_weights",
    "parameter_groups",
]
