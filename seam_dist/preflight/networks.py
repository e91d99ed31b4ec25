"""The networks of the stages, built without memory for their values: whether they can be, and how large they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from seam_dist.cluster.distributed import World
from seam_dist.config.findings import Findings
from seam_dist.config.schema import Stage
from seam_dist.models import SEAM, AffinityNet, DeepLab, build_affinity_net, build_deeplab, build_seam
from seam_dist.preflight.plan import RunPlan, reported
from seam_dist.training.seg_task import synchronize_batchnorm


class _Unfilled(TorchFunctionMode):
    """Draws no random numbers: on the meta device there is nothing to fill, and torch would import its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, or return the tensor that it would fill."""
        if func.__name__.endswith(("normal_", "uniform_")):
            return (kwargs or {}).get("tensor", *args[:1])
        return func(*args, **(kwargs or {}))


def build_networks(plan: RunPlan) -> tuple[Mapping[Stage, SEAM | AffinityNet | DeepLab], Findings]:
    """Return the network of each stage that will train, and SEAM's for infer_cam, on the meta device.

    Without a data set they have one class; backbones do not depend on it.
    """
    findings = Findings()
    cfg = replace(
        plan.cfg,
        model=replace(plan.cfg.model, pretrained=None),
        train_seg=replace(plan.cfg.train_seg, pretrained=None),
    )
    num_classes = 1 if plan.data is None else len(plan.data.classes)
    builders: dict[Stage, Callable[[], SEAM | AffinityNet | DeepLab]] = {
        "train_seam": lambda: build_seam(cfg, num_classes)[0],
        "infer_cam": lambda: build_seam(cfg, num_classes)[0],
        "train_affinity": lambda: build_affinity_net(cfg)[0],
        "train_seg": lambda: build_deeplab(cfg, num_classes)[0],
    }
    networks: dict[Stage, SEAM | AffinityNet | DeepLab] = {}
    for stage in (stage for stage in builders if stage in plan.stages):
        topic = "train_seg" if stage == "train_seg" else "model"
        if stage == "infer_cam" and plan.cfg.infer_cam.checkpoint is None:
            continue  # that of train_seam, or none
        with reported(findings, topic), torch.device("meta"), _Unfilled():
            networks[stage] = builders[stage]()
    final = networks.get("train_seg")
    if isinstance(final, DeepLab) and cfg.run.device != "cpu" and torch.cuda.is_available():
        ranks = World(0, plan.world_size, 0, plan.world_size, torch.device("cuda"))
        with reported(findings, "train_seg"):
            synchronize_batchnorm(final, ranks)
    return networks, findings
