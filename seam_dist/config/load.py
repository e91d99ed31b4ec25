"""Loads the configuration: defaults < preset < YAML file < `section.key=value` overrides, each value with its origin.

Refused before any work starts: unknown keys (the message suggests the nearest valid one), wrong types, keys given twice
in one file, and combinations that `seam_dist.config.schema` rules out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from seam_dist.config.messages import explain, nearest, origin_of, refuse_booleans
from seam_dist.config.paths import user_path
from seam_dist.config.schema import Config
from seam_dist.config.text_file import TextError, read_text

FREE_FORM = "deepspeed"  # DeepSpeed owns the keys below this section
_MOST_SETTINGS = 10_000  # in one file; a few lines with references to references can mean billions
# What PyYAML raises, besides its own errors, for dates, numbers and tags that it cannot turn into a value.
_BAD_VALUE = (ValueError, TypeError, LookupError, AttributeError, OverflowError)


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
        return origin_of(key, self.origins) or "default"


def load_config(source: str | Path | None, overrides: Sequence[str] = (), preset: str | Path | None = None) -> Resolved:
    """Return the configuration of a YAML file, a preset and command-line overrides, checked as a whole.

    `source` and `preset` are paths of YAML files, or names of files that are installed with the package; a name of a
    preset means `presets/NAME.yaml` beside the file at `source` first. `preset` replaces the file's own `preset:` key,
    whose path is relative to that file. Raises ConfigError.
    """
    layers: list[tuple[Mapping[str, Any], Mapping[str, str]]] = []
    folder, option = None, "preset"
    if source is not None:
        path = _find("--config", source, [installed_configs()])
        folder = path.parent
        file_values, file_origins = read_yaml(path)
        named = file_values.pop("preset", None)
        origin = file_origins.pop("preset", None)
        if preset is None and named is not None:
            option = f"{origin}: preset"
            preset = folder / user_path(str(named)) if _is_path(named) else str(named)
        layers.append((file_values, file_origins))
    if preset is not None:
        places = [place / "presets" for place in (folder, installed_configs()) if place is not None]
        layers.insert(0, read_yaml(_find(option, preset, places, folder if option != "preset" else None)))
    for override in overrides:
        value = _parse_override(override)
        layers.append((value, {key: "command line" for key, _ in leaves(value)}))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer, layer_origins in layers:
        values = _merge(values, layer)
        origins.update(layer_origins)
    return Resolved(config=_validate(values, origins), origins=origins)


def _find(option: str, source: str | Path, places: Sequence[Path], folder: Path | None = None) -> Path:
    """Return the YAML file at a path, or of that name in the first of `places` that has it; raise ConfigError.

    What contains a separator or ends in .yaml is a path. `folder` is that of the file that names the source, if any.
    """
    name = str(source)
    paths = [user_path(source)] if _is_path(source) else [place / f"{name}.yaml" for place in places]
    for path in paths:
        if os.path.isfile(path):  # False for a name that is too long, where Path.is_file raises
            return path
    names = sorted({path.stem for place in places for path in place.glob("*.yaml")})
    none = f"nothing is in {' nor in '.join(map(str, places))}, so give"
    listed = f"expected one of {', '.join(names)}, or" if names else none
    if _is_path(source):
        path = paths[0]
        if os.path.isdir(path):
            inside = sorted(inner.name for inner in path.glob("*.y*ml"))
            hint = f", which holds {', '.join(inside)}" if inside else ""
            raise ConfigError(f"{option}={name} is a folder{hint}: give the path of a YAML file in it")
        near = nearest(path.name, [neighbor.name for neighbor in path.parent.glob("*.y*ml")])
        raise ConfigError(f"{option}={name} does not exist{near}: {listed} the path of a YAML file")
    other, kind = (places[-1] / "presets", "preset") if places[-1].name != "presets" else (places[-1].parent, "config")
    if os.path.isfile(other / f"{name}.yaml"):
        raise ConfigError(f"{option}={name} is a {kind}, not what is expected here: use --{kind} {name}")
    near = nearest(name, names)
    example = f"./{name}.yaml" if folder is None else str(folder / f"{name}.yaml")
    raise ConfigError(f"{option}={name} is not known{near}: {listed} the path of a file, for example {example}")


def installed_configs() -> Path:
    """Return the folder of the configs that are installed with the package; in a checkout, its folder configs/."""
    package = Path(__file__).parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def _is_path(source: object) -> bool:
    return "/" in str(source) or os.sep in str(source) or str(source).endswith((".yaml", ".yml"))


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
    defaults = to_tree(Config())
    _check_names(values, defaults, origins)
    # Merged into the defaults first: those of a nested section differ from stage to stage.
    whole = _merge(defaults, values)
    try:
        config = TypeAdapter(Config).validate_python(whole)
    except ValidationError as error:
        raise ConfigError(explain(error, whole, origins)) from None
    # YAML reads yes, no, on and off as booleans, which would count as 1 and 0.
    if refused := list(refuse_booleans(dict(leaves(values)), flatten(config), origins)):
        raise ConfigError("; ".join(refused))
    return config


def dump_yaml(config: Config) -> str:
    """Return the whole configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, default_flow_style=None, width=120)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of a YAML file of settings and `file:line` of each dotted key; raise ConfigError."""
    origins: dict[str, str] = {}
    try:
        text = read_text(path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return {}, {}
        _walk_nodes(root, "", path, origins)
        values = yaml.safe_load(text)
    except ConfigError:
        raise
    except (TextError, OSError) as error:
        raise ConfigError(str(error)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise ConfigError(f"{path}{line} is not valid YAML: {problem}: correct the line") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply, or refers to itself: write the values out") from None
    except _BAD_VALUE as error:
        raise ConfigError(f"{path} holds a value that YAML cannot read ({error}): put quotes around it") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, expected sections such as `train:` with keys below")
    return values, origins


def _walk_nodes(node: yaml.Node, prefix: str, path: Path, origins: dict[str, str]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    if len(origins) > _MOST_SETTINGS:
        raise ConfigError(f"{path} has more than {_MOST_SETTINGS} settings: remove what no section needs")
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


def _parse_override(override: str) -> dict[str, Any]:
    """Return the value of `section.key=value` in nested dicts."""
    key, equals, text = override.partition("=")
    if not equals or not key or "." not in key:
        raise ConfigError(
            f"argument '{override}' is not of the form section.key=value, for example train_seam.schedule.lr=0.01"
        )
    if not text.strip():
        # An unset variable of the shell, as in data.shards=$SHARDS, must not choose the default.
        raise ConfigError(f"{key}= has no value: give one, or null to unset it")
    try:
        # A lone ~ is the home folder here, and null in a YAML file.
        value = "~" if text.strip() == "~" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: the value '{text}' cannot be read ({error}): quote it as in YAML") from None
    # Scalars keep their text, so that run.name=001 stays a name; the field's type reads numbers and booleans itself.
    if not (isinstance(value, (list, dict)) or value is None or key.startswith(f"{FREE_FORM}.")):
        value = text.strip().strip("'\"")
    section, *parts = key.split(".")
    for part in reversed(parts):
        value = {part: value}
    return {section: value}


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


def _check_names(
    values: Mapping[str, Any], known: Mapping[str, Any], origins: Mapping[str, str], prefix: str = ""
) -> None:
    """Refuse names, at any depth, that are no settings; `known` holds those of this depth."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name in known and (key == FREE_FORM or not isinstance(known[name], Mapping)):
            continue
        where = next((f"{o}: " for k, o in origins.items() if k == key or k.startswith(f"{key}.")), "")
        if name in known:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}{key}={value!r} is a section: give keys below it: {key}.key=value")
            _check_names(value, known[name], origins, f"{key}.")
        elif not prefix:
            raise ConfigError(f"{where}unknown section {key}{nearest(key, known)}: expected one of {', '.join(known)}")
        else:
            keys = list(flatten(Config()))
            elsewhere = [k for k in keys if k.endswith(f".{name}")]
            near = nearest(key, [k for k in keys if k.startswith(prefix)])
            hint = near or (f" (did you mean {elsewhere[0]}?)" if elsewhere else "")
            raise ConfigError(f"{where}unknown key {key}{hint}: `seam-dist --help-config` lists all keys")
