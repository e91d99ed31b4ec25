"""The list of classes: one foreground class a line, line k is class k."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from seam_dist.config.findings import Findings
from seam_dist.config.schema import MAX_CLASSES
from seam_dist.data.sources.base import read_lines
from seam_dist.data.sources.names import clean, normal_form, visible_form

# Names that other tools write for what is no class, and the values that masks have for them.
_RESERVED = {"background": 0, "ignore": 255}
_HEADERS = ("class", "classes", "class name", "class_name", "name", "names", "label", "labels", "category")
_NUMBERED = re.compile(r"\d+\s*[:.,\t -]\s*\S")


def read_class_list(path: Path, findings: Findings) -> tuple[str, ...]:
    """Return the class names; add what is wrong or odd with them. Raises SourceError when the file cannot be read."""
    lines = read_lines(path, remedy="a plain folder needs classes.txt, labels.csv and images/")
    named = [(f"{path}, line {number}", name) for number, line in enumerate(lines, start=1) if (name := clean(line))]
    check_class_names(named, str(path), findings)
    for where, name in named:
        _check_line(where, name, findings, alone=len(named) == 1)
    if named and normal_form(named[0][1]) in _HEADERS:
        text = f"{named[0][0]}: {named[0][1]!r} is class 1"
        findings.warning("class-header", f"{text}: remove the line if it is a heading")
    if named and all(_NUMBERED.match(name) for _, name in named):
        text = f"{named[0][0]}: the number belongs to the name of class {named[0][1]!r}, as in all lines"
        findings.warning("class-numbers", f"{text}: remove the numbers, the line's place is the class's number")
    return tuple(name for _, name in named)


def check_class_names(named: Sequence[tuple[str, str]], file: str, findings: Findings) -> None:
    """Add what is wrong with classes, each with the place where it stands, in whatever file they are listed."""
    if not 1 <= len(named) <= MAX_CLASSES:
        findings.error(
            "num-classes",
            f"{file} names {len(named)} classes, expected 1 to {MAX_CLASSES}: list the foreground classes, each once",
        )
    for where, name in named:
        if (reserved := normal_form(name).strip("_")) in _RESERVED:
            findings.error(
                "class-reserved",
                f"{where}: {name!r} is no class, it is the value {_RESERVED[reserved]} of masks in every data set: "
                "remove it, so that the first class has index 1",
            )
    _check_different(named, findings)


def _check_line(where: str, name: str, findings: Findings, *, alone: bool) -> None:
    if name.startswith("#") or " #" in name:
        findings.error("class-comment", f"{where}: {name!r} looks like a comment, which would be a class: remove it")
    if ";" in name or (alone and "," in name):
        text = f"{where}: {name!r} is one class, expected one class a line"
        findings.error("class-line", f"{text}: write each on its own")


def _check_different(named: Sequence[tuple[str, str]], findings: Findings) -> None:
    first: dict[str, tuple[str, str]] = {}
    for where, name in named:
        known_where, known = first.setdefault(normal_form(name), (where, name))
        line = known_where.rpartition(" ")[2]
        place = "category" if ": category " in where else "line"
        if known_where == where:
            continue
        if known == name:
            findings.error(
                "class-twice", f"{where}: {name!r} is named more than once, first in {place} {line}: remove one"
            )
        elif visible_form(known) == visible_form(name):
            findings.error(
                "class-twice",
                f"{where}: {name!r} is the class of {place} {line} in another Unicode form or with other spaces: "
                "remove one",
            )
        else:
            findings.warning(
                "class-case",
                f"{where}: {name!r} and {known!r} of {place} {line} are two classes: remove one if they are not",
            )
