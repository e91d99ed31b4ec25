"""The report's page: one HTML file that needs nothing but itself, rendered from the templates beside this file.

Jinja2 escapes every text that enters a template; only what is Markup already, charts and rendered parts, is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

NONE = "\N{EN DASH}"  # where a table has no number


@dataclass(frozen=True)
class Section:
    """A section of the page: its anchor, its heading and its HTML."""

    anchor: str
    heading: str
    body: Markup


@dataclass(frozen=True)
class Note:
    """A note that something is missing and, where there is one, the command that makes it."""

    text: str
    command: str | None = None


def render_page(title: str, lead: str, notes: Sequence[Note], sections: Sequence[Section]) -> str:
    """Return the HTML of the page."""
    style = Markup(files(__package__).joinpath("style.css").read_text(encoding="utf-8"))
    return str(render_template("page.html", title=title, lead=lead, notes=notes, sections=sections, style=style))


def render_template(template: str, **values: Any) -> Markup:
    """Return a template of report/templates filled with `values`."""
    return Markup(_environment().get_template(template).render(values))


def missing(text: str, command: str | None = None) -> Markup:
    """Return a section's HTML that is a note alone."""
    return render_template("missing.html", note=Note(text, command))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters.update(percent=percent, duration=duration)
    environment.globals["NONE"] = NONE
    return environment


def percent(value: object, digits: int = 1) -> str:
    """Return a share in 0..1 as a percentage without its sign, or a dash where there is no number."""
    if not isinstance(value, int | float) or value != value:
        return NONE
    return f"{100 * value:.{digits}f}"


def threshold_text(value: float | None) -> str:
    """Return a background threshold, or a dash where there is none."""
    return NONE if value is None else f"{value:.2f}"


def duration(seconds: object) -> str:
    """Return a time span as text: 42 s, 3 min 20 s, 2 h 05 min."""
    if not isinstance(seconds, int | float) or seconds != seconds:
        return NONE
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
