"""Curves of mIoU over background thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from seam_dist.report.charts import OWN, PLAIN, Line, Mark, line_chart, mark_swatch, other_style, swatch
from seam_dist.report.comparison import MAP_NAMES, Row, compare_runs, number, splits_of
from seam_dist.report.page import missing, percent, render_template, threshold_text
from seam_dist.report.records import MapScores, RunRecord


def style_of(row: Row, rows: Sequence[Row]) -> int:
    """Return the color number of a row: 0 the run's result, 1 its plain CAM, from 2 the other runs."""
    if row.is_own:
        return OWN if row.is_primary else PLAIN
    others = list(dict.fromkeys(r.run.name for r in rows if not r.is_own))
    return other_style(others.index(row.run.name))


def thresholds_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> Markup:
    """Return a curve of mIoU over background thresholds for each split, with the best, chosen and default points."""
    rows = compare_runs(own, others)
    if not rows:
        return missing("There is no evaluation, so there are no threshold curves.", f"{command} --only evaluate")
    keys = [
        (mark_swatch("best"), "best on this split"),
        (mark_swatch("chosen"), "chosen on the threshold split"),
        (mark_swatch("default"), "default"),
    ]
    return render_template("thresholds.html", keys=keys, curves=[_curve(rows, split) for split in splits_of(rows)])


def _curve(rows: Sequence[Row], split: str) -> dict[str, Any]:
    """Return the chart of one split, its caption and the rows of its table."""
    lines, marks, cells = [], [], []
    for row in sorted((r for r in rows if split in r.scores), key=lambda r: r.is_own):
        scores, style = row.scores[split], style_of(row, rows)
        name = row.label if len(rows) > 1 else MAP_NAMES[row.map]
        values = [None if value is None else 100 * value for value in scores.miou]
        lines.append(Line(f"{name} ({row.run.name})", scores.thresholds, values, style, dash=style))
        for shape, text, point in _points(scores):
            place, height = number(point, "threshold"), number(point, "miou")
            if place is not None and height is not None:
                note = f"{name}: {text} threshold {place:.2f}, mIoU {100 * height:.1f}"
                marks.append(Mark(place, 100 * height, note, style, shape))
        cells.append((row, swatch(style, style), _point_cells(scores)))
    chart = line_chart(
        lines, title=f"mIoU on {split} by threshold", x_label="background threshold", y_label="mIoU, %", marks=marks
    )
    own_best = next((row for row in rows if row.is_own and row.is_primary and split in row.scores), rows[0])
    return {"chart": chart, "split": split, "reading": _reading(own_best, split), "rows": cells}


def _points(scores: MapScores) -> list[tuple[Any, str, Mapping[str, Any] | None]]:
    return [
        ("default", "default", scores.default),
        ("chosen", f"chosen on {(scores.chosen or {}).get('from', '?')},", scores.chosen),
        ("best", "best", scores.best),
    ]


def _point_cells(scores: MapScores) -> list[dict[str, str] | None]:
    return [
        {"miou": percent(number(point, "miou")), "threshold": threshold_text(number(point, "threshold"))}
        if point
        else None
        for point in (scores.best, scores.chosen, scores.default)
    ]


def _reading(row: Row, split: str) -> str:
    scores = row.scores[split]
    best = number(scores.best, "miou") or 0.0
    near = [t for t, v in zip(scores.thresholds, scores.miou, strict=True) if v is not None and v >= best - 0.02]
    width = f"stays within 2 points of it from {min(near):.2f} to {max(near):.2f}" if near else "has no other point"
    threshold = threshold_text(number(scores.best, "threshold"))
    return f"{MAP_NAMES[row.map]} of {row.run.name} is best at {threshold} ({percent(best)} %) and {width}."
