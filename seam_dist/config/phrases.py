"""Parts of messages: numbers with their noun, and the first of many names."""

from __future__ import annotations

from collections.abc import Sequence


def count_of(number: int, one: str, many: str = "") -> str:
    """Return the number with its noun, `1 image` or `2 images`; `many` where that is more than another s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def first_of(texts: Sequence[str], limit: int = 5, separator: str = ", ") -> str:
    """Return the first `limit` texts, and dots where there are more."""
    return separator.join([*texts[:limit], *["..."] * (len(texts) > limit)])
