"""The report's sections on how a run came about: training curves, settings, stages, versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from seam_dist.config.load import flatten, settings
from seam_dist.config.schema import STAGES, Config
from seam_dist.report.charts import Line, line_chart, smooth, swatch
from seam_dist.report.page import NONE, duration, legend, missing, table
from seam_dist.report.records import RunRecord, series
from seam_dist.report.scores import FIRST_OTHER, NUM_STYLES, OWN

_CHARTS = (
    ("loss/total", "Total loss", "the weighted sum of the terms below"),
    ("loss/cls", "Classification loss", "how well the pooled CAM tells which classes are in the image"),
    ("loss/er", "ER loss", "how far the CAMs of the two views are apart"),
    ("loss/ecr", "ECR loss", "how far each view's CAM is from the other view's refined CAM"),
    ("loss/min_pool", "Min-pooling loss", "what the refined CAM leaves on the least likely quarter of the pixels"),
    ("lr", "Learning rate", "of the pretrained weights"),
    ("images_per_s", "Speed", "images a second over all ranks"),
)


def training_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> str:
    """Return a chart for each metric, all runs in it: raw values thin, their moving average bold."""
    runs = [*others, own]
    charts = []
    for key, title, meaning in _CHARTS:
        lines: list[Line] = []
        for run in runs:
            steps, values = series(run.metrics, key)
            if not values:
                continue
            style = _style(run, own, others)
            noisy = key.startswith("loss/") or key == "images_per_s"
            if noisy and len(values) >= 5:
                lines.append(Line(f"{run.name}, raw", steps, values, style, faint=True))
                values = smooth(values, max(3, len(values) // 12))
            lines.append(Line(run.name, steps, values, style, dash=style))
        if lines:
            chart = line_chart(
                lines,
                title=f"{title} by training step",
                x_label="step",
                y_label=title,
                may_be_log=key.startswith("loss/"),
            )
            charts.append(f"<figure>{chart}<figcaption><b>{escape(title)}</b>: {escape(meaning)}</figcaption></figure>")
    if not charts:
        return missing(f"Run {own.name} has no training metrics.", f"{command} --stage train_seam")
    keys = [
        (swatch(_style(run, own, others), _style(run, own, others)), f"{run.method} ({run.name})")
        for run in runs
        if run.metrics
    ]
    note = "" if own.metrics else missing(f"Run {own.name} has no training metrics.", f"{command} --stage train_seam")
    intro = "Thin lines are the values as logged, bold lines their moving average."
    return f'{note}<p class="caption">{intro}</p>{legend(keys)}<div class="charts">{"".join(charts)}</div>'


def _style(run: RunRecord, own: RunRecord, others: Sequence[RunRecord]) -> int:
    if run is own:
        return OWN
    return FIRST_OTHER + list(others).index(run) % (NUM_STYLES - FIRST_OTHER)


def setup_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> str:
    """Return what was run: settings that differ from the defaults, the stages with their times, and versions."""
    parts = []
    if own.settings:
        parts.append(_settings_table(own, others))
    else:
        parts.append(missing(f"Run {own.name} has no config.yaml in any of its stages.", command))
    parts.append("<h3>Stages</h3>" + _stage_table(own))
    found = next((own.manifests[stage].get("versions") for stage in reversed(STAGES) if stage in own.manifests), None)
    if isinstance(found, Mapping):
        text = ", ".join(f"{name} {version}" for name, version in found.items())
        parts.append(f"<h3>Versions</h3><p>{escape(text)}</p>")
    if own.damaged:
        items = "".join(f"<p>{escape(text)}</p>" for text in own.damaged)
        parts.append(f'<h3>Could not be read</h3><div class="missing">{items}</div>')
    return "".join(parts)


def _settings_table(own: RunRecord, others: Sequence[RunRecord]) -> str:
    defaults = flatten(Config())
    docs = {setting.key: setting.doc for setting in settings()}
    values = [_flatten(run.settings) for run in (own, *others)]
    keys = dict.fromkeys([*defaults, *(key for found in values for key in found)])
    rows = []
    for key in keys:
        default = defaults.get(key)
        shown = [found.get(key, default) for found in values]
        telling = not key.startswith(("report.", "run.name", "run.dir")) and key != "deepspeed"
        if not telling or all(value == default for value in shown):
            continue
        cells = [
            _value(value) if value != default else f'<span class="caption">{_value(value)}</span>' for value in shown
        ]
        rows.append([f"<code>{escape(key)}</code>", *cells, _value(default), escape(docs.get(key, ""))])
    if not rows:
        return "<p>All settings have their default values.</p>"
    head = ["Setting", *(run.name for run in (own, *others)), "default", "meaning"]
    caption = "<p class=caption>Settings that differ from the defaults in at least one of the runs.</p>"
    return caption + f'<div class="settings">{table(head, rows)}</div>'


def _stage_table(own: RunRecord) -> str:
    rows = []
    for stage in STAGES[:-1]:
        manifest = own.manifests.get(stage)
        if manifest is None:
            where = own.setting("data.shards") if stage == "shard" else None
            rows.append([escape(stage), escape(f"in {where}") if where else "not finished in this run", "", ""])
            continue
        outputs = manifest.get("outputs")
        sizes = [size for size in outputs.values() if isinstance(size, int)] if isinstance(outputs, Mapping) else []
        facts = ", ".join(
            f"{name} {value}"
            for name, value in manifest.items()
            if name not in ("schema", "stage", "fingerprint", "time_s") and isinstance(value, str | int | float)
        )
        size = f"{len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB" if sizes else NONE
        rows.append([escape(stage), duration(manifest.get("time_s")), size, escape(facts)])
    return table(["Stage", "Time", "Outputs", "Facts"], rows)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a stored config.yaml under dotted keys; it may come from another version, so nothing is checked."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found.update(_flatten(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


def _value(value: Any) -> str:
    if value is None:
        return "unset"
    return escape(value if isinstance(value, str) else json.dumps(value, default=str))
