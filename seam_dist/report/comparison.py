"""Runs side by side: the rows of the comparison table, for the page and for the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seam_dist.report.records import MapScores, RunRecord

MAP_NAMES = {"plain": "CAM", "refined": "refined CAM"}


@dataclass(frozen=True)
class Row:
    """One map of one run, with its scores by split."""

    run: RunRecord
    kind: str
    scores: Mapping[str, MapScores]
    is_own: bool
    """It belongs to the run that the report is about."""
    is_primary: bool
    """It is the map that its run is judged by."""

    @property
    def label(self) -> str:
        """Method and map in words."""
        return f"{self.run.method}, {MAP_NAMES[self.kind]}"


def comparison(own: RunRecord, others: Sequence[RunRecord]) -> list[Row]:
    """Return a row for each map of each run, the other runs first; a run without evaluation has none."""
    rows = []
    for run in (*others, own):
        per_split = {split: run.scores(split) for split in run.evaluations}
        kinds = dict.fromkeys(kind for scores in per_split.values() for kind in scores)
        # The primary map last: it is the result, the other one is what it is made from.
        for kind in sorted(kinds, key=lambda kind: kind == run.primary):
            scores = {split: found[kind] for split, found in per_split.items() if kind in found}
            rows.append(Row(run, kind, scores, run is own, kind == run.primary))
    return rows


def splits_of(rows: Sequence[Row]) -> list[str]:
    """Return the evaluated splits: train, val, then the others by name."""
    found = {split for row in rows for split in row.scores}
    return sorted(found, key=lambda split: ({"train": 0, "val": 1}.get(split, 2), split))


def best_miou(row: Row, split: str) -> float | None:
    """Return the mIoU at the split's own best threshold."""
    return number(row.scores[split].best, "miou") if split in row.scores else None


def chosen_miou(row: Row, split: str) -> float | None:
    """Return the mIoU at the threshold that another split chose; None where there is none, or it is this split."""
    scores = row.scores.get(split)
    if scores is None or scores.chosen is None or scores.chosen.get("from") == split:
        return None
    return number(scores.chosen, "miou")


def number(point: Mapping[str, Any] | None, key: str) -> float | None:
    """Return a number of a scored point, None where it is missing or not a number."""
    value = None if point is None else point.get(key)
    return float(value) if isinstance(value, int | float) and value == value else None


def gains(rows: Sequence[Row], split: str) -> list[tuple[RunRecord, float]]:
    """Return for each other run by how much the own primary map is ahead of its primary map, best thresholds."""
    own = next((best_miou(row, split) for row in rows if row.is_own and row.is_primary), None)
    if own is None:
        return []
    others = [(row.run, best_miou(row, split)) for row in rows if row.is_primary and not row.is_own]
    return [(run, own - value) for run, value in others if value is not None]


def console_table(rows: Sequence[Row]) -> str:
    """Return the comparison as aligned text: mIoU in percent at the best threshold, and at the chosen one."""
    if not rows:
        return "No evaluation yet, so there is nothing to compare: run `--stage evaluate` first."
    columns: list[tuple[str, list[str]]] = [
        ("method", [row.label for row in rows]),
        ("run", [row.run.name for row in rows]),
    ]
    for split in splits_of(rows):
        columns.append((f"{split} mIoU", [_percent(best_miou(row, split)) for row in rows]))
        chosen = [chosen_miou(row, split) for row in rows]
        if any(value is not None for value in chosen):
            source = next(
                str(row.scores[split].chosen["from"])  # type: ignore[index]
                for row, value in zip(rows, chosen, strict=True)
                if value is not None
            )
            columns.append((f"at {source}'s threshold", [_percent(value) for value in chosen]))
    widths = [max(len(head), *(len(cell) for cell in cells)) for head, cells in columns]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(padded).rstrip()

    lines = [line([head for head, _ in columns]), "  ".join("-" * width for width in widths)]
    lines += [line([cells[number] for _, cells in columns]) for number in range(len(rows))]
    for split in splits_of(rows):
        for run, gain in gains(rows, split):
            own = rows[-1].run
            lines.append(f"{split}: {own.method} ({own.name}) {signed(gain)} points against {run.method} ({run.name})")
    return "\n".join(lines)


def signed(share: float) -> str:
    """Return a difference of shares in percentage points with its sign."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
