"""Stage evaluate: scores of all that the run has made so far against the masks.

The stored CAMs are scored for all background thresholds in one pass; label images (CAM + CRF, random walk, final
network) by `seam_dist.evaluation.label_scores`, into evaluate/<kind>/. What has scores already is skipped, so the stage may run
after each of the others.

CAMs give for each split evaluate/<split>.json, .csv (a row a threshold) and -images.csv (a row an image). Three points
of the curve stand out: `best` picks the threshold with the split's own masks, as the literature reports it; `chosen`
applies the threshold that is best on evaluate.threshold_split, so that no mask of the split decides anything (that
split itself has none); `default` is evaluate.default_threshold. PARITY.md section 8.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from seam_dist.artifacts.atomic import atomic_write, read_json, write_json
from seam_dist.artifacts.cam_file import StoredCam, read_cams, upsample_cam
from seam_dist.artifacts.stage import StageError, StageRun, input_fingerprint, open_stage
from seam_dist.cluster.distributed import World, all_gather_object, all_reduce_sum, barrier, init_world, on_main
from seam_dist.config.schema import Config
from seam_dist.data.images import BadImageError, decode_mask
from seam_dist.data.manifest import Manifest, Shard, load_manifest, verify_shards
from seam_dist.data.shards import BadSampleError, RawSample, decode_sample, read_raw
from seam_dist.evaluation.label_scores import (
    LABEL_KINDS,
    describe_labels,
    made_kinds,
    open_scores,
    score_kind,
    write_label_scores,
)
from seam_dist.evaluation.metrics import Scores, ThresholdHistogram, threshold_grid


@dataclass
class MapResult:
    """The counts of one kind of map over a split, and each image's own mean IoU at every threshold, by key."""

    histogram: ThresholdHistogram
    images: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def run(cfg: Config) -> None:
    """Evaluate cfg.evaluate.splits, the split that chooses the threshold first; print a table on the main rank.

    Raises ValueError (StageError, ShardError) when infer_cam is not finished, a split has no masks or no CAMs, or an
    image that can be read has no CAM.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    stage, kinds, splits = on_main(lambda: _open(cfg, manifest), world)
    chosen: dict[str, float] = {}
    records: list[dict[str, Any]] = []
    outputs: list[Path] = []
    for split in splits:
        results = evaluate_split(cfg, manifest, split, kinds, world)
        if world.is_main:
            record = describe(split, results, cfg, chosen)
            outputs += write_split(stage.dir, record, results, manifest.classes)
            records.append(record)
    if world.is_main and (splits or not stage.is_done()):
        stage.finish(outputs)
    barrier(world)
    labels = evaluate_labels(cfg, manifest, world)
    if world.is_main:
        for text in (format_table(records) if records else "", format_labels(labels)):
            if text:
                print(text)
        print(f"evaluate: {'in' if records or labels else 'done already, see'} {stage.dir}", flush=True)


def evaluate_labels(cfg: Config, manifest: Manifest, world: World) -> list[dict[str, Any]]:
    """Score the label images that have no scores yet; return their records on the main rank."""
    records: list[dict[str, Any]] = []
    splits = [split for split in cfg.splits_of("evaluate") if manifest.split(split).has_masks]
    for kind in on_main(lambda: made_kinds(cfg), world):
        stage = on_main(partial(open_scores, cfg, kind), world)
        if on_main(stage.is_done, world):
            continue
        counts = score_kind(cfg, manifest, kind, splits, world)
        if world.is_main:
            outputs: list[Path] = []
            for split, found in counts.items():
                records.append(describe_labels(kind, split, found))
                outputs += write_label_scores(stage.dir, records[-1], found)
            stage.finish(outputs)
        barrier(world)
    return records


def format_labels(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the console table of label images: mean IoU in percent by kind and split; empty without records."""
    if not records:
        return ""
    splits = list(dict.fromkeys(record["split"] for record in records))
    found = {(record["labels"], record["split"]): f"{100 * record['miou']:.2f}" for record in records}
    lines = [("labels", *splits)]
    for kind in LABEL_KINDS:
        cells = [found.get((kind.name, split), "-") for split in splits]
        if any(cell != "-" for cell in cells):
            lines.append((kind.words, *cells))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def evaluate_split(
    cfg: Config, manifest: Manifest, split: str, kinds: Sequence[str], world: World
) -> dict[str, MapResult]:
    """Return the results of a split for each kind of map, the stored first-hand one first; the same on all ranks.

    Rank r of R reads every R-th shard of masks and of CAMs, from the r-th on.
    """
    grid = threshold_grid(cfg.evaluate.num_thresholds, cfg.evaluate.default_threshold)
    results = {kind: MapResult(ThresholdHistogram(manifest.num_classes, grid)) for kind in kinds}
    own = manifest.split(split).shards[world.rank :: world.size]
    total = sum(shard.num_samples for shard in own)
    with tqdm(total=total, unit="image", desc=f"evaluate {split}", disable=not world.is_main) as bar:
        for shard in own:
            for stored, mask in read_pairs(cfg, shard):
                for kind, cam in zip(kinds, (stored.cam, stored.plain), strict=False):
                    if cam is None:
                        raise StageError(f"{shard.file}: {stored.key} has no {kind} map: run `--stage infer_cam` again")
                    miou = results[kind].histogram.update(upsample_cam(cam, stored.size), stored.classes, mask)
                    results[kind].images[stored.key] = miou.float().numpy()
                bar.update(1)
    for result in results.values():
        result.histogram.all_reduce(lambda counts: all_reduce_sum(counts, world))
        result.images = {key: miou for part in all_gather_object(result.images, world) for key, miou in part.items()}
    return results


