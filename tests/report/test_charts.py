from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from seam_dist.report.charts import HEIGHT, WIDTH, Line, Mark, format_tick, line_chart, smooth


def _chart(lines: list[Line], **options: object) -> ElementTree.Element:
    svg = line_chart(lines, title="t", x_label="step", y_label="loss", **options)  # type: ignore[arg-type]
    return ElementTree.fromstring(svg)


def _points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


def _paths(svg: ElementTree.Element, style: str) -> list[str]:
    return [e.attrib["d"] for e in svg.iter("path") if e.attrib.get("class", "").startswith(style)]


def _tick_texts(svg: ElementTree.Element) -> list[str]:
    return [e.text or "" for e in svg.iter("text") if e.attrib.get("text-anchor") == "end"]


def test_higher_values_are_drawn_higher_and_later_ones_further_right() -> None:
    ((x1, y1), (x2, y2), (x3, y3)) = _points(_paths(_chart([Line("a", [1, 2, 4], [5, 6, 7], 0)]), "line")[0])
    assert x1 < x2 < x3
    assert (x3 - x2) == pytest.approx(2 * (x2 - x1), abs=0.2)
    assert y1 > y2 > y3
    assert (y1 - y2) == pytest.approx(y2 - y3, abs=0.2)


def test_values_over_several_decades_have_a_log_axis() -> None:
    svg = _chart([Line("a", [0, 1, 2], [1.0, 0.1, 0.01], 0)], may_be_log=True)
    ys = [y for _, y in _points(_paths(svg, "line")[0])]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)
    assert any("log scale" in (e.text or "") for e in svg.iter("text"))


def test_zero_and_negative_values_keep_a_linear_axis() -> None:
    svg = _chart([Line("a", [0, 1, 2], [0.0, 10.0, -3.0], 0)], may_be_log=True)
    assert not any("log scale" in (e.text or "") for e in svg.iter("text"))
    assert [float(t) for t in _tick_texts(svg)] == sorted(float(t) for t in _tick_texts(svg))


@pytest.mark.parametrize(
    "values",
    [[3.0], [2.0, 2.0], [0.0, 0.0], [1e-9, 2e-9], [0.999, 1.0], [1e-5, 1e4], [-5.0, -4.0], [98.0, 3.0], [0.07, 0.011]],
)
def test_everything_stays_inside_the_frame(values: list[float]) -> None:
    steps = [float(k) for k in range(len(values))]
    svg = _chart([Line("a", steps, values, 0)], may_be_log=True, marks=[Mark(steps[0], values[0], "first", 0, "best")])
    for x, y in _points(_paths(svg, "line")[0]):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= HEIGHT
    assert 2 <= len(_tick_texts(svg)) <= 10


def test_missing_values_break_the_line() -> None:
    path = _paths(_chart([Line("a", [0, 1, 2, 3, 4], [1.0, 2.0, None, math.nan, 3.0], 0)]), "line")[0]
    assert path.count("M") == 2
    assert len(_points(path)) == 3


def test_a_chart_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="no finite point"):
        _chart([Line("a", [0, 1], [None, math.nan], 0)])


def test_labels_are_escaped() -> None:
    svg = line_chart([Line("<a>&", [0, 1], [0, 1], 0)], title="<t>", x_label="<x>", y_label='"y"')
    assert "<a>" not in svg
    titles = [e.text for e in ElementTree.fromstring(svg).iter("title")]
    assert titles == ["<t>", "<a>&"]


def test_smoothing_keeps_lines_straight_and_evens_out_noise() -> None:
    ramp = [float(k) for k in range(20)]
    assert smooth(ramp, 5) == pytest.approx(ramp)
    noisy = [k + (1 if k % 2 else -1) for k in range(20)]
    assert max(abs(a - b) for a, b in zip(smooth(noisy, 6)[3:-3], ramp[3:-3], strict=True)) < 0.2


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.26, "0.26"), (1e-5, "1e-5"), (2e6, "2e6"), (1200.0, "1200")])
def test_ticks_are_short(value: float, text: str) -> None:
    assert format_tick(value) == text
