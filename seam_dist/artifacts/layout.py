"""Where the stages of a run leave what: runs/<name>/<stage>, the types of label images, and the scores of each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from seam_dist.artifacts.stage import MANIFEST, StageError
from seam_dist.config.load import ConfigError, from_tree
from seam_dist.config.schema import Config
from seam_dist.config.text_file import read_text

_RERUN = "remove it and run that stage again"


@dataclass(frozen=True)
class LabelType:
    """One type of label images: the stage that makes them, their folder in it, and what they are called."""

    name: str
    stage: str
    folder: str
    title: str
    switch: str | None = None
    """The setting of the stage that must be on for it to write them."""
    uses_image_labels: bool = True
    """They are made with the image-level labels of the image itself."""

    @property
    def remedy(self) -> str:
        """The settings that make the stage write them."""
        return f"{self.stage}.{self.switch}=true and {self.stage}.splits" if self.switch else f"{self.stage}.splits"


_TYPES = (
    LabelType("cam_crf", "infer_cam", "crf", "CAM + CRF", "crf"),
    LabelType("walk", "random_walk", "labels", "random walk"),
    LabelType("walk_crf", "random_walk", "labels_crf", "random walk + CRF", "crf"),
    LabelType("seg", "infer_seg", "labels", "final network", uses_image_labels=False),
    LabelType("seg_crf", "infer_seg", "labels_crf", "final network + CRF", "crf", uses_image_labels=False),
    LabelType("seg_oracle", "infer_seg", "labels_oracle", "final network, image-level labels (oracle)", "oracle"),
)
# In the order of the pipeline; the CAM itself comes before them.
LABEL_TYPES = {label_type.name: label_type for label_type in _TYPES}
LABEL_STAGES = tuple(dict.fromkeys(label_type.stage for label_type in _TYPES))
CAM = "cam"
"""The name of the CAM's scores, beside those of the label types."""


def stage_folder(cfg: Config, stage: str) -> Path:
    """Return the folder of a stage; shards may lie outside of the run."""
    return cfg.shards_dir if stage == "shard" else cfg.stage_dir(stage)


def label_folder(cfg: Config, label_type: LabelType) -> Path:
    """Return the folder of the tars of a type of labels."""
    return cfg.stage_dir(label_type.stage) / label_type.folder


def cam_folder(cfg: Config) -> Path:
    """Return the folder of the tars of CAMs."""
    return cfg.stage_dir("infer_cam") / "cams"


def scores_folder(run_dir: Path, name: str) -> Path:
    """Return the folder of the scores of the CAM ("cam") or of a type of labels (its name)."""
    return run_dir / "evaluate" / name


def finished_label_types(cfg: Config) -> list[LabelType]:
    """Return the types of labels that finished stages of this run have made."""
    finished = [t for t in LABEL_TYPES.values() if (cfg.stage_dir(t.stage) / MANIFEST).is_file()]
    return [label_type for label_type in finished if any(label_folder(cfg, label_type).glob("*.tar"))]


def read_run_config(folder: Path) -> Config:
    """Return the settings of the stage of a run that started last; ValueError when there are none that can be used."""
    if not folder.is_dir():
        problem = "is a file, not the folder of a run" if folder.exists() else "is not there"
        raise StageError(f"{folder} {problem}: give a folder runs/<name>")
    os.listdir(folder)  # glob passes over a folder that it may not read
    newest = max(folder.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise StageError(f"{folder} holds no stage of a run (no */config.yaml): give a folder runs/<name>")
    try:
        tree = yaml.safe_load(read_text(newest))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise StageError(f"{newest} cannot be read ({' '.join(str(error).split())}): {_RERUN}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("run"), dict):
        raise StageError(f"{newest} holds no settings of a run, was it cut off? {_RERUN}")
    tree["run"].update(dir=str(folder.resolve().parent), name=folder.resolve().name)
    try:
        return from_tree(tree)
    except ConfigError as error:
        raise StageError(f"{newest}: {error}") from None
