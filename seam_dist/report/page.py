"""The report's page: one HTML file that needs nothing but itself, put together from sections.

Every text that comes from data, settings or files is escaped where it enters the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from seam_dist.report.style import CSS

NONE = "\N{EN DASH}"  # where a table has no number


def page(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """Return the HTML of sections (anchor, heading, HTML body); `title` is text, `lead` is HTML."""
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in sections)
    bodies = "".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>{body}</section>' for anchor, heading, body in sections
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{lead}<nav>{links}</nav>{bodies}</main></body></html>\n"
    )


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), classes: Sequence[str] = ()
) -> str:
    """Return a table that scrolls on its own when it is wide; cells are HTML, `numbers` lists the numeric columns."""

    def cell(kind: str, column: int, html: str) -> str:
        return f"<{kind}{' class=n' if column in numbers else ''}>{html}</{kind}>"

    top = "".join(cell("th", column, escape(text)) for column, text in enumerate(head))
    lines = []
    for number, row in enumerate(rows):
        style = classes[number] if number < len(classes) else ""
        cells = "".join(cell("td", column, html) for column, html in enumerate(row))
        lines.append(f'<tr class="{style}">{cells}</tr>' if style else f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """Return headline figures (value, what it is), both text."""
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in items)
        + "</div>"
    )


def legend(items: Sequence[tuple[str, str]]) -> str:
    """Return a list of (swatch HTML, text)."""
    return '<ul class="legend">' + "".join(f"<li>{swatch}{escape(text)}</li>" for swatch, text in items) + "</ul>"


def chip(color: Sequence[int]) -> str:
    """Return a small square of an RGB color."""
    red, green, blue = (int(channel) for channel in color)
    return f'<span class="chip" style="background:rgb({red},{green},{blue})"></span>'


def missing(what: str, command: str | None = None) -> str:
    """Return a note that something is not there and, as text, the command that makes it."""
    how = f"<p>To make it: <code>{escape(command)}</code></p>" if command else ""
    return f'<div class="missing"><p>{escape(what)}</p>{how}</div>'


def percent(value: object, digits: int = 1) -> str:
    """Return a share in 0..1 as a percentage without its sign, or a dash where there is no number."""
    if not isinstance(value, int | float) or value != value:
        return NONE
    return f"{100 * value:.{digits}f}"


def duration(seconds: object) -> str:
    """Return a time span in words: 42 s, 3 min 20 s, 2 h 05 min."""
    if not isinstance(seconds, int | float) or seconds != seconds:
        return NONE
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
