"""What the sections of the configuration share: how they are checked, the names of the stages, types of settings."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, ConfigDict

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)
"""Every section: unknown keys are errors, the line under a field is its description, defaults are checked, too."""

# A value of the command line arrives as text, which a Literal of numbers does not take.
Stride = Annotated[Literal[8, 16], BeforeValidator(lambda value: {"8": 8, "16": 16}.get(str(value), value))]

Stage = Literal[
    "shard",
    "train_seam",
    "infer_cam",
    "train_affinity",
    "random_walk",
    "train_seg",
    "infer_seg",
    "evaluate",
    "report",
]
STAGES: tuple[Stage, ...] = get_args(Stage)
BACKBONES = r"^(resnet38d|lite0|timm:[A-Za-z0-9_.-]+)$"
"""Names of backbones."""
IGNORE_INDEX = 255
"""Class index of pixels without a label, in masks, pseudo-labels and affinity labels."""
MAX_CLASSES = 254
"""Foreground classes that fit into 8 bits beside the background and IGNORE_INDEX."""
Ablation = Literal["cam", "er", "pcm", "ecr", "full"]
