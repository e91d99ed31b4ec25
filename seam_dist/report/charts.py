"""Line charts as inline SVG: no library, no script, colors from the page's stylesheet.

A line's color is a class (`s0`, `s1`, ...), so that the page can give it another shade on a dark ground; lines differ
in dash as well, for readers who do not see the colors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from markupsafe import Markup

WIDTH, HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 14, 12, 44

# Color numbers: the run's result, its plain CAM, then the runs that it is compared with.
OWN, PLAIN, _FIRST_OTHER, _NUM_STYLES = 0, 1, 2, 5


@dataclass(frozen=True)
class Line:
    """One line: points in the order of x; `style` selects the color; `faint` is the thin form of raw values."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: int
    dash: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """One marked point; its text shows when the pointer rests on it."""

    x: float
    y: float
    text: str
    style: int
    shape: Literal["best", "chosen", "default"]


def other_style(index: int) -> int:
    """Return the color number of the index-th run that a run is compared with."""
    return _FIRST_OTHER + index % (_NUM_STYLES - _FIRST_OTHER)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the centered moving average; at the ends the window shrinks and stays centered."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    result = []
    for i in range(len(values)):
        reach = min(window // 2, i, len(values) - 1 - i)
        result.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return result


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
    points = [
        (x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if y is not None and math.isfinite(y)
    ]
    if not points:
        raise ValueError(f"chart {title!r} has no finite point: leave it out")
    xs, ys = zip(*points, strict=True)
    log = may_be_log and min(ys) > 0 and max(ys) / min(ys) > 8
    x_low, x_high = _widen(min(xs), max(xs))
    x_ticks = [tick for tick in _nice_ticks(x_low, x_high) if x_low <= tick <= x_high]
    if log:
        y_ticks = _log_ticks(min(ys), max(ys))
        y_low, y_high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])
    else:
        y_ticks = _nice_ticks(*_widen(min(0.0, *ys) if min(ys) < 0.3 * max(ys) else min(ys), max(ys)))
        y_low, y_high = y_ticks[0], y_ticks[-1]

    def place_x(value: float) -> float:
        return round(_LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT), 1)

    def place_y(value: float) -> float:
        share = math.log(value / y_low) / math.log(y_high / y_low) if log else (value - y_low) / (y_high - y_low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    right, floor = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    for tick in y_ticks:
        y = place_y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{format_tick(tick)}</text>')
    for tick in x_ticks:
        x = place_x(tick)
        parts.append(f'<path class="tick" d="M{x} {floor}v5"/>')
        parts.append(f'<text x="{x}" y="{floor + 18}" text-anchor="middle">{format_tick(tick)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {floor}H{right}"/>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    middle = (_TOP + floor) / 2
    scale = " (log scale)" if log else ""
    parts.append(
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}{scale}</text>'
    )
    for line in lines:
        path = _path([(x, y) for x, y in zip(line.x, line.y, strict=True)], place_x, place_y)
        form = "raw" if line.faint else f"line d{line.dash}"
        parts.append(f'<path class="{form} s{line.style}" d="{path}"><title>{escape(line.label)}</title></path>')
    for mark in marks:
        x, y = place_x(mark.x), place_y(mark.y)
        parts.append(f'<g class="mark s{mark.style}">{_shape(mark.shape, x, y)}<title>{escape(mark.text)}</title></g>')
    return Markup("".join([*parts, "</svg>"]))


def swatch(style: int, dash: int = 0) -> Markup:
    """Return a short piece of a line for a legend."""
    path = f'<path class="line d{dash} s{style}" d="M1 5H27"/>'
    return Markup(f'<svg class="swatch" viewBox="0 0 28 10" aria-hidden="true">{path}</svg>')


def mark_swatch(shape: Literal["best", "chosen", "default"]) -> Markup:
    """Return the shape of a mark for a legend."""
    mark = f'<g class="mark">{_shape(shape, 7, 7)}</g>'
    return Markup(f'<svg class="swatch small" viewBox="0 0 14 14" aria-hidden="true">{mark}</svg>')


def format_tick(value: float) -> str:
    """Return a short text of a number."""
    return (
        f"{value:.4g}"
        if value == 0 or 1e-4 <= abs(value) < 1e6
        else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    )


def _shape(shape: str, x: float, y: float) -> str:
    if shape == "best":
        return f'<circle cx="{x}" cy="{y}" r="4.5"/>'
    if shape == "chosen":
        return f'<path d="M{x} {y - 6}l6 6l-6 6l-6 -6z"/>'
    return f'<path d="M{x} {y - 5.5}l5.5 9.5h-11z"/>'


def _path(points: Sequence[tuple[float, float | None]], place_x, place_y) -> str:  # type: ignore[no-untyped-def]
    pieces = []
    pen_down = False
    for x, y in points:
        if y is None or not math.isfinite(y):
            pen_down = False
            continue
        pieces.append(f"{'L' if pen_down else 'M'}{place_x(x)} {place_y(y)}")
        pen_down = True
    return "".join(pieces)


def _widen(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    spread = abs(low) * 0.1 or 1.0
    return low - spread, high + spread


def _nice_ticks(low: float, high: float) -> list[float]:
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
    below = [tick for tick in ticks if tick <= low * 1.001][-1:]
    inside = [tick for tick in ticks if low * 1.001 < tick < high * 0.999]
    above = [tick for tick in ticks if tick >= high * 0.999][:1]
    return below + inside + above
