"""Mean and spread of mIoU over seeds, by ablation: `python -m seam_dist.report.seeds RUN ...`.

Runs are grouped by loss.ablation; a row is a map of an ablation. mIoU is in percent at the best background threshold
of each run and split, as the published CAM figures are; the spread is the sample standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from seam_dist.report.comparison import MAP_NAMES, Row, best_miou, comparison, splits_of
from seam_dist.report.records import METHODS, read_run


def seeds_table(folders: Sequence[Path]) -> str:
    """Return the table of the runs in `folders` as Markdown; raise ValueError for a run without evaluation."""
    rows: list[Row] = []
    for folder in folders:
        found = comparison(read_run(folder), [])
        if not found:
            raise ValueError(f"{folder} has no evaluation: run `--stage evaluate` for it, or leave it out")
        rows += found
    splits = splits_of(rows)
    lines = ["| method and map | seeds | " + " | ".join(f"{split} mIoU" for split in splits) + " |"]
    lines.append("|---" * (2 + len(splits)) + "|")
    base: dict[str, float] = {}
    for ablation in METHODS:
        for kind in MAP_NAMES:
            group = [row for row in rows if row.run.ablation == ablation and row.kind == kind]
            if not group:
                continue
            cells = []
            for split in splits:
                values = [100 * value for row in group if (value := best_miou(row, split)) is not None]
                if not values:
                    cells.append("-")
                    continue
                mean = statistics.mean(values)
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                gain = f" ({mean - base[split]:+.1f})" if split in base else ""
                cells.append(f"{mean:.1f}{spread}{gain}")
                if ablation == "cam":
                    base[split] = mean
            lines.append(f"| {METHODS[ablation]}, {MAP_NAMES[kind]} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
