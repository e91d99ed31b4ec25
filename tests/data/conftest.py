"""Small data sets in temporary folders."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from seam_dist.config.schema import AugmentConfig, Config, DataConfig, LossConfig, RunConfig
from seam_dist.data.convert import convert
from seam_dist.data.manifest import Manifest
from seam_dist.data.sources.base import Record
from seam_dist.data.sources.folder import FolderSource

CLASSES = ("cat", "dog", "horse")


def pixels(seed: int, height: int = 30, width: int = 40) -> NDArray[np.uint8]:
    """Smooth colors with an edge, different for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    image = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    image[: height // 2, : width // 2] //= 2
    return image


def encode(image: NDArray[np.uint8] | Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    """Encode an array or a Pillow image."""
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, format, **options)
    return out.getvalue()


def index_mask(seed: int, height: int = 30, width: int = 40) -> bytes:
    """A gray PNG with background, classes 1 to 3 and ignored pixels."""
    values = np.array([0, 1, 2, 3, 255], np.uint8)
    return encode(values[np.random.default_rng(seed).integers(0, 5, (height, width))], "PNG")


class MemorySource:
    """A data set in memory: split name -> records."""

    def __init__(self, **splits: Sequence[Record]) -> None:
        self.splits = splits
        self.classes = CLASSES

    def records(self, split: str) -> Sequence[Record]:
        return self.splits[split]


class Bytes:
    """A loader of fixed bytes that pickles and counts its calls."""

    def __init__(self, data: bytes) -> None:
        self.data, self.calls = data, 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.data


def records(count: int, *, masks: bool = True, first: int = 0) -> list[Record]:
    """`count` good records with different images; image i has the class i mod 3 + 1."""
    found = []
    for i in range(first, first + count):
        mask = Bytes(index_mask(i)) if masks else None
        found.append(Record(f"image-{i:03d}", f"image {i}", (i % 3 + 1,), Bytes(encode(pixels(i))), mask))
    return found


def convert_records(folder: Path, count: int = 24, *, samples_per_shard: int = 3, streams: int = 4) -> Manifest:
    """Convert `count` good records to a train split."""
    return convert(
        CLASSES,
        {"train": records(count)},
        folder,
        settings={"kind": "memory"},
        samples_per_shard=samples_per_shard,
        streams=streams,
        max_pixels=10**6,
    )


def stream_config(folder: Path, *, seed: int = 0, color_on: Any = "device", **data: Any) -> Config:
    """A configuration that streams the train split of `folder` in small crops."""
    values: dict[str, Any] = {"shards": folder, "streams": 4, "shuffle_shards": 2} | data
    return Config(
        run=RunConfig(seed=seed),
        data=DataConfig(**values),
        augment=AugmentConfig(crop_size=24, resize_long=(24, 48), color_on=color_on),
        loss=LossConfig(ablation="cam"),  # crops this small leave no room for a second view
    )


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The functions and classes above; a test file cannot import them, since tests are not a package."""
    return SimpleNamespace(
        Bytes=Bytes,
        MemorySource=MemorySource,
        convert_records=convert_records,
        encode=encode,
        index_mask=index_mask,
        pixels=pixels,
        records=records,
        stream_config=stream_config,
    )


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with 24 samples of a train split in 8 shards."""
    convert_records(tmp_path / "shards")
    return tmp_path / "shards"


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
