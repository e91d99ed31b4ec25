"""Stage shard: convert the configured data set to webdataset shards and a manifest, and keep them up to date.

Shards of the same settings are compared with the data set, by size, time and where needed content of every source file
and by all labels: what changed is converted again, in place, also in a folder that several runs share. An edit that
keeps size and time of a file is not seen. Where the data set is not there (only its shards came along) they are taken
as they are. Shards of other settings in a folder that data.shards names are replaced with run.overwrite alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.stage import RECORD, StageError, StageRun, open_stage, select
from seam_dist.cluster.distributed import all_gather_object, barrier, init_world, on_main
from seam_dist.config.findings import Findings
from seam_dist.config.phrases import count_of
from seam_dist.config.schema import Config, SourceConfig
from seam_dist.data.conversion_plan import Plan, SplitPlan, plan_conversion
from seam_dist.data.convert import foreign_files, remove_shards, write_shards
from seam_dist.data.manifest import MANIFEST, Manifest, ShardError, load_manifest, verify_shards
from seam_dist.data.mask_check import mask_findings
from seam_dist.data.shard_notes import refresh_notes
from seam_dist.data.sources import Record, SourceError, open_source

_SYNTHETIC = ("num_images", "num_classes", "image_size", "seed")
# Settings that no image of a shard depends on; whether empty images were left out is kept in the manifest.
_NOT_IDENTIFYING = ("root", "check_masks", "empty_images")
_STATUS_BYTES = 64 * 2**20  # read by `seam-dist status` at most


@dataclass(frozen=True)
class Comparison:
    """The shards beside the data set; without a `plan` they are taken as they are, since nothing can be compared."""

    manifest: Manifest | None
    plan: Plan | None = None
    num_dropped: int = 0
    findings: Findings = field(default_factory=Findings)

    @property
    def is_done(self) -> bool:
        """Return whether nothing is to be written."""
        return self.plan is None or self.plan.is_done


def run(cfg: Config) -> None:
    """Bring cfg.shards_dir up to date with cfg.source; rank r of R writes every R-th shard. Print a line a split."""
    world = init_world(cfg)
    # One rank decides for all.
    comparison = on_main(partial(_prepare, cfg), world)
    manifest, plan, warnings = comparison.manifest, comparison.plan, comparison.findings
    if plan is not None:
        manifest, more = write_shards(
            plan,
            check_masks=cfg.source.check_masks,
            rank=world.rank,
            world_size=world.size,
            num_processes=max(1, len(os.sched_getaffinity(0)) // world.local_size),
            gather=partial(all_gather_object, world=world),
        )
        warnings.merge(more)
    if world.is_main and manifest is not None:
        _report(cfg, manifest, comparison, warnings)
    barrier(world)


def compare_source(cfg: Config, *, max_bytes: int | None = None) -> Comparison:
    """Compare the data set with the shards and touch nothing; raise ValueError when it cannot be converted.

    Of files that have another time at the same size, at most `max_bytes` are read (None: all).
    """
    folder, splits = cfg.shards_dir, cfg.splits_of("shard")
    manifest = load_manifest(folder) if (folder / MANIFEST).is_file() else None
    serves = manifest is not None and matches(manifest, cfg)
    if serves and _is_absent(cfg.source):
        return Comparison(manifest)
    findings = Findings()
    try:
        source = open_source(cfg.source, splits)
        listings = {split: source.listing(split) for split in splits}
        for listing in listings.values():
            findings.merge(listing.findings)
        findings.raise_errors(SourceError)
        classes = source.classes
    except SourceError as error:
        raise SourceError(f"{error}{_untouched(folder) if serves else ''}") from None
    records = {split: listing.records for split, listing in listings.items()}
    _refuse_folder(cfg, records.values())
    train, num_empty, num_dropped = cfg.data.train_split, 0, 0
    if train in records:
        num_empty = sum(record.classes == () for record in records[train])
        if cfg.source.empty_images == "drop" and num_empty:
            records[train] = without_empty_images(records[train], train)
            num_dropped = num_empty
    plan = plan_conversion(
        classes,
        records,
        folder,
        settings=source_settings(cfg) | {"empty_images": "dropped" if num_dropped else "kept" if num_empty else None},
        samples_per_shard=cfg.data.samples_per_shard,
        streams=cfg.data.streams,
        max_pixels=cfg.data.max_pixels,
        max_bytes=max_bytes,
    )
    if serves and not plan.has_notes:
        text = f"the shards in {folder} do not say what they were made from, so changes of the data set are not seen"
        findings.warning("shards-without-notes", f"{text}: remove {folder / MANIFEST} and the shards to convert again")
        return Comparison(manifest, findings=findings)
    unreadable = [error for part in plan.splits for error in part.unreadable]
    if serves and unreadable:
        number = f"{count_of(len(unreadable), 'source file')} cannot be read"
        raise SourceError(f"{number}, first {unreadable[0]}: make the whole data set readable{_untouched(folder)}")
    if plan.is_done:
        for part in plan.splits:
            refuse = cfg.source.check_masks == "refuse"
            findings.merge(mask_findings(part.mask_labels, part.split.name, classes, refuse=refuse))
        findings.raise_errors(SourceError)
    return Comparison(manifest, plan, num_dropped, findings)


def without_empty_images(records: Iterable[Record], split: str) -> list[Record]:
    """Return the records with at least one object; raise SourceError when none is left."""
    kept = [record for record in records if record.classes != ()]
    if not kept:
        text = f"split {split!r} has images without any object alone, and source.empty_images=drop leaves them out"
        raise SourceError(f"{text}: label the objects or set source.empty_images=keep")
    return kept


def changes_of_source(cfg: Config) -> tuple[str, str]:
    """Return what the stage would convert again, empty if nothing, and what is to be said beside it; reads little."""
    try:
        comparison = compare_source(cfg, max_bytes=_STATUS_BYTES)
    except (ValueError, OSError) as error:
        return "", f"cannot be compared with the data set: {str(error).splitlines()[0]}"
    if comparison.plan is None:
        return "", ""
    plan = comparison.plan
    redated = [name for part in plan.splits for name in part.redated]
    number = count_of(len(redated), "image has", "images have")
    note = f"files of {number} another date, the stage compares their content" if redated else ""
    changes = [f"{part.split.name}: {text}" for part in plan.splits if (text := part.describe_changes())]
    return "" if plan.is_done else "; ".join(changes) or "the data set changed", note


def _prepare(cfg: Config) -> Comparison:
    """Compare, and open the stage where something is to be written; otherwise the plan is left out."""
    comparison = compare_source(cfg)
    plan, folder = comparison.plan, cfg.shards_dir
    if plan is None:
        return comparison
    if plan.is_done:
        refresh_notes(plan.refreshed)
        return replace(comparison, plan=None)
    is_shared = cfg.data.shards is not None
    manifest = comparison.manifest
    if manifest is not None and is_shared and not cfg.run.overwrite and not _same_empty_images(manifest, cfg):
        raise StageError(
            f"{folder} was made with another source.empty_images (images without any object were "
            f"{manifest.source['empty_images']}): set it as there, give another data.shards, or set run.overwrite=true"
        )
    ignored = (*_NOT_IDENTIFYING, *(() if cfg.source.kind == "synthetic" else _SYNTHETIC))
    settings, ignore = ("source", "data.splits", "data.samples_per_shard"), [f"source.{key}" for key in ignored]
    stage = StageRun("shard", folder, {"settings": select(cfg, settings, ignore), "inputs": {}})
    record = folder / RECORD
    is_other = record.is_file() and read_json(record).get("fingerprint") != stage.fingerprint
    if is_other and (cfg.run.overwrite or not is_shared):
        if foreign := foreign_files(folder):
            text = f"{folder} holds {foreign[0]} ({len(foreign)} such files), which no conversion wrote"
            raise ShardError(f"{text}: move them away, or choose another data.shards")
        remove_shards(folder)
    open_stage(cfg, "shard", settings=settings, ignore=ignore, precious=is_shared, directory=folder)
    return replace(comparison, plan=replace(plan, refreshed={}))


def _is_absent(source: SourceConfig) -> bool:
    """Return whether there is no data set on disk: no folder, or one with nothing in it, such as a mount point."""
    if source.kind == "synthetic":
        return False
    return source.root is None or not source.root.is_dir() or not any(source.root.iterdir())


def _untouched(folder: Path) -> str:
    return f"; the shards in {folder} are untouched, set source.root=null to take them as they are"


def _refuse_folder(cfg: Config, splits: Iterable[Iterable[Record]]) -> None:
    """Raise SourceError when the shards would lie among the files of the data set."""
    if cfg.source.kind == "synthetic" or cfg.source.root is None:
        return
    shards, root = cfg.shards_dir.resolve(), cfg.source.root.resolve()
    folders = {os.path.dirname(file) for records in splits for record in records for file in record.files}
    inside = {Path(folder).resolve() for folder in folders} & {shards, *shards.parents}
    if shards == root or inside:
        text = f"data.shards: {cfg.shards_dir} lies in the data set's own folder {next(iter(inside), root)}"
        raise SourceError(f"{text}: choose another place for the shards")


def source_settings(cfg: Config) -> dict[str, Any]:
    """Return what the shards depend on, as it is kept in their manifest."""
    source = cfg.source
    settings: dict[str, Any] = {
        "kind": source.kind,
        "splits": list(cfg.splits_of("shard")),
        "samples_per_shard": cfg.data.samples_per_shard,
    }
    skipped = {"kind", *_NOT_IDENTIFYING, *(() if source.kind == "synthetic" else _SYNTHETIC)}
    for entry in fields(source):
        value = getattr(source, entry.name)
        if entry.name not in skipped and value is not None:
            settings[entry.name] = list(value) if isinstance(value, tuple) else value
            if isinstance(value, Path):
                settings[entry.name] = str(value)
    return settings if source.kind == "synthetic" else settings | {"root": str(source.root)}


def matches(manifest: Manifest, cfg: Config) -> bool:
    """Return whether shards were made with these settings and feed the streams; the data set may have moved."""
    ignored = {"root", "empty_images"}
    sides = (manifest.source, source_settings(cfg))
    old, new = ({key: side[key] for key in side if key not in ignored} for side in sides)
    enough = all(len(s.shards) >= min(cfg.data.streams, s.num_samples) for s in manifest.splits.values())
    return old == new and enough and _same_empty_images(manifest, cfg)


def _same_empty_images(manifest: Manifest, cfg: Config) -> bool:
    """Return whether source.empty_images is as in the manifest, or makes no difference there."""
    asked = {"keep": "kept", "drop": "dropped"}[cfg.source.empty_images]
    return manifest.source.get("empty_images") in (None, asked)


def _report(cfg: Config, manifest: Manifest, comparison: Comparison, warnings: Findings) -> None:
    """Print what happened: warnings where something was written, and a line a split."""
    folder, train, plan = cfg.shards_dir, cfg.data.train_split, comparison.plan
    for finding in warnings.warnings:
        print(f"seam-dist: warning: {finding}", file=sys.stderr, flush=True)
    if comparison.num_dropped:
        total = comparison.num_dropped + manifest.split(train).num_samples
        left_out = f"{comparison.num_dropped} of {total} images without any object left out"
        print(f"{train}: {left_out} (source.empty_images=drop)", flush=True)
    parts = {part.split.name: part for part in (() if plan is None else plan.splits)}
    for name in cfg.splits_of("shard"):
        verify_shards(folder, manifest, name, cfg.data.verify)
        what = _outcome(parts[name], comparison.manifest is not None) if name in parts else "there already"
        print(describe(manifest, name), what, f"in {folder}", flush=True)


def _outcome(part: SplitPlan, was_finished: bool) -> str:
    """Return what was done with a split."""
    number = part.num_to_write
    if not part.changes:
        return "there already" if number == 0 and was_finished else "written"
    return f"{number} of {len(part.tasks)} shards written again ({part.describe_changes()})"


def describe(manifest: Manifest, name: str) -> str:
    """Return one line on a split: images, classes, masks, shards and size."""
    split = manifest.split(name)
    size = sum(shard.num_bytes for shard in split.shards) / 2**20
    masks = "with masks" if split.has_masks else "without masks"
    images = f"{split.num_samples} images {masks}, {manifest.num_classes} classes"
    return f"{name}: {images}, {len(split.shards)} shards, {size:.1f} MiB,"
