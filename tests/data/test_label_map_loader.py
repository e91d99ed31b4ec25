"""The stream of images with label maps: the same batches on any ranks and workers, labels missing or damaged."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import HEIGHT, WIDTH, block_labels, digest, label_map_config, label_map_loader, label_tars, pixel_labels
from numpy.typing import NDArray

from seam_dist.config.schema import Config
from seam_dist.data.loader import make_label_map_loader
from seam_dist.data.manifest import ShardError, load_manifest


def global_steps(cfg: Config, labels: Path, stage: Any, ranks: int, steps: int, start: int = 0) -> Any:
    loaders = [
        label_map_loader(cfg, labels, stage, rank=r, ranks=ranks, start=start, batch=4 // ranks) for r in range(ranks)
    ]
    try:
        return [digest([next(one) for one in loaders]) for _ in range(steps)]
    finally:
        for one in loaders:
            one.close()


@pytest.mark.parametrize("stage", ["train_affinity", "train_seg"])
def test_global_batches_are_identical_for_any_ranks_workers_and_starts(
    coded_shards: Path, tmp_path: Path, stage: str
) -> None:
    label = block_labels() if stage == "train_affinity" else pixel_labels()
    labels = label_tars(coded_shards, tmp_path / "labels", label, without=["image-004"])

    def cfg(**data: Any) -> Config:
        return label_map_config(coded_shards, jitter=True, hsv_jitter=9, max_bad_fraction=0.5, **data)

    expected = global_steps(cfg(), labels, stage, 1, steps=6)
    for n, step in enumerate(expected):
        assert [number for number, _, _ in step] == list(range(4 * n, 4 * n + 4))
    assert len({row for step in expected for _, _, row in step}) == 24
    for ranks, workers in ((2, 2), (4, 1), (1, 4)):
        resumed = global_steps(cfg(num_workers=workers), labels, stage, ranks, steps=4, start=8)
        assert resumed == expected[2:], f"{ranks} ranks x {workers} workers"


def test_sample_without_a_label_is_replaced_and_reported(
    coded_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = label_map_config(coded_shards, max_bad_fraction=0.4)
    labels = label_tars(coded_shards, tmp_path / "labels", block_labels(), without=["image-004"])
    loader = label_map_loader(cfg, labels, "train_affinity")
    with caplog.at_level(logging.WARNING):
        keys = [key for _ in range(6) for key in next(loader)["key"]]
    assert "image-004" not in keys
    assert loader.num_replaced == 2
    assert "bad sample image-004" in caplog.text
    assert "it has no label in" in caplog.text
    strict = label_map_loader(label_map_config(coded_shards, max_bad_fraction=0.0), labels, "train_affinity")
    with pytest.raises(ShardError, match="no label in"):
        list(islice(strict, 3))


def test_the_mask_in_a_shard_never_stands_in_for_a_label(coded_shards: Path, tmp_path: Path) -> None:
    labels = label_tars(coded_shards, tmp_path / "labels", np.full((HEIGHT, WIDTH), 7, np.uint8), without=["image-004"])
    loader = label_map_loader(label_map_config(coded_shards, max_bad_fraction=1.0), labels, "train_seg", batch=12)
    assert set(next(loader)["target"].unique().tolist()) <= {7, 255}


@pytest.mark.parametrize(("stage", "label"), [("train_affinity", pixel_labels()), ("train_seg", block_labels())])
def test_labels_of_another_size_end_the_job_by_name(
    coded_shards: Path, tmp_path: Path, stage: str, label: NDArray[np.uint8]
) -> None:
    labels = label_tars(coded_shards, tmp_path / "labels", label)
    with pytest.raises(ShardError, match=r"the label of image-0\d\d in .* cells \(height, width\), expected \("):
        next(label_map_loader(label_map_config(coded_shards, max_bad_fraction=1.0), labels, stage))


def test_missing_label_tar_is_found_at_the_start(coded_shards: Path, tmp_path: Path) -> None:
    labels = label_tars(coded_shards, tmp_path / "labels", block_labels())
    (labels / "train-00002.tar").unlink()
    cfg = label_map_config(coded_shards)
    with pytest.raises(ShardError, match=r"train-00002\.tar is missing: run the stage"):
        label_map_loader(cfg, labels, "train_affinity", rank=0, ranks=2, batch=2)
    label_map_loader(cfg, labels, "train_affinity", rank=1, ranks=2, batch=2)  # does not read that one


def test_damaged_label_is_a_bad_sample_and_a_damaged_tar_ends_the_job(
    coded_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = label_tars(coded_shards, tmp_path / "labels", block_labels())
    path = labels / "train-00001.tar"
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT") + 6
    data[start : start + 4] = b"\xff" * 4
    path.write_bytes(data)
    cfg = label_map_config(coded_shards, max_bad_fraction=1.0)
    loader = label_map_loader(cfg, labels, "train_affinity", batch=12)
    assert next(loader)["target"].shape == (12, 6, 6)
    assert loader.num_replaced == 1
    assert "the label image cannot be used" in caplog.text
    path.write_bytes(data[:700])
    with pytest.raises(ValueError, match=r"train-00001\.tar is not a whole tar of labels"):
        next(label_map_loader(cfg, labels, "train_affinity", batch=12))


def test_masks_are_read_when_no_labels_are_given(coded_shards: Path) -> None:
    cfg = label_map_config(coded_shards, crop=96, scale=(1.0, 1.0))
    batch = next(label_map_loader(cfg, None, "train_seg"))
    for target, (y0, x0, y1, x1) in zip(batch["target"], batch["valid"].tolist(), strict=True):
        inside = target[y0:y1, x0:x1].numpy()
        assert any(np.array_equal(inside, label) for label in (pixel_labels(), pixel_labels()[:, ::-1]))
    manifest = load_manifest(coded_shards)
    unmasked = replace(manifest, splits={"train": replace(manifest.split("train"), has_masks=False)})
    with pytest.raises(ShardError, match="split 'train' has no masks to train on"):
        make_label_map_loader(cfg, unmasked, 0, 1, 0, 1, labels=None, stage="train_seg")
