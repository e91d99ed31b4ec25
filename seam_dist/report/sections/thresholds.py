"""Curves of mIoU over background thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from seam_dist.report.charts import OWN, PLAIN, Line, Mark, line_chart, other_style
from seam_dist.report.comparison import Row, compare_runs, number, own_result, splits_of
from seam_dist.report.page import Note, decimals, percent, render_template
from seam_dist.report.records import RunRecord


def thresholds_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> Markup | Note:
    """Return a curve of mIoU over background thresholds for each split, with the best, chosen and default points."""
    rows = compare_runs(own, others)
    if not rows and (own.is_unscored or own.labels):
        return Note("No split with CAMs has masks, so there are no threshold curves.")
    if not rows:
        return Note("There is no evaluation, so there are no threshold curves.", f"{command} --only evaluate")
    compared = list(dict.fromkeys(row.run.name for row in rows if not row.is_own))
    styled = []
    for row in rows:
        own_style = OWN if row.is_primary else PLAIN
        styled.append((row, own_style if row.is_own else other_style(compared.index(row.run.name))))
    return render_template("thresholds.html", curves=[_curve(styled, split) for split in splits_of(rows)])


def _curve(styled_rows: Sequence[tuple[Row, int]], split: str) -> dict[str, Any]:
    """Return the chart of one split, its caption and the rows of its table, from rows with their color numbers."""
    shown = sorted((pair for pair in styled_rows if split in pair[0].scores), key=lambda pair: pair[0].is_own)
    lines, marks = [], []
    for row, style in shown:
        scores = row.scores[split]
        name = row.label if len(styled_rows) > 1 else row.map_name
        values = [None if value is None else 100 * value for value in scores.miou]
        lines.append(Line(f"{name} ({row.run.name})", scores.thresholds, values, style))
        chosen_on = f"chosen on {(scores.chosen or {}).get('from', '?')},"
        texts = {"default": "default", "chosen": chosen_on, "best": "best"}
        for shape, text in texts.items():
            point = getattr(scores, shape)
            threshold, height = number(point, "threshold"), number(point, "miou")
            if threshold is not None and height is not None:
                note = f"{name}: {text} threshold {threshold:.2f}, mIoU {100 * height:.1f}"
                marks.append(Mark(threshold, 100 * height, note, style, shape))
    chart = line_chart(
        lines, title=f"mIoU on {split} by threshold", x_label="background threshold", y_label="mIoU, %", marks=marks
    )
    result = own_result(row for row, _ in shown) or shown[0][0]
    return {"chart": chart, "split": split, "reading": _reading(result, split), "rows": shown}


def _reading(row: Row, split: str) -> str:
    scores = row.scores[split]
    best = number(scores.best, "miou") or 0.0
    near = [t for t, v in zip(scores.thresholds, scores.miou, strict=True) if v is not None and v >= best - 0.02]
    width = f"stays within 2 points of it from {min(near):.2f} to {max(near):.2f}" if near else "has no other point"
    threshold = decimals(scores.best.get("threshold"))
    return f"{row.map_name} of {row.run.name} is best at {threshold} ({percent(best)} %) and {width}."
