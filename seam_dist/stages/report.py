"""Stage report: one HTML file on a run and those it is compared with, from what is on disk.

It is made anew each time, also of a run that is not finished: what is missing is named, with the command that makes it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from seam_dist.artifacts.atomic import atomic_write
from seam_dist.artifacts.stage import open_stage
from seam_dist.cluster.distributed import init_world, on_main
from seam_dist.config.schema import STAGES, Config
from seam_dist.data.manifest import Manifest, ShardError, load_manifest
from seam_dist.evaluation.label_scores import LABEL_KINDS
from seam_dist.report.comparison import comparison, console_table, number
from seam_dist.report.examples import first_keys, load_examples, rank_keys
from seam_dist.report.gallery import gallery
from seam_dist.report.page import missing, page
from seam_dist.report.records import RunRecord, read_run
from seam_dist.report.road import road_section, road_table
from seam_dist.report.scores import classes_section, results_section, thresholds_section
from seam_dist.report.training import setup_section, training_section


def run(cfg: Config) -> None:
    """Write report/report.html of cfg.run and print the comparison table and, as the last line, the report's path.

    Raises StageError when the run's folder or one of report.compare does not exist.
    """
    world = init_world(cfg)
    on_main(lambda: _write(cfg), world)


def _write(cfg: Config) -> None:
    own = read_run(cfg.run_dir)
    others = [read_run(folder) for folder in cfg.report.compare if folder.resolve() != cfg.run_dir.resolve()]
    done = [str(stage) for stage in STAGES[:-1] if stage in own.manifests]
    inputs = {stage: str(own.manifests[stage].get("fingerprint", "")) for stage in done}
    stage = open_stage(cfg, "report", settings=("report",), inputs=inputs)
    path = stage.dir / "report.html"
    atomic_write(path, render(cfg, own, others))
    stage.finish([path])
    print(console_table(comparison(own, others)))
    if own.labels:
        print(f"\n{road_table(own)}")
    print(f"report: {path.resolve()}", flush=True)


def render(cfg: Config, own: RunRecord, others: Sequence[RunRecord]) -> str:
    """Return the report's HTML for what has been read of the run and the others."""
    command = _command(own)
    note = ""
    manifest: Manifest | None = None
    try:
        manifest = load_manifest(cfg.shards_dir)
    except ShardError as error:
        note = missing(f"The data set's shards cannot be read: {error}", f"{command} --stage shard")
    names = manifest.classes if manifest is not None else ()
    stages = own.missing(("train_seam", "infer_cam", "evaluate"))
    if stages:
        note += missing(
            f"This run is not complete: {', '.join(stages)} {'is' if len(stages) == 1 else 'are'} not finished.",
            f"{command} {' '.join(f'--stage {stage}' for stage in stages)}",
        )
    split = cfg.report.split
    sections = [
        ("results", "Results", results_section(own, others, command)),
        *([("road", "From CAM to final mask", road_section(own))] if own.labels else []),
        ("images", f"Images of {split}", _images(cfg, own, manifest, command)),
        ("thresholds", "Background threshold", thresholds_section(own, others, command)),
        ("classes", f"Classes on {split}", classes_section(own, others, names, split, command)),
        ("training", "Training", training_section(own, others, command)),
        ("setup", "What was run", setup_section(own, others, command)),
    ]
    lead = f'<p class="lead">{escape(_lead(cfg, own, manifest))}</p>{note}'
    return page(f"{own.method}: {own.name}", lead, sections)


def _lead(cfg: Config, own: RunRecord, manifest: Manifest | None) -> str:
    backbone = own.setting("model.backbone") or cfg.model.backbone
    text = f"Weakly supervised segmentation with {backbone}, run {own.name}"
    train = own.setting("data.train_split") or cfg.data.train_split
    if manifest is not None and train in manifest.splits:
        split = manifest.splits[train]
        text += f", trained on {split.num_samples} images with image-level labels of {manifest.num_classes} classes"
    return f"{text}. Report of {time.strftime('%Y-%m-%d %H:%M')}."


def _images(cfg: Config, own: RunRecord, manifest: Manifest | None, command: str) -> str:
    split = cfg.report.split
    cams = own.dir / "infer_cam" / "cams"
    if manifest is None or split not in manifest.splits:
        return missing(f"There are no shards of split {split}, so there are no images.", f"{command} --stage shard")
    if not any((cams / shard.file).is_file() for shard in manifest.splits[split].shards):
        return missing(
            f"Run {own.name} has no CAMs of split {split}, so there are no images.", f"{command} --stage infer_cam"
        )
    try:
        return _pictures(cfg, own, manifest, cams)
    except ValueError as error:
        return missing(f"The images cannot be shown: {error}", f"{command} --stage infer_cam --stage evaluate")


def _pictures(cfg: Config, own: RunRecord, manifest: Manifest, cams: Path) -> str:
    split, count = cfg.report.split, cfg.report.num_images
    wanted: list[tuple[str, str, float | None]] = []
    ranked_by = ""
    # The last stage's labels rank the images, since they are the result; those of the oracle are none.
    scored = [kind for kind in LABEL_KINDS if split in own.labels.get(kind.name, {})]
    scored.sort(key=lambda kind: not kind.uses_labels)
    for name, words in [
        *((f"{kind.name}/", kind.words) for kind in reversed(scored)),
        ("", "CAM at its best threshold"),
    ]:
        wanted = [*rank_keys(own.dir / "evaluate" / f"{name}{split}-images.csv", count)]
        if wanted:
            ranked_by = words
            break
    note = ""
    if not ranked_by:
        wanted = [("first", key, None) for key in first_keys(cams, manifest, split, 3 * count)]
        reason = "is not evaluated" if manifest.splits[split].has_masks else "has no masks"
        note = missing(f"Split {split} {reason}, so its images cannot be ranked; these are the first ones.")
    threshold, source = _threshold(cfg, own)
    examples = load_examples(
        cams,
        cfg.shards_dir,
        manifest,
        split,
        wanted,
        primary=own.primary,
        threshold=threshold,
        max_pixels=cfg.data.max_pixels,
        label_dirs={kind.name: own.dir / kind.stage / kind.folder for kind in LABEL_KINDS},
    )
    return note + gallery(examples, manifest.classes, split=split, threshold=source, ranked_by=ranked_by)


def _threshold(cfg: Config, own: RunRecord) -> tuple[float, str]:
    """Return the background threshold of the predictions and where it comes from, in words."""
    split = cfg.report.split
    scores = own.scores(split).get(own.primary)
    if scores is not None:
        chosen = number(scores.chosen, "threshold")
        if chosen is not None:
            source = (scores.chosen or {}).get("from", split)
            return chosen, f"the background threshold {chosen:.2f}, chosen on {source}"
        best = number(scores.best, "threshold")
        if best is not None:
            return best, f"the background threshold {best:.2f}, the best on {split}"
    value = cfg.evaluate.default_threshold
    return value, f"the default background threshold {value:.2f}"


def _command(own: RunRecord) -> str:
    """Return the command that continues the run, as far as it can be told from its folder."""
    for stage in reversed(STAGES[:-1]):
        path = own.dir / stage / "config.yaml"
        if path.is_file():
            return f"seam-dist --config {path}"
    return f"seam-dist --config CONFIG.yaml run.name={own.name}"
