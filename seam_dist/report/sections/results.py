"""The report's sections on scores: headline figures, comparison, threshold curves and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from seam_dist.evaluation.label_scores import LABEL_KINDS
from seam_dist.report.charts import Line, Mark, line_chart, mark_swatch, swatch
from seam_dist.report.comparison import (
    MAP_NAMES,
    Row,
    best_miou,
    chosen_miou,
    comparison,
    gains,
    number,
    signed,
    splits_of,
)
from seam_dist.report.page import NONE, chip, duration, legend, missing, percent, table, tiles
from seam_dist.report.pictures import class_colors
from seam_dist.report.records import MapScores, RunRecord

OWN, PLAIN, FIRST_OTHER, NUM_STYLES = 0, 1, 2, 5


def style_of(row: Row, rows: Sequence[Row]) -> int:
    """Return the color number of a row: 0 the run's result, 1 its plain CAM, from 2 the other runs."""
    if row.is_own:
        return OWN if row.is_primary else PLAIN
    others = list(dict.fromkeys(r.run.name for r in rows if not r.is_own))
    return FIRST_OTHER + others.index(row.run.name) % (NUM_STYLES - FIRST_OTHER)


def results_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> str:
    """Return the headline figures and the comparison table."""
    rows = comparison(own, others)
    items: list[tuple[str, str]] = []
    result = next((row for row in rows if row.is_own and row.is_primary), None)
    if result is not None:
        for split in splits_of([result]):
            items.append((f"{percent(best_miou(result, split))} %", f"mIoU on {split}, {MAP_NAMES[result.kind]}"))
            items += [
                (signed(gain), f"points on {split} against {run.method} ({run.name})")
                for run, gain in gains(rows, split)
            ]
    for kind in (kind for kind in LABEL_KINDS if not kind.uses_labels):
        items += [
            (f"{percent(number(record, 'miou'))} %", f"mIoU on {split}, {kind.words}")
            for split, record in own.labels.get(kind.name, {}).items()
        ]
    if own.metrics:
        last = own.metrics[-1]
        items.append((str(last["step"]), "training steps of SEAM"))
        if "time_s" in last:
            items.append((duration(last["time_s"]), "training time of SEAM"))
    body = tiles(items) if items else ""
    if result is None:
        body += missing(f"Run {own.name} has no evaluation, so there are no scores.", f"{command} --stage evaluate")
    if not rows:
        return body
    return body + _comparison_table(rows, others)


def _comparison_table(rows: Sequence[Row], others: Sequence[RunRecord]) -> str:
    head = ["Method and map"]
    columns: list[tuple[str, bool]] = []
    for split in splits_of(rows):
        head.append(f"{split} mIoU, best threshold")
        columns.append((split, False))
        if any(chosen_miou(row, split) is not None for row in rows):
            head.append(f"{split} mIoU, threshold of {_chooser(rows, split)}")
            columns.append((split, True))
    cells = [
        [
            _who(row),
            *(percent(chosen_miou(row, split) if chosen else best_miou(row, split)) for split, chosen in columns),
        ]
        for row in rows
    ]
    classes = ["own" if row.is_own and row.is_primary else "" for row in rows]
    lacking = [run for run in others if not run.evaluations]
    notes = "".join(
        missing(f"Run {run.name} was to be compared, but it has no evaluation.", f"--stage evaluate for {run.dir}")
        for run in lacking
    )
    caption = (
        "Mean intersection over union in percent, background included. The best threshold is picked with the masks of "
        "the same split, as in the literature; a threshold chosen on another split is what can be had without them."
    )
    return (
        table(head, cells, numbers=range(1, len(head)), classes=classes) + f'<p class="caption">{caption}</p>' + notes
    )


def _who(row: Row, mark: str = "") -> str:
    return f'<span class="who">{mark}{escape(row.label)}</span><br><span class="caption">{escape(row.run.name)}</span>'


def _chooser(rows: Sequence[Row], split: str) -> str:
    for row in rows:
        if chosen_miou(row, split) is not None:
            chosen = row.scores[split].chosen or {}
            return str(chosen.get("from", "another split"))
    return "another split"


def _threshold(point: Mapping[str, Any] | None) -> str:
    value = number(point, "threshold")
    return NONE if value is None else f"{value:.2f}"


