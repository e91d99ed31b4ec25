"""Tables and plots of the scripts beside it: a script adds to and replaces what these scripts wrote, and no other file.

A table is theirs when its first line has their columns, a plot when its PNG says so.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SOFTWARE = "seam-dist kernels"
_MARK = b"tEXtSoftware\0" + _SOFTWARE.encode()
_HEADER_BYTES = 4096  # matplotlib puts its texts before the pixels


def check_table(path: Path, columns: Sequence[str]) -> None:
    """Raise ValueError when there is a file that is no table of these columns."""
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{path} is no file: give another --csv")
    with path.open(newline="", errors="replace") as file:
        found = file.readline().rstrip("\r\n")
    # An empty file has nothing to lose.
    if path.stat().st_size and found != ",".join(columns):
        raise ValueError(
            f"{path} is no table of this script: expected the columns {','.join(columns)}, found {found[:200]!r}: give "
            "another --csv"
        )


def check_options(
    parser: argparse.ArgumentParser, table: Path | None, plot: Path | None, columns: Sequence[str]
) -> None:
    """End the command, before anything is measured, when --csv or --plot would replace the file of somebody else."""
    try:
        if table:
            check_table(table, columns)
        if plot:
            check_plot(plot)
    except ValueError as error:
        parser.error(str(error))


def add_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows to a table, which is begun when it is not there; raises as `check_table` does."""
    check_table(path, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


def replace_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table again, whole or not at all; raises as `check_table` does."""
    check_table(path, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text.getvalue(), newline="")
    temporary.replace(path)


def check_plot(path: Path) -> None:
    """Raise ValueError when `path` is no .png or there is a file that is no plot of these scripts."""
    if path.suffix != ".png":
        raise ValueError(f"--plot {path} has suffix {path.suffix!r}, expected .png: rename it")
    if not path.exists():
        return
    if path.is_file():
        with path.open("rb") as file:
            if _MARK in file.read(_HEADER_BYTES):
                return
    raise ValueError(f"--plot {path} is there and is no plot of these scripts: move it away, or give another --plot")


def save_plot(figure: Any, path: Path) -> None:
    """Save a figure of matplotlib as PNG; raises as `check_plot` does."""
    check_plot(path)
    figure.savefig(path, dpi=100, metadata={"Software": f"{_SOFTWARE} (matplotlib)"})
