"""What many tests build: settings, data sets, small networks. `import kit` (pyproject.toml: pythonpath)."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from seam_dist.artifacts.label_file import write_labels
from seam_dist.config import packages
from seam_dist.config.findings import Findings
from seam_dist.config.load import from_tree
from seam_dist.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    RunConfig,
    ScheduleConfig,
    TrainAffinityConfig,
    TrainSeamConfig,
    TrainSegConfig,
)
from seam_dist.data.conversion_plan import plan_conversion
from seam_dist.data.convert import write_shards
from seam_dist.data.loader import LabelMapLoader, make_label_map_loader
from seam_dist.data.manifest import Manifest, load_manifest
from seam_dist.data.mask_check import mask_findings
from seam_dist.data.mask_labels import MaskLabels, MaskRow
from seam_dist.data.shards import read_raw
from seam_dist.data.sources.base import Listing, Record, Source
from seam_dist.models.backbones.base import Backbone, Features

Section = TypeVar("Section", TrainSeamConfig, TrainAffinityConfig, TrainSegConfig)
CLASSES = ("cat", "dog", "horse")  # of the small data sets in memory
SCHEDULE = {entry.name for entry in fields(ScheduleConfig)}


def changed(section: Section, **values: Any) -> Section:
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


def authors_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict under the authors' flat names, as their code saves it."""
    return {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items()}


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

    def listing(self, split: str) -> Listing:
        return Listing(self.splits[split])


class Bytes:
    """A loader of fixed bytes that pickles and counts its calls."""

    def __init__(self, data: bytes) -> None:
        self.data, self.calls = data, 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.data


def listing_errors(source: Source, split: str) -> list[str]:
    """The errors in the listing of a split, a text for each sort."""
    return [str(finding) for finding in source.listing(split).findings.errors]


def listing_warnings(source: Source, split: str) -> list[str]:
    """The warnings in the listing of a split, a text for each sort."""
    return [str(finding) for finding in source.listing(split).findings.warnings]


def records(count: int, *, masks: bool = True, first: int = 0) -> list[Record]:
    """`count` good records with different images; image i has the class i mod 3 + 1."""
    return [
        Record(
            f"image-{i:03d}",
            f"image {i}",
            (i % 3 + 1,),
            Bytes(encode(pixels(i))),
            Bytes(index_mask(i)) if masks else None,
        )
        for i in range(first, first + count)
    ]


def convert(
    classes: Sequence[str],
    splits: Mapping[str, Sequence[Record]],
    folder: Path,
    *,
    num_processes: int = 1,
    **options: Any,
) -> Manifest:
    """Convert records in this process alone; `options` as in `plan_conversion`."""
    plan = plan_conversion(classes, splits, folder, **options)
    return write_shards(plan, check_masks="warn", num_processes=num_processes)[0]


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


def stream_config(folder: Path, *, seed: int = 0, **data: Any) -> Config:
    """A configuration that streams the train split of `folder` in small crops."""
    values: dict[str, Any] = {"shards": folder, "streams": 4, "shuffle_shards": 2} | data
    return Config(
        run=RunConfig(seed=seed),
        data=DataConfig(**values),
        augment=AugmentConfig(crop_size=24, resize_long=(24, 48)),
        loss=LossConfig(ablation="cam"),  # crops this small leave no room for a second view
    )


HEIGHT, WIDTH = 60, 84  # of images with label maps: no multiples of the stride
STRIDE = 8
CROP = 48
NUM_LABELED = 12


