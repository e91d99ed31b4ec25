"""One row of the table of inputs: who reads it, what is unusual about it, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What a reader made of an input: a value that can be compared, and the texts of its warnings."""

    value: Any
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Case:
    """An input, made in an empty folder and read by `run`, with exactly one outcome.

    `works` is the value that comes out, without any warning; with `warns` the value comes with one warning whose text
    matches; `refused` is what the one ValueError says. Patterns are searched as regular expressions.
    """

    reader: str
    fault: str
    run: Callable[[Path], Outcome]
    _: KW_ONLY
    works: Any = None
    warns: str | None = None
    refused: str | None = None

    def __post_init__(self) -> None:
        assert self.refused is None or (self.works is None and self.warns is None), self.name

    @property
    def name(self) -> str:
        """Return the name of the test."""
        return f"{self.reader}: {self.fault}"
