"""Stage report: one HTML file on a run and those it is compared with, from what is on disk.

It is written again each time, also of a run that is not finished: what is missing is named, with its command.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from seam_dist.artifacts.atomic import atomic_write
from seam_dist.artifacts.layout import stage_folder
from seam_dist.artifacts.stage import input_fingerprint, open_stage
from seam_dist.cluster.distributed import init_world, on_main
from seam_dist.config.schema import STAGES, Config
from seam_dist.data.manifest import Manifest, ShardError, load_manifest
from seam_dist.report.comparison import compare_runs, console_table
from seam_dist.report.page import Note, Section, no_masks, render_page
from seam_dist.report.records import RunRecord, read_run
from seam_dist.report.sections.classes import classes_section
from seam_dist.report.sections.images import images_section
from seam_dist.report.sections.pipeline_results import pipeline_section, pipeline_table
from seam_dist.report.sections.results import results_section
from seam_dist.report.sections.setup import setup_section
from seam_dist.report.sections.thresholds import thresholds_section
from seam_dist.report.sections.training import training_section


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
    inputs = {stage: input_fingerprint(stage_folder(cfg, stage), stage) for stage in done}
    stage = open_stage(cfg, "report", settings=("report",), inputs=inputs)
    path = stage.dir / "report.html"
    atomic_write(path, report_html(cfg, own, others))
    stage.finish([path])
    rows = compare_runs(own, others)
    if own.is_unscored:
        print(f"report: {no_masks(own.name).text}")
    if rows or not (own.is_unscored or own.labels):
        print(console_table(rows))
    if own.labels:
        print(f"\n{pipeline_table(own)}")
    print(f"report: {path.resolve()}", flush=True)


def report_html(cfg: Config, own: RunRecord, others: Sequence[RunRecord]) -> str:
    """Return the report's HTML for what has been read of the run and the others."""
    command = _command(own)
    notes: list[Note] = []
    manifest: Manifest | None = None
    try:
        manifest = load_manifest(cfg.shards_dir)
    except ShardError as error:
        notes.append(Note(f"The data set's shards cannot be read: {error}", f"{command} --only shard"))
    names = manifest.classes if manifest is not None else ()
    stages = [stage for stage in ("train_seam", "infer_cam", "evaluate") if stage not in own.manifests]
    if stages:
        text = f"This run is not complete: {', '.join(stages)} {'is' if len(stages) == 1 else 'are'} not finished."
        notes.append(Note(text, f"{command} {' '.join(f'--only {stage}' for stage in stages)}"))
    split = cfg.report_split
    has_masks = manifest is None or split not in manifest.splits or manifest.splits[split].has_masks
    sections = [
        Section("results", "Results", results_section(own, others, command)),
        *([Section("pipeline", "From CAM to final mask", pipeline_section(own))] if own.labels else []),
        Section("images", f"Images of {split}", images_section(cfg, own, manifest, command)),
        Section("thresholds", "Background threshold", thresholds_section(own, others, command)),
        Section(
            "classes", f"Classes on {split}", classes_section(own, others, names, split, command, has_masks=has_masks)
        ),
        Section("training", "Training", training_section(own, others, command)),
        Section("setup", "What was run", setup_section(own, others, command)),
    ]
    return render_page(f"{own.method}: {own.name}", _lead(cfg, own, manifest), notes, sections)


def _lead(cfg: Config, own: RunRecord, manifest: Manifest | None) -> str:
    backbone = own.setting("model.backbone") or cfg.model.backbone
    text = f"Weakly supervised segmentation with {backbone}, run {own.name}"
    train = own.setting("data.train_split") or cfg.data.train_split
    if manifest is not None and train in manifest.splits:
        split = manifest.splits[train]
        text += f", trained on {split.num_samples} images with image-level labels of {manifest.num_classes} classes"
    return f"{text}. Report of {time.strftime('%Y-%m-%d %H:%M')}."


def _command(own: RunRecord) -> str:
    """Return the command that continues the run, as far as its folder shows it."""
    for stage in reversed(STAGES[:-1]):
        path = own.dir / stage / "config.yaml"
        if path.is_file():
            return f"seam-dist --config {path}"
    return f"seam-dist --config CONFIG.yaml run.name={own.name}"
