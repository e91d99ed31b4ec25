"""The road from CAM to final mask: mIoU of each stage's labels on each split, and what each stage cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from seam_dist.config.schema import STAGES
from seam_dist.evaluation.label_scores import LABEL_KINDS
from seam_dist.report.comparison import best_miou, chosen_miou, comparison, number, splits_of
from seam_dist.report.page import NONE, duration, percent, table
from seam_dist.report.records import RunRecord


@dataclass(frozen=True)
class Milestone:
    """Labels on the road: their name in words and their mIoU by split."""

    words: str
    miou: Mapping[str, float]
    uses_labels: bool
    """They were made with the image-level labels of the image itself."""


def milestones(run: RunRecord) -> list[Milestone]:
    """Return what the run's stages made, in order; CAMs at the threshold chosen elsewhere where there is one."""
    found = []
    rows = comparison(run, [])
    for row in rows:
        best = {split: value for split in splits_of([row]) if (value := best_miou(row, split)) is not None}
        chosen = {split: value for split in splits_of([row]) if (value := chosen_miou(row, split)) is not None}
        name = "refined CAM" if row.kind == "refined" else "CAM"
        if not row.is_primary:
            name += " of the classifier"
        found.append(Milestone(f"{name}, best threshold", best, True))
        if chosen and row.is_primary:
            found.append(Milestone(f"{name}, threshold of another split", chosen, True))
    for kind in LABEL_KINDS:
        scores = {
            split: value
            for split, record in run.labels.get(kind.name, {}).items()
            if (value := number(record, "miou")) is not None
        }
        if scores:
            found.append(Milestone(kind.words, scores, kind.uses_labels))
    return found


def _splits(found: Sequence[Milestone]) -> list[str]:
    names = {split for milestone in found for split in milestone.miou}
    return sorted(names, key=lambda split: ({"train": 0, "val": 1}.get(split, 2), split))


def road_table(run: RunRecord) -> str:
    """Return the road as aligned text: mIoU in percent by stage and split."""
    found = milestones(run)
    splits = _splits(found)
    lines = [("labels", *(f"{split} mIoU" for split in splits))]
    for milestone in found:
        values = (milestone.miou.get(split) for split in splits)
        lines.append((milestone.words, *("-" if value is None else f"{100 * value:.2f}" for value in values)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (lines[0], rule, *lines[1:])
    )


def road_section(run: RunRecord) -> str:
    """Return the table of mIoU by stage and the table of what each stage cost."""
    found = milestones(run)
    splits = _splits(found)
    head = ["Labels", *(cell for split in splits for cell in (f"{split} mIoU", "")), "image-level labels"]
    cells = []
    for milestone in found:
        row = [f'<span class="who">{escape(milestone.words)}</span>']
        for split in splits:
            value = milestone.miou.get(split)
            width = 0.0 if value is None else 100 * value
            bar = f'<span class="barbox"><span class="bar" style="width:{width:.1f}%"></span></span>'
            row += [percent(value), bar if value is not None else ""]
        cells.append([*row, "used" if milestone.uses_labels else "not used"])
    numbers = [1 + 2 * index for index in range(len(splits))]
    fair = [index for index, milestone in enumerate(found) if not milestone.uses_labels]
    best = fair[-1] if fair else len(found) - 1
    classes = ["own" if index == best else "" for index in range(len(found))]
    caption = (
        "Mean intersection over union in percent, background included, from one confusion matrix a split. CAMs and the "
        "random walk score only the classes in an image's label; the final network sees the image alone, except where "
        "it is told the classes."
    )
    return (
        table(head, cells, numbers=numbers, classes=classes)
        + f'<p class="caption">{caption}</p><h3>What it cost</h3>'
        + _costs(run)
    )


def _costs(run: RunRecord) -> str:
    rows = []
    for stage in STAGES[:-1]:
        manifest = run.manifests.get(stage)
        if manifest is None or "time_s" not in manifest:
            continue
        ranks, took = manifest.get("world_size"), manifest["time_s"]
        cost = duration(took * ranks) if isinstance(ranks, int) else NONE
        device = str(manifest.get("device", ""))
        rows.append(
            [
                escape(stage),
                duration(took),
                str(ranks) if isinstance(ranks, int) else NONE,
                cost,
                _gib(manifest, "host_peak_gib"),
                _gib(manifest, "device_peak_gib"),
                escape(device),
            ]
        )
    head = ["Stage", "Time", "Ranks", "Time times ranks", "Host memory, GiB", "Device memory, GiB", "Device"]
    caption = (
        "Wall-clock time of the last call that finished the stage, and the most memory that its main rank held; a "
        "stage that was cut short and went on shows the time since then."
    )
    return table(head, rows, numbers=range(1, 6)) + f'<p class="caption">{caption}</p>'


def _gib(manifest: Mapping[str, Any], key: str) -> str:
    value = number(manifest, key)
    return NONE if value is None else f"{value:.2f}"
