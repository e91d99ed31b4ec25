"""What many tests build: settings, small data sets, networks and runs. Imported as `kit` (pyproject.toml: pythonpath)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import nn

from seam_dist.artifacts.atomic import write_json
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
