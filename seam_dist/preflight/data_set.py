"""The data set as the stages will see it: from its source where it is about to be converted, else from the manifest."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from itertools import islice

from PIL import Image

from seam_dist.config.findings import Findings
from seam_dist.config.schema import Config, Stage
from seam_dist.data.conversion_plan import check_split, count_shards
from seam_dist.data.images import BadSampleError
from seam_dist.data.manifest import Manifest, ShardError, Split, load_manifest, verify_shards
from seam_dist.data.shards import parse_info, read_raw
from seam_dist.data.sources import open_source
from seam_dist.data.sources.base import Record
from seam_dist.preflight.plan import DataSet, SplitOutline, reported

_SAMPLED = 4  # images a split whose headers tell the size of all


def read_data_set(cfg: Config, stages: Sequence[Stage]) -> tuple[DataSet | None, Findings]:
    """Return the data set for `stages` and what is wrong with it; None where nothing can be said of it.

    `stages` has shard when the data set is about to be converted; then the reader's own findings are among them.
    """
    findings = Findings()
    data: DataSet | None = None
    if not set(stages) - {"report"}:  # it notes what is missing
        return None, findings
    with reported(findings, "shards"):
        if "shard" in stages:
            return _from_source(cfg, findings), findings
        manifest = load_manifest(cfg.shards_dir)
        data = _from_manifest(cfg, manifest)
        for split in {cfg.data.train_split, *(name for stage in stages for name in cfg.splits_of(stage))}:
            if split in manifest.splits:
                verify_shards(cfg.shards_dir, manifest, split, "size")
    return data, findings


def _from_source(cfg: Config, findings: Findings) -> DataSet | None:
    names = cfg.splits_of("shard")
    splits: dict[str, SplitOutline] = {}
    source = None
    with reported(findings, "source"):
        source = open_source(cfg.source, names)
        classes = source.classes
    if source is None or findings.errors:
        return None
    for name in names:
        with reported(findings, "source"):
            listing = source.listing(name)
            findings.merge(listing.findings)
            records = listing.records
            if listing.findings.errors:  # they say what is missing
                has_masks = any(record.mask is not None for record in records)
                has_labels = any(record.classes is not None for record in records)
                planned = Split(name, len(records), has_masks, has_labels, shards=())
            else:
                planned = check_split(name, records)
            shards = count_shards(
                planned.num_samples, samples_per_shard=cfg.data.samples_per_shard, streams=cfg.data.streams
            )
            splits[name] = SplitOutline(
                name, planned.num_samples, shards, planned.has_masks, planned.has_labels, records
            )
    records = [record for split in splits.values() for record in split.records]
    labels = [len(record.classes) for record in records if record.classes is not None]
    pixels = [cfg.source.image_size[0] * cfg.source.image_size[1]] if cfg.source.kind == "synthetic" else []
    for split in splits.values() if not pixels else ():
        step = max(1, len(split.records) // _SAMPLED)
        pixels += [size for record in split.records[::step][:_SAMPLED] if (size := _num_pixels(record))]
    return DataSet(
        tuple(classes),
        splits,
        num_bytes=sum(_file_size(record, findings) for record in records),
        image_pixels=sum(pixels) / max(1, len(pixels)),
        image_classes=sum(labels) / max(1, len(labels)),
    )


def _file_size(record: Record, findings: Findings) -> int:
    size = 0
    try:
        record.check_files()
        size = sum(path.stat().st_size for path in record.files)
    except OSError as error:
        # The topic of opening it: the survey says no more.
        findings.error(
            "image-unreadable", f"{error.filename} of image {record.source_id} cannot be read: {error.strerror}"
        )
    return size


def _num_pixels(record: Record) -> int:
    """Return the pixels of an image from its header, 0 where it has none that can be read."""
    with contextlib.suppress(OSError, ValueError, SyntaxError):
        record.check_files()
        with Image.open(io.BytesIO(record.image())) as image:
            return int(image.width * image.height)
    return 0


def _from_manifest(cfg: Config, manifest: Manifest) -> DataSet:
    sizes, labels = [], []
    for split in manifest.splits.values():
        with contextlib.suppress(ShardError, BadSampleError):
            for raw in islice(read_raw(cfg.shards_dir / split.shards[0].file), _SAMPLED):
                info = parse_info(raw.members["json"])
                sizes.append(info.size[0] * info.size[1])
                labels.append(len(info.classes))
    splits = {
        name: SplitOutline(name, split.num_samples, len(split.shards), split.has_masks, split.has_labels)
        for name, split in manifest.splits.items()
    }
    return DataSet(
        manifest.classes,
        splits,
        image_pixels=sum(sizes) / max(1, len(sizes)),
        image_classes=sum(labels) / max(1, len(labels)),
    )
