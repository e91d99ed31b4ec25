"""Loads the configuration: defaults < preset < YAML file < `section.key=value` overrides, each value with its origin.

Refused before any work starts: unknown keys (the message suggests the nearest valid one), wrong types, keys given twice
in one file, and combinations that `seam_dist.config.schema` rules out.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from seam_dist.config.schema import Config

FREE_FORM = "deepspeed"  # DeepSpeed owns the keys below this section


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it, what was expected, what came and the remedy."""


@dataclass(frozen=True)
class Resolved:
    """A configuration and where each of its values came from."""

    config: Config
    origins: Mapping[str, str]
    """Dotted key -> `file:line` or `command line`; settings that have their default are not listed."""

    def origin(self, key: str) -> str:
        """Return where the value of a dotted key, or of a section around it, was given; else `default`."""
        return _origin(key, self.origins) or "default"


def load_config(source: str | Path | None, overrides: Sequence[str] = (), preset: str | Path | None = None) -> Resolved:
    """Return the configuration of a YAML file, a preset and command-line overrides, checked as a whole.

    `source` and `preset` are paths of YAML files, or names of files that are installed with the package; a name of a
    preset means `presets/NAME.yaml` beside the file at `source` first. `preset` replaces the file's own `preset:` key,
    whose path is relative to that file. Raises ConfigError.
    """
    values: dict[str, Any] = {}
    file_values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    file_origins: dict[str, str] = {}
    folder: Path | None = None
    if source is not None:
        path = find_config(source)
        folder = path.parent
        file_values, file_origins = _read_yaml(path)
        named = file_values.pop("preset", None)
        file_origins.pop("preset", None)
        if preset is None and named is not None:
            preset = folder / str(named) if _is_path(named) else str(named)
    if preset is not None:
        values, origins = _read_yaml(find_preset(preset, folder))
    values = _merge(values, file_values)
    origins.update(file_origins)
    for override in overrides:
        key, value = _parse_override(override)
        values = _merge(values, _nest(key, value))
        origins.update((leaf, "command line") for leaf, _ in leaves(_nest(key, value)))
    return Resolved(config=_validate(values, origins), origins=origins)


def find_config(source: str | Path) -> Path:
    """Return the file of a config given by its path, or by the name of an installed one; raise ConfigError.

    What contains a separator or ends in .yaml is a path.
    """
    names = _names(installed_configs())
    path = Path(source) if _is_path(source) else installed_configs() / f"{source}.yaml"
    if path.is_file():
        return path
    if not _is_path(source):
        raise ConfigError(
            f"--config={source} is not an installed config{_nearest(str(source), names)}: expected one of "
            f"{', '.join(names)}, or the path of a file, for example ./{source}.yaml"
        )
    near = _nearest(path.name, [neighbor.name for neighbor in path.parent.glob("*.yaml")])
    raise ConfigError(
        f"config file {path} does not exist{near}: give the path of a YAML file, or the name of an installed config "
        f"({', '.join(names)})"
    )


def find_preset(source: str | Path, folder: Path | None) -> Path:
    """Return the file of a preset given by its path, or by its name in folder/presets or among the installed ones.

    Raises ConfigError.
    """
    if _is_path(source):
        if not Path(source).is_file():
            raise ConfigError(
                f"preset file {source} does not exist: give the path of a YAML file, or the name of a preset"
            )
        return Path(source)
    places = [place / "presets" for place in (folder, installed_configs()) if place is not None]
    for place in places:
        if (place / f"{source}.yaml").is_file():
            return place / f"{source}.yaml"
    names = sorted({name for place in places for name in _names(place)})
    raise ConfigError(
        f"preset={source} is not known{_nearest(str(source), names)}: expected one of {', '.join(names)}, or the path "
        "of a YAML file"
    )


def installed_configs() -> Path:
    """Return the folder of the configs that are installed with the package; in a checkout, its folder configs/."""
    package = Path(__file__).parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def _is_path(source: object) -> bool:
    return "/" in str(source) or os.sep in str(source) or str(source).endswith((".yaml", ".yml"))


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def flatten(config: Config) -> dict[str, Any]:
    """Return every setting under its dotted key, as JSON types: paths are text, tuples are lists."""
    return dict(leaves(to_tree(config)))


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


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    text = path.read_text()
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


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key or "." not in key:
        raise ConfigError(
            f"argument '{override}' is not of the form section.key=value, for example train_seam.schedule.lr=0.01"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: the value '{text}' cannot be read ({error}): quote it as in YAML") from None
    # Scalars keep their text, so that run.name=001 stays a name; the field's type reads numbers and booleans itself.
    if isinstance(value, (list, dict)) or value is None or key.startswith(f"{FREE_FORM}."):
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


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of all that is no section in a nested mapping; an empty one is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _origin(key: str, origins: Mapping[str, str]) -> str | None:
    """Return where a key was given, itself or as part of a section that was given as a whole."""
    parts = key.split(".")
    around = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((origins[prefix] for prefix in around if prefix in origins), None)


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


def _check_keys(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    keys = list(flatten(Config()))
    sections = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    for section, content in values.items():
        where = next((f"{o}: " for k, o in origins.items() if k == section or k.startswith(f"{section}.")), "")
        if section not in sections:
            raise ConfigError(
                f"{where}unknown section {section}{_nearest(section, sections)}: expected one of {', '.join(sections)}"
            )
        if section == FREE_FORM:
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
        if any(longer.startswith(f"{key}.") for longer in own):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}{key}={value!r} is a section: give keys below it: {key}.key=value")
            _check_names(key, value, keys, origins)
            continue
        elsewhere = [k for k in keys if k.endswith(f".{name}")]
        hint = _nearest(key, own) or (f" (did you mean {elsewhere[0]}?)" if elsewhere else "")
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
        origin = _origin(key, origins)
        where = f" ({origin})" if origin else ""
        lines.append(f"{key}={item['input']!r}{where}: {message[0].lower()}{message[1:]}")
    return "; ".join(dict.fromkeys(lines))
