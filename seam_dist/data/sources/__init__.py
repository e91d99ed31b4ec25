"""Readers of data sets, one file each; `open_source` returns the one that a configuration names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from seam_dist.config.schema import SourceConfig
from seam_dist.data.sources.base import Record, Source, SourceError
from seam_dist.data.sources.coco import CocoSource
from seam_dist.data.sources.folder import FolderSource
from seam_dist.data.sources.synthetic import SyntheticSource
from seam_dist.data.sources.voc import VOCSource

__all__ = ["Record", "Source", "SourceError", "listing_fingerprint", "open_source"]


def open_source(cfg: SourceConfig, splits: Sequence[str]) -> Source:
    """Return the reader of `splits` of the configured data set; raise SourceError when its folder is not set."""
    if cfg.kind == "synthetic":
        return SyntheticSource(cfg, splits)
    if cfg.root is None:
        raise SourceError(f"source.root is not set, but source.kind={cfg.kind} reads a folder: set source.root=FOLDER")
    if cfg.kind == "coco":
        return CocoSource(cfg, splits)
    return VOCSource(cfg.root) if cfg.kind == "voc" else FolderSource(cfg.root)


def listing_fingerprint(cfg: SourceConfig, splits: Sequence[str]) -> str | None:
    """Return the SHA-256 of the lists and labels of a data set on disk, None when it is absent or synthetic.

    Detects a changed list without opening an image; does not detect a changed image.
    """
    if cfg.kind == "synthetic" or cfg.root is None or not cfg.root.is_dir():
        return None
    if cfg.kind == "voc":
        paths = [VOCSource(cfg.root).list_file(split) for split in splits]
    elif cfg.kind == "coco":
        paths = [cfg.root / "annotations" / f"instances_{split}.json" for split in splits]
    else:
        paths = [cfg.root / "classes.txt", cfg.root / "labels.csv"]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes() if path.is_file() else b"")
        digest.update(b"\0")
    return digest.hexdigest()
