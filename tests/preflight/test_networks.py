"""Networks that are built without memory: what cannot be built, and what several GPUs cannot train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kit import Probe, run_config
from torch import nn

from seam_dist.models import DeepLab
from seam_dist.preflight import networks
from seam_dist.preflight.plan import RunPlan


class OwnNorm(nn.BatchNorm2d):
    """A BatchNorm that does more than BatchNorm."""


def test_a_setting_that_a_backbone_ignores_is_found(tmp_path: Path) -> None:
    cfg = run_config(tmp_path, model={"backbone": "lite0", "width": 0.5})
    built, findings = networks.build_networks(RunPlan(cfg, ("train_seam", "train_seg")))
    assert not built.keys() - {"train_seg"}
    assert findings.errors[0].text.startswith("model.width=0.5 has no effect on lite0")


def test_batchnorm_that_several_gpus_cannot_share_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(cfg: object, num_classes: int) -> tuple[DeepLab, None]:
        backbone = Probe()
        backbone.norm = OwnNorm(4)
        return DeepLab(backbone, num_classes, network="deeplabv1", width=4), None

    monkeypatch.setattr(networks, "build_deeplab", build)
    plan = RunPlan(run_config(tmp_path, run={"device": "auto"}), ("train_seg",), 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not len(networks.build_networks(plan)[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (finding,) = networks.build_networks(plan)[1]
    assert "train_seg.freeze_batchnorm=false: probe has layers of type OwnNorm" in finding.text


def test_the_compiler_of_torch_is_not_imported() -> None:
    """It takes more than a second, and random numbers on the meta device would ask for it."""
    code = (
        "import sys; from seam_dist.config.load import load_config; from seam_dist.preflight import networks, plan;"
        "made = networks.build_networks(plan.RunPlan(load_config('demo').config, ('train_seam', 'train_seg')))[0];"
        "sys.exit(len(made) != 2 or 'torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
