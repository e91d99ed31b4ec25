"""Line charts as inline SVG: no library, no script, colors from the page's stylesheet.

A line's color is a class (`s0`, `s1`, ...), so that the page can give it another shade on a dark ground; lines differ
in dash (`d0`, `d1`, ...) as well, for readers who do not see the colors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from seam_dist.report.page import render_template

WIDTH, HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 14, 12, 44

# Color numbers: the run's result, its plain CAM, then the runs that it is compared with.
OWN, PLAIN, _FIRST_OTHER, _NUM_STYLES = 0, 1, 2, 5


@dataclass(frozen=True)
class Line:
    """One line: points in the order of x; `style` selects color and dash; `faint` is the thin form of raw values."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: int
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """One marked point, `best`, `chosen` or `default`; its text shows when the pointer rests on it."""

    x: float
    y: float
    text: str
    style: int
    shape: str


def other_style(index: int) -> int:
    """Return the color number of the index-th run that a run is compared with."""
    return _FIRST_OTHER + index % (_NUM_STYLES - _FIRST_OTHER)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the centered moving average; at the ends the window shrinks and stays centered."""
    sums = np.cumsum([0.0, *values])
    i = np.arange(len(values))
    reach = np.minimum(window // 2, np.minimum(i, i[::-1]))
    average: list[float] = ((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)).tolist()
    return average


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    may_be_log: bool = False,
) -> Markup:
    """Return an SVG element of the lines.

    With `may_be_log` the y axis is logarithmic where all values are positive and span more than a factor 8.
    """
    pairs = (pair for line in lines for pair in zip(line.x, line.y, strict=True))
    points = [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]
    if not points:
        raise ValueError(f"chart {title!r} has no finite point: leave it out")
    xs, ys = zip(*points, strict=True)
    log = may_be_log and min(ys) > 0 and max(ys) / min(ys) > 8
    x_low, x_high = _widen(min(xs), max(xs))
    x_ticks = [tick for tick in nice_ticks(x_low, x_high) if x_low <= tick <= x_high]
    if log:
        y_ticks = _log_ticks(min(ys), max(ys))
        y_low, y_high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])
    else:
        y_ticks = nice_ticks(*_widen(min(0.0, *ys) if min(ys) < 0.3 * max(ys) else min(ys), max(ys)))
        y_low, y_high = y_ticks[0], y_ticks[-1]

    def place_x(value: float) -> float:
        return round(_LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT), 1)

    def place_y(value: float) -> float:
        share = math.log(value / y_low) / math.log(y_high / y_low) if log else (value - y_low) / (y_high - y_low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    def path(line: Line) -> str:
        pieces, command = [], "M"
        for x, y in zip(line.x, line.y, strict=True):
            if y is None or not math.isfinite(y):
                command = "M"
            else:
                pieces.append(f"{command}{place_x(x)} {place_y(y)}")
                command = "L"
        return "".join(pieces)

    return render_template(
        "chart.html",
        title=title,
        x_label=x_label,
        y_label=f"{y_label} (log scale)" if log else y_label,
        width=WIDTH,
        height=HEIGHT,
        left=_LEFT,
        right=WIDTH - _RIGHT,
        top=_TOP,
        floor=HEIGHT - _BOTTOM,
        x_ticks=[(place_x(tick), format_tick(tick)) for tick in x_ticks],
        y_ticks=[(place_y(tick), format_tick(tick)) for tick in y_ticks],
        lines=[(line, path(line)) for line in lines],
        marks=[(mark, place_x(mark.x), place_y(mark.y)) for mark in marks],
    )


def format_tick(value: float) -> str:
    """Return a short text of a number."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:.4g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _widen(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    spread = abs(low) * 0.1 or 1.0
    return low - spread, high + spread


def nice_ticks(low: float, high: float) -> list[float]:
    """Return 4 to 8 round numbers from at most `low` to at least `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return ticks 1, 2, 5 or, over more than two decades, powers of ten, that enclose low to high."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if math.log10(high / low) <= 2 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max((index for index, tick in enumerate(ticks) if tick <= low * 1.001), default=0)
    end = next((index for index, tick in enumerate(ticks) if tick >= high * 0.999), len(ticks))
    return ticks[start : end + 1]
