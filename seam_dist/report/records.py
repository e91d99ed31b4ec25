"""What a run left on disk, read for the report: settings, metrics, evaluations and the manifests of its stages.

Nothing has to be there: a report of half a run shows that half and gives the commands for the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.layout import CAM, LABEL_TYPES, scores_folder
from seam_dist.artifacts.stage import MANIFEST, RECORD, StageError
from seam_dist.config.schema import STAGES

METHODS = {"cam": "CAM only", "er": "CAM + ER", "pcm": "CAM + ER + PCM", "ecr": "CAM + PCM + ECR", "full": "SEAM"}


@dataclass(frozen=True)
class MapScores:
    """The scores of one map on one split: a curve over background thresholds and points on it."""

    thresholds: Sequence[float]
    miou: Sequence[float | None]
    best: Mapping[str, Any]
    chosen: Mapping[str, Any] | None
    default: Mapping[str, Any] | None

    def chosen_elsewhere(self, split: str) -> Mapping[str, Any] | None:
        """Return the point at the threshold that a split other than `split` chose, if there is one."""
        return None if self.chosen is None or self.chosen.get("from") == split else self.chosen


@dataclass(frozen=True)
class RunRecord:
    """One run, as far as it got."""

    dir: Path
    settings: Mapping[str, Any]
    """Settings as nested mappings, from the newest config.yaml of a stage; empty when there is none."""
    metrics: Sequence[Mapping[str, Any]]
    """Lines of the training's metrics.jsonl, by step."""
    evaluations: Mapping[str, Mapping[str, Any]]
    """Split -> the scores of its CAMs (`seam_dist.evaluation.cam_scores`)."""
    manifests: Mapping[str, Mapping[str, Any]]
    """Stage -> the manifest of a finished stage."""
    labels: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Label type -> split -> its scores (`seam_dist.evaluation.label_scores`), in the order of the pipeline."""
    damaged: Sequence[str] = field(default_factory=tuple)
    """Files that could not be read, with the reason."""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.dir.name

    @property
    def ablation(self) -> str:
        """loss.ablation of the run; `full` when no settings are left."""
        return str(self.setting("loss.ablation") or "full")

    @property
    def method(self) -> str:
        """What was trained, as shown."""
        return METHODS.get(self.ablation, self.ablation)

    @property
    def primary(self) -> str:
        """`refined` or `plain`: the map that the run's CAMs and scores are first of all."""
        recorded = [evaluation.get("map") for evaluation in self.evaluations.values()]
        recorded.append(self.manifests.get("infer_cam", {}).get("cam"))
        plain = self.ablation in ("cam", "er") or self.setting("infer_cam.cam") == "plain"
        asked = "plain" if plain else "refined"
        return next((str(name) for name in recorded if name in ("refined", "plain")), asked)

    @property
    def is_unscored(self) -> bool:
        """Whether the evaluation is finished and there was nothing to score: no split has masks."""
        return "evaluate" in self.manifests and not self.evaluations and not self.labels and not self.damaged

    def setting(self, key: str) -> Any:
        """Return the value of a dotted key, or None."""
        value: Any = self.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def scores(self, split: str) -> dict[str, MapScores]:
        """Return the scores on a split by map (`refined`, `plain`), the primary map first; empty without evaluation."""
        evaluation = self.evaluations.get(split)
        if evaluation is None:
            return {}
        parts = {self.primary: evaluation}
        if isinstance(evaluation.get("plain"), Mapping) and self.primary != "plain":
            parts["plain"] = evaluation["plain"]
        return {
            name: MapScores(part["thresholds"], part["miou"], part["best"], part.get("chosen"), part.get("default"))
            for name, part in parts.items()
        }


def read_run(folder: Path) -> RunRecord:
    """Read what is left of a run; damaged files are listed, not raised. StageError when the folder does not exist."""
    if not folder.is_dir():
        raise StageError(f"run folder {folder} does not exist: correct report.compare or run.dir and run.name")
    damaged: list[str] = []

    def tolerant(path: Path) -> Any:
        try:
            return read_json(path)
        except (ValueError, OSError) as error:
            damaged.append(str(error))
            return None

    paths: dict[str, Path] = {stage: folder / stage / MANIFEST for stage in STAGES}
    read = {stage: tolerant(path) for stage, path in paths.items() if path.is_file()}
    manifests = {stage: manifest for stage, manifest in read.items() if isinstance(manifest, dict)}
    settings: Mapping[str, Any] = {}
    for stage in reversed(STAGES[:-1]):
        path = folder / stage / "config.yaml"
        if path.is_file():
            try:
                loaded = yaml.safe_load(path.read_text())
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                damaged.append(f"{path}: {error}")
                continue
            if isinstance(loaded, dict):
                settings = loaded
                break

    def scores(name: str) -> dict[str, Mapping[str, Any]]:
        """Return split -> its record of one scored thing; empty when its evaluation is not finished."""
        place = scores_folder(folder, name)
        if not (place / MANIFEST).is_file():
            return {}
        paths = [path for path in sorted(place.glob("*.json")) if path.name not in (MANIFEST, RECORD)]
        return {path.stem: record for path in paths if isinstance(record := tolerant(path), dict)}

    evaluations = scores(CAM)
    for split, evaluation in list(evaluations.items()):
        lacking = [key for key in ("thresholds", "miou", "best") if key not in evaluation]
        if lacking:
            path = scores_folder(folder, CAM) / f"{split}.json"
            damaged.append(f"{path} has no {', '.join(lacking)}: run `--only evaluate` again")
            del evaluations[split]
    labels = {name: of_split for name in LABEL_TYPES if (of_split := scores(name))}
    metrics = _read_metrics(folder / "train_seam" / "metrics.jsonl", damaged)
    return RunRecord(folder, settings, metrics, evaluations, manifests, labels, damaged)


def _read_metrics(path: Path, damaged: list[str]) -> list[Mapping[str, Any]]:
    """Return the lines by step; the last one counts where a resumed training wrote a step twice."""
    by_step: dict[int, Mapping[str, Any]] = {}
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            by_step[int(values["step"])] = values
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # the last one may be incomplete after a kill
                damaged.append(f"{path}:{number} is not a line of metrics and was left out")
    return [by_step[step] for step in sorted(by_step)]


def series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return steps and values of one metric where it is a finite number."""
    steps, values = [], []
    for line in metrics:
        value = line.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            steps.append(float(line["step"]))
            values.append(float(value))
    return steps, values