def thresholds_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> str:
    """Return a curve of mIoU over background thresholds for each split, with the best, chosen and default points."""
    rows = comparison(own, others)
    if not rows:
        return missing("There is no evaluation, so there are no threshold curves.", f"{command} --stage evaluate")
    figures = []
    for split in splits_of(rows):
        lines, marks, points = [], [], []
        for row in sorted((r for r in rows if split in r.scores), key=lambda r: r.is_own):
            scores, style = row.scores[split], style_of(row, rows)
            name = row.label if len(rows) > 1 else MAP_NAMES[row.kind]
            values = [None if value is None else 100 * value for value in scores.miou]
            lines.append(Line(f"{name} ({row.run.name})", scores.thresholds, values, style, dash=style))
            for shape, text, point in _points(scores):
                place, height = number(point, "threshold"), number(point, "miou")
                if place is not None and height is not None:
                    note = f"{name}: {text} threshold {place:.2f}, mIoU {100 * height:.1f}"
                    marks.append(Mark(place, 100 * height, note, style, shape))
            points.append([_who(row, swatch(style, style)), *_point_cells(scores)])
        chart = line_chart(
            lines, title=f"mIoU on {split} by threshold", x_label="background threshold", y_label="mIoU, %", marks=marks
        )
        own_best = next((row for row in rows if row.is_own and row.is_primary and split in row.scores), rows[0])
        figures.append(
            f"<figure>{chart}<figcaption><b>{escape(split)}</b>: {escape(_reading(own_best, split))}"
            "</figcaption></figure>"
            + table(
                ["Method and map", "best", "chosen", "default"],
                points,
                numbers=(1, 2, 3),
            )
        )
    keys = [(mark_swatch("best"), "best on this split"), (mark_swatch("chosen"), "chosen on the threshold split")]
    keys.append((mark_swatch("default"), "default"))
    intro = (
        "A pixel is background where no class scores above the threshold. A flat top means that the result hardly "
        "depends on it; the table gives mIoU in percent with the threshold behind it."
    )
    boxes = "".join(f"<div>{figure}</div>" for figure in figures)
    return f'<p class="caption">{intro}</p>{legend(keys)}<div class="charts">{boxes}</div>'


def _points(scores: MapScores) -> list[tuple[Any, str, Mapping[str, Any] | None]]:
    return [
        ("default", "default", scores.default),
        ("chosen", f"chosen on {(scores.chosen or {}).get('from', '?')},", scores.chosen),
        ("best", "best", scores.best),
    ]


def _point_cells(scores: MapScores) -> list[str]:
    cells = []
    for point in (scores.best, scores.chosen, scores.default):
        value = percent(number(point, "miou"))
        cells.append(f'{value} <span class="caption">at {_threshold(point)}</span>' if point else NONE)
    return cells


def _reading(row: Row, split: str) -> str:
    scores = row.scores[split]
    best = number(scores.best, "miou") or 0.0
    near = [t for t, v in zip(scores.thresholds, scores.miou, strict=True) if v is not None and v >= best - 0.02]
    width = f"stays within 2 points of it from {min(near):.2f} to {max(near):.2f}" if near else "has no other point"
    return (
        f"{MAP_NAMES[row.kind]} of {row.run.name} is best at {_threshold(scores.best)} ({percent(best)} %) and {width}."
    )


def classes_section(own: RunRecord, others: Sequence[RunRecord], names: Sequence[str], split: str, command: str) -> str:
    """Return the per-class table of one split at the best threshold: IoU, precision, recall, and IoU of other maps."""
    rows = [row for row in comparison(own, others) if split in row.scores]
    result = next((row for row in rows if row.is_own and row.is_primary), None)
    if result is None:
        return missing(
            f"There is no evaluation of {split}, so there are no class scores.", f"{command} --stage evaluate"
        )
    best = result.scores[split].best
    lists = {key: best.get(key) or [] for key in ("iou", "precision", "recall")}
    rest = [row for row in rows if row is not result]
    labels = [row.label for row in rest]
    others_head = [f"IoU, {row.label}" + (f" ({row.run.name})" if labels.count(row.label) > 1 else "") for row in rest]
    head = ["Class", "IoU", "", "Precision", "Recall", *others_head]
    colors = class_colors()
    cells = []
    for index, iou in enumerate(lists["iou"]):
        name = "background" if index == 0 else names[index - 1] if index <= len(names) else f"class {index}"
        share = 100 * iou if isinstance(iou, int | float) else 0
        cells.append(
            [
                f'<span class="who">{chip(colors[index])}{escape(name)}</span>',
                percent(iou),
                f'<span class="barbox"><span class="bar" style="width:{share:.1f}%"></span></span>',
                *(percent(_at(lists[key], index)) for key in ("precision", "recall")),
                *(percent(_at(row.scores[split].best.get("iou") or [], index)) for row in rest),
            ]
        )
    means = [percent(_mean(lists[key])) for key in ("iou", "precision", "recall")]
    means_rest = [percent(best_miou(row, split)) for row in rest]
    cells.append(["mean", means[0], "", *means[1:], *means_rest])
    caption = (
        f"The {MAP_NAMES[result.kind]} on {split}, in percent, each map at its own best background threshold "
        f"({_threshold(best)} for {own.name}). Low precision: the map runs over borders; low recall: it covers "
        "a part only. The colors are those of the pictures above."
    )
    numbers = [1, *range(3, len(head))]
    styles = [""] * (len(cells) - 1) + ["total"]
    return f'<p class="caption">{escape(caption)}</p>' + table(head, cells, numbers=numbers, classes=styles)


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def _mean(values: Sequence[Any]) -> float | None:
    known = [value for value in values if isinstance(value, int | float) and value == value]
    return sum(known) / len(known) if known else None
