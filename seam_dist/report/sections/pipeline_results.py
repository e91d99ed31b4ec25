"""The results along the pipeline, from CAM to final mask: mIoU of each stage's labels, and what each stage cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.config.schema import STAGES
from seam_dist.evaluation.text_table import aligned
from seam_dist.report.comparison import compare_runs, in_order, number, percent_cell
from seam_dist.report.page import render_template
from seam_dist.report.records import RunRecord


@dataclass(frozen=True)
class PipelineResult:
    """What a stage of the pipeline made: its title and its mIoU by split."""

    title: str
    miou: Mapping[str, float]
    uses_image_labels: bool = True
    """It was made with the image-level labels of the image itself."""


def results_by_stage(run: RunRecord) -> list[PipelineResult]:
    """Return what the run's stages made, in order; CAMs at the threshold chosen elsewhere where there is one."""
    results = []
    for row in compare_runs(run, []):
        title = row.map_name if row.is_primary else f"{row.map_name} of the classifier"
        best = _known((split, row.miou(split)) for split in row.scores)
        results.append(PipelineResult(f"{title}, best threshold", best))
        chosen = _known((split, row.miou(split, "another split")) for split in row.scores)
        if chosen and row.is_primary:
            results.append(PipelineResult(f"{title}, threshold of another split", chosen))
    for label_type in LABEL_TYPES.values():
        records = run.labels.get(label_type.name, {})
        if scores := _known((split, number(record, "miou")) for split, record in records.items()):
            results.append(PipelineResult(label_type.title, scores, label_type.uses_image_labels))
    return results


def _known(scores: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    return {split: miou for split, miou in scores if miou is not None}


def _splits(results: Sequence[PipelineResult]) -> list[str]:
    return in_order(split for result in results for split in result.miou)


def pipeline_table(run: RunRecord) -> str:
    """Return the results as aligned text: mIoU in percent by stage and split."""
    results = results_by_stage(run)
    splits = _splits(results)
    rows = [[result.title, *(percent_cell(result.miou.get(split)) for split in splits)] for result in results]
    return aligned([["labels", *(f"{split} mIoU" for split in splits)], *rows], num_left=1, rule=True)


def pipeline_section(run: RunRecord) -> Markup:
    """Return the table of mIoU by stage and the table of what each stage cost."""
    results = results_by_stage(run)
    splits = _splits(results)
    from_image_alone = [result for result in results if not result.uses_image_labels]
    return render_template(
        "pipeline_results.html",
        head=["Labels", *(cell for split in splits for cell in (f"{split} mIoU", "")), "image-level labels"],
        splits=splits,
        results=results,
        best=(from_image_alone or results)[-1],
        costs={stage: run.manifests[stage] for stage in STAGES[:-1] if "time_s" in run.manifests.get(stage, {})},
    )