def coded_image(index: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """An image whose pixels give their block: red 3 * block row + 1, green 3 * block column + 1, blue the image."""
    rows, columns = np.mgrid[:height, :width] // STRIDE
    blue = np.full_like(rows, 10 * index + 5)
    return np.stack([3 * rows + 1, 3 * columns + 1, blue], axis=-1).astype(np.uint8)


def block_labels(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """What belongs to `coded_image` on the grid of blocks: 11 * block row + block column."""
    rows, columns = np.mgrid[: -(-height // STRIDE), : -(-width // STRIDE)]
    return (11 * rows + columns).astype(np.uint8)


def pixel_labels(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """`block_labels` at the resolution of the image."""
    return np.kron(block_labels(height, width), np.ones((STRIDE, STRIDE), np.uint8))[:height, :width]


def lossless_shards(folder: Path, image: Callable[[int], NDArray[np.uint8]], mask: NDArray[np.uint8]) -> Path:
    """Lossless images of one class with their masks, 12 samples in 4 shards; the masks' indices go up to 200."""
    samples = [
        Record(f"image-{i:03d}", f"{i}", (1,), Bytes(encode(image(i), "PNG")), Bytes(encode(mask, "PNG")))
        for i in range(NUM_LABELED)
    ]
    convert(
        [f"c{index}" for index in range(200)],
        {"train": samples},
        folder,
        settings={"kind": "memory"},
        samples_per_shard=3,
        streams=4,
        max_pixels=10**6,
    )
    return folder


def label_tars(shards: Path, folder: Path, label: NDArray[np.uint8], *, without: Sequence[str] = ()) -> Path:
    """One label tar for each shard, named like it."""
    for shard in load_manifest(shards).split("train").shards:
        keys = [raw.key for raw in read_raw(shards / shard.file) if raw.key not in without]
        write_labels(folder / shard.file, [(key, label) for key in keys])
    return folder


def label_map_config(shards: Path, *, crop: int = CROP, **values: Any) -> Config:
    """Settings of both trainings with label maps; `values` of train_affinity, train_seg and data by name."""
    affinity = {name: values.pop(name) for name in ("jitter", "hflip") if name in values}
    seg = {name: values.pop(name) for name in ("scale", "hsv_jitter") if name in values}
    return replace(
        stream_config(shards, **values),
        # Below 40 pixels a crop has no pair of cells, which the settings refuse.
        train_affinity=changed(TrainAffinityConfig(), crop_size=max(crop, 40), **{"jitter": False, **affinity}),
        train_seg=changed(TrainSegConfig(), crop_size=crop, **{"hsv_jitter": 0, **seg}),
    )


def label_map_loader(
    cfg: Config, labels: Path | None, stage: Any, *, rank: int = 0, ranks: int = 1, start: int = 0, batch: int = 4
) -> LabelMapLoader:
    """The loader of train_affinity or train_seg; `labels` is a folder of label tars, None for the masks."""
    manifest = load_manifest(cfg.shards_dir)
    return make_label_map_loader(cfg, manifest, rank, ranks, start, batch, labels=labels, stage=stage)


def digest(batches: Sequence[Any]) -> list[tuple[int, str, str]]:
    """(sample number, key, hash of everything else) of each sample of a training stream, by number."""
    rows = []
    for batch in batches:
        tensors = [batch[name] for name in sorted(batch) if name not in ("key", "sample_number")]
        for i, (key, number) in enumerate(zip(batch["key"], batch["sample_number"].tolist(), strict=True)):
            data = b"".join(tensor[i].contiguous().numpy().tobytes() for tensor in tensors)
            rows.append((number, key, hashlib.sha256(data).hexdigest()))
    return sorted(rows)


def record_paths(monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str) -> list[str]:
    """Return a list that gets the name of the file at each call of `function` of `module`, which takes a path."""
    original, names = getattr(module, function), []

    def recorded(path: Path, *arguments: Any) -> Any:
        names.append(path.name)
        return original(path, *arguments)

    monkeypatch.setattr(module, function, recorded)
    return names


def hide_package(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make imports of a package fail as if it were not installed."""
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)


def plant_module(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> None:
    """Make `import name` run `text` instead of what is installed, until the test ends."""
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module = ".".join(parts[:end])
        if end < len(parts):
            folder.joinpath(*parts[:end], "__init__.py").write_text("")
        monkeypatch.setitem(sys.modules, module, None)  # what the test imports goes with it
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(packages, "_broken", {})


class Probe(Backbone):
    """Three convolutions, conv4 on a grid twice as fine as conv6."""

    name = "probe"
    channels = (4, 6, 10)

    def __init__(self) -> None:
        super().__init__(output_stride=16)
        self.first = nn.Conv2d(3, 4, 3, stride=8, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.third = nn.Conv2d(6, 10, 1)

    def stem(self) -> list[nn.Module]:
        return [self.first]

    def forward(self, image: Tensor) -> Features:
        conv4 = self.first(image).relu()
        conv5 = self.second(conv4).relu()
        return Features(conv4, conv5, self.third(conv5).relu())


class LargestTensor(TorchDispatchMode):
    """Records the element count of the largest tensor that any operator returns."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes() // value.element_size())
        return result


def check_masks(
    classes: Sequence[str], rows: Sequence[MaskRow], split: str = "train", *, refuse: bool = True
) -> Findings:
    """How the masks of some images disagree with their labels."""
    counts = MaskLabels()
    for row in rows:
        counts.add(row)
    return mask_findings(counts, split, classes, refuse=refuse)
