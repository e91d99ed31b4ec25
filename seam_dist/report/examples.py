"""The images that the report shows: the best, the median and the worst of a split, with their maps and masks."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seam_dist.artifacts.cam_file import read_cams, upsample_cam
from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.artifacts.layout import LABEL_TYPES, cam_folder, label_folder
from seam_dist.config.schema import Config
from seam_dist.data.images import decode_labels
from seam_dist.data.manifest import Manifest
from seam_dist.data.shards import decode_sample, read_raw
from seam_dist.inference.pseudo_labels import predict_labels

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Example:
    """One image with what the run made of it; all maps have the size of the image."""

    key: str
    rank: str
    """`best`, `median`, `worst` or, where images are not ranked, `first`."""
    miou: float | None
    classes: tuple[int, ...]
    image: Bytes
    cams: Mapping[str, Float]
    """`plain` and `refined`, as far as stored: the largest of the present classes' maps, 0..1."""
    prediction: Bytes
    truth: Bytes | None
    labels: Mapping[str, Bytes] = field(default_factory=dict)
    """Label type -> the image's labels, in the order of the pipeline."""


def rank_keys(path: Path, num_images: int) -> list[tuple[str, str, float]]:
    """Return (rank, key, mIoU) of `num_images` images each from a <split>-images.csv, no image twice.

    Images whose mIoU is not a number (all pixels ignored) are left out. Empty when the file does not exist; ValueError
    when it is something else.
    """
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    try:
        rows = [(line["key"], float(line["miou"])) for line in lines if line["miou"] not in ("", "nan")]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"has no numbers in columns key and miou ({error!r})"
        raise ValueError(f"{path} {reason}: run `--only evaluate` again") from None
    rows.sort(key=lambda row: (-row[1], row[0]))
    count = min(num_images, -(-len(rows) // 3))
    middle = max(count, (len(rows) - count) // 2)
    lowest = max(middle + count, len(rows) - count)
    parts = {"best": rows[:count], "median": rows[middle : middle + count], "worst": rows[lowest:]}
    return [(rank, key, miou) for rank, part in parts.items() for key, miou in part]


def load_examples(
    cfg: Config, manifest: Manifest, wanted: Sequence[tuple[str, str, float | None]], *, primary: str, threshold: float
) -> list[Example]:
    """Return the wanted (rank, key, mIoU) images of cfg.report.split in their order; those without a CAM are left out.

    `primary` is the map whose labels at `threshold` are shown.
    """
    max_pixels = cfg.data.max_pixels
    ranks = {key: (rank, miou) for rank, key, miou in wanted}
    examples: dict[str, Example] = {}
    for shard in manifest.split(cfg.report.split).shards:
        tar = cam_folder(cfg) / shard.file
        cams = {stored.key: stored for stored in read_cams(tar) if stored.key in ranks} if tar.is_file() else {}
        if not cams:
            continue
        labels = {
            name: read_label_shard(path)
            for name, label_type in LABEL_TYPES.items()
            if (path := label_folder(cfg, label_type) / shard.file).is_file()
        }
        for raw in read_raw(cfg.shards_dir / shard.file, shard):
            stored = cams.get(raw.key)
            if stored is None:
                continue
            sample = decode_sample(raw, masks="png" in raw.members, max_pixels=max_pixels)
            maps = {primary: upsample_cam(stored.cam, stored.size)}
            if stored.plain is not None:
                maps["plain"] = upsample_cam(stored.plain, stored.size)
            rank, miou = ranks[raw.key]
            examples[raw.key] = Example(
                key=raw.key,
                rank=rank,
                miou=miou,
                classes=stored.classes,
                image=sample.image,
                cams={name: values.numpy().max(axis=0, initial=0) for name, values in maps.items()},
                prediction=predict_labels(maps[primary], stored.classes, threshold),
                truth=sample.mask,
                labels={
                    name: decode_labels(of_shard[raw.key], max_pixels=max_pixels)
                    for name, of_shard in labels.items()
                    if raw.key in of_shard
                },
            )
    return [examples[key] for _, key, _ in wanted if key in examples]


def first_keys(cfg: Config, manifest: Manifest, num_images: int) -> list[str]:
    """Return the keys of the first images of cfg.report.split that have a CAM."""
    paths = (cam_folder(cfg) / shard.file for shard in manifest.split(cfg.report.split).shards)
    keys = (stored.key for path in paths if path.is_file() for stored in read_cams(path))
    return list(islice(keys, num_images))
