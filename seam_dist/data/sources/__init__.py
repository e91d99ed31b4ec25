"""Readers of data sets, one file each; `open_source` returns the one that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence

from seam_dist.config.schema import SourceConfig
from seam_dist.data.sources.base import Record, Source, SourceError
from seam_dist.data.sources.coco import CocoSource
from seam_dist.data.sources.folder import FolderSource
from seam_dist.data.sources.synthetic import SyntheticSource
from seam_dist.data.sources.voc import VOCSource

__all__ = ["Record", "Source", "SourceError", "open_source"]


def open_source(cfg: SourceConfig, splits: Sequence[str]) -> Source:
    """Return the reader of `splits` of the configured data set; raise SourceError when its folder is not set."""
    if cfg.kind == "synthetic":
        return SyntheticSource(cfg, splits)
    if cfg.root is None:
        raise SourceError(f"source.root is not set, but source.kind={cfg.kind} reads a folder: set source.root=FOLDER")
    if cfg.kind == "coco":
        return CocoSource(cfg, splits)
    return VOCSource(cfg.root) if cfg.kind == "voc" else FolderSource(cfg.root)
