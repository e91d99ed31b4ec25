"""Stage shard: convert the configured data set to webdataset shards and a manifest, once.

Shards whose manifest was made from the same source settings are taken as they are, also where the data set itself is no
longer available. A changed list or label file is noticed only where the data set is there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from seam_dist.artifacts.stage import open_stage
from seam_dist.cluster.distributed import barrier, broadcast_object, init_world
from seam_dist.config.findings import Findings
from seam_dist.config.schema import Config
from seam_dist.data.convert import convert
from seam_dist.data.manifest import MANIFEST, Manifest, load_manifest, verify_shards
from seam_dist.data.sources import SourceError, listing_fingerprint, open_source

_SYNTHETIC = ("num_images", "num_classes", "image_size", "seed")


def run(cfg: Config) -> None:
    """Make cfg.shards_dir from cfg.source; rank r of R writes every R-th shard. Print one line a split."""
    world = init_world(cfg)
    folder = cfg.shards_dir
    settings, splits = source_settings(cfg), cfg.splits_of("shard")
    manifest = load_manifest(folder) if (folder / MANIFEST).is_file() else None
    # One rank decides for all, and after all have looked: the next lines change the folder.
    done = broadcast_object(manifest is not None and matches(manifest, settings, cfg.data.streams), world)
    barrier(world)
    if not done:
        source = open_source(cfg.source, splits)
        # Listed before the folder is touched: a data set that is not there must not cost the shards of an earlier one.
        listings = {split: source.listing(split) for split in splits}
        findings = Findings()
        for listing in listings.values():
            findings.merge(listing.findings)
        findings.raise_errors(SourceError)
        records = {split: listing.records for split, listing in listings.items()}
        open_stage(
            cfg,
            "shard",
            settings=("source", "data.splits", "data.samples_per_shard"),
            ignore=("source.root", *(() if cfg.source.kind == "synthetic" else (f"source.{k}" for k in _SYNTHETIC))),
            inputs={"listing": settings.get("listing") or ""},
            is_main=world.is_main,
            precious=cfg.data.shards is not None,
            directory=folder,
        )
        barrier(world)
        manifest = convert(
            source.classes,
            records,
            folder,
            settings=settings,
            samples_per_shard=cfg.data.samples_per_shard,
            streams=cfg.data.streams,
            max_pixels=cfg.data.max_pixels,
            rank=world.rank,
            world_size=world.size,
            num_processes=max(1, len(os.sched_getaffinity(0)) // world.local_size),
            barrier=lambda: barrier(world),
        )
    if world.is_main and manifest is not None:
        for name in splits:
            verify_shards(folder, manifest, name, cfg.data.verify)
            print(describe(manifest, name), "there already" if done else "written", f"in {folder}", flush=True)
    barrier(world)


def source_settings(cfg: Config) -> dict[str, Any]:
    """Return what the shards depend on, as it is kept in their manifest."""
    source = cfg.source
    settings: dict[str, Any] = {
        "kind": source.kind,
        "splits": list(cfg.splits_of("shard")),
        "samples_per_shard": cfg.data.samples_per_shard,
    }
    if source.kind == "synthetic":
        values = {key: getattr(source, key) for key in _SYNTHETIC}
        return settings | {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return settings | {"root": str(source.root), "listing": listing_fingerprint(source, cfg.splits_of("shard"))}


def matches(manifest: Manifest, settings: Mapping[str, Any], streams: int) -> bool:
    """Return whether shards were made from these settings and feed that many streams.

    The folder of the data set may have moved, and may be gone: then its lists cannot be compared.
    """
    ignored = {"root"} if settings.get("listing") or settings["kind"] == "synthetic" else {"root", "listing"}
    old, new = ({key: side[key] for key in side if key not in ignored} for side in (manifest.source, settings))
    enough = all(len(s.shards) >= min(streams, s.num_samples) for s in manifest.splits.values())
    return old == new and enough


def describe(manifest: Manifest, name: str) -> str:
    """Return one line on a split: images, classes, masks, shards and size."""
    split = manifest.split(name)
    size = sum(shard.num_bytes for shard in split.shards) / 2**20
    masks = "with masks" if split.has_masks else "without masks"
    return (
        f"{name}: {split.num_samples} images {masks}, {manifest.num_classes} classes, "
        f"{len(split.shards)} shards, {size:.1f} MiB,"
    )
