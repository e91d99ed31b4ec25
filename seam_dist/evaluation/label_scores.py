"""Scores of label images against the masks: of CAM + CRF, the random walk and the final network, without and with CRF.

Each kind of labels is scored on its own, into evaluate/<kind>/, so that a stage made anew invalidates its own scores
only. One global confusion matrix a split, 255 in the mask ignored, 64-bit counts (PARITY.md section 8).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from seam_dist.artifacts.atomic import atomic_write, read_json, write_json
from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.artifacts.stage import StageError, StageRun, input_fingerprint, open_stage
from seam_dist.cluster.distributed import World, all_gather_object, all_reduce_sum
from seam_dist.config.schema import IGNORE_INDEX, Config
from seam_dist.data.images import BadImageError, decode_labels, decode_mask
from seam_dist.data.manifest import Manifest, Shard
from seam_dist.data.shards import read_raw
from seam_dist.evaluation.metrics import scores_from_confusion


@dataclass(frozen=True)
class LabelKind:
    """One kind of label images: the stage that makes them, their folder in it, and their name in words."""

    name: str
    stage: str
    folder: str
    words: str
    uses_labels: bool = True
    """They are made with the image-level labels of the image itself."""


# In the order of the pipeline; the CAM itself comes before them.
LABEL_KINDS = (
    LabelKind("cam_crf", "infer_cam", "crf", "CAM + CRF"),
    LabelKind("walk", "random_walk", "labels", "random walk"),
    LabelKind("walk_crf", "random_walk", "labels_crf", "random walk + CRF"),
    LabelKind("seg", "infer_seg", "labels", "final network", uses_labels=False),
    LabelKind("seg_crf", "infer_seg", "labels_crf", "final network + CRF", uses_labels=False),
    LabelKind("seg_oracle", "infer_seg", "labels_oracle", "final network, told the classes"),
)


@dataclass
class LabelCounts:
    """A confusion matrix (C + 1, C + 1), true classes in rows, and each image's own mean IoU by key."""

    confusion: Tensor
    images: dict[str, float] = field(default_factory=dict)


def made_kinds(cfg: Config) -> list[LabelKind]:
    """Return the kinds of labels that finished stages of this run have made."""
    found = []
    for kind in LABEL_KINDS:
        folder = cfg.stage_dir(kind.stage)
        if (folder / "manifest.json").is_file() and any((folder / kind.folder).glob("*.tar")):
            found.append(kind)
    return found


def open_scores(cfg: Config, kind: LabelKind, *, is_main: bool = True) -> StageRun:
    """Return the place of a kind's scores, evaluate/<kind>."""
    return open_stage(
        cfg,
        "evaluate",
        settings=("evaluate.splits", "data.splits"),
        inputs={kind.stage: input_fingerprint(cfg.stage_dir(kind.stage), kind.stage)},
        is_main=is_main,
        directory=cfg.stage_dir("evaluate") / kind.name,
    )


def unscored_kinds(cfg: Config) -> list[LabelKind]:
    """Return the kinds of labels that are there and have no scores, or those of other labels; changes nothing."""
    found = []
    for kind in made_kinds(cfg):
        path = cfg.stage_dir("evaluate") / kind.name / "manifest.json"
        now = input_fingerprint(cfg.stage_dir(kind.stage), kind.stage)
        if not path.is_file() or read_json(path).get("inputs") != {kind.stage: now}:
            found.append(kind)
    return found


