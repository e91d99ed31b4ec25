"""Stages against what is on disk: inputs that no stage will make, folders in the way, trainings to be replaced."""

from __future__ import annotations

from collections.abc import Mapping

from seam_dist.artifacts.layout import LABEL_STAGES, LABEL_TYPES, stage_folder
from seam_dist.artifacts.lock import check_unlocked
from seam_dist.artifacts.stage import MANIFEST, RECORD, check_foreign, check_replaceable, input_fingerprint
from seam_dist.config.findings import Findings
from seam_dist.config.schema import STAGES, Config
from seam_dist.evaluation.score_folders import scorable
from seam_dist.models.deeplab import SEAM_STAGE
from seam_dist.preflight.plan import RunPlan, reported


def inputs_of(cfg: Config, stage: str) -> list[str]:
    """Return the stages whose outputs a stage reads under these settings, without evaluate's and the report's."""
    seg = cfg.train_seg
    inputs = {
        "train_seam": ["shard"],
        "infer_cam": ["shard"],
        "train_affinity": ["shard", "infer_cam"],
        "random_walk": ["shard", "infer_cam", "train_affinity"],
        "train_seg": ["shard", *([] if seg.labels == "masks" else [LABEL_TYPES[seg.labels].stage])],
        "infer_seg": ["shard", *([] if cfg.infer_seg.checkpoint is not None else ["train_seg"])],
        "evaluate": ["shard"],
    }.get(stage, [])
    if stage == "infer_cam" and cfg.infer_cam.checkpoint is None and cfg.infer_cam.from_interop is None:
        inputs.append("train_seam")
    if stage == "train_seg" and seg.pretrained == SEAM_STAGE:
        inputs.append(SEAM_STAGE)
    return inputs


def check_inputs(plan: RunPlan, changed: Mapping[str, str]) -> Findings:
    """Return what keeps stages from starting: missing inputs, other processes, foreign files, other settings.

    `changed` has the stages whose outputs belong to other settings or inputs, with what differs.
    """
    findings = Findings()
    cfg = plan.cfg
    missing = {name for stage in plan.stages for name in inputs_of(cfg, stage) if name not in plan.stages}
    for name in (stage for stage in STAGES if stage in missing and stage != "shard"):
        with reported(findings, f"input-{name}"):
            input_fingerprint(cfg.stage_dir(name), name)
    if "evaluate" in plan.stages and not scorable(cfg) and not set(LABEL_STAGES) & set(plan.stages):
        with reported(findings, "input-infer_cam"):
            input_fingerprint(cfg.stage_dir("infer_cam"), "infer_cam")
    for stage in plan.stages:
        folder = stage_folder(cfg, stage)
        with reported(findings, f"lock-{stage}"):
            check_unlocked(cfg.run_dir, stage)
        if stage != "evaluate" and not any((folder / name).is_file() for name in (RECORD, MANIFEST)):
            with reported(findings, f"foreign-{stage}"):
                check_foreign(cfg, stage, folder)
        if stage in plan.trainings and stage in changed:
            with reported(findings, f"replace-{stage}"):
                check_replaceable(cfg, folder, changed[stage])
    return findings
