"""Mean and spread of mIoU over seeds, by ablation: `python -m seam_dist.report.seeds RUN ...`.

Runs are grouped by loss.ablation; a row is a map or a type of label images of an ablation. mIoU is in percent, that of
maps at the best background threshold of each run and split, as the published CAM figures are; the spread is the sample
standard deviation over seeds, the figure in brackets the gain over the first row.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.config.paths import user_path
from seam_dist.report.comparison import MAP_NAMES, Row, compare_runs, number, splits_of
from seam_dist.report.records import METHODS, read_run


def seeds_table(folders: Sequence[Path]) -> str:
    """Return the table of the runs in `folders` as Markdown; raise ValueError for a run without evaluation."""
    rows: list[Row] = []
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        maps = compare_runs(run, [])
        if not maps:
            if "evaluate" in run.manifests:
                raise ValueError(f"{run.dir} has no scores of CAMs, since no split with CAMs has masks: leave it out")
            raise ValueError(f"{run.dir} has no evaluation: run `--only evaluate` for it, or leave it out")
        rows += maps
    splits = splits_of(rows)
    groups: dict[tuple[str, str], list[list[float | None]]] = defaultdict(list)
    for row in rows:
        groups[row.run.ablation, row.map_name].append([row.miou(split) for split in splits])
    for run in runs:
        for name, records in run.labels.items():
            values = [number(records.get(split), "miou") for split in splits]
            groups[run.ablation, LABEL_TYPES[name].title].append(values)
    lines = ["| method and labels | seeds | " + " | ".join(f"{split} mIoU" for split in splits) + " |"]
    lines.append("|---" * (2 + len(splits)) + "|")
    base: dict[str, float] = {}
    titles = [*MAP_NAMES.values(), *(label_type.title for label_type in LABEL_TYPES.values())]
    for ablation, title in product(METHODS, titles):
        if of_seeds := groups[ablation, title]:
            by_split = dict(zip(splits, zip(*of_seeds, strict=True), strict=True))
            cells = [_mean_cell(split, miou, base) for split, miou in by_split.items()]
            lines.append(f"| {METHODS[ablation]}, {title} | {len(of_seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_cell(split: str, miou: Sequence[float | None], base: dict[str, float]) -> str:
    """Return mean, spread and gain over `base`; the first mean of a split becomes its base."""
    values = [100 * value for value in miou if value is not None]
    if not values:
        return "-"
    mean = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    gain = f" ({mean - base[split]:+.1f})" if split in base else ""
    base.setdefault(split, mean)
    return f"{mean:.1f}{spread}{gain}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 2 with one line on standard error when a run cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m seam_dist.report.seeds", description="Print mean and spread of mIoU over seeds, by ablation."
    )
    parser.add_argument(
        "runs", nargs="+", type=user_path, metavar="RUN", help="folder of a run, for example runs/seam-s0"
    )
    try:
        print(seeds_table(parser.parse_args(argv).runs))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
