"""Headline figures, and the maps of all runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.report.comparison import (
    MAP_NAMES,
    Row,
    best_miou,
    column_miou,
    columns,
    compare_runs,
    gains,
    number,
    signed,
    splits_of,
)
from seam_dist.report.page import Note, duration, percent, render_template
from seam_dist.report.records import RunRecord


def results_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> Markup:
    """Return the headline figures and the comparison table."""
    rows = compare_runs(own, others)
    table = columns(rows)
    titles = ["best threshold" if source is None else f"threshold of {source}" for _, source in table]
    note = None
    if not any(row.is_own and row.is_primary for row in rows):
        note = Note(f"Run {own.name} has no evaluation, so there are no scores.", f"{command} --only evaluate")
    return render_template(
        "results.html",
        figures=_figures(own, rows),
        note=note,
        head=["Method and map", *(f"{split} mIoU, {title}" for (split, _), title in zip(table, titles, strict=True))],
        rows=[(row, [column_miou(row, *column) for column in table]) for row in rows],
        not_evaluated=[
            Note(f"Run {run.name} was to be compared, but it has no evaluation.", f"--only evaluate for {run.dir}")
            for run in others
            if not run.evaluations
        ],
    )


def _figures(own: RunRecord, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (value, what it is) of the run's own results."""
    figures: list[tuple[str, str]] = []
    result = next((row for row in rows if row.is_own and row.is_primary), None)
    for split in splits_of([result]) if result is not None else ():
        assert result is not None
        figures.append((f"{percent(best_miou(result, split))} %", f"mIoU on {split}, {MAP_NAMES[result.map]}"))
        figures += [
            (signed(gain), f"points on {split} against {run.method} ({run.name})") for run, gain in gains(rows, split)
        ]
    for label_type in LABEL_TYPES.values():
        if not label_type.uses_image_labels:
            figures += [
                (f"{percent(number(record, 'miou'))} %", f"mIoU on {split}, {label_type.title}")
                for split, record in own.labels.get(label_type.name, {}).items()
            ]
    if own.metrics:
        last = own.metrics[-1]
        figures.append((str(last["step"]), "training steps of SEAM"))
        if "time_s" in last:
            figures.append((duration(last["time_s"]), "training time of SEAM"))
    return figures
