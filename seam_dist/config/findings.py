"""What a check has found: errors that stop a run and warnings that do not, one line for each sort of fault.

A data set with a thousand images of one fault gives one line with the first of them and a count. Every text names what
is wrong, what was expected, what came and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One sort of fault: `topic` is its short stable name, such as `mask-values`; `text` describes the first case."""

    severity: Severity
    topic: str
    text: str
    count: int = 1

    def __str__(self) -> str:
        """Return the text and how many more cases there are."""
        text = self.text.replace("\n", "\\n").replace("\r", "\\r")  # in the name of a file: it stays one line
        return text if self.count == 1 else f"{text} ({self.count} such cases)"

    @property
    def line(self) -> str:
        """The finding as commands print it."""
        return f"{self.severity}: {self}"


@dataclass
class Findings:
    """Findings in the order in which their topics came up; the first case of each topic keeps its text."""

    _by_topic: dict[tuple[Severity, str], Finding] = field(default_factory=dict)

    def error(self, topic: str, text: str, count: int = 1) -> None:
        """Add `count` cases of a fault that stops the run."""
        self.add(Finding("error", topic, text, count))

    def warning(self, topic: str, text: str, count: int = 1) -> None:
        """Add `count` cases of what is odd and does not stop the run."""
        self.add(Finding("warning", topic, text, count))

    def add(self, finding: Finding) -> None:
        """Add a finding; cases of a topic that is there already are counted."""
        key = (finding.severity, finding.topic)
        known = self._by_topic.get(key)
        self._by_topic[key] = finding if known is None else replace(known, count=known.count + finding.count)

    def merge(self, others: Iterable[Finding]) -> None:
        """Add findings of another check; one that is there word for word is the same fault seen twice."""
        for finding in others:
            if self._by_topic.get((finding.severity, finding.topic)) != finding:
                self.add(finding)

    def __iter__(self) -> Iterator[Finding]:
        """Yield the errors, then the warnings."""
        return iter(sorted(self._by_topic.values(), key=lambda finding: finding.severity != "error"))

    def __len__(self) -> int:
        """Return the number of topics."""
        return len(self._by_topic)

    @property
    def errors(self) -> list[Finding]:
        """Return the findings that stop a run."""
        return [finding for finding in self if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """Return the findings that do not."""
        return [finding for finding in self if finding.severity == "warning"]

    def summary(self) -> str:
        """Return the numbers of errors and warnings."""
        numbers = {"error": len(self.errors), "warning": len(self.warnings)}
        return ", ".join(f"{number} {noun}{'' if number == 1 else 's'}" for noun, number in numbers.items())

    def raise_errors(self, error_type: type[ValueError]) -> None:
        """Raise `error_type` with all errors, a line each, when there are any."""
        if errors := self.errors:
            raise error_type("\n".join(str(finding) for finding in errors))


def error_text(error: Exception) -> str:
    """Return what an exception says; one of the operating system with its file first."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
