"""Weight files of the stages: there, whole, and of the right network, by names and shapes alone.

A file of a stage that is done is not looked at. That the values are finite is seen when they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from seam_dist.artifacts.authors_files import crf_folders, files_fingerprint, find_dict
from seam_dist.config.findings import Findings
from seam_dist.config.schema import Stage
from seam_dist.models import find_trained, seam_architecture
from seam_dist.models.backbones.base import BackboneNetwork
from seam_dist.models.backbones.resnet38d import ResNet38d
from seam_dist.models.deeplab import SEAM_STAGE, check_seg_weights
from seam_dist.models.weights.load import PACKAGE, fit_weights, read_weights
from seam_dist.models.weights.trained import WEIGHTS, check_classes
from seam_dist.preflight.plan import RunPlan, reported

Networks = Mapping[Stage, BackboneNetwork]


def check_weights(plan: RunPlan, networks: Networks) -> Findings:
    """Return what is wrong with the weights and the authors' files that the stages will read."""
    findings = Findings()
    cfg = plan.cfg
    own = cfg.train_seg.pretrained
    if "train_seg" in plan.stages:
        with reported(findings, "train_seg.backbone"):
            check_seg_weights(cfg)
    from_model = [stage for stage in plan.trainings if not (stage == "train_seg" and own is not None)]
    if cfg.model.pretrained is not None and not findings.errors:
        _check_start("model.pretrained", cfg.model.pretrained, from_model, networks, findings)
    if own is not None and "train_seg" in plan.stages:
        if own == SEAM_STAGE:
            _check_seam_as_start(plan, networks, findings)
        else:
            _check_start("train_seg.pretrained", own, ["train_seg"], networks, findings)
    _check_checkpoints(plan, networks, findings)
    _check_authors_files(plan, findings)
    return findings


def _check_start(setting: str, source: str, stages: list[Stage], networks: Networks, findings: Findings) -> None:
    """Check the file that trainings start from; packages with weights belong to seam_dist.preflight.packages."""
    backbones = [networks[stage].backbone for stage in stages if stage in networks]
    if source == PACKAGE:
        with reported(findings, setting):
            for backbone in backbones:
                if isinstance(backbone, ResNet38d):
                    backbone.package_weights()
        return
    if not stages:
        return
    with reported(findings, setting, setting=setting):
        tensors = read_weights(Path(source), values=False)
        for stage in stages:
            if stage in networks:
                fit_weights(networks[stage], tensors, source)


def _check_seam_as_start(plan: RunPlan, networks: Networks, findings: Findings) -> None:
    """The final network starts from SEAM's backbone: from the network that will be trained, or from its file."""
    weights = plan.cfg.stage_dir(SEAM_STAGE) / "final" / WEIGHTS
    tensors: Mapping[str, Tensor] | None = None
    if SEAM_STAGE in plan.stages:
        tensors = networks[SEAM_STAGE].state_dict() if SEAM_STAGE in networks else None
    elif plan.is_finished(SEAM_STAGE):
        with reported(findings, "train_seg.pretrained", setting=f"train_seg.pretrained={SEAM_STAGE}"):
            tensors = read_weights(weights, values=False)
    if tensors is not None and "train_seg" in networks:
        with reported(findings, "train_seg.pretrained"):
            fit_weights(networks["train_seg"], tensors, f"train_seg.pretrained={SEAM_STAGE}")


def _check_checkpoints(plan: RunPlan, networks: Networks, findings: Findings) -> None:
    cfg = plan.cfg
    classes = None if plan.data is None else plan.data.classes
    settings: dict[Stage, tuple[Path | None, Stage]] = {
        "infer_cam": (cfg.infer_cam.checkpoint, "train_seam"),
        "infer_seg": (cfg.infer_seg.checkpoint, "train_seg"),
    }
    for stage, (checkpoint, trained_by) in settings.items():
        if stage not in plan.stages or checkpoint is None:
            continue
        setting = f"{stage}.checkpoint"
        default = seam_architecture(cfg, classes or ()) if stage == "infer_cam" else None
        with reported(findings, setting, setting=setting):
            trained = find_trained(checkpoint, trained_by, default=default)
            tensors = read_weights(trained.weights, values=False)
            if classes is not None and trained.architecture is not default:
                check_classes(trained, classes, cfg.shards_dir)
            if trained.architecture is default and classes is not None and stage in networks:
                fit_weights(networks[stage], tensors, str(trained.weights), require_heads=True)


def _check_authors_files(plan: RunPlan, findings: Findings) -> None:
    """The folders of the authors' dicts, and a dict for each image where the images are known."""
    cfg = plan.cfg
    if "infer_cam" not in plan.stages:
        return
    folders = [("infer_cam.from_interop", cfg.infer_cam.from_interop)]
    folders += [("infer_cam.crf_from_interop", folder) for folder in crf_folders(cfg.infer_cam) or ()]
    for setting, folder in folders:
        if folder is None:
            continue
        before = len(findings)
        with reported(findings, setting):
            files_fingerprint(folder, setting)
        if len(findings) > before:
            continue
        for split in plan.splits(cfg.splits_of("infer_cam")):
            for record in split.records:
                with reported(findings, f"{setting}-files"):
                    find_dict(folder, record.key, record.source_id, setting)
