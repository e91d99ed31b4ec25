"""Stages against what is on disk: inputs that no stage will make, folders in the way, trainings to be replaced."""

from __future__ import annotations

from collections.abc import Mapping

from seam_dist.artifacts.layout import LABEL_TYPES, stage_folder
from seam_dist.artifacts.lock import lock_holder
from seam_dist.artifacts.stage import MANIFEST, RECORD, foreign_files, input_fingerprint
from seam_dist.config.findings import Findings
from seam_dist.config.schema import STAGES, Config
from seam_dist.evaluation.score_folders import scorable
from seam_dist.models.deeplab import SEAM_STAGE
from seam_dist.preflight.plan import Plan, reported

_MAKE_LABELS = ("infer_cam", "random_walk", "infer_seg")


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


def check_inputs(plan: Plan, changed: Mapping[str, str]) -> Findings:
    """Return what keeps stages from starting: missing inputs, other processes, foreign files, other settings.

    `changed` has the stages whose outputs belong to other settings or inputs, with what differs.
    """
    findings = Findings()
    cfg = plan.cfg
    missing = {name for stage in plan.stages for name in inputs_of(cfg, stage) if name not in plan.stages}
    for name in (stage for stage in STAGES if stage in missing and stage != "shard"):
        with reported(findings, f"input-{name}"):
            input_fingerprint(cfg.stage_dir(name), name)
    if "evaluate" in plan.stages and not scorable(cfg) and not set(_MAKE_LABELS) & set(plan.stages):
        with reported(findings, "input-infer_cam"):
            input_fingerprint(cfg.stage_dir("infer_cam"), "infer_cam")
    for stage in plan.stages:
        if (holder := lock_holder(cfg.run_dir, stage)) is not None:
            findings.error(
                f"lock-{stage}",
                f"stage {stage} of {cfg.run_dir} is running already (process {holder.get('pid', 'unknown')} on "
                f"{holder.get('host', 'an unknown host')}): wait for it or end it, or give this run another run.name",
            )
        elif stage != "evaluate" and _holds_foreign_files(cfg, stage):
            setting = "data.shards" if stage == "shard" and cfg.data.shards is not None else "run.name"
            findings.error(
                f"foreign-{stage}",
                f"{stage_folder(cfg, stage)} holds files that stage {stage} did not make (no {RECORD}): set {setting} "
                "to an empty or a new folder",
            )
    _check_replaced(plan, changed, findings)
    return findings


def _holds_foreign_files(cfg: Config, stage: str) -> bool:
    folder = stage_folder(cfg, stage)
    if any((folder / name).is_file() for name in (RECORD, MANIFEST)):
        return False
    return bool(foreign_files(folder))


def _check_replaced(plan: Plan, changed: Mapping[str, str], findings: Findings) -> None:
    """Trainings are replaced only when the user says so."""
    cfg = plan.cfg
    if cfg.run.overwrite:
        return
    for stage in (stage for stage in plan.trainings if stage in changed):
        findings.error(
            f"replace-{stage}",
            f"{cfg.stage_dir(stage)} was made with other settings ({changed[stage]}): give the run another run.name, "
            "or set run.overwrite=true to replace it",
        )
