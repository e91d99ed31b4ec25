"""The images that the report shows: the best, the median and the worst of a split, with their maps and masks."""

from __future__ import annotations

import csv
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seam_dist.artifacts.cam_file import read_cams, upsample_cam
from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.artifacts.layout import LABEL_TYPES, cam_folder, label_folder
from seam_dist.config.schema import Config
from seam_dist.data.images import BadSampleError
from seam_dist.data.manifest import Manifest, Shard, Split
from seam_dist.data.masks import decode_labels
from seam_dist.data.shards import decode_sample, index_shard, parse_info, read_indexed, read_raw
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
    prediction: Bytes | None
    """Labels of the primary map at a threshold, where there is a CAM."""
    truth: Bytes | None
    labels: Mapping[str, Bytes] = field(default_factory=dict)
    """Label type -> the image's labels, in the order of the pipeline."""


def rank_keys(path: Path, num_images: int, empty: Container[str] = ()) -> list[tuple[str, str, float]]:
    """Return (rank, key, mIoU) of `num_images` images each from a <split>-images.csv, no image twice.

    Images whose mIoU is not a number (all pixels ignored) are left out, and among the best those whose keys are in
    `empty`, images without any object, where nothing predicted is all it takes. Empty when the file does not exist;
    ValueError when it is something else.
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
    best = [row for row in rows if row[0] not in empty][:count]
    rows = [*best, *(row for row in rows if row not in best)]
    middle = max(count, (len(rows) - count) // 2)
    lowest = max(middle + count, len(rows) - count)
    parts = {"best": best, "median": rows[middle : middle + count], "worst": rows[lowest:]}
    return [(rank, key, miou) for rank, part in parts.items() for key, miou in part]


def load_examples(
    cfg: Config, manifest: Manifest, wanted: Sequence[tuple[str, str, float | None]], *, primary: str, threshold: float
) -> list[Example]:
    """Return the wanted (rank, key, mIoU) images of the report's split in their order, with what was made of them.

    `primary` is the map whose labels at `threshold` are shown. An image with neither a CAM nor labels is left out.
    """
    max_pixels = cfg.data.max_pixels
    ranks = {key: (rank, miou) for rank, key, miou in wanted}
    examples: dict[str, Example] = {}
    for shard in manifest.split(cfg.report_split).shards:
        tar = cam_folder(cfg) / shard.file
        cams = {stored.key: stored for stored in read_cams(tar) if stored.key in ranks} if tar.is_file() else {}
        labels = {name: read_label_shard(path) for name, path in _label_tars(cfg, shard).items()}
        made = ranks.keys() & set(cams).union(*labels.values())
        if not made:
            continue
        for raw in read_raw(cfg.shards_dir / shard.file, shard):
            if raw.key not in made:
                continue
            sample = decode_sample(raw, masks="png" in raw.members, max_pixels=max_pixels)
            stored, maps = cams.get(raw.key), dict[str, Tensor]()
            if stored is not None:
                maps[primary] = upsample_cam(stored.cam, stored.size)
            if stored is not None and stored.plain is not None:
                maps["plain"] = upsample_cam(stored.plain, stored.size)
            rank, miou = ranks[raw.key]
            examples[raw.key] = Example(
                key=raw.key,
                rank=rank,
                miou=miou,
                classes=sample.classes,
                image=sample.image,
                cams={name: values.numpy().max(axis=0, initial=0) for name, values in maps.items()},
                prediction=None if stored is None else predict_labels(maps[primary], stored.classes, threshold),
                truth=sample.mask,
                labels={
                    name: decode_labels(of_shard[raw.key], max_pixels=max_pixels)
                    for name, of_shard in labels.items()
                    if raw.key in of_shard
                },
            )
    return [examples[key] for _, key, _ in wanted if key in examples]


def first_keys(cfg: Config, manifest: Manifest, num_images: int) -> list[str]:
    """Return the keys of the first images of the report's split that have a CAM or labels."""

    def keys() -> Iterator[str]:
        for shard in manifest.split(cfg.report_split).shards:
            tar = cam_folder(cfg) / shard.file
            if tar.is_file():
                yield from (stored.key for stored in read_cams(tar))
            else:
                yield from dict.fromkeys(
                    key for path in _label_tars(cfg, shard).values() for key in read_label_shard(path)
                )

    return list(islice(keys(), num_images))


def has_examples(cfg: Config, split: Split) -> bool:
    """Return whether a split has CAMs or labels to show."""
    return any((cam_folder(cfg) / shard.file).is_file() or _label_tars(cfg, shard) for shard in split.shards)


def keys_without_objects(cfg: Config, split: Split) -> set[str]:
    """Return the keys of the images whose label names no class; none of a split without labels."""
    keys: set[str] = set()
    for shard in split.shards if split.has_labels else ():
        path = cfg.shards_dir / shard.file
        for members in index_shard(path, shard):
            raw = read_indexed(path, [member for member in members if member.name.endswith(".json")])
            with suppress(BadSampleError):
                if not parse_info(raw.members["json"]).classes:
                    keys.add(raw.key)
    return keys


def _label_tars(cfg: Config, shard: Shard) -> dict[str, Path]:
    """Return label type -> the tar of that type for a shard, where it is there."""
    tars = {name: label_folder(cfg, label_type) / shard.file for name, label_type in LABEL_TYPES.items()}
    return {name: path for name, path in tars.items() if path.is_file()}
