"""The progress bar of stages and commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from seam_dist.cluster.distributed import World


def progress_bar(
    title: str,
    total: int | None,
    unit: str,
    *,
    items: Iterable[Any] | None = None,
    initial: int = 0,
    world: World | None = None,
) -> tqdm[Any]:
    """Return a bar on stderr, over `items` where they are given: lively on a terminal, a line every 30 s in a log.

    world: the main rank alone shows its share of the work, and the title says so when there are several ranks.
    """
    if world is not None and world.size > 1:
        title += f" (rank 1 of {world.size})"
    return tqdm(
        items,
        title,
        total,
        initial=initial,
        unit=unit,
        disable=world is not None and not world.is_main,
        mininterval=0.5 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
    )
