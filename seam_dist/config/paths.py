"""Paths as people write them in settings and options."""

from __future__ import annotations

from pathlib import Path


def user_path(text: str) -> Path:
    """Return the path of a text, `~` and `~name` being home folders; ValueError when there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{text}: its home folder is not known: write the path in full") from None
