"""Loads weights into a network from the files people have, and reports what fitted.

Read: state dicts of torch (`.pth`, `.pt`; tensors only, nothing in the file is run), MXNet's `.params` of ResNet38d,
`.safetensors`, and `package`, the ImageNet weights that the backbone's Python package ships. Names may be the authors'
(conv1a.weight, fc8.weight: one flat network) or those of this project (backbone.conv1a.weight); `module.` of
data-parallel wrappers is dropped.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from seam_dist.models.backbones.base import Backbone
from seam_dist.models.seam import HEAD_NAMES, SEAM
from seam_dist.models.weights.mxnet_params import read_mxnet_params, resnet38d_name

PACKAGE = "package"
_HEAD_NAMES = (*HEAD_NAMES, "f8_5")  # f8_5: AffinityNet's
_SHOWN = 6
# A parameter name that identifies the network of a state dict, for error messages.
_SIGNATURES = {
    "conv1a.weight": "resnet38d",
    "_conv_stem.weight": "lite0",
    "conv_stem.weight": "a timm EfficientNet or MobileNet",
    "layer1.0.conv1.weight": "a ResNet",
    "patch_embed.proj.weight": "a vision transformer",
}


class Network(Protocol):
    """A module that takes weights: a backbone under its name, heads beside it."""

    backbone: Backbone
    pretrained_names: set[str]

    def state_dict(self) -> dict[str, Any]:
        """Return all tensors by name."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters by name."""


@dataclass(frozen=True)
class LoadReport:
    """What a weight file gave to a model; names are the model's, those of `unexpected` the file's.

    `missing`: the file has nothing for them; `mismatched`: (name, shape in the model, shape in the file), not loaded.
    Only heads can be in either (a backbone loads whole or not at all); they keep their random initialization.
    """

    source: str
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def new(self) -> tuple[str, ...]:
        """Names that keep their random initialization."""
        return (*self.missing, *(name for name, _, _ in self.mismatched))

    def __str__(self) -> str:
        lines = [f"weights from {self.source}: {len(self.matched)} tensors matched, {len(self.new)} new"]
        if self.missing:
            lines.append(f"  new, not in the file: {_listed(self.missing)}")
        for name, shape, shape_in_file in self.mismatched:
            lines.append(f"  new, other shape: {name} is {list(shape)} here, {list(shape_in_file)} in the file")
        if self.unexpected:
            lines.append(f"  in the file, not used: {_listed(self.unexpected)}")
        lines.extend(f"  {note}" for note in self.notes)
        return "\n".join(lines)


def _listed(names: tuple[str, ...]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} is not a file of tensors that can be read safely ({reason}): "
            "write it again with torch.save(model.state_dict(), path)"
        ) from None


def _tensors(value: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in what torch.load gave; it may be wrapped as {"state_dict": ...} or {"model": ...}."""
    for key in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise ValueError(
            f"{path} holds {type(value).__name__} instead of a state dict {{name: tensor}}: "
            "write it again with torch.save(model.state_dict(), path)"
        )
    return {str(name): tensor for name, tensor in value.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file, with names as they stand in it (MXNet's are translated).

    Raises ValueError for a missing file, an unknown suffix, or a file that is not what its suffix says.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path of a .pth, .pt, .params or .safetensors file")
    if path.suffix in (".pth", ".pt"):
        return _tensors(_read_torch(path), path)
    if path.suffix == ".params":
        return {resnet38d_name(name): tensor for name, tensor in read_mxnet_params(path).items()}
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}): copy or write it again") from None
    raise ValueError(f"{path} has suffix {path.suffix!r}, expected .pth, .pt, .params or .safetensors: rename it")


def model_name(name: str) -> str:
    """Return the name in this project for a parameter of a file: heads unchanged, the rest under `backbone.`."""
    name = name.removeprefix("module.")
    if name.split(".")[0] in _HEAD_NAMES or name.startswith("backbone."):
        return name
    return f"backbone.{name}"


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")  # files of MXNet and of old torch versions have none


def _refuse_other_network(model: Network, source: str, report: LoadReport, names: Mapping[str, Tensor]) -> None:
    wrong = [name for name, _, _ in report.mismatched if name.startswith("backbone.")]
    absent = [name for name in report.missing if name.startswith("backbone.")]
    if not wrong and not absent:
        return
    matched = sum(name.startswith("backbone.") for name in report.matched)
    likely = [what for key, what in _SIGNATURES.items() if any(name.endswith(f".{key}") for name in names)]
    shapes = next(
        (f"; {n} is {list(a)} here, {list(b)} in the file" for n, a, b in report.mismatched if n in wrong), ""
    )
    raise ValueError(
        f"{source} does not fit backbone {model.backbone.name}: {matched} of {matched + len(wrong) + len(absent)} "
        f"backbone tensors match{shapes}"
        + (f"; missing: {_listed(tuple(absent))}" if absent else "")
        + (f"; the file looks like {likely[0]}" if likely else "")
        + ": change model.backbone (and model.width), or give weights of this network"
    )


def _refuse_partial_head(model: Network, source: str, report: LoadReport) -> None:
    if not report.new:
        return
    shapes = "".join(f"; {name} is {list(a)} here, {list(b)} in the file" for name, a, b in report.mismatched)
    absent = f"; missing: {_listed(report.missing)}" if report.missing else ""
    heads, same = "heads of this network", "network and settings"
    if isinstance(model, SEAM):
        heads = f"heads for {model.num_classes} classes{' with PCM' if model.pcm else ''}"
        same = "classes and loss.ablation"
    raise ValueError(
        f"{source} lacks trained {heads}{shapes}{absent}: give the checkpoint of a run with the same {same}"
    )


def load_weights(model: Network, source: str | Path, *, require_heads: bool = False) -> LoadReport:
    """Copy weights into `model` and report what fitted; nothing is changed when they are refused.

    `source` is a path or "package". Heads that the file lacks, or has for another number of classes, stay as they are
    and are reported as new, unless `require_heads` (inference) makes that an error. Fills `model.pretrained_names`
    with the backbone's parameters. Raises ValueError when the backbone's tensors are not all there with equal shapes
    (another architecture), or when a tensor is not finite.
    """
    tensors = model.backbone.package_weights() if str(source) == PACKAGE else read_weights(Path(source))
    given = {model_name(name): tensor for name, tensor in tensors.items() if not _is_counter(name)}
    own = {name: tensor for name, tensor in model.state_dict().items() if not _is_counter(name)}
    common = [name for name in own if name in given]
    report = LoadReport(
        source=str(source),
        matched=tuple(name for name in common if own[name].shape == given[name].shape),
        missing=tuple(name for name in own if name not in given),
        unexpected=tuple(name for name in tensors if not _is_counter(name) and model_name(name) not in own),
        mismatched=tuple(
            (name, tuple(own[name].shape), tuple(given[name].shape))
            for name in common
            if own[name].shape != given[name].shape
        ),
    )
    _refuse_other_network(model, str(source), report, given)
    if require_heads:
        _refuse_partial_head(model, str(source), report)
    for name in report.matched:
        if not torch.isfinite(given[name]).all():
            raise ValueError(f"{source}: {name} holds NaN or infinity: use an intact checkpoint")
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(given[name])
    parameters = {name for name, _ in model.named_parameters()}
    model.pretrained_names = {n for n in report.matched if n in parameters and n.startswith("backbone.")}
    return report
