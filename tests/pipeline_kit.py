"""A whole pipeline of seconds on a data set that a test makes image by image."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from kit import Bytes, convert, encode, pixels, run_config
from numpy.typing import NDArray

from seam_dist.config.schema import STAGES, Config
from seam_dist.data.sources.base import Record

PIPELINE = tuple(stage for stage in STAGES if stage != "shard")

SETTINGS: dict[str, dict[str, Any]] = {
    "source": {"kind": "folder"},
    "data": {"streams": 2},
    "augment": {"resize_long": [32, 48], "crop_size": 32},
    "model": {"width": 1 / 16, "freeze_stem": False, "pcm_channels": [8, 8]},
    "loss": {"second_view_scale": 0.5},
    "train_seam": {"schedule": {"global_batch_size": 4, "max_steps": 2, "log_every": 1, "lr": 1e-3}},
    "infer_cam": {"scales": [0.5, 1.0], "batch_size": 2},
    "crf": {"num_iters": 2, "num_workers": 0, "impl": "torch"},
    "train_affinity": {"channels": [8, 8, 8], "crop_size": 64, "schedule": {"global_batch_size": 4, "max_steps": 2}},
    "random_walk": {"batch_size": 3},
    "train_seg": {"width": 8, "crop_size": 32, "schedule": {"global_batch_size": 4, "max_steps": 2, "log_every": 1}},
    "infer_seg": {"scales": [0.5, 1.0]},
    "evaluate": {"num_thresholds": 10},
    "report": {"num_images": 2},
}


def object_mask(size: tuple[int, int], classes: Sequence[int]) -> NDArray[np.uint8]:
    """A mask with a stripe of each class, as far as the image has room for them."""
    mask = np.zeros(size, np.uint8)
    for place, index in enumerate(classes):
        mask[: -(-size[0] // 2), 3 * place : 3 * place + 3] = index
    return mask


def record(number: int, size: tuple[int, int], classes: tuple[int, ...] | None, *, gray: bool = False) -> Record:
    """Image `number` of (height, width), with its mask; classes () is an image without objects, None is no label."""
    image = pixels(number, *size)
    mask = object_mask(size, classes or ())
    return Record(
        f"im-{number:03d}",
        f"im {number}",
        classes,
        Bytes(encode(image[..., 0] if gray else image, "PNG")),
        Bytes(encode(mask, "PNG")),
    )


def without_masks(records: Sequence[Record]) -> list[Record]:
    """The records of a split that has no masks."""
    return [replace(one, mask=None) for one in records]


def pipeline_config(
    root: Path, classes: Sequence[str], splits: Mapping[str, Sequence[Record]], **sections: Mapping[str, Any]
) -> Config:
    """Convert the records to root/shards, four a shard, and return settings of a pipeline on them."""
    base = {name: {**values, **sections.pop(name, {})} for name, values in SETTINGS.items()}
    base["data"] = {"splits": list(splits), **base["data"]}
    cfg = run_config(root, base=base, **sections)
    convert(
        classes,
        splits,
        cfg.shards_dir,
        settings={"kind": "memory"},
        samples_per_shard=4,
        streams=cfg.data.streams,
        max_pixels=10**6,
    )
    return cfg


def run_pipeline(cfg: Config, stages: Sequence[str] = PIPELINE) -> None:
    """Run stages on this process, one after the other."""
    for stage in stages:
        importlib.import_module(f"seam_dist.stages.{stage}").run(cfg)
