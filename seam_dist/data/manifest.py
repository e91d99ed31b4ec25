"""The manifest of a folder of shards: classes, splits, and for each shard its samples, bytes and checksum.

It reveals a lost, truncated or exchanged shard: tar readers end silently where a file is truncated and skip what they
cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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


def load_manifest(folder: Path) -> Manifest:
    """Read and check manifest.json of a folder of shards; raise ShardError when it is missing or invalid."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ShardError(f"{path} is missing: run `--only shard` to the end, or set data.shards to a finished folder")
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        schema = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise ShardError(f"{path} has schema {schema!r}, expected {SCHEMA}: convert the data set with this version")
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
    if not 1 <= manifest.num_classes <= MAX_CLASSES:
        raise ShardError(
            f"{path} has {manifest.num_classes} classes, expected 1 to {MAX_CLASSES}: convert the data set again"
        )
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
        raise ShardError(
            f"{path} has {size} bytes, expected {shard.num_bytes}, so it is truncated or damaged: {REMEDY}"
        )
