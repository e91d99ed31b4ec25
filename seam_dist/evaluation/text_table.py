"""Tables for the console."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, num_left: int | None = None, rule: bool = False) -> str:
    """Return rows of equal length as lines with aligned columns, the first `num_left` (None: all) to the left.

    With `rule`, the first row is a header with a line below it.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = len(widths) if num_left is None else num_left
    shown = [rows[0], ["-" * width for width in widths], *rows[1:]] if rule else rows
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    )
