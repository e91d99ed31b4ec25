"""Scores of the stored CAMs against the masks, for all background thresholds in one pass.

They are in evaluate/cam/, for each split <split>.json, .csv (a row a threshold) and -images.csv (a row an image). Three
points of the curve stand out: `best` picks the threshold with the split's own masks, as the literature reports it;
`chosen` applies the threshold that is best on evaluate.threshold_split, so that no mask of the split decides anything
(that split itself has none); `default` is evaluate.default_threshold. PARITY.md section 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seam_dist.artifacts.atomic import read_json, write_csv, write_json
from seam_dist.artifacts.cam_file import StoredCam, read_cams, upsample_cam
from seam_dist.artifacts.layout import CAM, cam_folder
from seam_dist.artifacts.stage import MANIFEST, StageError, StageRun
from seam_dist.cluster.distributed import World, all_gather_object, all_reduce_sum, barrier, on_main
from seam_dist.cluster.progress import progress_bar
from seam_dist.config.schema import Config
from seam_dist.data.images import BadImageError
from seam_dist.data.manifest import Manifest, Shard, verify_shards
from seam_dist.data.masks import decode_mask
from seam_dist.data.shards import read_raw
from seam_dist.evaluation.metrics import Scores, ThresholdHistogram, class_lists, number_or_none, threshold_grid
from seam_dist.evaluation.score_folders import open_scores
from seam_dist.evaluation.splits import is_unreadable, splits_of_cams, unreadable_keys


@dataclass
class MapCounts:
    """The counts of one map over a split, and each image's own mean IoU at every threshold, by key."""

    histogram: ThresholdHistogram
    images: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def evaluate_cams(cfg: Config, manifest: Manifest, world: World) -> list[dict[str, Any]]:
    """Score the CAMs of the splits that have masks and CAMs, unless that is done.

    Returns the record of each split on the main rank, which prints a line on what is left out. Raises ValueError
    (StageError, ShardError) when infer_cam did not write what it was to write, or an image that can be read has no CAM.
    """
    stage, splits = on_main(lambda: _open_cam_scores(cfg, manifest), world)
    maps = on_main(lambda: stored_maps(cfg), world)
    chosen: dict[str, float] = {}
    records: list[dict[str, Any]] = []
    outputs: list[Path] = []
    for split in splits:
        counts = count_split(cfg, manifest, split, maps, world)
        if world.is_main:
            record = describe_split(split, counts, cfg, chosen)
            record |= unreadable_keys(cfg, manifest, split, counts[maps[0]].images)
            outputs += write_split(stage.dir, record, counts, manifest.classes)
            records.append(record)
    if world.is_main and not stage.is_done():
        stage.finish(outputs)
    barrier(world)
    return records


def _open_cam_scores(cfg: Config, manifest: Manifest) -> tuple[StageRun, tuple[str, ...]]:
    """Open the CAM's scores; return their place and the splits, the choosing one first; none when all is done."""
    scored = splits_of_cams(cfg, manifest)
    for split in scored.splits:
        verify_shards(cfg.shards_dir, manifest, split, cfg.data.verify)
    stage = open_scores(cfg, CAM, scored.waiting)
    if stage.is_done():
        return stage, ()
    for line in scored.lines:
        print(f"evaluate: {line}", flush=True)
    return stage, scored.splits


def stored_maps(cfg: Config) -> list[str]:
    """Return the maps that infer_cam stored, the one of infer_cam.cam first."""
    manifest = read_json(cfg.stage_dir("infer_cam") / MANIFEST)
    return ["refined", "plain"] if manifest.get("cam") == "refined" else ["plain"]


def count_split(cfg: Config, manifest: Manifest, split: str, maps: Sequence[str], world: World) -> dict[str, MapCounts]:
    """Return the counts of a split for each of `maps`; the same on all ranks.

    Rank r of R reads every R-th shard of masks and of CAMs, from the r-th on.
    """
    grid = threshold_grid(cfg.evaluate.num_thresholds, cfg.evaluate.default_threshold)
    counts = {name: MapCounts(ThresholdHistogram(manifest.num_classes, grid)) for name in maps}
    own = manifest.split(split).shards[world.rank :: world.size]
    pairs = (pair for shard in own for pair in read_pairs(cfg, manifest, shard))
    total = sum(shard.num_samples for shard in own)
    for stored, mask in progress_bar(f"evaluate {split}", total, "image", items=pairs, world=world):
        for name, cam in zip(maps, (stored.cam, stored.plain), strict=False):
            if cam is None:
                raise StageError(f"image {stored.key} of {split} has no {name} map: run `--only infer_cam` again")
            miou = counts[name].histogram.update(upsample_cam(cam, stored.size), stored.classes, mask)
            counts[name].images[stored.key] = miou.float().numpy()
    for count in counts.values():
        count.histogram.counts = all_reduce_sum(count.histogram.counts, world)
        count.images = {key: miou for part in all_gather_object(count.images, world) for key, miou in part.items()}
    return counts


