"""Loads weights into a network from the files people have, and reports what fitted.

Read: state dicts of torch (`.pth`, `.pt`; tensors only, nothing in the file is run), MXNet's `.params` of ResNet38d,
`.safetensors`, and `package`, the ImageNet weights that the backbone's Python package ships. Names may be the authors'
(conv1a.weight, fc8.weight: one flat network) or those of this project (backbone.conv1a.weight); `module.` of
data-parallel wrappers is dropped.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from seam_dist.models.backbones.base import BackboneNetwork
from seam_dist.models.weights.mxnet_params import read_mxnet_params, resnet38d_name

PACKAGE = "package"
_HEAD_NAMES = ("fc8", "f8_3", "f8_4", "f8_5", "f9")
_SHOWN = 6
# A parameter name that identifies the network of a state dict, for error messages.
_SIGNATURES = {
    "conv1a.weight": "resnet38d",
    "_conv_stem.weight": "lite0",
    "conv_stem.weight": "a timm EfficientNet or MobileNet",
    "layer1.0.conv1.weight": "a ResNet",
    "patch_embed.proj.weight": "a vision transformer",
}
_Network = TypeVar("_Network", bound=BackboneNetwork)


@dataclass(frozen=True)
class LoadReport:
    """What a weight file gave to a model; names are the model's, those of `unexpected` the file's.

    `missing`: the file has nothing for them; `mismatched`: not loaded, with their shapes in the model and in the file.
    Only heads can be in either (a backbone loads whole or not at all); they keep their random initialization.
    """

    source: str
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def new(self) -> tuple[str, ...]:
        """Names that keep their random initialization."""
        return (*self.missing, *self.mismatched)

    def __str__(self) -> str:
        if not self.matched and self.source == "nothing":
            return "\n  ".join(["random weights: no file was asked for", *self.notes])
        lines = [f"weights from {self.source}: {len(self.matched)} tensors matched, {len(self.new)} new"]
        if self.missing:
            lines.append(f"  new, not in the file: {_listed(self.missing)}")
        lines.extend(f"  new, other shape: {name} {shapes}" for name, shapes in self.mismatched.items())
        if self.unexpected:
            lines.append(f"  in the file, not used: {_listed(self.unexpected)}")
        lines.extend(f"  {note}" for note in self.notes)
        return "\n".join(lines)


def _listed(names: tuple[str, ...]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _read_torch(path: Path, *, values: bool) -> dict[str, Tensor]:
    """Return the state dict of a file, in which it may be wrapped as {"state_dict": ...} or {"model": ...}."""
    remedy = "write it again with torch.save(model.state_dict(), path)"
    try:
        # Mapped, the values stay on disk; files of before torch 1.6 are no zip archives and are read whole.
        mapped = not values and zipfile.is_zipfile(path)
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a file of tensors that can be read safely ({reason}): {remedy}") from None
    for key in ("state_dict", "model"):
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise ValueError(f"{path} holds {type(value).__name__} instead of a state dict {{name: tensor}}: {remedy}")
    return {str(name): tensor for name, tensor in value.items()}


def read_weights(path: Path, *, values: bool = True) -> dict[str, Tensor]:
    """Return the tensors of a weight file, with names as they stand in it (MXNet's are translated).

    Without `values` only names and shapes count, which takes milliseconds: what the tensors hold may not be read.
    Raises ValueError for a missing file, an unknown suffix, or a file that is not what its suffix says.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path of a .pth, .pt, .params or .safetensors file")
    if path.suffix in (".pth", ".pt"):
        return _read_torch(path, values=values)
    if path.suffix == ".params":
        return {resnet38d_name(name): tensor for name, tensor in read_mxnet_params(path, values=values).items()}
    if path.suffix == ".safetensors":
        try:
            return load_file(path) if values else _safetensors_shapes(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}): copy or write it again") from None
    raise ValueError(f"{path} has suffix {path.suffix!r}, expected .pth, .pt, .params or .safetensors: rename it")


