"""What was run: settings that differ from the defaults, the stages with their times, and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from seam_dist.config.load import flatten, settings
from seam_dist.config.schema import STAGES, Config
from seam_dist.report.page import NONE, Note, duration, render_template
from seam_dist.report.records import RunRecord


def setup_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> Markup:
    """Return the tables of settings and stages, the versions, and what could not be read."""
    versions = next(
        (own.manifests[stage].get("versions") for stage in reversed(STAGES) if stage in own.manifests), None
    )
    note = None if own.settings else Note(f"Run {own.name} has no config.yaml in any of its stages.", command)
    return render_template(
        "setup.html",
        note=note,
        runs=[run.name for run in (own, *others)],
        settings=_changed_settings([run.settings for run in (own, *others)]),
        stages=[_stage_cells(own, stage) for stage in STAGES[:-1]],
        versions=", ".join(f"{name} {version}" for name, version in versions.items())
        if isinstance(versions, Mapping)
        else "",
        damaged=own.damaged,
    )


def _changed_settings(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the settings that differ from their default in at least one of the runs."""
    defaults = flatten(Config())
    docs = {setting.key: setting.doc for setting in settings()}
    values = [_flatten(run) for run in runs]
    rows = []
    for key in dict.fromkeys([*defaults, *(key for of_run in values for key in of_run)]):
        default = defaults.get(key)
        shown = [of_run.get(key, default) for of_run in values]
        relevant = not key.startswith(("report.", "run.name", "run.dir")) and key != "deepspeed"
        if relevant and any(value != default for value in shown):
            cells = [(_text(value), value == default) for value in shown]
            rows.append({"key": key, "cells": cells, "default": _text(default), "doc": docs.get(key, "")})
    return rows


def _stage_cells(own: RunRecord, stage: str) -> tuple[str, str, str, str]:
    """Return a stage's name, time, outputs and the rest of its manifest."""
    manifest = own.manifests.get(stage)
    if manifest is None:
        where = own.setting("data.shards") if stage == "shard" else None
        return stage, f"in {where}" if where else "not finished in this run", "", ""
    outputs = manifest.get("outputs")
    sizes = [size for size in outputs.values() if isinstance(size, int)] if isinstance(outputs, Mapping) else []
    details = ", ".join(
        f"{name} {value}"
        for name, value in manifest.items()
        if name not in ("schema", "stage", "fingerprint", "time_s") and isinstance(value, str | int | float)
    )
    size = f"{len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB" if sizes else NONE
    return stage, duration(manifest.get("time_s")), size, details


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a stored config.yaml under dotted keys; it may come from another version, so nothing is checked."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _text(value: Any) -> str:
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value, default=str)
