"""What was run: settings that differ from the defaults, the stages with their times, and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from seam_dist.config.describe import settings
from seam_dist.config.load import flatten, leaves
from seam_dist.config.schema import STAGES, Config
from seam_dist.report.page import Note, render_template
from seam_dist.report.records import RunRecord


def setup_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> Markup:
    """Return the tables of settings and stages, the versions, and what could not be read."""
    newest = next((own.manifests[stage] for stage in reversed(STAGES) if stage in own.manifests), {})
    versions = newest.get("versions")
    return render_template(
        "setup.html",
        note=None if own.settings else Note(f"Run {own.name} has no config.yaml in any of its stages.", command),
        runs=[run.name for run in (own, *others)],
        settings=_changed_settings([run.settings for run in (own, *others)]),
        stages={stage: own.manifests.get(stage) for stage in STAGES[:-1]},
        shards=own.setting("data.shards"),
        versions=versions if isinstance(versions, Mapping) else {},
        damaged=own.damaged,
    )


def _changed_settings(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the settings that differ from their default in at least one of the runs, perhaps of another version."""
    defaults = flatten(Config())
    docs = {setting.key: setting.doc for setting in settings()}
    values = [dict(leaves(run)) for run in runs]
    rows = []
    for key in dict.fromkeys([*defaults, *(key for of_run in values for key in of_run)]):
        default = defaults.get(key)
        shown = [of_run.get(key, default) for of_run in values]
        relevant = not key.startswith(("report.", "run.name", "run.dir")) and key != "deepspeed"
        if relevant and any(value != default for value in shown):
            cells = [(_shown(value), value == default) for value in shown]
            rows.append({"key": key, "cells": cells, "default": _shown(default), "doc": docs.get(key, "")})
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value, default=str)
