"""Scores of label images, against a confusion matrix counted pixel by pixel."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from kit import run_config
from stage_kit import WRONG_PIXELS, miou_of, prepared_run, samples_of, write_labels_from_masks

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.label_file import read_label_shard, write_labels
from seam_dist.artifacts.layout import LABEL_TYPES, finished_label_types
from seam_dist.artifacts.stage import StageError
from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.data.masks import decode_labels
from seam_dist.evaluation.label_scores import evaluate_labels
from seam_dist.stages import shard

prepared, root = prepared_run(run_config, shard.run, write_labels_from_masks)


@pytest.fixture
def cfg(root: Path) -> Config:
    return run_config(root)


def evaluate(cfg: Config) -> list[dict[str, object]]:
    return evaluate_labels(cfg, load_manifest(cfg.shards_dir), finished_label_types(cfg), init_world(cfg))


def stored_labels(cfg: Config, split: str) -> dict[str, bytes]:
    folder = cfg.stage_dir("infer_seg") / "labels"
    parts = load_manifest(cfg.shards_dir).split(split).shards
    return {key: data for part in parts for key, data in read_label_shard(folder / part.file).items()}


def test_scores_are_those_of_a_direct_confusion_matrix(cfg: Config) -> None:
    evaluate(cfg)
    labels = stored_labels(cfg, "val")
    confusion = np.zeros((4, 4), np.int64)
    of_image = {}
    for sample in samples_of(cfg, "val", masks=True):
        assert sample.mask is not None
        own = np.zeros_like(confusion)
        predicted = decode_labels(labels[sample.key], max_pixels=10**6)
        for true, label in zip(sample.mask.ravel(), predicted.ravel(), strict=True):
            if true != 255:
                own[true, label] += 1
        confusion += own
        of_image[sample.key] = miou_of(own)
    folder = cfg.stage_dir("evaluate") / "seg"
    record = read_json(folder / "val.json")
    assert record["num_images"] == len(of_image)
    assert record["miou"] == pytest.approx(miou_of(confusion), abs=1e-12)
    assert record["pixel_accuracy"] == pytest.approx(confusion.trace() / confusion.sum(), abs=1e-12)
    with open(folder / "val-images.csv", newline="") as file:
        rows = {row["key"]: float(row["miou"]) for row in csv.DictReader(file)}
    assert rows == pytest.approx(of_image, abs=1e-6)


def test_every_type_that_was_made_is_scored_once(cfg: Config) -> None:
    records = evaluate(cfg)
    assert [record["labels"] for record in records] == [name for name in WRONG_PIXELS for _ in range(2)]
    miou = [record["miou"] for record in records if record["split"] == "val"]
    assert miou == sorted(miou)  # type: ignore[type-var]  # fewer wrong pixels, higher scores
    assert evaluate(cfg) == []


def test_a_split_without_labels_is_left_out(cfg: Config) -> None:
    path = next((cfg.stage_dir("infer_seg") / LABEL_TYPES["seg_crf"].folder).glob("train-*.tar"))
    path.unlink()
    records = evaluate(cfg)
    assert [record["split"] for record in records if record["labels"] == "seg_crf"] == ["val"]


def test_labels_that_do_not_fit_their_mask_are_refused_by_name(cfg: Config) -> None:
    path = sorted((cfg.stage_dir("infer_seg") / "labels").glob("val-*.tar"))[0]
    key = next(iter(read_label_shard(path)))
    write_labels(path, [(key, np.zeros((3, 5), np.uint8))])
    with pytest.raises(StageError, match=rf"{path.name}: {key} cannot be scored \(the labels have \(3, 5\) pixels"):
        evaluate(cfg)


def test_labels_of_a_class_that_the_shards_do_not_have_are_refused(cfg: Config) -> None:
    path = sorted((cfg.stage_dir("infer_seg") / "labels").glob("val-*.tar"))[0]
    sizes = {sample.key: sample.image.shape[:2] for sample in samples_of(cfg, "val")}
    write_labels(path, [(key, np.full(sizes[key], 9, np.uint8)) for key in read_label_shard(path)])
    with pytest.raises(ValueError, match=r"they hold class 9, expected 0 \.\. 3"):
        evaluate(cfg)
