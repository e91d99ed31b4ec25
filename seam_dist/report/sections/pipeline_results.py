"""The results along the pipeline, from CAM to final mask: mIoU of each stage's labels, and what each stage cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.config.schema import STAGES
from seam_dist.evaluation.text_table import aligned
from seam_dist.report.comparison import best_miou, chosen_miou, compare_runs, in_order, number, splits_of
from seam_dist.report.page import NONE, render_template
from seam_dist.report.records import RunRecord


@dataclass(frozen=True)
class PipelineResult:
    """What a stage of the pipeline made: its title and its mIoU by split."""

    title: str
    miou: Mapping[str, float]
    uses_image_labels: bool
    """It was made with the image-level labels of the image itself."""


def results_by_stage(run: RunRecord) -> list[PipelineResult]:
    """Return what the run's stages made, in order; CAMs at the threshold chosen elsewhere where there is one."""
    results = []
    for row in compare_runs(run, []):
        best = {split: value for split in splits_of([row]) if (value := best_miou(row, split)) is not None}
        chosen = {split: value for split in splits_of([row]) if (value := chosen_miou(row, split)) is not None}
        name = "refined CAM" if row.map == "refined" else "CAM"
        if not row.is_primary:
            name += " of the classifier"
        results.append(PipelineResult(f"{name}, best threshold", best, True))
        if chosen and row.is_primary:
            results.append(PipelineResult(f"{name}, threshold of another split", chosen, True))
    for label_type in LABEL_TYPES.values():
        scores = {
            split: value
            for split, record in run.labels.get(label_type.name, {}).items()
            if (value := number(record, "miou")) is not None
        }
        if scores:
            results.append(PipelineResult(label_type.title, scores, label_type.uses_image_labels))
    return results


def _splits(results: Sequence[PipelineResult]) -> list[str]:
    return in_order(split for result in results for split in result.miou)


def pipeline_table(run: RunRecord) -> str:
    """Return the results as aligned text: mIoU in percent by stage and split."""
    results = results_by_stage(run)
    splits = _splits(results)
    rows = [["labels", *(f"{split} mIoU" for split in splits)]]
    for result in results:
        values = (result.miou.get(split) for split in splits)
        rows.append([result.title, *("-" if value is None else f"{100 * value:.2f}" for value in values)])
    return aligned(rows, num_left=1, rule=True)


def pipeline_section(run: RunRecord) -> Markup:
    """Return the table of mIoU by stage and the table of what each stage cost."""
    results = results_by_stage(run)
    splits = _splits(results)
    from_image_alone = [index for index, result in enumerate(results) if not result.uses_image_labels]
    return render_template(
        "pipeline_results.html",
        head=["Labels", *(cell for split in splits for cell in (f"{split} mIoU", "")), "image-level labels"],
        numbers=[1 + 2 * index for index in range(len(splits))],
        splits=splits,
        results=results,
        best=from_image_alone[-1] if from_image_alone else len(results) - 1,
        costs=[_cost(stage, run.manifests[stage]) for stage in STAGES[:-1] if "time_s" in run.manifests.get(stage, {})],
    )


def _cost(stage: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    ranks = manifest.get("world_size")
    return {
        "stage": stage,
        "time_s": manifest["time_s"],
        "ranks": ranks if isinstance(ranks, int) else None,
        "host_gib": _gib(manifest, "host_peak_gib"),
        "device_gib": _gib(manifest, "device_peak_gib"),
        "device": str(manifest.get("device", "")),
    }


def _gib(manifest: Mapping[str, Any], key: str) -> str:
    value = number(manifest, key)
    return NONE if value is None else f"{value:.2f}"