def read_pairs(cfg: Config, shard: Shard) -> Iterator[tuple[StoredCam, NDArray[np.uint8]]]:
    """Yield the stored CAM and the mask of every image of a shard that has a CAM.

    An image without one must be one that cannot be decoded, which inference left out; images are not decoded else.
    Raises StageError for another one, for a mask that cannot be read and for one of another size.
    """
    cams = {stored.key: stored for stored in read_cams(cfg.stage_dir("infer_cam") / "cams" / shard.file)}
    for raw in read_raw(cfg.shards_dir / shard.file, shard):
        stored = cams.get(raw.key)
        if stored is None:
            if not _is_bad(raw, cfg.data.max_pixels):
                raise StageError(f"{shard.file}: image {raw.key} has no CAM: run `--stage infer_cam` again")
            continue
        try:
            mask = decode_mask(raw.members["png"], max_pixels=cfg.data.max_pixels)
        except (BadImageError, KeyError) as error:
            raise StageError(f"{shard.file}: the mask of {raw.key} cannot be read ({error}): correct it") from None
        if mask.shape != stored.size:
            raise StageError(
                f"{shard.file}: the mask of {raw.key} has {mask.shape} pixels, its CAM is for {stored.size}: "
                "run `--stage infer_cam` again on these shards"
            )
        yield stored, mask


def _is_bad(raw: RawSample, max_pixels: int) -> bool:
    try:
        decode_sample(raw, masks=False, max_pixels=max_pixels)
    except BadSampleError:
        return True
    return False


def describe(split: str, results: Mapping[str, MapResult], cfg: Config, chosen: dict[str, float]) -> dict[str, Any]:
    """Return a split's evaluation as JSON values; NaN, a class or threshold without pixels, is null.

    `chosen` maps each kind of map to the threshold from the choosing split, which fills it in.
    """
    record: dict[str, Any] = {}
    for kind, result in results.items():
        thresholds, scores = result.histogram.thresholds, result.histogram.scores()
        if bool(scores.miou.isnan().all()):
            raise StageError(f"split {split!r} has no pixel with a class in its masks: correct the masks")
        best = int(scores.miou.nan_to_num(-1).argmax())
        part: dict[str, Any] = {
            "thresholds": thresholds,
            "miou": [_number(value) for value in scores.miou.tolist()],
            "best": _point(scores, thresholds, best),
            "chosen": None,
            "default": _point(scores, thresholds, thresholds.index(cfg.evaluate.default_threshold)),
        }
        if split == cfg.evaluate.threshold_split:
            chosen[kind] = thresholds[best]
        elif kind in chosen:
            point = _point(scores, thresholds, thresholds.index(chosen[kind]))
            part["chosen"] = {**point, "from": cfg.evaluate.threshold_split}
        if record:
            record[kind] = part
        else:
            record = {"split": split, "map": kind, "num_images": len(result.images), **part}
    return record


