"""The scores of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from seam_dist.report.comparison import MAP_NAMES, best_miou, compare_runs, number
from seam_dist.report.page import missing, render_template, threshold_text
from seam_dist.report.pictures import class_colors
from seam_dist.report.records import RunRecord


def class_name(index: int, names: Sequence[str]) -> str:
    """Return the name of a class id; `names` are those of the foreground classes."""
    if index == 0:
        return "background"
    return names[index - 1] if index <= len(names) else f"class {index}"


def classes_section(
    own: RunRecord, others: Sequence[RunRecord], names: Sequence[str], split: str, command: str
) -> Markup:
    """Return the per-class table of one split at the best threshold: IoU, precision, recall, and IoU of other maps."""
    rows = [row for row in compare_runs(own, others) if split in row.scores]
    result = next((row for row in rows if row.is_own and row.is_primary), None)
    if result is None:
        return missing(
            f"There is no evaluation of {split}, so there are no class scores.", f"{command} --only evaluate"
        )
    best = result.scores[split].best
    iou, precision, recall = (best.get(key) or [] for key in ("iou", "precision", "recall"))
    rest = [row for row in rows if row is not result]
    labels = [row.label for row in rest]
    rest_head = [f"IoU, {row.label}" + (f" ({row.run.name})" if labels.count(row.label) > 1 else "") for row in rest]
    rest_iou = [row.scores[split].best.get("iou") or [] for row in rest]
    return render_template(
        "classes.html",
        map=MAP_NAMES[result.map],
        split=split,
        threshold=threshold_text(number(best, "threshold")),
        run=own.name,
        head=["Class", "IoU", "", "Precision", "Recall", *rest_head],
        rows=[
            {
                "color": [int(channel) for channel in class_colors()[index]],
                "name": class_name(index, names),
                "iou": value,
                "others": [_at(values, index) for values in (precision, recall, *rest_iou)],
            }
            for index, value in enumerate(iou)
        ],
        means=[*(_mean(values) for values in (iou, precision, recall)), *(best_miou(row, split) for row in rest)],
    )


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if isinstance(value, int | float) and value == value]
    return sum(known) / len(known) if known else None
