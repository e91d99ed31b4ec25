"""Tables for the console."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, num_left: int | None = None, rule: bool = False) -> str:
    """Return rows of equal length as lines with aligned columns, the first `num_left` (None: all) to the left.

    With `rule`, the first row is a header with a line below it.
    """
    widths = [max(width(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = len(widths) if num_left is None else num_left
    shown = [rows[0], ["-" * columns for columns in widths], *rows[1:]] if rule else rows
    return "\n".join(
        "  ".join(
            cell + padding if column < left else padding + cell
            for column, cell in enumerate(row)
            for padding in [" " * (widths[column] - width(cell))]
        ).rstrip()
        for row in shown
    )


def width(text: str) -> int:
    """Return the columns that a text takes on a terminal: two for a wide character, none for a combining one."""
    shown = (character for character in text if not unicodedata.combining(character))
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in shown)
