"""Describes the configuration as text: every setting with its meaning, and values with their origins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import yaml
from pydantic.fields import FieldInfo

from seam_dist.config.load import FREE_FORM, Resolved, flatten
from seam_dist.config.schema import Config

# Types that carry a check, as they are shown.
_TYPE_NAMES = {
    "UserPath": "path",
    "NameOrPath": "name or path",
    "NonNegativeFloat": "float",
    "PositiveFloat": "float",
    "NonNegativeInt": "int",
    "PositiveInt": "int",
}


@dataclass(frozen=True)
class Setting:
    """One documented key of the configuration."""

    key: str
    type_name: str
    default: Any
    doc: str


def format_config(resolved: Resolved) -> str:
    """Return the configuration as YAML text with each value's origin in a comment."""
    rows: list[tuple[str, str | None]] = []  # text, origin
    open_sections: tuple[str, ...] = ()
    for key, value in flatten(resolved.config).items():
        *sections, name = key.split(".")
        for depth, section in enumerate(sections):
            if open_sections[: depth + 1] != tuple(sections[: depth + 1]):
                rows.append((f"{'  ' * depth}{section}:", None))
                open_sections = tuple(sections[: depth + 1])
        open_sections = tuple(sections)
        shown = yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n")[0]
        rows.append((f"{'  ' * len(sections)}{name}: {shown}", resolved.origin(key) if sections else None))
    width = min(72, max(len(text) for text, _ in rows))
    return "\n".join(text if origin is None else f"{text:<{width}}  # {origin}" for text, origin in rows) + "\n"


def settings(section: type[Any] = Config, defaults: Any = None, prefix: str = "") -> Iterator[Setting]:
    """Yield every key of the configuration, or of a section of it, with its type, default and one-line description."""
    hints = get_type_hints(section)
    defaults = defaults or section()
    fields: Mapping[str, FieldInfo] = section.__pydantic_fields__
    for name in fields:
        key, default = f"{prefix}{name}", getattr(defaults, name)
        if dataclasses.is_dataclass(default):
            yield from settings(hints[name], default, f"{key}.")
        else:
            annotation = str(vars(section)["__annotations__"][name])
            for alias, shown in _TYPE_NAMES.items():
                annotation = annotation.replace(alias, shown)
            type_name = "mapping" if key == FREE_FORM else annotation
            yield Setting(key, type_name, default, _one_line(fields[name].description))


def format_settings() -> str:
    """Return every setting with its type, default and meaning, by section."""
    sections = get_type_hints(Config)
    lines: list[str] = []
    current = ""
    for setting in settings():
        section = setting.key.partition(".")[0]
        if section != current:
            current = section
            doc = _one_line(sections[section].__doc__) if dataclasses.is_dataclass(sections[section]) else ""
            lines += ["", f"{section}: {doc}".rstrip(": ")]
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        lines += [f"  {setting.key}  ({setting.type_name}, default {default})", f"      {setting.doc}"]
    return "\n".join(lines[1:]) + "\n"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
