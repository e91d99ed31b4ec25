"""What many tests build: settings, small data sets, networks and runs. `import kit` (pyproject.toml: pythonpath)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.cam_file import StoredCam, read_cams, store_cam, write_cams
from seam_dist.artifacts.label_file import read_label_shard, write_labels
from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.artifacts.stage import open_stage
from seam_dist.config.load import flatten, from_tree
from seam_dist.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    RunConfig,
    ScheduleConfig,
    Stage,
    TrainAffinityConfig,
    TrainSeamConfig,
    TrainSegConfig,
)
from seam_dist.data.convert import convert
from seam_dist.data.images import decode_labels
from seam_dist.data.loader import LabelMapLoader, make_label_map_loader
from seam_dist.data.manifest import Manifest, load_manifest
from seam_dist.data.shards import RawSample, Sample, read_raw, read_shard, write_shard
from seam_dist.data.sources.base import Record
from seam_dist.models import build_seam, seam_architecture

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


def finish_training(cfg: Config, stage: Stage, model: nn.Module, architecture: Mapping[str, Any]) -> None:
    """Leave what a training stage leaves: final/model.safetensors and model.json of `model`."""
    opened = open_stage(cfg, stage, settings=(stage,))
    final = opened.dir / "final"
    final.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, final / "model.safetensors")
    write_json(final / "model.json", {"architecture": dict(architecture), "config": flatten(cfg)})
    opened.finish(final.iterdir())


def authors_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict under the authors' flat names, as their code saves it."""
    return {name.removeprefix("backbone."): tensor for name, tensor in model.state_dict().items()}


def samples_of(cfg: Config, split: str, *, masks: bool = False) -> list[Sample]:
    """All samples of a split, in the order of its shards."""
    return [
        sample
        for part in load_manifest(cfg.shards_dir).split(split).shards
        for sample in read_shard(cfg.shards_dir / part.file, masks=masks, max_pixels=10**6)
    ]


def metrics_of(cfg: Config, stage: Stage) -> list[dict[str, float]]:
    """The lines of a stage's metrics.jsonl without times and memory."""
    lines = (cfg.stage_dir(stage) / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name in ("step", "lr") or name.startswith("loss/")}
        for line in lines
    ]


def trained_weights(cfg: Config, stage: Stage) -> dict[str, Tensor]:
    """The final weights of a training stage."""
    return load_file(cfg.stage_dir(stage) / "final" / "model.safetensors")


def before_batch(monkeypatch: pytest.MonkeyPatch, stage: ModuleType, number: int, act: Callable[[], Any]) -> None:
    """Let the loader of a training stage call `act` before it makes batch `number`, counted from 1."""
    original = stage.run_training

    class Loader:
        def __init__(self, inner: Any) -> None:
            self.inner, self.count = inner, 0

        def __next__(self) -> Any:
            self.count += 1
            if self.count == number:
                act()
            return next(self.inner)

        def close(self) -> None:
            self.inner.close()

    def run(task: Any, world: Any) -> None:
        original(replace(task, loader=lambda *arguments: Loader(task.loader(*arguments))), world)

    monkeypatch.setattr(stage, "run_training", run)


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
        train_affinity=changed(TrainAffinityConfig(), crop_size=crop, **{"jitter": False, **affinity}),
        train_seg=changed(TrainSegConfig(), crop_size=crop, **{"hsv_jitter": 0, **seg}),
    )


def label_map_loader(
    cfg: Config, labels: Path | None, stage: Any, *, rank: int = 0, ranks: int = 1, start: int = 0, batch: int = 4
) -> LabelMapLoader:
    """The loader of train_affinity or train_seg; `labels` is a folder of label tars, None for the masks."""
    manifest = load_manifest(cfg.shards_dir)
    return make_label_map_loader(cfg, manifest, rank, ranks, start, batch, labels=labels, stage=stage)


def finish_seam(cfg: Config, seed: int = 0) -> None:
    """Leave what train_seam leaves, with random weights that give CAMs of all values."""
    classes = load_manifest(cfg.shards_dir).classes
    torch.manual_seed(seed)
    model, _ = build_seam(cfg, len(classes))
    nn.init.normal_(model.fc8.weight, std=5)
    finish_training(cfg, "train_seam", model, seam_architecture(cfg, classes))


def stored_cams(cfg: Config, split: str) -> dict[str, StoredCam]:
    """The CAMs of a split by key, in the order of its shards."""
    parts = load_manifest(cfg.shards_dir).split(split).shards
    return {cam.key: cam for part in parts for cam in read_cams(cfg.stage_dir("infer_cam") / "cams" / part.file)}


def stored_labels(cfg: Config, stage: Stage, folder: str, split: str) -> dict[str, NDArray[np.uint8]]:
    """The labels of a split in one folder of a stage by key, in the order of its shards."""
    return {
        key: decode_labels(data, max_pixels=10**6, num_classes=3)
        for part in load_manifest(cfg.shards_dir).split(split).shards
        for key, data in read_label_shard(cfg.stage_dir(stage) / folder / part.file).items()
    }


def rewrite_shard(cfg: Config, name: str, change: Callable[[RawSample], RawSample]) -> None:
    """Pass the samples of one shard through `change` and correct the manifest."""
    path = cfg.shards_dir / name
    samples = [change(sample) for sample in read_raw(path)]
    with open(path, "wb") as file:
        write_shard(file, samples)
    record = read_json(cfg.shards_dir / "manifest.json")
    for split in record["splits"].values():
        for part in split["shards"]:
            if part["file"] == name:
                part.update(num_bytes=path.stat().st_size, sha256=sha256_file(path))
    write_json(cfg.shards_dir / "manifest.json", record)


def cut_jpeg(sample: RawSample) -> RawSample:
    """A sample whose image cannot be decoded."""
    return RawSample(sample.key, {**sample.members, "jpg": sample.members["jpg"][:40]})
