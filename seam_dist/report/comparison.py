"""Runs side by side: the rows of the comparison table, for the page and for the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seam_dist.evaluation.text_table import aligned
from seam_dist.report.page import is_number, signed
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
    def map_name(self) -> str:
        """The map, as shown."""
        return MAP_NAMES[self.map]

    @property
    def label(self) -> str:
        """Method and map, as shown."""
        return f"{self.run.method}, {self.map_name}"

    def miou(self, split: str, source: str | None = None) -> float | None:
        """Return the mIoU at the split's own best threshold, or with `source` at the threshold of another split.

        None where there is no such threshold.
        """
        scores = self.scores.get(split)
        if scores is None:
            return None
        return number(scores.best if source is None else scores.chosen_elsewhere(split), "miou")


def compare_runs(own: RunRecord, others: Sequence[RunRecord]) -> list[Row]:
    """Return a row for each map of each run, the other runs first; a run without evaluation has none."""
    rows: list[Row] = []
    for run in (*others, own):
        per_split = {split: run.scores(split) for split in run.evaluations}
        maps = dict.fromkeys(name for scores in per_split.values() for name in scores)
        # The primary map last: it is the result, the other one is what it is made from.
        for name in sorted(maps, key=lambda name: name == run.primary):
            scores = {split: of_split[name] for split, of_split in per_split.items() if name in of_split}
            rows.append(Row(run, name, scores, run is own, name == run.primary))
    return rows


def own_result(rows: Iterable[Row]) -> Row | None:
    """Return the row of the map by which the report's own run is judged, if it is evaluated."""
    return next((row for row in rows if row.is_own and row.is_primary), None)


def splits_of(rows: Iterable[Row]) -> list[str]:
    """Return the evaluated splits of the rows, in order."""
    return in_order(split for row in rows for split in row.scores)


def in_order(splits: Iterable[str]) -> list[str]:
    """Return splits without repetition: train, val, then the others by name."""
    return sorted(set(splits), key=lambda split: ({"train": 0, "val": 1}.get(split, 2), split))


def columns(rows: Sequence[Row]) -> list[tuple[str, str | None]]:
    """Return the columns of the table: a split's best threshold (split, None), and the one of another split."""
    table: list[tuple[str, str | None]] = []
    for split in splits_of(rows):
        table.append((split, None))
        sources = (row.scores[split].chosen_elsewhere(split) for row in rows if split in row.scores)
        source = next((point for point in sources if number(point, "miou") is not None), None)
        if source is not None:
            table.append((split, str(source.get("from", "another split"))))
    return table


def number(point: Mapping[str, Any] | None, key: str) -> float | None:
    """Return a number of a scored point, None where it is missing or not a number."""
    value = None if point is None else point.get(key)
    return float(value) if is_number(value) else None


def gains(rows: Sequence[Row], split: str) -> list[tuple[RunRecord, float]]:
    """Return for each other run by how much the own primary map is ahead of its primary map, best thresholds."""
    result = own_result(rows)
    own = None if result is None else result.miou(split)
    if own is None:
        return []
    others = [(row.run, row.miou(split)) for row in rows if row.is_primary and not row.is_own]
    return [(run, own - miou) for run, miou in others if miou is not None]


def console_table(rows: Sequence[Row]) -> str:
    """Return the comparison as aligned text: mIoU in percent at the best threshold, and at the chosen one."""
    if not rows:
        return "No evaluation yet, so there is nothing to compare: run `--only evaluate` first."
    table = columns(rows)
    titles = [f"{split} mIoU" if source is None else f"at {source}'s threshold" for split, source in table]
    cells = [[row.label, row.run.name, *(percent_cell(row.miou(*column)) for column in table)] for row in rows]
    lines = [aligned([["method", "run", *titles], *cells], num_left=2, rule=True)]
    for split in splits_of(rows):
        for run, gain in gains(rows, split):
            own = rows[-1].run
            lines.append(f"{split}: {own.method} ({own.name}) {signed(gain)} points against {run.method} ({run.name})")
    return "\n".join(lines)


def percent_cell(value: float | None) -> str:
    """Return a share as a percentage for the console, with a hyphen where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"