def _point(scores: Scores, thresholds: Sequence[float], index: int) -> dict[str, Any]:
    """Return the scores at one threshold: mean IoU, and lists over the classes, background first."""
    lists = {"iou": scores.iou, "precision": scores.precision, "recall": scores.recall}
    return {
        "threshold": thresholds[index],
        "miou": _number(float(scores.miou[index])),
        **{name: [_number(value) for value in values[index].tolist()] for name, values in lists.items()},
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def write_split(
    folder: Path, record: Mapping[str, Any], results: Mapping[str, MapResult], classes: Sequence[str]
) -> list[Path]:
    """Write a split's .json, .csv and -images.csv; return their paths.

    The .csv has a row for each map and threshold: mean IoU and the IoU of each class. The -images.csv has each image's
    mean IoU, over the classes in it or in its prediction, at the split's best threshold of that map.
    """
    split = record["split"]
    paths = [folder / f"{split}.json", folder / f"{split}.csv", folder / f"{split}-images.csv"]
    write_json(paths[0], record)
    curve = [["map", "threshold", "miou", "background", *classes]]
    for kind, result in results.items():
        scores = result.histogram.scores()
        values = torch.cat([scores.miou[:, None], scores.iou], dim=1).tolist()
        for threshold, row in zip(result.histogram.thresholds, values, strict=True):
            curve.append([kind, f"{threshold:g}", *(f"{value:.6f}" for value in row)])
    atomic_write(paths[1], _csv(curve))
    columns = []
    for result in results.values():
        best = int(result.histogram.scores().miou.nan_to_num(-1).argmax())
        columns.append({key: miou[best] for key, miou in result.images.items()})
    names = ["miou", *(f"miou_{kind}" for kind in list(results)[1:])]
    rows = [[key, *(f"{column[key]:.6f}" for column in columns)] for key in sorted(columns[0])]
    atomic_write(paths[2], _csv([["key", *names], *rows]))
    return paths


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def format_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the console table: mean IoU in percent and its threshold, for each split and map."""
    lines = [("split", "map", "images", "best", "chosen elsewhere", "default")]
    for record in records:
        for kind, part in ((record["map"], record), ("plain", record.get("plain"))):
            if part is not None:
                points = (_cell(part["best"]), _cell(part["chosen"]), _cell(part["default"]))
                lines.append((record["split"], kind, str(record["num_images"]), *points))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _cell(point: Mapping[str, Any] | None) -> str:
    if point is None or point["miou"] is None:
        return "-"
    return f"{100 * point['miou']:.2f} at {point['threshold']:.2f}"


def _open(cfg: Config, manifest: Manifest) -> tuple[StageRun, list[str], list[str]]:
    """Open the stage; return it, the kinds of stored maps, and the splits in order, none when all is done."""
    infer = cfg.stage_dir("infer_cam")
    if not (infer / "manifest.json").is_file() and made_kinds(cfg):
        # Predictions of another run's network can be scored without any CAM.
        return open_stage(cfg, "evaluate", settings=("evaluate", "data.splits")), [], []
    inputs = {"infer_cam": input_fingerprint(infer, "infer_cam")}
    kinds = ["refined", "plain"] if read_json(infer / "manifest.json").get("cam") == "refined" else ["plain"]
    splits = list(cfg.splits_of("evaluate"))
    chooser = cfg.evaluate.threshold_split
    if chooser in splits or _reason_against(cfg, manifest, chooser) is None:
        splits = [chooser, *(split for split in splits if split != chooser)]
    else:
        print(f"evaluate: no threshold is chosen, since {_reason_against(cfg, manifest, chooser)}", flush=True)
    for split in splits:
        if reason := _reason_against(cfg, manifest, split):
            raise StageError(reason)
        verify_shards(cfg.shards_dir, manifest, split, cfg.data.verify)
    stage = open_stage(cfg, "evaluate", settings=("evaluate", "data.splits"), inputs=inputs)
    return stage, kinds, [] if stage.is_done() else splits


def _reason_against(cfg: Config, manifest: Manifest, name: str) -> str | None:
    """Say why a split cannot be evaluated, if so; raise ShardError when there is no such split."""
    split = manifest.split(name)
    if not split.has_masks:
        return f"split {name!r} has no masks to compare with: leave it out of evaluate.splits"
    folder = cfg.stage_dir("infer_cam") / "cams"
    if not all((folder / shard.file).is_file() for shard in split.shards):
        return f"split {name!r} has no CAMs in {folder}: add it to infer_cam.splits and run `--stage infer_cam`"
    return None
