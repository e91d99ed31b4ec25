"""The scores of each class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from statistics import fmean

from markupsafe import Markup

from seam_dist.report.comparison import compare_runs, own_result
from seam_dist.report.page import Note, is_number, render_template
from seam_dist.report.pictures import class_colors
from seam_dist.report.records import RunRecord


def class_name(index: int, names: Sequence[str]) -> str:
    """Return the name of a class id; `names` are those of the foreground classes."""
    if index == 0:
        return "background"
    return names[index - 1] if index <= len(names) else f"class {index}"


def classes_section(
    own: RunRecord,
    others: Sequence[RunRecord],
    names: Sequence[str],
    split: str,
    command: str,
    *,
    has_masks: bool = True,
) -> Markup | Note:
    """Return the per-class table of one split at the best threshold: IoU, precision, recall, and IoU of other maps."""
    if not has_masks:
        return Note(f"Split {split} has no masks to compare with, so there are no class scores.")
    rows = [row for row in compare_runs(own, others) if split in row.scores]
    result = own_result(rows)
    if result is None:
        return Note(f"There is no evaluation of {split}, so there are no class scores.", f"{command} --only evaluate")
    best = result.scores[split].best
    rest = [row for row in rows if row is not result]
    labels = [row.label for row in rest]
    rest_head = [f"IoU, {row.label}" + (f" ({row.run.name})" if labels.count(row.label) > 1 else "") for row in rest]
    main = [best.get(key) or [] for key in ("iou", "precision", "recall")]
    cells = zip_longest(*main, *(row.scores[split].best.get("iou") or [] for row in rest))
    known = ([value for value in column if is_number(value)] for column in main)
    return render_template(
        "classes.html",
        map=result.map_name,
        split=split,
        threshold=best.get("threshold"),
        run=own.name,
        head=["Class", "IoU", "", "Precision", "Recall", *rest_head],
        rows=[
            (class_colors()[index].tolist(), class_name(index, names), values)
            for index, values in enumerate([*cells][: len(main[0])])
        ],
        absent=[class_name(index, names) for index, recall in enumerate(main[2]) if recall is None],
        means=[*(fmean(values) if values else None for values in known), *(row.miou(split) for row in rest)],
    )