def score_kind(
    cfg: Config, manifest: Manifest, kind: LabelKind, splits: Sequence[str], world: World
) -> dict[str, LabelCounts]:
    """Return the counts of each split that has labels of this kind; the same on all ranks.

    Rank r of R reads every R-th shard. Raises StageError for labels that cannot be read or do not fit their masks.
    """
    folder = cfg.stage_dir(kind.stage) / kind.folder
    results = {}
    for split in splits:
        shards = manifest.split(split).shards
        if not all((folder / shard.file).is_file() for shard in shards):
            continue
        size = manifest.num_classes + 1
        counts = LabelCounts(torch.zeros(size, size, dtype=torch.int64))
        own = shards[world.rank :: world.size]
        total = sum(shard.num_samples for shard in own)
        with tqdm(total=total, unit="image", desc=f"{kind.words}, {split}", disable=not world.is_main) as bar:
            for shard in own:
                for key, labels, mask in _pairs(cfg, folder, shard):
                    matrix = confusion_matrix(labels, mask, size)
                    counts.confusion += matrix
                    counts.images[key] = float(scores_from_confusion(matrix).miou)
                    bar.update(1)
        counts.confusion = all_reduce_sum(counts.confusion, world)
        counts.images = {key: value for part in all_gather_object(counts.images, world) for key, value in part.items()}
        results[split] = counts
    return results


def confusion_matrix(labels: NDArray[np.uint8], mask: NDArray[np.uint8], num_labels: int) -> Tensor:
    """Return int64 counts (num_labels, num_labels) of one image, true classes in rows; 255 in the mask is left out.

    Raises ValueError for sizes that differ and for values from num_labels on.
    """
    if labels.shape != mask.shape:
        raise ValueError(f"the labels have {labels.shape} pixels and the mask {mask.shape}")
    valid = mask != IGNORE_INDEX
    truth, predicted = mask[valid].astype(np.int64), labels[valid].astype(np.int64)
    largest = max(truth.max(initial=0), predicted.max(initial=0))
    if largest >= num_labels:
        raise ValueError(f"they hold class {largest}, expected 0 .. {num_labels - 1}")
    counts = np.bincount(truth * num_labels + predicted, minlength=num_labels**2)
    return torch.from_numpy(counts.reshape(num_labels, num_labels))


def _pairs(cfg: Config, folder: Path, shard: Shard) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield key, labels and mask of every image of a shard that has labels; inference left out damaged images."""
    stored = read_label_shard(folder / shard.file)
    for raw in read_raw(cfg.shards_dir / shard.file, shard):
        if raw.key not in stored:
            continue
        try:
            labels = decode_labels(stored[raw.key], max_pixels=cfg.data.max_pixels)
            mask = decode_mask(raw.members["png"], max_pixels=cfg.data.max_pixels)
            if labels.shape != mask.shape:
                raise ValueError(f"the labels have {labels.shape} pixels and the mask {mask.shape}")
        except (BadImageError, KeyError, ValueError) as error:
            raise StageError(
                f"{folder / shard.file}: {raw.key} cannot be scored ({error}): correct the mask, or run the stage "
                "again that made the labels"
            ) from None
        yield raw.key, labels, mask


def describe_labels(kind: LabelKind, split: str, counts: LabelCounts) -> dict[str, Any]:
    """Return a split's scores as JSON values: mean IoU, pixel accuracy, lists over the classes, background first."""
    scores = scores_from_confusion(counts.confusion)
    total = int(counts.confusion.sum())
    if total == 0:
        raise StageError(f"split {split!r} has no pixel with a class in its masks: correct the masks")
    lists = {"iou": scores.iou, "precision": scores.precision, "recall": scores.recall}
    return {
        "split": split,
        "labels": kind.name,
        "num_images": len(counts.images),
        "miou": float(scores.miou),
        "pixel_accuracy": int(counts.confusion.diagonal().sum()) / total,
        **{name: [None if math.isnan(v) else v for v in values.tolist()] for name, values in lists.items()},
    }


def write_label_scores(folder: Path, record: Mapping[str, Any], counts: LabelCounts) -> list[Path]:
    """Write a split's .json and -images.csv; return their paths."""
    paths = [folder / f"{record['split']}.json", folder / f"{record['split']}-images.csv"]
    write_json(paths[0], record)
    rows = [f"{key},{counts.images[key]:.6f}" for key in sorted(counts.images)]
    atomic_write(paths[1], "\n".join(["key,miou", *rows]) + "\n")
    return paths
