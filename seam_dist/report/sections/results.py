"""Headline figures, and the maps of all runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.report.comparison import columns, compare_runs, gains, own_result, splits_of
from seam_dist.report.page import Note, no_masks, render_template
from seam_dist.report.records import RunRecord


def results_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> Markup:
    """Return the headline figures and the comparison table."""
    rows = compare_runs(own, others)
    result = own_result(rows)
    table = columns(rows)
    titles = [f"{split} mIoU, {f'threshold of {source}' if source else 'best threshold'}" for split, source in table]
    note = Note(f"Run {own.name} has no evaluation, so there are no scores.", f"{command} --only evaluate")
    if own.is_unscored:
        note = no_masks(own.name)
    elif own.labels:
        note = Note(f"Run {own.name} has no scores of CAMs: no split with CAMs has masks.")
    return render_template(
        "results.html",
        result=result,
        gains={split: gains(rows, split) for split in splits_of([result] if result else [])},
        label_scores=[
            (label_type.title, own.labels.get(label_type.name, {}))
            for label_type in LABEL_TYPES.values()
            if not label_type.uses_image_labels
        ],
        last=own.metrics[-1] if own.metrics else None,
        note=None if result else note,
        head=["Method and map", *titles],
        columns=table,
        rows=rows,
        not_evaluated=[
            no_masks(run.name)
            if run.is_unscored
            else Note(f"Run {run.name} was to be compared, but it has no evaluation.", f"--only evaluate for {run.dir}")
            for run in others
            if not run.evaluations
        ],
    )
