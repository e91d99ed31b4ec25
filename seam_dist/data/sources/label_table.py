"""The table of image-level labels: `image,split,classes` in the first line, then a line an image.

Every line is read on its own, so that a quote that is never closed cannot swallow the lines that follow. The heading
decides the delimiter: a comma, a semicolon, a tab or a bar. More columns may follow, or stand between.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seam_dist.config.findings import Findings
from seam_dist.data.sources.base import SourceError, read_lines
from seam_dist.data.sources.names import clean, image_stem, normal_form

COLUMNS = ("image", "split", "classes")
_DELIMITERS = (",", ";", "\t", "|")
_EXCEL = re.compile(r"sep=.", re.IGNORECASE)  # a first line that tells Excel the delimiter
_LONGEST = 80  # characters of a line in a message


@dataclass(frozen=True)
class Row:
    """A line of the table; `classes` is None where the line has an error, which is reported already."""

    line: int
    image: str
    split: str
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class _Heading:
    """Where the columns are."""

    delimiter: str
    names: tuple[str, ...]
    places: tuple[int, int, int]

    @property
    def width(self) -> int:
        """Return the number of columns up to the last that has a name."""
        return max(place for place, name in enumerate(self.names, start=1) if name)

    def extra(self, fields: Sequence[str]) -> list[str]:
        """Return the fields behind the columns that have names; an index before them needs none."""
        places = range(self.places[2] + 1, len(fields))
        return [fields[place] for place in places if not "".join(self.names[place : place + 1]) and fields[place]]


def read_label_table(path: Path, findings: Findings) -> tuple[Row, ...]:
    """Return the rows of a table; add an error for each line that does not fit its heading.

    Raises SourceError when the file cannot be read or its heading lacks a column.
    """
    every = read_lines(path, remedy="a plain folder needs classes.txt, labels.csv and images/")
    lines = [(number, line) for number, line in enumerate(every, start=1) if clean(line)]
    if lines and _EXCEL.fullmatch(clean(lines[0][1])):
        del lines[0]
    heading = _read_heading(path, *(lines[0] if lines else (1, "")))
    rows = (_read_row(f"{path}, line {number}", number, line, heading, findings) for number, line in lines[1:])
    return tuple(row for row in rows if row is not None)


def _read_heading(path: Path, number: int, line: str) -> _Heading:
    candidates = [_split_naively(line, delimiter) for delimiter in _DELIMITERS]
    for delimiter, fields in zip(_DELIMITERS, candidates, strict=True):
        names = [normal_form(field) for field in fields]
        if all(name in names for name in COLUMNS):
            doubled = [name for name in COLUMNS if names.count(name) > 1]
            if doubled:
                raise SourceError(f"{path}, line {number}: column {doubled[0]!r} is there twice: remove one of them")
            image, split, classes = (names.index(name) for name in COLUMNS)
            return _Heading(delimiter, tuple(names), (image, split, classes))
    fields = max(candidates, key=len)
    missing = next(name for name in COLUMNS if name not in [normal_form(field) for field in fields])
    is_row = image_stem(fields[0]) != fields[0]
    raise SourceError(
        f"{path} has no column {missing!r} (found: {', '.join(filter(None, fields)) or 'nothing'}): "
        f"{'add the line' if is_row else 'its first line must be'} {','.join(COLUMNS)}{' before it' if is_row else ''}"
    )


def _read_row(where: str, number: int, line: str, heading: _Heading, findings: Findings) -> Row | None:
    """Return the row of a line, None for one without any text."""
    shown = repr(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...")
    good = True
    try:
        reader = csv.reader([line], delimiter=heading.delimiter, strict=True, skipinitialspace=True)
        fields = [clean(field) for field in next(reader)]
    except csv.Error as error:
        fields, good = _split_naively(line, heading.delimiter), False
        text = f"{where}: {shown} cannot be read ({error})"
        findings.error("labels-quotes", f"{text}: close the quote in its line, or remove it")
    if not any(fields):
        return None
    if len(fields) <= max(heading.places):
        text = f"{where} has fewer than {max(heading.places) + 1} fields{_other(line, heading)}"
        findings.error("labels-few-fields", text)
        good = False
    if good and heading.extra(fields):
        findings.error("labels-extra-field", _extra_field(where, shown, fields, heading))
        good = False
    image, split, classes = (fields[place] if place < len(fields) else "" for place in heading.places)
    if good and not (image and split):
        text = f"{where}: {shown} has no {'split' if image else 'image'}"
        findings.error("labels-empty-field", f"{text}: write it, or remove the line")
        good = False
    present = tuple(name for part in classes.split(";") if (name := clean(part)))
    return Row(number, image, split, present if good else None)


def _extra_field(where: str, shown: str, fields: Sequence[str], heading: _Heading) -> str:
    text = f"{where}: {shown} has {len(fields)} fields, the first line has {heading.width}"
    if heading.places[2] != heading.width - 1:
        return f"{text}: write as many, with `;` between classes"
    classes = ";".join(field for field in fields[heading.places[2] :] if field)
    classes = f'"{classes}"' if heading.delimiter == ";" else classes
    return f"{text}: classes are separated by `;`, so write {classes}"


def _other(line: str, heading: _Heading) -> str:
    """Return the end of the message on a line with too few fields."""
    for delimiter in _DELIMITERS:
        if delimiter != heading.delimiter and line.count(delimiter) >= max(heading.places):
            own = heading.delimiter
            return f" with the delimiter of the first line, {own!r}, but has {delimiter!r}: use one for all"
    return ": write image,split,classes, with nothing after the last comma for an image without any object"


def _split_naively(line: str, delimiter: str) -> list[str]:
    return [clean(field.strip('" ')) for field in clean(line).split(delimiter)]
