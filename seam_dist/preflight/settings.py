"""Settings against each other and against the number of ranks: batches, streams, DeepSpeed's block, implementations."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from seam_dist.config.deepspeed import check_deepspeed_config
from seam_dist.config.findings import Findings
from seam_dist.data.loader import check_streams
from seam_dist.data.order import Order
from seam_dist.inference.voc_server import check_server_name, check_server_split
from seam_dist.preflight.plan import RunPlan, reported
from seam_dist.training.checkpoint import verify
from seam_dist.training.engine import micro_batches, num_steps


def check_settings(plan: RunPlan) -> Findings:
    """Return what the stages would refuse in their settings."""
    findings = Findings()
    cfg = plan.cfg
    if plan.trainings:
        with reported(findings, "deepspeed"):
            check_deepspeed_config(cfg.deepspeed)
        with reported(findings, "data.streams"):
            check_streams(cfg.data, plan.world_size)
    for stage in plan.trainings:
        schedule = cfg.schedule_of(stage)
        with reported(findings, f"{stage}.schedule.global_batch_size"):
            micro_batches(schedule, plan.world_size, stage=stage)
        if schedule.resume not in ("auto", "never"):
            with reported(findings, f"{stage}.schedule.resume", setting=f"{stage}.schedule.resume"):
                verify(Path(schedule.resume))
        for split in plan.splits([cfg.data.train_split]):
            with reported(findings, f"{stage}.schedule.max_steps"):
                num_steps(schedule, split.num_samples, stage=stage)
            with reported(findings, "num_shards", setting=f"split {split.name!r}"):
                Order((1,) * split.num_shards, cfg.data.streams, cfg.data.shuffle_shards, cfg.run.seed)
    _check_implementations(plan, findings)
    if "infer_seg" in plan.stages and cfg.infer_seg.voc_server is not None:
        with reported(findings, "infer_seg.voc_server"):
            check_server_split(cfg)
        for split in plan.splits([cfg.infer_seg.voc_server]):
            for record in split.records:
                with reported(findings, "voc-server-name"):
                    check_server_name(record.source_id, record.key)
    if "report" in plan.stages:
        for folder in cfg.report.compare:
            if not folder.is_dir() and folder.resolve() != cfg.run_dir.resolve():
                findings.error(
                    "report.compare",
                    f"report.compare: run folder {folder} does not exist: give folders of runs, such as runs/NAME, or "
                    "unset it",
                )
    return findings


def _check_implementations(plan: RunPlan, findings: Findings) -> None:
    cfg = plan.cfg
    on_gpu = cfg.run.device != "cpu" and torch.cuda.is_available()
    if on_gpu or os.environ.get("TRITON_INTERPRET") == "1":
        return
    uses_pcm = cfg.loss.ablation not in ("cam", "er") and {"train_seam", "infer_cam"} & set(plan.stages)
    asked = {
        "model.pcm_impl": cfg.model.pcm_impl if uses_pcm else "auto",
        "random_walk.impl": cfg.random_walk.impl if "random_walk" in plan.stages else "auto",
    }
    for setting, impl in asked.items():
        if impl == "triton":
            findings.error(setting, f"{setting}=triton needs a GPU and the run is on a CPU: set {setting}=auto")
