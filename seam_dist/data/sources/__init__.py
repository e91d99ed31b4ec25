"""Readers of data sets, one file each; `open_source` picks the one that a configuration names."""

from __future__ import annotations

from seam_dist.config import SourceConfig
from seam_dist.data.sources.base import Record, Source, SourceError

__all__ = ["Record", "Source", "SourceError", "open_source"]


def open_source(cfg: SourceConfig) -> Source:
    """Return the reader of the configured data set; raise SourceError when it needs a folder and has none."""
    if cfg.kind == "procedural":
        from seam_dist.data.sources.procedural import ProceduralSource

        return ProceduralSource(cfg.splits, cfg.num_images, cfg.num_classes, cfg.image_size, cfg.seed)
    if cfg.root is None:
        raise SourceError(f"source.root is not set, but source.kind={cfg.kind} reads a folder: set source.root=FOLDER")
    if cfg.kind == "voc":
        from seam_dist.data.sources.voc import VOCSource

        return VOCSource(cfg.root)
    from seam_dist.data.sources.folder import FolderSource

    return FolderSource(cfg.root)
