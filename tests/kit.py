"""What many tests build: settings, small data sets, networks and runs. Imported as `kit` (pyproject.toml: pythonpath)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from seam_dist.artifacts.atomic import write_json
from seam_dist.artifacts.cam_file import StoredCam, store_cam, write_cams
from seam_dist.artifacts.label_file import write_labels
from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.artifacts.stage import open_stage
from seam_dist.config.load import from_tree
from seam_dist.config.schema import (
    Config,
    ScheduleConfig,
    Stage,
    TrainAffinityConfig,
    TrainSeamConfig,
    TrainSegConfig,
)
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import Sample, read_shard

Training = TypeVar("Training", TrainSeamConfig, TrainAffinityConfig, TrainSegConfig)
SCHEDULE = {entry.name for entry in fields(ScheduleConfig)}


def changed(section: Training, **values: Any) -> Training:
    """A section of a training stage with other values, those of its schedule included."""
    schedule = {name: value for name, value in values.items() if name in SCHEDULE}
    own = {name: value for name, value in values.items() if name not in SCHEDULE}
    return replace(section, schedule=replace(section.schedule, **schedule), **own)


def run_config(
    root: Path, name: str = "run", base: Mapping[str, Mapping[str, Any]] | None = None, **sections: Mapping[str, Any]
) -> Config:
    """Settings of a small run on synthetic scenes: shards in root/shards, runs in root/runs.

    `base` has the sections that all tests of a file share, `sections` those of one test; both are merged key by key.
    """
    tree: dict[str, dict[str, Any]] = {
        "run": {"name": name, "dir": str(root / "runs"), "device": "cpu", "threads": 1},
        "source": {"kind": "synthetic", "num_images": [5, 3], "num_classes": 3, "image_size": [64, 48]},
        "data": {"shards": str(root / "shards"), "samples_per_shard": 2, "streams": 1},
    }
    for more in (base or {}, sections):
        for section, values in more.items():
            tree[section] = {**tree.get(section, {}), **values}
    return from_tree(tree)


def finish_training(cfg: Config, stage: Stage, model: nn.Module, architecture: Mapping[str, Any]) -> None:
    """Leave what a training stage leaves: final/model.safetensors and model.json of `model`."""
    opened = open_stage(cfg, stage, settings=(stage,))
    final = opened.dir / "final"
    final.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, final / "model.safetensors")
    write_json(final / "model.json", {"architecture": dict(architecture)})
    opened.finish(final.iterdir())


def samples_of(cfg: Config, split: str, *, masks: bool = False) -> list[Sample]:
    """All samples of a split, in the order of its shards."""
    return [
        sample
        for part in load_manifest(cfg.shards_dir).split(split).shards
        for sample in read_shard(cfg.shards_dir / part.file, masks=masks, max_pixels=10**6)
    ]


def write_cams_from_masks(cfg: Config, primary: str = "refined") -> None:
    """What infer_cam leaves: maps that know the masks, with noise; the plain one has more of it.

    Those of val are weaker, so that their best threshold is lower. `primary` is infer_cam.cam.
    """
    rng = np.random.default_rng(0)
    stage = open_stage(cfg, "infer_cam", settings=("infer_cam",))
    for name, split in load_manifest(cfg.shards_dir).splits.items():
        for part in split.shards:
            cams = []
            for sample in read_shard(cfg.shards_dir / part.file, masks=True, max_pixels=10**6):
                inside = np.stack([sample.mask == index for index in sample.classes]).astype(np.float32)
                scale = 0.9 if name == "train" else 0.5
                maps = [scale * inside + 0.4 * strength * rng.random(inside.shape, np.float32) for strength in (0.7, 1)]
                refined, plain = (store_cam(torch.from_numpy(m), 4) for m in maps)
                size = (inside.shape[1], inside.shape[2])
                cams.append(
                    StoredCam(sample.key, sample.classes, size, refined, plain)
                    if primary == "refined"
                    else StoredCam(sample.key, sample.classes, size, plain)
                )
            write_cams(stage.dir / "cams" / part.file, cams)
    stage.finish((stage.dir / "cams").iterdir(), cam=primary)


WRONG_PIXELS = {"walk": 0.5, "walk_crf": 0.4, "seg": 0.3, "seg_crf": 0.2, "seg_oracle": 0.1}


def write_labels_from_masks(cfg: Config, wrong: Mapping[str, float] = WRONG_PIXELS) -> None:
    """What random_walk and infer_seg leave: the masks with a share of wrong pixels by label type, for all splits."""
    rng = np.random.default_rng(7)
    for name in dict.fromkeys(LABEL_TYPES[name].stage for name in wrong):
        stage = open_stage(cfg, name, settings=("run.seed",))
        outputs = []
        for label_type in (LABEL_TYPES[name] for name in wrong):
            if label_type.stage != name:
                continue
            for split in load_manifest(cfg.shards_dir).splits.values():
                for part in split.shards:
                    items = []
                    for sample in read_shard(cfg.shards_dir / part.file, masks=True, max_pixels=10**6):
                        assert sample.mask is not None
                        noise = rng.random(sample.mask.shape) < wrong[label_type.name]
                        values = np.where(sample.mask == 255, 0, sample.mask)
                        items.append((sample.key, np.where(noise, 0, values).astype(np.uint8)))
                    outputs.append(stage.dir / label_type.folder / part.file)
                    write_labels(outputs[-1], items)
        stage.finish(outputs)


def miou_of(confusion: NDArray[np.int64]) -> float:
    """Mean IoU of a confusion matrix over the classes that have one."""
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return float(np.mean(hits[union > 0] / union[union > 0]))
