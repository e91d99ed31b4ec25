"""Configuration from its sources: defaults < preset < YAML file < `section.key=value` overrides, each with its origin.

Whatever cannot be meant is refused before any work starts: unknown keys (with the nearest valid one), wrong types,
keys given twice in one file, and combinations that `seam_dist.config.schema` rules out.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from seam_dist.config.schema import Config

_FREE_FORM = "deepspeed"  # DeepSpeed owns the keys below this section


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it, what was expected, what came and the remedy."""


@dataclass(frozen=True)
class Resolved:
    """A configuration and where each of its values came from."""

    config: Config
    origins: Mapping[str, str]
    """Dotted key -> `file:line`, `command line` or, when missing here, the default."""


@dataclass(frozen=True)
class Setting:
    """One documented key of the configuration."""

    key: str
    type_name: str
    default: Any
    doc: str


def load_config(path: Path | None, words: Sequence[str] = (), preset: str | None = None) -> Resolved:
    """Return the configuration of a YAML file, a preset and command-line words, checked as a whole.

    A preset is a YAML file of the folder `presets` beside the file at `path` (without a file: `configs/presets`);
    `preset` overrides the file's own `preset:` key. Raises ConfigError.
    """
    file_values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    folder = Path("configs")
    if path is not None:
        folder = path.parent
        file_values, file_origins = _read_yaml(path)
        named = file_values.pop("preset", None)
        file_origins.pop("preset", None)
        preset = preset or named
    values: dict[str, Any] = {}
    if preset is not None:
        preset_path = folder / "presets" / f"{preset}.yaml"
        if not preset_path.is_file():
            known = sorted(p.stem for p in preset_path.parent.glob("*.yaml"))
            hint = _nearest(str(preset), known)
            raise ConfigError(f"preset={preset} is not in {preset_path.parent}{hint}: expected one of {known}")
        values, preset_origins = _read_yaml(preset_path)
        origins.update(preset_origins)
    if path is not None:
        values = _merge(values, file_values)
        origins.update(file_origins)
    for word in words:
        key, value = _parse_word(word)
        values = _merge(values, _nest(key, value))
        origins.update((leaf, "command line") for leaf, _ in _leaves(_nest(key, value)))
    return Resolved(config=_validate(values, origins), origins=origins)


def flatten(config: Config) -> dict[str, Any]:
    """Return every setting under its dotted key, as JSON types: paths are text, tuples are lists."""
    return dict(_leaves(to_tree(config)))


def to_tree(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dicts of JSON types, in the order of the sections."""
    tree = TypeAdapter(Config).dump_python(config, mode="json")
    assert isinstance(tree, dict)
    return tree


def from_tree(tree: Mapping[str, Any]) -> Config:
    """Build a configuration from nested dicts, for example of a stored config.yaml; raise ConfigError."""
    return _validate(tree, {})


def _validate(values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    _check_keys(values, origins)
    # Merged into the defaults first: those of a nested section differ from stage to stage.
    whole = _merge(to_tree(Config()), values)
    try:
        return TypeAdapter(Config).validate_python(whole)
    except ValidationError as error:
        raise ConfigError(_explain(error, origins)) from None


def dump_yaml(config: Config) -> str:
    """Return the whole configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, default_flow_style=None, width=120)


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
        origin = next((resolved.origins[p] for p in _prefixes(key) if p in resolved.origins), "default")
        shown = yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n")[0]
        rows.append((f"{'  ' * len(sections)}{name}: {shown}", origin if sections else None))
    width = min(72, max(len(text) for text, _ in rows))
    return "\n".join(text if origin is None else f"{text:<{width}}  # {origin}" for text, origin in rows) + "\n"


def settings() -> Iterator[Setting]:
    """Yield every key of the configuration with its type, default and one-line description."""
    yield from _settings(Config, Config(), "")


