"""The manifest of a folder of shards: classes, splits, and for each shard its samples, bytes and checksum.

It reveals a lost, truncated or exchanged shard: tar readers end silently where a file is truncated and skip what they
cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.config.schema import MAX_CLASSES

SCHEMA = 1
MANIFEST = "manifest.json"
REMEDY = "copy it again, or remove it together with manifest.json and run `--only shard`"

_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,200}\.tar")


class ShardError(ValueError):
    """A shard or manifest that is missing, damaged or not allowed; the message names the file and the remedy."""


@dataclass(frozen=True)
class Shard:
    """One tar file of a split, as the manifest lists it."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of a split, and whether its samples have masks and labels."""

    name: str
    num_samples: int
    has_masks: bool
    has_labels: bool
    shards: tuple[Shard, ...]

    def has_tars(self, folder: Path) -> bool:
        """Return whether a folder of outputs has a tar for each shard."""
        return all((folder / shard.file).is_file() for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """The content of a folder of shards; `classes` are the foreground names in index order, the first has id 1."""

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
            text = f"split {name!r} is not in the shards, which have {', '.join(self.splits)}"
            raise ShardError(f"{text}: use one of them")
        return self.splits[name]

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON values."""
        splits = {name: asdict(split) for name, split in self.splits.items()}
        for split in splits.values():
            del split["name"]
        return {
            "schema": SCHEMA,
            "source": dict(self.source),
            "classes": self.classes,
            "splits": splits,
            "created_by": self.created_by,
        }


def load_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json of a folder of shards; raise ShardError when it is missing or invalid."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ShardError(f"{path} is missing: run `--only shard` to the end, or set data.shards to a finished folder")
    value = read_json(path)
    schema = value.get("schema") if isinstance(value, dict) else type(value).__name__
    if schema != SCHEMA:
        raise ShardError(f"{path} has schema {schema!r}, expected {SCHEMA}: convert the data set with this version")
    try:
        for name, split in value["splits"].items():
            split["name"] = name
        manifest = TypeAdapter(Manifest).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ShardError(f"{path}: {where}: {first['msg']}: convert the data set again") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{path} is not a complete manifest ({error}): convert the data set again") from None
    if not 1 <= manifest.num_classes <= MAX_CLASSES:
        text = f"{path} has {manifest.num_classes} classes, expected 1 to {MAX_CLASSES}"
        raise ShardError(f"{text}: convert the data set again")
    for name, split in manifest.splits.items():
        for shard in split.shards:
            if not _SHARD_NAME.fullmatch(shard.file):
                raise ShardError(f"{path}: {shard.file!r} is not a plain file name: do not use this data set")
        counts = [shard.num_samples for shard in split.shards]
        if split.num_samples < 1 or sum(counts) != split.num_samples or min(counts) < 1:
            text = f"{path}: split {name!r} says {split.num_samples} samples but its shards hold {sum(counts)}"
            raise ShardError(f"{text}, or one of them is empty: convert the data set again")
    return manifest


def verify_shards(folder: Path, manifest: Manifest, split: str, mode: Literal["size", "checksum"]) -> None:
    """Check every shard of a split by its size or its checksum; raise ShardError naming the first that differs."""
    check_shards(folder, manifest.split(split).shards, mode)


def check_shards(folder: Path, shards: Iterable[Shard], mode: Literal["size", "checksum"]) -> None:
    """Check some shards of a folder as `verify_shards` does."""
    for shard in shards:
        path = Path(folder) / shard.file
        check_size(path, shard)
        if mode == "checksum" and sha256_file(path) != shard.sha256:
            raise ShardError(f"{path} does not have the checksum of the manifest, so it is damaged: {REMEDY}")


def check_size(path: Path, shard: Shard) -> None:
    """Check that a shard is there in full size; raise ShardError otherwise."""
    if not path.is_file():
        raise ShardError(f"{path} is missing: {REMEDY}")
    size = path.stat().st_size
    if size != shard.num_bytes:
        text = f"{path} has {size} bytes, expected {shard.num_bytes}, so it is truncated or damaged"
        raise ShardError(f"{text}: {REMEDY}")
