"""Small data sets in temporary folders."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from kit import CLASSES, coded_image, convert_records, encode, index_mask, lossless_shards, pixel_labels, pixels

from seam_dist.data.sources.folder import FolderSource


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with 24 samples of a train split in 8 shards."""
    convert_records(tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def coded_shards(tmp_path: Path) -> Path:
    """A folder with 12 images whose pixels give their block, and masks to match."""
    return lossless_shards(tmp_path / "shards", coded_image, pixel_labels())


@pytest.fixture
def folder_set(tmp_path: Path) -> Callable[..., FolderSource]:
    """Make a plain folder with a train split of two images with masks, changed by keyword arguments."""

    def make(rows: Sequence[Sequence[str]] | None = None, *, images: dict[str, bytes] | None = None) -> FolderSource:
        root = tmp_path / "set"
        for part in ("images", "masks"):
            (root / part / "train").mkdir(parents=True, exist_ok=True)
        images = {"a.jpg": encode(pixels(0)), "b.jpg": encode(pixels(1))} if images is None else images
        for name, data in images.items():
            (root / "images" / "train" / name).write_bytes(data)
            (root / "masks" / "train" / f"{Path(name).stem}.png").write_bytes(index_mask(0))
        (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        with open(root / "labels.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "split", "classes"])
            writer.writerows([[name, "train", "cat;dog"] for name in images] if rows is None else rows)
        return FolderSource(root)

    return make
