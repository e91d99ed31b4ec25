"""Runs side by side: the rows of the comparison table, for the page and for the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seam_dist.evaluation.text_table import aligned
from seam_dist.report.records import MapScores, RunRecord

MAP_NAMES = {"plain": "CAM", "refined": "refined CAM"}


@dataclass(frozen=True)
class Row:
    """One map of one run, with its scores by split."""

    run: RunRecord
    map: str
    """`plain` or `refined`."""
    scores: Mapping[str, MapScores]
    is_own: bool
    """It belongs to the run that the report is about."""
    is_primary: bool
    """It is the map that its run is judged by."""

    @property
    def label(self) -> str:
        """Method and map, as shown."""
        return f"{self.run.method}, {MAP_NAMES[self.map]}"


def compare_runs(own: RunRecord, others: Sequence[RunRecord]) -> list[Row]:
    """Return a row for each map of each run, the other runs first; a run without evaluation has none."""
    rows = []
    for run in (*others, own):
        per_split = {split: run.scores(split) for split in run.evaluations}
        maps = dict.fromkeys(name for scores in per_split.values() for name in scores)
        # The primary map last: it is the result, the other one is what it is made from.
        for name in sorted(maps, key=lambda name: name == run.primary):
            scores = {split: of_split[name] for split, of_split in per_split.items() if name in of_split}
            rows.append(Row(run, name, scores, run is own, name == run.primary))
    return rows


def splits_of(rows: Sequence[Row]) -> list[str]:
    """Return the evaluated splits of the rows, in order."""
    return in_order(split for row in rows for split in row.scores)


def in_order(splits: Iterable[str]) -> list[str]:
    """Return splits without repetition: train, val, then the others by name."""
    return sorted(set(splits), key=lambda split: ({"train": 0, "val": 1}.get(split, 2), split))


def best_miou(row: Row, split: str) -> float | None:
    """Return the mIoU at the split's own best threshold."""
    return number(row.scores[split].best, "miou") if split in row.scores else None


def chosen_miou(row: Row, split: str) -> float | None:
    """Return the mIoU at the threshold that another split chose; None where there is none, or it is this split."""
    scores = row.scores.get(split)
    if scores is None or scores.chosen is None or scores.chosen.get("from") == split:
        return None
    return number(scores.chosen, "miou")


def columns(rows: Sequence[Row]) -> list[tuple[str, str | None]]:
    """Return the columns of the table: a split's best threshold (split, None), and the one of another split."""
    table: list[tuple[str, str | None]] = []
    for split in splits_of(rows):
        table.append((split, None))
        chosen = next((row.scores[split].chosen for row in rows if chosen_miou(row, split) is not None), None)
        if chosen is not None:
            table.append((split, str(chosen.get("from", "another split"))))
    return table


def column_miou(row: Row, split: str, source: str | None) -> float | None:
    """Return a row's mIoU in a column of the table."""
    return best_miou(row, split) if source is None else chosen_miou(row, split)


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
        return "No evaluation yet, so there is nothing to compare: run `--only evaluate` first."
    table = columns(rows)
    titles = [f"{split} mIoU" if source is None else f"at {source}'s threshold" for split, source in table]
    cells = [[row.label, row.run.name, *(_percent(column_miou(row, *column)) for column in table)] for row in rows]
    lines = [aligned([["method", "run", *titles], *cells], num_left=2, rule=True)]
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
