"""webdataset tar shards and their manifest: the format, its checks, writing one shard and reading one.

A sample is `<key>.jpg` (or .webp, .image.png: the image's original bytes), `<key>.json` ({"classes", "size",
"source_id", "orientation"}) and, where there is one, `<key>.png` (class indices, 255 ignored). Bi-temporal samples
have `<key>.a.*` and `<key>.b.*` images. Shards are plain webdataset shards that any of its readers takes; the
webdataset library writes and reads the tars. They are untrusted input: a shard is walked header by header first, so
that only regular files of allowed names and true sizes ever reach a decoder, and nothing is ever unpickled.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import webdataset
from numpy.typing import NDArray
from webdataset.tariterators import tar_file_iterator

from seam_dist.data.images import BadImageError, decode_image, decode_mask
from seam_dist.files import read_json, sha256_file

SCHEMA = 1
IGNORED = 255
MANIFEST = "manifest.json"
IMAGE_EXTENSIONS = ("jpg", "webp", "image.png")

_BLOCK = 512
_MEMBER = re.compile(r"([A-Za-z0-9_-]{1,80})\.(json|png|jpg|webp|image\.png|[ab]\.(?:jpg|webp|image\.png))")
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,200}\.tar")


class ShardError(ValueError):
    """A shard or manifest that is missing, damaged or not allowed; the message names the file and the remedy."""


class BadSampleError(ValueError):
    """One sample that cannot be used; the message names the key and the shard."""


@dataclass(frozen=True)
class Shard:
    """One tar file of a split, as the manifest lists it."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of a split and what its samples have."""

    name: str
    num_samples: int
    has_masks: bool
    has_labels: bool
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds; `classes` are the foreground names in index order, the first has id 1."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    source: Mapping[str, Any]
    created_by: str

    @property
    def num_classes(self) -> int:
        """Return the number of foreground classes."""
        return len(self.classes)

    def split(self, name: str) -> Split:
        """Return a split; raise ShardError with the names there are."""
        if name not in self.splits:
            raise ShardError(
                f"split {name!r} is not in the shards, which have {', '.join(self.splits)}: use one of them"
            )
        return self.splits[name]

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON values."""
        splits = {
            name: {
                "num_samples": split.num_samples,
                "has_masks": split.has_masks,
                "has_labels": split.has_labels,
                "shards": [vars(shard) for shard in split.shards],
            }
            for name, split in self.splits.items()
        }
        return {
            "schema": SCHEMA,
            "source": dict(self.source),
            "classes": list(self.classes),
            "splits": splits,
            "created_by": self.created_by,
        }


@dataclass(frozen=True)
class Sample:
    """One decoded sample: `image` (H, W, 3) uint8 RGB, `mask` (H, W) uint8 with 0 background and 255 ignored, or None.

    `classes` are foreground ids from 1, ascending; empty when the split has no labels.
    """

    key: str
    image: NDArray[np.uint8]
    classes: tuple[int, ...]
    mask: NDArray[np.uint8] | None
    source_id: str


@dataclass(frozen=True)
class RawSample:
    """One sample as stored: member extension -> bytes."""

    key: str
    members: Mapping[str, bytes]


def load_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json of a folder of shards; raise ShardError when it is missing or not as it should be."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ShardError(f"{path} is missing: run `--stage shard` to the end, or set data.shards to a finished folder")
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise ShardError(f"{path} has schema {found!r}, expected {SCHEMA}: convert the data set with this version")
    try:
        splits = {
            str(name): Split(
                name=str(name),
                num_samples=int(split["num_samples"]),
                has_masks=bool(split["has_masks"]),
                has_labels=bool(split["has_labels"]),
                shards=tuple(
                    Shard(str(s["file"]), int(s["num_samples"]), int(s["num_bytes"]), str(s["sha256"]))
                    for s in split["shards"]
                ),
            )
            for name, split in value["splits"].items()
        }
        classes = tuple(str(name) for name in value["classes"])
        manifest = Manifest(classes, splits, dict(value["source"]), str(value["created_by"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ShardError(f"{path} is not a complete manifest ({error!r}): convert the data set again") from None
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path: Path, manifest: Manifest) -> None:
    if not 1 <= manifest.num_classes <= IGNORED - 1:
        raise ShardError(f"{path} has {manifest.num_classes} classes, expected 1 to 254: convert the data set again")
    for name, split in manifest.splits.items():
        for shard in split.shards:
            if not _SHARD_NAME.fullmatch(shard.file):
                raise ShardError(
                    f"{path}: shard name {shard.file!r} is not a plain file name: do not use this data set"
                )
        total = sum(shard.num_samples for shard in split.shards)
        if split.num_samples < 1 or total != split.num_samples or min(s.num_samples for s in split.shards) < 1:
            raise ShardError(
                f"{path}: split {name!r} says {split.num_samples} samples but its shards hold {total}, or one of them "
                "is empty: convert the data set again"
            )


def verify_shards(folder: Path, manifest: Manifest, split: str, mode: Literal["size", "checksum"] = "size") -> None:
    """Check every shard of a split by its size or its checksum; raise ShardError naming the first that is not right."""
    check_shards(folder, manifest.split(split).shards, mode)


def check_shards(folder: Path, shards: Iterable[Shard], mode: Literal["size", "checksum"]) -> None:
    """Check some shards of a folder as `verify_shards` does."""
    for shard in shards:
        path = Path(folder) / shard.file
        _check_size(path, shard)
        if mode == "checksum" and sha256_file(path) != shard.sha256:
            raise ShardError(f"{path} does not have the checksum of the manifest, so it is damaged: {_REMEDY}")


_REMEDY = "copy it again, or remove it together with manifest.json and run `--stage shard`"


def _check_size(path: Path, shard: Shard) -> None:
    if not path.is_file():
        raise ShardError(f"{path} is missing: {_REMEDY}")
    size = path.stat().st_size
    if size != shard.num_bytes:
        raise ShardError(f"{path} has {size} bytes, expected {shard.num_bytes}, so it is cut or damaged: {_REMEDY}")


def write_shard(file: io.BufferedIOBase, samples: Iterable[RawSample]) -> None:
    """Write samples as a tar; the same samples give the same bytes, since names and times of the writer are left out."""
    with webdataset.TarWriter(file, encoder=False, user="", group="", mode=0o644, mtime=0) as tar:
        for sample in samples:
            for extension in sample.members:
                if not _MEMBER.fullmatch(f"{sample.key}.{extension}"):
                    raise ShardError(
                        f"member name {sample.key}.{extension!r} is not allowed: see seam_dist.data.shards"
                    )
            tar.write({"__key__": sample.key, **sample.members})


def read_raw(path: Path, expected: Shard | None = None) -> Iterator[RawSample]:
    """Yield the samples of a shard as stored, in stored order, one in memory at a time.

    With `expected`, the file's size and the number of samples must be the manifest's. Raises ShardError, naming the
    shard, for a missing, cut or damaged tar, for members that are not allowed, and for incomplete samples.
    """
    path = Path(path)
    if expected is not None:
        _check_size(path, expected)
    names = _walk(path)
    groups: list[tuple[str, int]] = []
    for key, _ in names:
        if groups and groups[-1][0] == key:
            groups[-1] = (key, groups[-1][1] + 1)
        else:
            groups.append((key, 1))
    if len({key for key, _ in groups}) != len(groups) or len(set(names)) != len(names):
        raise ShardError(f"{path} holds a key twice: {_REMEDY}")
    if expected is not None and len(groups) != expected.num_samples:
        raise ShardError(f"{path} holds {len(groups)} samples, expected {expected.num_samples}: {_REMEDY}")
    with open(path, "rb") as file:
        members = tar_file_iterator(file, skip_meta=None)
        for key, count in groups:
            parts = {member["fname"][len(key) + 1 :]: member["data"] for member in _take(members, count, path)}
            if "json" not in parts or not any(name.endswith(("jpg", "webp", "image.png")) for name in parts):
                raise ShardError(f"{path}: sample {key} lacks its image or its .json: {_REMEDY}")
            yield RawSample(key, parts)


def _take(members: Iterator[dict[str, Any]], count: int, path: Path) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        try:
            yield next(members)
        except (StopIteration, tarfile.TarError, OSError, AttributeError) as error:
            raise ShardError(f"{path} changed or cannot be read ({error!r}): {_REMEDY}") from None


def _walk(path: Path) -> list[tuple[str, str]]:
    """Return (key, extension) of every member from the tar headers alone; raise ShardError for what is not allowed.

    Stricter than a tar reader on purpose: those skip damaged headers, end at a cut, follow sparse files that grow.
    """
    names = []
    try:
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, io.SEEK_END)
            position = 0
            while True:
                file.seek(position)
                block = file.read(_BLOCK)
                if len(block) < _BLOCK:
                    raise ShardError(
                        f"{path} ends after {size} bytes without the end mark of a tar, so it is cut: {_REMEDY}"
                    )
                if block == bytes(_BLOCK):
                    break
                header = tarfile.TarInfo.frombuf(block, "ascii", "strict")
                match = _MEMBER.fullmatch(header.name)
                if header.type != tarfile.REGTYPE or match is None:
                    raise ShardError(
                        f"{path}: member {header.name!r} (type {header.type!r}) is not allowed, expected regular files "
                        "<key>.jpg, .webp, .image.png, .json or .png: do not use this shard"
                    )
                position += _BLOCK + -(-header.size // _BLOCK) * _BLOCK
                if header.size < 0 or position > size:
                    raise ShardError(
                        f"{path}: member {header.name!r} reaches past the end, so the shard is cut: {_REMEDY}"
                    )
                names.append((match[1], match[2]))
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: the tar header at byte {position} is damaged ({error}): {_REMEDY}") from None
    except OSError as error:
        raise ShardError(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from None
    if not names:
        raise ShardError(f"{path} is an empty tar: {_REMEDY}")
    return names


@dataclass(frozen=True)
class SampleInfo:
    """What `<key>.json` says: class ids, (height, width) in display order, EXIF orientation, name in the data set."""

    classes: tuple[int, ...]
    size: tuple[int, int]
    orientation: int
    source_id: str

    def to_bytes(self, *, has_labels: bool = True) -> bytes:
        """Return the .json member."""
        value: dict[str, Any] = {"size": list(self.size), "source_id": self.source_id}
        if has_labels:
            value["classes"] = list(self.classes)
        if self.orientation != 1:
            value["orientation"] = self.orientation
        return json.dumps(value, sort_keys=True).encode()


def parse_info(data: bytes, num_classes: int = IGNORED - 1) -> SampleInfo:
    """Read a .json member; raise BadSampleError when it is not what the conversion writes."""
    try:
        value = json.loads(data)
        height, width = (int(side) for side in value["size"])
        classes = tuple(int(index) for index in value.get("classes", ()))
        info = SampleInfo(classes, (height, width), int(value.get("orientation", 1)), str(value["source_id"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadSampleError(f"its .json is not readable ({error!r})") from None
    if min(height, width) < 1:
        raise BadSampleError(f"its .json says {height} x {width} pixels")
    if not all(1 <= index <= num_classes for index in classes) or not 1 <= info.orientation <= 8:
        raise BadSampleError(f"its .json has classes {classes} or orientation {info.orientation} out of range")
    return info


def decode_sample(raw: RawSample, *, masks: bool, max_pixels: int, num_classes: int = IGNORED - 1) -> Sample:
    """Decode a single-image sample; raise BadSampleError when it cannot be used."""
    info = parse_info(raw.members["json"], num_classes)
    extension = image_extension(raw)
    try:
        image = decode_image(raw.members[extension], max_pixels=max_pixels, orientation=info.orientation)
        mask = decode_mask(raw.members["png"], max_pixels=max_pixels) if masks and "png" in raw.members else None
    except BadImageError as error:
        raise BadSampleError(str(error)) from None
    if mask is not None and mask.shape != image.shape[:2]:
        raise BadSampleError(f"its mask has {mask.shape} pixels, its image {image.shape[:2]}")
    if masks and mask is None:
        raise BadSampleError("it has no mask")
    return Sample(raw.key, image, info.classes, mask, info.source_id)


def image_extension(raw: RawSample) -> str:
    """Return the extension of the one image of a sample; raise BadSampleError for none or several."""
    found = [name for name in IMAGE_EXTENSIONS if name in raw.members]
    if len(found) != 1:
        raise BadSampleError(f"it has {len(found)} images, expected 1 of {', '.join(IMAGE_EXTENSIONS)}")
    return found[0]


def read_shard(
    path: Path, *, masks: bool, max_pixels: int, on_bad: Callable[[str, BadSampleError], None] | None = None
) -> Iterator[Sample]:
    """Yield the decoded samples of a shard in stored order, for inference and evaluation.

    A sample that cannot be used goes to `on_bad(key, error)` and is left out; without `on_bad` it is raised. Raises
    ShardError for a damaged shard.
    """
    for raw in read_raw(path):
        try:
            yield decode_sample(raw, masks=masks, max_pixels=max_pixels)
        except BadSampleError as error:
            located = BadSampleError(f"sample {raw.key} in {path}: {error}")
            if on_bad is None:
                raise located from None
            on_bad(raw.key, located)
