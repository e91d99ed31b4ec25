"""Scores of label images against the masks: of CAM + CRF, the random walk and the final network, without and with CRF.

They are in evaluate/<label type>/, for each split <split>.json and -images.csv (a row an image). One global confusion
matrix a split, 255 in the mask ignored, 64-bit counts (PARITY.md section 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seam_dist.artifacts.atomic import write_csv, write_json
from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.artifacts.layout import LABEL_TYPES, LabelType, label_folder
from seam_dist.artifacts.stage import StageError
from seam_dist.cluster.distributed import World, all_gather_object, all_reduce_sum, barrier, on_main
from seam_dist.cluster.progress import progress_bar
from seam_dist.config.schema import IGNORE_INDEX, Config
from seam_dist.data.manifest import Manifest, Shard
from seam_dist.data.masks import decode_labels, decode_mask
from seam_dist.data.shards import read_raw
from seam_dist.evaluation.metrics import class_lists, scores_from_confusion
from seam_dist.evaluation.score_folders import open_scores
from seam_dist.evaluation.splits import is_unreadable, splits_with_masks, unreadable_keys


@dataclass
class LabelCounts:
    """A confusion matrix (C + 1, C + 1), true classes in rows, and each image's own mean IoU by key."""

    confusion: Tensor
    images: dict[str, float] = field(default_factory=dict)


def evaluate_labels(
    cfg: Config, manifest: Manifest, label_types: Sequence[LabelType], world: World
) -> list[dict[str, Any]]:
    """Score the label images that have no scores yet; return a record for each type and split on the main rank.

    Each type is scored on the splits that have masks and labels of it.
    """
    records: list[dict[str, Any]] = []
    masked = splits_with_masks(cfg, manifest)
    for label_type in label_types:
        splits = [name for name in masked.splits if manifest.split(name).has_tars(label_folder(cfg, label_type))]
        waiting = [name for name in masked.splits if name not in splits]
        stage = on_main(partial(open_scores, cfg, label_type.name, waiting), world)
        if on_main(stage.is_done, world):
            continue
        counts = count_labels(cfg, manifest, label_type, splits, world)
        if world.is_main:
            outputs: list[Path] = []
            for split, count in counts.items():
                record = describe_labels(label_type, split, count)
                records.append(record | unreadable_keys(cfg, manifest, split, count.images))
                outputs += write_label_scores(stage.dir, records[-1], count)
            stage.finish(outputs)
        barrier(world)
    return records


def count_labels(
    cfg: Config, manifest: Manifest, label_type: LabelType, splits: Sequence[str], world: World
) -> dict[str, LabelCounts]:
    """Return the counts of each split; the same on all ranks.

    Rank r of R reads every R-th shard. Raises StageError for labels that cannot be read or do not fit their masks.
    """
    folder = label_folder(cfg, label_type)
    by_split = {}
    for split in splits:
        shards = manifest.split(split).shards
        size = manifest.num_classes + 1
        counts = LabelCounts(torch.zeros(size, size, dtype=torch.int64))
        own = shards[world.rank :: world.size]
        matrices = (pair for shard in own for pair in _matrices(cfg, manifest, folder, shard))
        total = sum(shard.num_samples for shard in own)
        title = f"{label_type.title}, {split}"
        for key, matrix in progress_bar(title, total, "image", items=matrices, world=world):
            counts.confusion += matrix
            counts.images[key] = float(scores_from_confusion(matrix).miou)
        counts.confusion = all_reduce_sum(counts.confusion, world)
        counts.images = {key: value for part in all_gather_object(counts.images, world) for key, value in part.items()}
        by_split[split] = counts
    return by_split


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


def _matrices(cfg: Config, manifest: Manifest, folder: Path, shard: Shard) -> Iterator[tuple[str, Tensor]]:
    """Yield key and confusion matrix of every image of a shard that has labels.

    An image without them must be one that cannot be decoded, which inference left out; StageError for another one.
    """
    stored = read_label_shard(folder / shard.file)
    for raw in read_raw(cfg.shards_dir / shard.file, shard):
        if raw.key not in stored:
            if not is_unreadable(raw, manifest, cfg.data.max_pixels):
                raise StageError(f"{folder / shard.file}: image {raw.key} has no labels: remove the tar and rerun")
            continue
        try:
            labels = decode_labels(stored[raw.key], max_pixels=cfg.data.max_pixels)
            mask = decode_mask(raw.members["png"], max_pixels=cfg.data.max_pixels)
            yield raw.key, confusion_matrix(labels, mask, manifest.num_classes + 1)
        except (KeyError, ValueError) as error:
            where = f"{folder / shard.file}: {raw.key}"
            raise StageError(f"{where} cannot be scored ({error}): correct the mask or rerun the labels") from None


def describe_labels(label_type: LabelType, split: str, counts: LabelCounts) -> dict[str, Any]:
    """Return a split's scores as JSON values: mean IoU, pixel accuracy, lists over the classes, background first."""
    scores = scores_from_confusion(counts.confusion)
    total = int(counts.confusion.sum())
    if total == 0:
        raise StageError(f"split {split!r} has no pixel with a class in its masks: correct the masks")
    return {
        "split": split,
        "labels": label_type.name,
        "num_images": len(counts.images),
        "miou": float(scores.miou),
        "pixel_accuracy": int(counts.confusion.diagonal().sum()) / total,
        **class_lists(scores),
    }


def write_label_scores(folder: Path, record: Mapping[str, Any], counts: LabelCounts) -> list[Path]:
    """Write a split's .json and -images.csv; return their paths."""
    paths = [folder / f"{record['split']}.json", folder / f"{record['split']}-images.csv"]
    write_json(paths[0], record)
    rows = [(key, f"{counts.images[key]:.6f}") for key in sorted(counts.images)]
    write_csv(paths[1], [("key", "miou"), *rows])
    return paths


def format_label_scores(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the console table: mean IoU in percent by type of labels and split."""
    splits = list(dict.fromkeys(record["split"] for record in records))
    cells = {(record["labels"], record["split"]): f"{100 * record['miou']:.2f}" for record in records}
    names = list(dict.fromkeys(record["labels"] for record in records))
    rows = [(LABEL_TYPES[name].title, *(cells.get((name, split), "-") for split in splits)) for name in names]
    return [("labels", *splits), *rows]
