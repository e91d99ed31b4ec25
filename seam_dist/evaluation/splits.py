"""Which splits are scored, and what to say of the others: masks are optional, and a split may only be predicted."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seam_dist.artifacts.layout import cam_folder
from seam_dist.artifacts.stage import StageError
from seam_dist.config.schema import Config
from seam_dist.data.images import BadSampleError
from seam_dist.data.manifest import Manifest
from seam_dist.data.shards import RawSample, decode_sample, index_shard
from seam_dist.evaluation.metrics import absent_classes

_NAMED = 5  # names that a line lists before it counts the others
_LONGEST = 40  # characters of a name in a line


@dataclass(frozen=True)
class ScoredSplits:
    """The splits that something is scored on, in order, and what to say of the others."""

    splits: tuple[str, ...]
    lines: tuple[str, ...]
    waiting: tuple[str, ...] = ()
    """Splits that have masks and would be scored if inference had written something for them."""


def splits_with_masks(cfg: Config, manifest: Manifest) -> ScoredSplits:
    """Return the splits of evaluate.splits that have masks; raise ShardError for one that the shards do not have."""
    splits = cfg.splits_of("evaluate")
    masked = tuple(name for name in splits if manifest.split(name).has_masks)
    without = (name for name in splits if name not in masked)
    return ScoredSplits(masked, tuple(f"split {name!r} has no masks, so it has no scores" for name in without))


def splits_of_cams(cfg: Config, manifest: Manifest) -> ScoredSplits:
    """Return the splits whose CAMs are scored, the one that chooses the threshold first.

    Raises StageError for a split that infer_cam should have written and did not.
    """
    masked = splits_with_masks(cfg, manifest)
    splits = [name for name in masked.splits if _has_cams(cfg, manifest, name)]
    without = [name for name in masked.splits if name not in splits]
    if lost := [name for name in without if name in cfg.splits_of("infer_cam")]:
        raise StageError(f"split {lost[0]!r} has no CAMs in {cam_folder(cfg)}: run `--only infer_cam` again")
    lines = [f"split {name!r} is not one of infer_cam.splits, so it has no scores of CAMs" for name in without]
    chooser = cfg.evaluate.threshold_split
    if chooser in manifest.splits and manifest.split(chooser).has_masks and not _has_cams(cfg, manifest, chooser):
        without.append(chooser)
    if splits and (reason := _why_not_chooser(cfg, manifest)) is not None:
        default = cfg.evaluate.default_threshold
        lines.append(
            f"no threshold is chosen, since {reason}; each split has its own best one and the default {default:g}"
        )
    elif splits:
        splits = [chooser, *(name for name in splits if name != chooser)]
    return ScoredSplits(tuple(splits), tuple(lines), tuple(dict.fromkeys(without)))


def _has_cams(cfg: Config, manifest: Manifest, name: str) -> bool:
    return manifest.split(name).has_tars(cam_folder(cfg))


def _why_not_chooser(cfg: Config, manifest: Manifest) -> str | None:
    """Return why evaluate.threshold_split cannot choose the threshold, if so."""
    name = cfg.evaluate.threshold_split
    if name not in manifest.splits:
        return f"evaluate.threshold_split={name} is not in the shards, which have {', '.join(manifest.splits)}"
    if not manifest.split(name).has_masks:
        return f"split {name!r} has no masks"
    return None if _has_cams(cfg, manifest, name) else f"split {name!r} has no CAMs"


def is_unreadable(raw: RawSample, manifest: Manifest, max_pixels: int) -> bool:
    """Return whether inference left a sample out, as it does with those that cannot be decoded."""
    try:
        decode_sample(raw, masks=False, max_pixels=max_pixels, num_classes=manifest.num_classes)
    except BadSampleError:
        return True
    return False


def unreadable_keys(cfg: Config, manifest: Manifest, split: str, scored: Container[str]) -> dict[str, list[str]]:
    """Return the entry "unreadable" of a split's scores, its keys that are not among `scored`; nothing without any."""
    paths = ((cfg.shards_dir / shard.file, shard) for shard in manifest.split(split).shards)
    keys = [members[0].name.partition(".")[0] for path, shard in paths for members in index_shard(path, shard)]
    unread = [key for key in keys if key not in scored]
    return {"unreadable": unread} if unread else {}


def remarks(records: Iterable[Mapping[str, Any]], manifest: Manifest) -> list[str]:
    """Return a line for each split of the scores that lacks images or classes; records of a split say the same."""
    lines = []
    for record in {record["split"]: record for record in records}.values():
        split = record["split"]
        if unread := record.get("unreadable"):
            share = f"{len(unread)} of {manifest.split(split).num_samples} images of {split}"
            lines.append(f"{share} could not be read by inference and are not scored: {listed(unread)}")
        if absent := absent_classes(record.get("best", record)["recall"], manifest.classes):
            lines.append(
                f"no mask of {split} holds {listed(absent)}: its IoU is 0 where it is predicted, and not in the mean "
                "otherwise"
            )
    return lines


def listed(names: Sequence[str]) -> str:
    """Return the first names and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in names[:_NAMED]) + more
