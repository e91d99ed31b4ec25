"""The final network as one file without this package: a torch.export program, or ONNX where its packages are installed.

The program takes an RGB image, uint8 (1, 3, H, W), and returns logits, float32 (1, C + 1, H, W), at the image's size;
normalization is inside. One scale and no mirror image: what `seam-dist predict --scales 1 --no-flip` does. A program is
compared with the network before it is written: on noise of several sizes the labels must be equal.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seam_dist.artifacts.outputs import OutputFolder
from seam_dist.config.packages import require_package
from seam_dist.models import DeepLab

SUFFIXES = (".pt2", ".onnx")

_SMALLEST = 32  # pixels a side of the images that a program of any size takes
_LARGEST = 8192
_ELSEWHERE = "give another --export"
_ONNX = ("onnx", "onnxscript")


class ExportNetwork(nn.Module):
    """A final network with its normalization inside, in eval mode."""

    def __init__(self, model: DeepLab) -> None:
        super().__init__()
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(model.backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(model.backbone.std).view(1, 3, 1, 1))
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of uint8 RGB."""
        logits: Tensor = self.model((image.to(torch.float32) - self.mean) / self.std)
        return logits


def check_export(path: Path) -> None:
    """Raise ValueError when a program of that name cannot be written here, before any work is done."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--export {path} has suffix {path.suffix!r}, expected {' or '.join(SUFFIXES)}: rename it")
    if path.suffix == ".onnx":
        for module in _ONNX:
            try:
                require_package(module, extra="onnx", needed_by=f"--export {path}")
            except ValueError as error:
                raise ValueError(f"{error}, or export {path.with_suffix('.pt2')}") from None
    OutputFolder(path.parent).check([path.name], remedy=_ELSEWHERE)


def export_network(model: DeepLab, path: Path, size: tuple[int, int]) -> str:
    """Write the network, which is on the CPU, as a program; return which image sizes it takes.

    A network whose program cannot take any size gets one for `size` (height, width) alone. Raises ValueError when the
    program's labels differ from the network's, and OutputError when `path` is a file of the user's.
    """
    check_export(path)
    # A copy in C order: the program's file holds other memory formats badly.
    network = ExportNetwork(copy.deepcopy(model).to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]
    program, reason = _trace(network, size)
    sizes = [size] if reason else [size, (2 * _SMALLEST + 9, 3 * _SMALLEST), (_SMALLEST, 4 * _SMALLEST + 1)]
    _compare(network, program.module(), sizes, "the exported program")
    with OutputFolder(path.parent).file(path.name, remedy=_ELSEWHERE) as temporary:
        # torch looks at the suffix.
        inner = temporary.with_suffix(path.suffix)
        try:
            if path.suffix == ".pt2":
                torch.export.save(program, inner)
                _compare(network, torch.export.load(inner).module(), sizes[:1], "the written program")
            else:
                _save_onnx(program, inner, network, sizes)
            inner.replace(temporary)
        finally:
            inner.unlink(missing_ok=True)
    if reason:
        return f"images of {size[0]} x {size[1]} pixels only (height x width; no program for any size: {reason})"
    return f"images of any size from {_SMALLEST} to {_LARGEST} pixels a side"


@torch.no_grad()
def _trace(network: ExportNetwork, size: tuple[int, int]) -> tuple[Any, str]:
    """Return the program and, where it holds for one size alone, why."""
    example = (_noise(size),)
    height, width = (torch.export.Dim(name, min=_SMALLEST, max=_LARGEST) for name in ("height", "width"))
    try:
        return torch.export.export(network, example, dynamic_shapes=({2: height, 3: width},)), ""
    except Exception as error:  # whatever the tracer meets in a backbone of another package; it is reported, not lost
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return torch.export.export(network, example), reason


def _save_onnx(program: Any, path: Path, network: ExportNetwork, sizes: Sequence[tuple[int, int]]) -> None:
    torch.onnx.export(
        program, f=str(path), input_names=["image"], output_names=["logits"], external_data=False, verbose=False
    )
    reference: Any = importlib.import_module("onnx.reference")
    session = reference.ReferenceEvaluator(str(path))

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {"image": image.numpy()})[0]))

    _compare(network, run, sizes, "the ONNX model")


def _noise(size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@torch.no_grad()
def _compare(
    network: ExportNetwork, program: Callable[[Tensor], Tensor], sizes: Sequence[tuple[int, int]], what: str
) -> None:
    """Raise ValueError unless the program gives the network's labels; pixels of two equal logits may go either way."""
    for size in sizes:
        image = _noise(size)
        expected, logits = network(image), program(image)
        top = expected.topk(2, dim=1).values
        clear = top[:, 0] - top[:, 1] > 1e-4 * expected.abs().max()
        wrong = (logits.argmax(dim=1) != expected.argmax(dim=1)) & clear
        if logits.shape != expected.shape or bool(wrong.any()):
            raise ValueError(
                f"{what} gives {int(wrong.sum())} labels that differ from the network's on noise of {size[0]} x "
                f"{size[1]} pixels: this version of torch does not export it correctly, use another one"
            )