def _safetensors_shapes(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}


def model_name(name: str) -> str:
    """Return the name in this project for a parameter of a file: heads unchanged, the rest under `backbone.`."""
    name = name.removeprefix("module.")
    if name.split(".")[0] in _HEAD_NAMES or name.startswith("backbone."):
        return name
    return f"backbone.{name}"


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Files of MXNet and of old torch versions have none.
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _refuse_misfit(model: BackboneNetwork, report: LoadReport, names: Mapping[str, Tensor], prefix: str) -> None:
    """Raise ValueError when the file lacks a tensor of the model, or has it in another shape, whose name starts so."""
    new = [name for name in report.new if name.startswith(prefix)]
    if new:
        shapes = [f"; {name} {shapes}" for name, shapes in report.mismatched.items() if name in new]
        missing = tuple(name for name in report.missing if name in new)
        likely = [network for key, network in _SIGNATURES.items() if any(name.endswith(f".{key}") for name in names)]
        raise ValueError(
            f"{report.source} does not fit {type(model).__name__} on {model.backbone.name}: {len(new)} of "
            f"{len(new) + len(report.matched)} tensors are missing or of another shape{''.join(shapes[:_SHOWN])}"
            + (f"; missing: {_listed(missing)}" if missing else "")
            + (f"; the file looks like {likely[0]}" if likely and likely[0] not in model.backbone.name else "")
            + ": give weights of the same network, or change model.backbone, model.width or the settings of the heads"
        )


def check_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise ValueError when a tensor holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{source}: {name} holds NaN or infinity: use an intact checkpoint")


def load_trained(model: _Network, weights: Path, *, channels_last: bool) -> _Network:
    """Return the model with all of the weights, in eval mode; ValueError when they are of another network."""
    load_weights(model, weights, require_heads=True)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval()


def load_weights(model: BackboneNetwork, source: str | Path, *, require_heads: bool = False) -> LoadReport:
    """Copy weights into `model` and report what fitted; nothing is changed when they are refused.

    `source` is a path or "package". Heads that the file lacks, or has for another number of classes, stay as they are
    and are reported as new, unless `require_heads` (inference) makes that an error. Fills `model.pretrained_names`
    with the backbone's parameters. Raises ValueError when the backbone's tensors are not all there with equal shapes
    (another architecture), or when a tensor is not finite.
    """
    tensors = model.backbone.package_weights() if str(source) == PACKAGE else read_weights(Path(source))
    report = fit_weights(model, tensors, str(source), require_heads=require_heads)
    given, own = {model_name(name): tensor for name, tensor in tensors.items()}, model.state_dict()
    check_finite({name: given[name] for name in report.matched}, source)
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(given[name])
    names = {name for name, _ in model.named_parameters() if name.startswith("backbone.")}
    model.pretrained_names = names.intersection(report.matched)
    return report


def fit_weights(
    model: BackboneNetwork, tensors: Mapping[str, Tensor], source: str, *, require_heads: bool = False
) -> LoadReport:
    """Return which tensors of a file `load_weights` would take, by names and shapes; raise ValueError as it does."""
    tensors, own = _without_counters(tensors), _without_counters(model.state_dict())
    given = {model_name(name): tensor for name, tensor in tensors.items()}
    common = [name for name in own if name in given]
    report = LoadReport(
        source=source,
        matched=tuple(name for name in common if own[name].shape == given[name].shape),
        missing=tuple(name for name in own if name not in given),
        unexpected=tuple(name for name in tensors if model_name(name) not in own),
        mismatched={
            name: f"is {list(own[name].shape)} here, {list(given[name].shape)} in the file"
            for name in common
            if own[name].shape != given[name].shape
        },
    )
    _refuse_misfit(model, report, given, "" if require_heads else "backbone.")
    return report
