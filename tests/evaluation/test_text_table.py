from __future__ import annotations

from seam_dist.evaluation.text_table import aligned, width


def test_columns_are_as_wide_as_a_terminal_shows_them() -> None:
    wide, accent = (
        "\N{CJK UNIFIED IDEOGRAPH-732B}\N{CJK UNIFIED IDEOGRAPH-72AC}",
        "e\N{COMBINING ACUTE ACCENT}te\N{COMBINING ACUTE ACCENT}",
    )
    assert (width(wide), width(accent), width("cat")) == (4, 3, 3)
    lines = aligned([["class", "n"], [wide, "1"], [accent, "22"]], num_left=1, rule=True).splitlines()
    assert lines == ["class   n", "-----  --", f"{wide}    1", f"{accent}    22"]