def _settings(kind: type[Any], defaults: Any, prefix: str) -> Iterator[Setting]:
    hints = get_type_hints(kind)
    fields: Mapping[str, FieldInfo] = kind.__pydantic_fields__
    for name in fields:
        if dataclasses.is_dataclass(hints[name]):
            yield from _settings(hints[name], getattr(defaults, name), f"{prefix}{name}.")
            continue
        text = "mapping" if f"{prefix}{name}" == _FREE_FORM else str(vars(kind)["__annotations__"][name])
        yield Setting(f"{prefix}{name}", text, getattr(defaults, name), _one_line(fields[name].description))


def section_docs() -> dict[str, str]:
    """Return the one-line description of each section."""
    hints = get_type_hints(Config)
    return {
        section.name: _one_line(hints[section.name].__doc__)
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(hints[section.name])
    }


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        near = _nearest(path.name, [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else [])
        raise ConfigError(f"config file {path} does not exist{near}: give the path of a YAML file") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if root is None:
        return {}, {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, expected sections such as `train:` with keys below")
    origins: dict[str, str] = {}
    _walk_nodes(root, "", path, origins)
    return values, origins


def _walk_nodes(node: yaml.Node, prefix: str, path: Path, origins: dict[str, str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        name = str(key_node.value)
        key = f"{prefix}{name}"
        if name in seen:
            raise ConfigError(f"{path}:{line} gives {key} again (first at line {seen[name]}): remove one of them")
        seen[name] = line
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            _walk_nodes(value_node, f"{key}.", path, origins)
        else:
            origins[key] = f"{path}:{line}"


def _parse_word(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key or "." not in key:
        raise ConfigError(
            f"argument '{word}' is not of the form section.key=value, for example train_seam.schedule.lr=0.01"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: the value '{text}' cannot be read ({error}): quote it as in YAML") from None
    # Scalars keep their text, so that run.name=001 stays a name; the field's type reads numbers and booleans itself.
    if isinstance(value, (list, dict)) or value is None or key.startswith(f"{_FREE_FORM}."):
        return key, value
    return key, text.strip().strip("'\"")


def _nest(key: str, value: Any) -> dict[str, Any]:
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    assert isinstance(nested, dict)
    return nested


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end])


def _nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def _check_keys(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    keys = [setting.key for setting in settings()]
    sections = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    for section, content in values.items():
        where = next((f"{o}: " for k, o in origins.items() if k == section or k.startswith(f"{section}.")), "")
        if section not in sections:
            raise ConfigError(
                f"{where}unknown section {section}{_nearest(section, sections)}: expected one of {', '.join(sections)}"
            )
        if section == _FREE_FORM:
            continue
        if not isinstance(content, Mapping):
            raise ConfigError(f"{where}{section}={content!r} is a section: give keys below it: {section}.key=value")
        _check_names(section, content, keys, origins)


def _check_names(prefix: str, content: Mapping[str, Any], keys: Sequence[str], origins: Mapping[str, str]) -> None:
    """Refuse names below a section, at any depth, that are no settings."""
    own = [key for key in keys if key.startswith(f"{prefix}.")]
    for name, value in content.items():
        key = f"{prefix}.{name}"
        if key in own:
            continue
        where = next((f"{o}: " for k, o in origins.items() if k == key or k.startswith(f"{key}.")), "")
        if any(other.startswith(f"{key}.") for other in own):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}{key}={value!r} is a section: give keys below it: {key}.key=value")
            _check_names(key, value, keys, origins)
            continue
        others = [k for k in keys if k.endswith(f".{name}")]
        hint = _nearest(key, own) or (f" (did you mean {others[0]}?)" if others else "")
        raise ConfigError(f"{where}unknown key {key}{hint}: `seam-dist --help-config` lists all keys")


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = []
    for item in error.errors(include_url=False):
        location = [str(part) for part in item["loc"]]
        key = ".".join(location)
        message = str(item["msg"]).removeprefix("Value error, ")
        if item["type"] == "value_error":
            lines.append(message)
            continue
        origin = next((origins[p] for p in _prefixes(key) if p in origins), None)
        where = f" ({origin})" if origin else ""
        lines.append(f"{key}={item['input']!r}{where}: {message[0].lower()}{message[1:]}")
    return "; ".join(dict.fromkeys(lines))
