"""The images that the report shows: the best, the median and the worst of a split, with their maps and masks."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from seam_dist.data.manifest import Manifest
from seam_dist.data.shards import decode_sample, read_raw

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]

RANKS = ("best", "median", "worst")


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


def rank_keys(path: Path, num_images: int) -> list[tuple[str, str, float]]:
    """Return (rank, key, mIoU) of `num_images` images each from a <split>-images.csv, no image twice.

    Images whose mIoU is not a number (all pixels ignored) are left out. Empty when the file does not exist.
    """
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        rows = [(row["key"], float(row["miou"])) for row in csv.DictReader(file) if row["miou"] not in ("", "nan")]
    rows.sort(key=lambda row: (-row[1], row[0]))
    count = min(num_images, -(-len(rows) // 3))
    middle = max(count, (len(rows) - count) // 2)
    parts = (rows[:count], rows[middle : middle + count], rows[max(middle + count, len(rows) - count) :])
    return [(rank, key, miou) for rank, part in zip(RANKS, parts, strict=True) for key, miou in part]


def load_examples(
    cams_dir: Path,
    shards_dir: Path,
    manifest: Manifest,
    split: str,
    wanted: Sequence[tuple[str, str, float | None]],
    *,
    primary: str,
    threshold: float,
    max_pixels: int,
) -> list[Example]:
    """Return the wanted (rank, key, mIoU) images in their order; those without a stored CAM are left out."""
    ranks = {key: (rank, miou) for rank, key, miou in wanted}
    found: dict[str, Example] = {}
    for shard in manifest.split(split).shards:
        stored = _read_cams(cams_dir / shard.file, ranks.keys(), primary)
        if not stored:
            continue
        for raw in read_raw(shards_dir / shard.file, shard):
            if raw.key not in stored:
                continue
            sample = decode_sample(raw, masks="png" in raw.members, max_pixels=max_pixels)
            classes, maps = stored[raw.key]
            size = sample.image.shape[:2]
            full = {kind: enlarge(values, (size[0], size[1])) for kind, values in maps.items()}
            rank, miou = ranks[raw.key]
            found[raw.key] = Example(
                key=raw.key,
                rank=rank,
                miou=miou,
                classes=classes,
                image=sample.image,
                cams={kind: _largest(values, (size[0], size[1])) for kind, values in full.items()},
                prediction=predict(full[primary], classes, threshold),
                truth=sample.mask,
            )
    return [found[key] for _, key, _ in wanted if key in found]


def first_keys(cams_dir: Path, manifest: Manifest, split: str, num_images: int) -> list[str]:
    """Return the keys of the first images of a split that have a CAM."""
    keys: list[str] = []
    for shard in manifest.split(split).shards:
        path = cams_dir / shard.file
        if len(keys) < num_images and path.is_file():
            with tarfile.open(path, "r:") as tar:
                keys += [name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json")]
    return keys[:num_images]


def enlarge(cam: Float, size: tuple[int, int]) -> Float:
    """Return the map (K, h, w) at image size, bilinear, align_corners=False (PARITY.md section 3)."""
    if cam.shape[0] == 0:
        return np.zeros((0, *size), np.float32)
    grown = interpolate(torch.from_numpy(cam)[None], size, mode="bilinear", align_corners=False)[0]
    return np.asarray(grown.numpy(), np.float32)


def predict(cam: Float, classes: Sequence[int], threshold: float) -> Bytes:
    """Return class ids (H, W): the class of the largest map where it is above the background threshold, else 0."""
    if not classes:
        return np.zeros(cam.shape[1:], np.uint8)
    ids = np.array(classes, np.uint8)[cam.argmax(axis=0)]
    return np.where(cam.max(axis=0) > threshold, ids, 0).astype(np.uint8)


def _largest(cam: Float, size: tuple[int, int]) -> Float:
    return cam.max(axis=0) if len(cam) else np.zeros(size, np.float32)


def _read_cams(path: Path, keys: Collection[str], primary: str) -> dict[str, tuple[tuple[int, ...], dict[str, Float]]]:
    """Return key -> (classes, kind -> map) of the wanted keys in a tar of CAMs; empty when there is no such file."""
    if not path.is_file():
        return {}
    parts: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            file = tar.extractfile(member) if key in keys else None
            if file is not None:
                parts.setdefault(key, {})[extension] = file.read()
    found = {}
    for key, members in parts.items():
        classes = tuple(int(c) for c in json.loads(members["json"])["classes"])
        maps = {primary: _array(members["npy"])}
        if "plain.npy" in members:
            maps["plain"] = _array(members["plain.npy"])
        found[key] = (classes, maps)
    return found


def _array(data: bytes) -> Float:
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False).astype(np.float32)
