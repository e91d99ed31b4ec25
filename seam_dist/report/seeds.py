"""Mean and spread of mIoU over seeds, by ablation: `python -m seam_dist.report.seeds RUN ...`.

Runs are grouped by loss.ablation; a row is a map or a type of label images of an ablation. mIoU is in percent, that of
maps at the best background threshold of each run and split, as the published CAM figures are; the spread is the sample
standard deviation over seeds, the figure in brackets the gain over the first row.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.report.comparison import MAP_NAMES, Row, best_miou, compare_runs, number, splits_of
from seam_dist.report.records import METHODS, RunRecord, read_run


def seeds_table(folders: Sequence[Path]) -> str:
    """Return the table of the runs in `folders` as Markdown; raise ValueError for a run without evaluation."""
    rows: list[Row] = []
    runs: list[RunRecord] = []
    for folder in folders:
        run = read_run(folder)
        maps = compare_runs(run, [])
        if not maps:
            raise ValueError(f"{folder} has no evaluation: run `--only evaluate` for it, or leave it out")
        rows += maps
        runs.append(run)
    splits = splits_of(rows)
    lines = ["| method and labels | seeds | " + " | ".join(f"{split} mIoU" for split in splits) + " |"]
    lines.append("|---" * (2 + len(splits)) + "|")
    base: dict[str, float] = {}

    def add(name: str, count: int, scores: Mapping[str, Sequence[float]]) -> None:
        cells = []
        for split in splits:
            values = [100 * value for value in scores[split]]
            if not values:
                cells.append("-")
                continue
            mean = statistics.mean(values)
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            gain = f" ({mean - base[split]:+.1f})" if split in base else ""
            cells.append(f"{mean:.1f}{spread}{gain}")
            base.setdefault(split, mean)
        lines.append(f"| {name} | {count} | " + " | ".join(cells) + " |")

    for ablation in METHODS:
        for name, title in MAP_NAMES.items():
            group = [row for row in rows if row.run.ablation == ablation and row.map == name]
            if group:
                scores = {split: _known(best_miou(row, split) for row in group) for split in splits}
                add(f"{METHODS[ablation]}, {title}", len(group), scores)
        for label_type in LABEL_TYPES.values():
            records = [
                run.labels[label_type.name]
                for run in runs
                if run.ablation == ablation and label_type.name in run.labels
            ]
            if records:
                scores = {split: _known(number(record.get(split), "miou") for record in records) for split in splits}
                add(f"{METHODS[ablation]}, {label_type.title}", len(records), scores)
    return "\n".join(lines)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 2 with one line on standard error when a run cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m seam_dist.report.seeds", description="Print mean and spread of mIoU over seeds, by ablation."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, for example runs/seam-s0")
    try:
        print(seeds_table(parser.parse_args(argv).runs))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
