"""Says what is wrong with a setting: its name as it is typed, the value, where that came from, what is expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from seam_dist.config.training import BACKBONES

_LONGEST = 100  # characters of a value that a message shows
# What each error of pydantic asks for; {gt}, {ge} and so on are the bounds of the field.
_EXPECTED = {
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number that is at least {ge:g}",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "a number that is at most {le:g}",
    "finite_number": "a finite number",
    "int_parsing_size": "a whole number with fewer digits",
    "path_type": "a path",
    "too_short": "at least {min_length} entries, not {actual_length}",
    "dict_type": "a mapping of names to values",
}
_BY_TYPE = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "tuple": "a list"}
_PATTERNS = {
    BACKBONES: "resnet38d, lite0 or timm:NAME",
    r"^[A-Za-z0-9_.-]+$": "letters, digits, _, . and -, without spaces and slashes",
}


def explain(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Return what pydantic refused, one clause a setting; `values` is the whole tree that was checked."""
    clauses: list[str] = []
    items = error.errors(include_url=False)
    # A list that is too short has an error for each entry that it lacks; the last one knows the length.
    lengths = {item["loc"][:-1]: int(item["loc"][-1]) + 1 for item in items if item["type"] == "missing"}
    for item in items:
        path = tuple(item["loc"])
        end = next((end for end, part in enumerate(path) if isinstance(part, int)), len(path))
        key = ".".join(str(part) for part in path[:end])
        message = str(item["msg"]).removeprefix("Value error, ")
        value = _look_up(values, path[:end])
        if item["type"] == "value_error" and (isinstance(value, Mapping) or key in message or not key):
            clauses.append(message + _sources(message, origins))
            continue
        if item["type"] == "value_error":
            problem = message
        else:
            number = path[end] if end < len(path) and item["type"] != "missing" else None
            entry = f"entry {number + 1} ({show(item['input'])}): " if isinstance(number, int) else ""
            length = lengths.get(path[:-1], item.get("ctx", {}).get("max_length"))
            problem = f"{entry}expected {_expected(item, value, length)}"
        clauses.append(f"{key}={show(value)}{_where(key, origins)}: {problem}")
    return "; ".join(dict.fromkeys(clauses))


def refuse_booleans(values: Mapping[str, Any], checked: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a message for each true or false of `values` that was taken for a number in `checked`, both flat."""
    for key, value in values.items():
        if _any_boolean(value) and not _any_boolean(checked.get(key, value)):
            number = "a list of numbers" if isinstance(value, Sequence) else "a number"
            yield f"{key}={show(value)}{_where(key, origins)}: expected {number}, not true or false"


def show(value: Any) -> str:
    """Return a value as it stands in a YAML file, shortened when it is long."""
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {show(entry)}" for key, entry in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(show, value))}]"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the known name that is most like `name`, or nothing."""
    by_small = {entry.lower(): entry for entry in known}
    matches = difflib.get_close_matches(name.lower(), list(by_small), n=1, cutoff=0.5)
    return f" (did you mean {by_small[matches[0]]}?)" if matches else ""


def _expected(item: Any, value: Any, length: int | None) -> str:
    """Return what the field takes, and a hint where a common slip is recognized."""
    error, given, context = item["type"], item["input"], item.get("ctx", {})
    if error == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        listed = ", ".join(choices) if choices else context["expected"].replace(" or ", ", ")
        return f"one of {listed}{nearest(given, choices) if isinstance(given, str) else ''}"
    if error == "string_pattern_mismatch":
        expected = _PATTERNS.get(context["pattern"], f"text of the form {context['pattern']}")
        return expected + (nearest(given, ["resnet38d", "lite0"]) if context["pattern"] == BACKBONES else "")
    if error in ("missing", "too_long"):
        return f"{length} entries, not {len(value)}"
    known = _EXPECTED.get(error) or _BY_TYPE.get(error.split("_")[0])
    if known is None:
        message = str(item["msg"])
        return f"something else: {message[0].lower()}{message[1:]}"
    return known.format(**context) + _slip(error.split("_")[0], given)


def _slip(wanted: str, given: Any) -> str:
    if given is None:
        return ", not null (it is not optional)"
    if wanted in ("int", "float"):
        if wanted == "int" and isinstance(given, str) and re.fullmatch(r"\d+(\.\d*)?e\+?\d{1,2}", given.lower()):
            return f", {float(given):.0f}"
        if isinstance(given, str) and re.fullmatch(r"\s*[+-]?\d+,\d+\s*", given):
            return f" with a point, {given.strip().replace(',', '.')}"
        if isinstance(given, list | tuple):
            return ", not a list"
    if wanted == "tuple" and not isinstance(given, Mapping):
        entries = given if isinstance(given, str) else show(given)
        return f": write [{entries}]"
    if wanted in ("string", "path") and isinstance(given, int | float):
        return f": put it in quotes, '{show(given)}'"
    return ""


def _any_boolean(value: Any) -> bool:
    return any(map(_any_boolean, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def _look_up(values: Mapping[str, Any], path: Sequence[Any]) -> Any:
    here: Any = values
    for part in path:
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def origin_of(key: str, origins: Mapping[str, str]) -> str | None:
    """Return where a key was given, itself or as part of a section that was given as a whole."""
    parts = key.split(".")
    around = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((origins[prefix] for prefix in around if prefix in origins), None)


def _where(key: str, origins: Mapping[str, str]) -> str:
    origin = origin_of(key, origins)
    return f" ({origin})" if origin else ""


def _sources(message: str, origins: Mapping[str, str]) -> str:
    """Return where the settings that a message names were given, in brackets."""
    named = dict.fromkeys(re.findall(r"[a-z_]+(?:\.[a-z_0-9]+)+", message))
    given = [f"{key}: {origins[key]}" for key in named if key in origins]
    return f" ({', '.join(given)})" if given else ""