def read_pairs(cfg: Config, manifest: Manifest, shard: Shard) -> Iterator[tuple[StoredCam, NDArray[np.uint8]]]:
    """Yield the stored CAM and the mask of every image of a shard that has a CAM.

    An image without one must be one that cannot be decoded, which inference left out; images are not decoded otherwise.
    Raises StageError for another one, for a mask that cannot be read and for one of another size.
    """
    cams = {stored.key: stored for stored in read_cams(cam_folder(cfg) / shard.file)}
    for raw in read_raw(cfg.shards_dir / shard.file, shard):
        stored = cams.get(raw.key)
        if stored is None:
            if not is_unreadable(raw, manifest, cfg.data.max_pixels):
                raise StageError(f"{shard.file}: image {raw.key} has no CAM: run `--only infer_cam` again")
            continue
        where = f"{shard.file}: the mask of {raw.key}"
        try:
            mask = decode_mask(raw.members["png"], max_pixels=cfg.data.max_pixels)
        except (BadImageError, KeyError) as error:
            raise StageError(f"{where} cannot be read ({error}): correct it") from None
        if mask.shape != stored.size:
            expected = f"{mask.shape} pixels, its CAM is for {stored.size}"
            raise StageError(f"{where} has {expected}: run `--only infer_cam` again on these shards")
        yield stored, mask


def describe_split(
    split: str, counts: Mapping[str, MapCounts], cfg: Config, chosen: dict[str, float]
) -> dict[str, Any]:
    """Return a split's scores as JSON values, those of the second map under its name; NaN is null.

    `chosen` maps each map to the threshold from the choosing split, which fills it in.
    """
    record: dict[str, Any] = {}
    for name, count in counts.items():
        thresholds, scores = count.histogram.thresholds, count.histogram.scores()
        if bool(scores.miou.isnan().all()):
            raise StageError(f"split {split!r} has no pixel with a class in its masks: correct the masks")
        best = _best(scores)
        part: dict[str, Any] = {
            "thresholds": thresholds,
            "miou": [number_or_none(value) for value in scores.miou.tolist()],
            "best": _point(scores, thresholds, best),
            "chosen": None,
            "default": _point(scores, thresholds, thresholds.index(cfg.evaluate.default_threshold)),
        }
        if split == cfg.evaluate.threshold_split:
            chosen[name] = thresholds[best]
        elif name in chosen:
            point = _point(scores, thresholds, thresholds.index(chosen[name]))
            part["chosen"] = {**point, "from": cfg.evaluate.threshold_split}
        if record:
            record[name] = part
        else:
            record = {"split": split, "map": name, "num_images": len(count.images), **part}
    return record


def _best(scores: Scores) -> int:
    return int(scores.miou.nan_to_num(-1).argmax())


def _point(scores: Scores, thresholds: Sequence[float], index: int) -> dict[str, Any]:
    """Return the scores at one threshold: mean IoU, and lists over the classes, background first."""
    miou = number_or_none(float(scores.miou[index]))
    return {"threshold": thresholds[index], "miou": miou, **class_lists(scores, index)}


def write_split(
    folder: Path, record: Mapping[str, Any], counts: Mapping[str, MapCounts], classes: Sequence[str]
) -> list[Path]:
    """Write a split's .json, .csv and -images.csv; return their paths.

    An image's mean IoU is over the classes in it or in its prediction, at the split's best threshold of that map.
    """
    split = record["split"]
    paths = [folder / f"{split}.json", folder / f"{split}.csv", folder / f"{split}-images.csv"]
    write_json(paths[0], record)
    curve = [["map", "threshold", "miou", "background", *classes]]
    columns: dict[str, dict[str, np.floating]] = {}
    for name, count in counts.items():
        scores = count.histogram.scores()
        values = torch.cat([scores.miou[:, None], scores.iou], dim=1).tolist()
        for threshold, row in zip(count.histogram.thresholds, values, strict=True):
            curve.append([name, f"{threshold:g}", *(f"{value:.6f}" for value in row)])
        best = _best(scores)
        columns["miou" if not columns else f"miou_{name}"] = {key: miou[best] for key, miou in count.images.items()}
    write_csv(paths[1], curve)
    rows = [[key, *(f"{column[key]:.6f}" for column in columns.values())] for key in sorted(columns["miou"])]
    write_csv(paths[2], [["key", *columns], *rows])
    return paths


def format_cam_scores(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the console table: mean IoU in percent and its threshold, for each split and map."""
    lines: list[tuple[str, ...]] = [("split", "map", "images", "best", "chosen elsewhere", "default")]
    for record in records:
        for name, part in ((record["map"], record), ("plain", record.get("plain"))):
            if part is not None:
                points = (_cell(part["best"]), _cell(part["chosen"]), _cell(part["default"]))
                lines.append((record["split"], name, str(record["num_images"]), *points))
    return lines


def _cell(point: Mapping[str, Any] | None) -> str:
    if point is None or point["miou"] is None:
        return "-"
    return f"{100 * point['miou']:.2f} at {point['threshold']:.2f}"
