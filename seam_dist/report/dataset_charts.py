"""Charts of a data set as inline SVG: which classes occur together, and how image sizes are spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from seam_dist.data.survey_split import SplitSurvey
from seam_dist.report.charts import HEIGHT, WIDTH, format_tick, nice_ticks
from seam_dist.report.page import percent, render_template

_LEFT, _RIGHT, _TOP, _FLOOR = 60, 14, 12, HEIGHT - 44
_NUM_COLORS = 5
_MAX_NAME = 18
_LEAST = 0.005  # share of a row that is drawn
_CELLS = ((8, 46, 12.5), (24, 30, 11.5), (10**9, 11, 9.0))  # up to so many classes: cell and text size in pixels


def cooccurrence_chart(split: SplitSurvey, classes: Sequence[str], order: Sequence[int]) -> Markup:
    """Return the share of images of the class of a row that hold that of a column as well; classes as in `order`."""
    cell, text = next((cell, text) for most, cell, text in _CELLS if len(order) <= most)
    margin = round(max(min(len(classes[i]), _MAX_NAME) for i in order) * text * 0.62) + 10
    cells = []
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            if (both := int(split.cooccurrence[i, j])) and i != j:
                share = both / int(split.class_counts[i])
                if share < _LEAST:
                    continue
                tip = f"{both} of {split.class_counts[i]} with {classes[i]} hold {classes[j]}"
                cells.append((column, row, round(share, 2), tip, round(100 * share)))
    return render_template(
        "dataset_cooccurrence.html",
        title=f"Classes that occur together in split {split.name}",
        side=margin + cell * len(order) + 2,
        margin=margin,
        cell=cell,
        text=text,
        names=[(_short(classes[i]), classes[i]) for i in order],
        cells=cells,
        with_numbers=cell >= 30,
    )


def histogram(values: Sequence[tuple[str, NDArray[np.float64]]], *, title: str, x_label: str) -> Markup:
    """Return bars of the share of each split's images by value; `values` are (split, one number an image)."""
    low, high = (f(np.concatenate([of_split for _, of_split in values])) for f in (np.min, np.max))
    spread = float(high - low) or abs(float(low)) * 0.1 or 1.0
    ticks = nice_ticks(float(low), float(low) + spread)
    edges = np.linspace(ticks[0], ticks[-1], 2 * (len(ticks) - 1) + 1)
    shares = [np.histogram(of_split, edges)[0] / max(1, len(of_split)) for _, of_split in values]
    y_ticks = nice_ticks(0.0, float(max(share.max() for share in shares)))
    width = (WIDTH - _LEFT - _RIGHT) / (len(edges) - 1)
    bar = 0.86 * width / len(values)

    def place_y(share: float) -> float:
        return round(_FLOOR - share / y_ticks[-1] * (_FLOOR - _TOP), 1)

    bars = [
        (
            round(_LEFT + (k + 0.07) * width + number * bar, 1),
            place_y(share),
            number % _NUM_COLORS,
            f"{name}: {percent(share)} % from {format_tick(edges[k])} to {format_tick(edges[k + 1])}",
        )
        for number, ((name, _), of_split) in enumerate(zip(values, shares, strict=True))
        for k, share in enumerate(of_split)
        if share
    ]
    return render_template(
        "dataset_histogram.html",
        title=title,
        x_label=x_label,
        width=WIDTH,
        height=HEIGHT,
        left=_LEFT,
        right=WIDTH - _RIGHT,
        top=_TOP,
        floor=_FLOOR,
        bar=round(bar, 1),
        bars=bars,
        x_ticks=[(round(_LEFT + 2 * k * width, 1), format_tick(tick)) for k, tick in enumerate(ticks)],
        y_ticks=[(place_y(tick), f"{100 * tick:.3g} %") for tick in y_ticks],
    )


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
