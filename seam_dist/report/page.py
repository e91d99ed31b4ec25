"""The report's page: one HTML file that needs nothing but itself, rendered from the templates beside this file.

Jinja2 escapes every text that enters a template; only what is Markup already, charts and rendered parts, is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, TypeGuard

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

NONE = "\N{EN DASH}"  # where a table has no number


@dataclass(frozen=True)
class Note:
    """A note that something is missing and, where there is one, the command that makes it."""

    text: str
    command: str | None = None


def no_masks(run_name: str) -> Note:
    """Return why an evaluated run has no scores."""
    return Note(f"No split of run {run_name} has masks to compare with, so there are no scores.")


@dataclass(frozen=True)
class Section:
    """A section of the page: its anchor, its heading and its HTML, or a note on why there is none."""

    anchor: str
    heading: str
    body: Markup | Note


def render_page(title: str, lead: str, notes: Sequence[Note], sections: Sequence[Section]) -> str:
    """Return the HTML of the page."""
    style = Markup(files(__package__).joinpath("style.css").read_text(encoding="utf-8"))
    return str(render_template("page.html", title=title, lead=lead, notes=notes, sections=sections, style=style))


def render_template(template: str, **values: Any) -> Markup:
    """Return a template of report/templates filled with `values`."""
    return Markup(_environment().get_template(template).render(values))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, signed=signed, decimals=decimals, duration=duration)
    environment.globals["NONE"] = NONE
    return environment


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value read from a file is a number, and not NaN."""
    return isinstance(value, int | float) and value == value


def percent(value: object) -> str:
    """Return a share in 0..1 as a percentage without its sign, or a dash where there is no number."""
    return f"{100 * value:.1f}" if is_number(value) else NONE


def decimals(value: object) -> str:
    """Return a number with two decimals, or a dash where there is none."""
    return f"{value:.2f}" if is_number(value) else NONE


def signed(share: float) -> str:
    """Return a difference of shares in percentage points with its sign."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: object) -> str:
    """Return a time span as text: 42 s, 3 min 20 s, 2 h 05 min."""
    if not is_number(seconds):
        return NONE
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
