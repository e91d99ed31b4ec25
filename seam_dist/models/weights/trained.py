"""The one place that finds a run's trained network: its weights, and what model.json beside them says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.stage import StageError, input_fingerprint
from seam_dist.config.load import ConfigError, from_tree
from seam_dist.config.schema import Config, Stage

WEIGHTS = "model.safetensors"

# What the builder of each stage's network (load_seam, load_affinity_net, load_deeplab) reads of an architecture.
_COMMON = {"backbone", "width", "output_stride", "classes"}
_REQUIRED: dict[Stage, set[str]] = {
    "train_seam": {*_COMMON, "pcm_channels", "pcm_center", "pcm_grid", "align_grid", "pcm"},
    "train_affinity": {*_COMMON, "channels"},
    "train_seg": {*_COMMON, "network", "backbone_width", "align_grid"},
}


@dataclass(frozen=True)
class Trained:
    """A weight file, the architecture of its network, and the settings of its training by dotted key."""

    weights: Path
    architecture: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the foreground classes; the first has id 1."""
        return tuple(str(name) for name in self.architecture["classes"])

    @property
    def align(self) -> int | None:
        """Return the stride that the sizes of scaled images fit (model.align_grid), None for any size."""
        return int(self.architecture["output_stride"]) if self.architecture.get("align_grid") else None

    def recorded(self, section: str, names: Iterable[str]) -> dict[str, Any]:
        """Return those of the named settings of a section that are known, by name; ValueError for one that is wrong."""
        known = {name: self.settings[key] for name in names if (key := f"{section}.{name}") in self.settings}
        try:
            from_tree({section: known})
        except ConfigError as error:
            description = self.weights.with_name("model.json")
            raise StageError(f"{description} holds a setting that cannot be used: {error}") from None
        return known


def find_trained(source: Path, stage: Stage, *, default: Mapping[str, Any] | None = None) -> Trained:
    """Return the network that a training `stage` left at `source`.

    source: a run, the stage's folder, the folder `final` in it, or a weight file. `default` is the architecture of a
    weight file without a model.json, such as the authors' .pth.

    Raises StageError when there are no weights, or no model.json that describes a network of the stage.
    """
    folders = [source / stage / "final", source / "final", source]
    weights = source if source.is_file() else next((f for f in folders if (f / WEIGHTS).is_file()), source) / WEIGHTS
    if not weights.is_file():
        raise StageError(
            f"{weights} is missing: run `--only {stage}` to the end, or give the folder of a finished run, of its "
            f"{stage}/final, or a weight file"
        )
    description = weights.with_name("model.json")
    if weights.suffix != ".safetensors" or not description.is_file():
        if default is None:
            raise StageError(f"{description} is missing, which describes {weights.name}: copy both together")
        return Trained(weights, default, {})
    value = read_json(description)
    architecture = value.get("architecture") if isinstance(value, Mapping) else None
    if not isinstance(architecture, Mapping) or not _REQUIRED[stage] <= architecture.keys():
        raise StageError(f"{description} describes no network of {stage}: give the weights of {stage}")
    settings = value.get("config")
    return Trained(weights, architecture, settings if isinstance(settings, Mapping) else {})


def trained_for(
    cfg: Config,
    stage: Stage,
    classes: Sequence[str],
    checkpoint: Path | None = None,
    *,
    default: Mapping[str, Any] | None = None,
) -> Trained:
    """Return the network at `checkpoint`, else that of this run's finished `stage`; see find_trained for `default`.

    Raises StageError when the stage is not finished, or when the network is for other classes than the shards'.
    """
    if checkpoint is None:
        input_fingerprint(cfg.stage_dir(stage), stage)
    trained = find_trained(checkpoint or cfg.stage_dir(stage), stage, default=default)
    check_classes(trained, classes, cfg.shards_dir)
    return trained


def check_classes(trained: Trained, classes: Sequence[str], shards: Path) -> None:
    """Raise StageError when a network is for other classes than those of the data set in `shards`."""
    if trained.classes != tuple(classes):
        was, now = (shorten(", ".join(names), 60) for names in (trained.classes, classes))
        raise StageError(
            f"{trained.weights} was trained for {len(trained.classes)} classes ({was}), the shards in "
            f"{shards} have {len(classes)} ({now}): use the data set that it was trained on"
        )
