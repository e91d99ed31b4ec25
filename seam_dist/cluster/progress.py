"""The progress bar of stages and commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    title: str, total: int | None, unit: str, *, items: Iterable[Any] | None = None, initial: int = 0, show: bool = True
) -> tqdm[Any]:
    """Return a bar on stderr, over `items` where they are given: lively on a terminal, a line every 30 s in a log."""
    return tqdm(
        items,
        title,
        total,
        initial=initial,
        unit=unit,
        disable=not show,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
    )
