"""Splits that the stages ask for: whether they exist, have labels and masks, and get the CAMs and labels they need."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from seam_dist.artifacts.layout import LABEL_TYPES, cam_folder, label_folder
from seam_dist.config.findings import Findings
from seam_dist.config.schema import Config, Stage
from seam_dist.data.manifest import Split, load_manifest
from seam_dist.inference.run_shards import check_has_labels
from seam_dist.preflight.plan import RunPlan, reported

_INFERENCE: tuple[Stage, ...] = ("infer_cam", "random_walk", "infer_seg", "evaluate")


def check_splits(plan: RunPlan) -> Findings:
    """Return what is wrong with the splits of the stages; splits without masks are warnings, they are left out."""
    findings = Findings()
    cfg, data = plan.cfg, plan.data
    if data is None:
        return findings
    known = {*data.splits, *(cfg.data.splits if "shard" in plan.stages else ())}
    if plan.trainings and cfg.data.train_split not in known:
        _unknown(findings, "data.train_split", cfg.data.train_split, known)
    for stage in (stage for stage in _INFERENCE if stage in plan.stages):
        for name in cfg.splits_of(stage):
            if name not in known:
                _unknown(findings, splits_setting(cfg, stage), name, known)
    for split in plan.splits([cfg.data.train_split]):
        if "train_seam" in plan.stages and not split.has_labels:
            findings.error(
                "data.train_split",
                f"data.train_split={split.name}: the split has no image-level labels, so it cannot train: label it, or "
                "set data.train_split",
            )
        if "train_seg" in plan.stages and cfg.train_seg.labels == "masks" and not split.has_masks:
            findings.error(
                "train_seg.labels",
                f"train_seg.labels=masks: split {split.name!r} has no masks to train on: add them, or set "
                "train_seg.labels=walk",
            )
    if "infer_cam" in plan.stages:
        for split in plan.splits(cfg.splits_of("infer_cam")):
            with reported(findings, "infer_cam.splits"):
                check_has_labels(cfg, Split(split.name, split.num_samples, False, split.has_labels, ()), "infer_cam")
    _check_cams_and_labels(plan, findings)
    if "evaluate" in plan.stages:
        _check_evaluation(plan, known, findings)
    if "report" in plan.stages and cfg.report.split is not None and cfg.report.split not in known:
        _unknown(findings, "report.split", cfg.report.split, known)
    return findings


def splits_setting(cfg: Config, stage: Stage) -> str:
    """Return the setting that the splits of a stage come from."""
    if getattr(cfg, stage).splits is not None:
        return f"{stage}.splits"
    return splits_setting(cfg, "infer_cam") if stage == "random_walk" else "data.splits"


def _unknown(findings: Findings, setting: str, name: str, known: set[str]) -> None:
    findings.error(
        f"unknown-split-{setting}-{name}",
        f"{setting}: split {name!r} is not in the data set, which has {', '.join(sorted(known)) or 'none'}: use one of "
        "them, or add it to data.splits and convert the data set",
    )


def _check_cams_and_labels(plan: RunPlan, findings: Findings) -> None:
    """Each split that random_walk, a training or evaluate reads has CAMs or labels, made before or about to be."""
    cfg, train = plan.cfg, plan.cfg.data.train_split
    if "train_affinity" in plan.stages:
        if "infer_cam" in plan.stages and not cfg.infer_cam.crf:
            findings.error(
                "infer_cam.crf",
                "infer_cam.crf=false: train_affinity learns from CAM + CRF, which infer_cam then leaves out: set "
                "infer_cam.crf=true, or end with --until infer_cam",
            )
        elif not _has_outputs(plan, "infer_cam", cam_folder(cfg).with_name("affinity"), train):
            _lacking(findings, "train_affinity", train, "affinity labels", "infer_cam.crf=true and infer_cam.splits")
    if "random_walk" in plan.stages:
        for name in cfg.splits_of("random_walk"):
            if not _has_outputs(plan, "infer_cam", cam_folder(cfg), name):
                _lacking(findings, splits_setting(cfg, "random_walk"), name, "CAMs", "infer_cam.splits")
    if "train_seg" in plan.stages and cfg.train_seg.labels != "masks":
        made = LABEL_TYPES[cfg.train_seg.labels]
        setting = f"train_seg.labels={made.name}"
        if made.stage in plan.stages and made.switch and not getattr(getattr(cfg, made.stage), made.switch):
            findings.error(
                "train_seg.labels",
                f"{setting}: {made.stage}.{made.switch}=false leaves these labels out: set it to true, or another "
                "train_seg.labels",
            )
        elif not _has_outputs(plan, made.stage, label_folder(cfg, made), train):
            _lacking(findings, setting, train, f"labels of {made.title}", made.remedy)


def _has_outputs(plan: RunPlan, name: str, folder: Path, split: str) -> bool:
    """Return whether stage `name` will make, or has made, its tars of a split; True where that cannot be known."""
    cfg, stage = plan.cfg, cast(Stage, name)
    if stage in plan.stages:
        return split in cfg.splits_of(stage)
    if not plan.is_finished(stage) or not plan.splits([split]) or "shard" in plan.stages:
        return True  # reported elsewhere, or the shards are about to change
    return load_manifest(cfg.shards_dir).split(split).has_tars(folder)


def _lacking(findings: Findings, setting: str, split: str, what: str, remedy: str) -> None:
    findings.error(
        f"lacking-{setting}-{split}",
        f"{setting}: split {split!r} gets no {what}: add it to {remedy}, or leave it out here",
    )


def _check_evaluation(plan: RunPlan, known: set[str], findings: Findings) -> None:
    cfg = plan.cfg
    names = cfg.splits_of("evaluate")
    splits = plan.splits(names)
    setting = splits_setting(cfg, "evaluate")
    without = [split.name for split in splits if not split.has_masks]
    if splits and len(without) == len(splits):
        findings.warning(
            "no-masks", f"evaluate is skipped: no split of {setting}=[{','.join(names)}] has masks to compare with"
        )
        return
    if without:
        findings.warning("no-masks", f"evaluate leaves out {', '.join(without)} of {setting}: no masks to compare with")
    chooser = cfg.evaluate.threshold_split
    if splits and chooser not in known:
        findings.warning(
            "evaluate.threshold_split",
            f"evaluate.threshold_split={chooser} is not in the data set, which has {', '.join(sorted(known))}: no "
            "threshold will be chosen for the other splits; set it to one that has masks",
        )
