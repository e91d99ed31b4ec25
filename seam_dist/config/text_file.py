"""Reads text that people wrote (settings, lists, tables, annotations), whatever editor saved it.

A byte order mark chooses UTF-8, UTF-16 or UTF-32; without one the text is UTF-8. Nothing is guessed or replaced: a byte
that does not fit is an error that names the file, the line and the encoding that would fit.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Tried in this order for the hint alone.
_LIKELY = ("gb18030", "shift_jis", "cp1252")
_LINE_END = re.compile("\r\n|\r|\n")


class TextError(ValueError):
    """A text file that cannot be decoded; the message names file, line, encoding and remedy."""


def read_text(path: Path, *, encoding: str = "utf-8") -> str:
    """Return the text of a file without its byte order mark, line ends as they are.

    `encoding` holds where no mark says otherwise. Raises TextError, and OSError when the file cannot be read.
    """
    return decode_text(Path(path).read_bytes(), str(path), encoding=encoding)


def decode_text(data: bytes, name: str, *, encoding: str = "utf-8") -> str:
    """Return the text of the bytes of file `name`, as `read_text` does; raise TextError."""
    for mark, marked in _MARKS:
        if data.startswith(mark):
            data, encoding = data[len(mark) :], marked
            break
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = count_lines(data[: error.start].decode(encoding, "replace"))
        hint = "" if encoding != "utf-8" else f" (it may be {_likely_encoding(data)})"
        raise TextError(
            f"{name}, line {line}: byte {data[error.start]:#04x} is no {encoding.upper()}{hint}: save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise TextError(
            f"{name}, line {count_lines(text[: text.index(chr(0))])}: it holds a NUL character, so it is UTF-16 "
            "without a byte order mark or no text at all: save the file as UTF-8"
        )
    return text


def split_lines(text: str) -> list[str]:
    """Return the lines of a text whose lines end with LF, CR or both; no other character ends a line."""
    return _LINE_END.split(text)


def count_lines(text: str) -> int:
    """Return the number of the line at the end of the text, from 1."""
    return len(split_lines(text))


def _likely_encoding(data: bytes) -> str:
    if b"\0" in data:
        return "UTF-16 without a byte order mark, or no text"
    for encoding in _LIKELY:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding != "gb18030" or any("一" <= character <= "鿿" for character in text):
            return encoding
    return "binary data"
