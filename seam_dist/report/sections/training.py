"""Training curves of SEAM."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from seam_dist.report.charts import OWN, Line, line_chart, other_style, smooth
from seam_dist.report.page import Note, render_template
from seam_dist.report.records import RunRecord, series

_CHARTS = (
    ("loss/total", "Total loss", "the weighted sum of the terms below"),
    ("loss/cls", "Classification loss", "how well the pooled CAM predicts which classes are in the image"),
    ("loss/er", "ER loss", "how far the CAMs of the two views are apart"),
    ("loss/ecr", "ECR loss", "how far each view's CAM is from the other view's refined CAM"),
    ("loss/min_pool", "Min-pooling loss", "what the refined CAM leaves on the least likely quarter of the pixels"),
    ("lr", "Learning rate", "of the pretrained weights"),
    ("images_per_s", "Speed", "images a second over all ranks"),
)


def training_section(own: RunRecord, others: Sequence[RunRecord], command: str) -> Markup:
    """Return a chart for each metric, all runs in it: raw values thin, their moving average bold."""
    styles = [(run, other_style(index)) for index, run in enumerate(others)] + [(own, OWN)]
    charts = []
    for key, title, meaning in _CHARTS:
        lines = [line for run, style in styles for line in _lines(run, key, style)]
        if lines:
            chart = line_chart(
                lines,
                title=f"{title} by training step",
                x_label="step",
                y_label=title,
                may_be_log=key.startswith("loss/"),
            )
            charts.append((chart, title, meaning))
    note = None
    if not own.metrics or not charts:
        note = Note(f"Run {own.name} has no training metrics.", f"{command} --only train_seam")
    keys = [(style, f"{run.method} ({run.name})") for run, style in styles if run.metrics]
    return render_template("training.html", note=note, charts=charts, keys=keys)


def _lines(run: RunRecord, key: str, style: int) -> list[Line]:
    """Return a run's line of a metric; of a noisy one the raw values and their average."""
    steps, values = series(run.metrics, key)
    if not values:
        return []
    noisy = key.startswith("loss/") or key == "images_per_s"
    if not noisy or len(values) < 5:
        return [Line(run.name, steps, values, style)]
    average = smooth(values, max(3, len(values) // 12))
    raw = Line(f"{run.name}, raw", steps, values, style, faint=True)
    return [raw, Line(run.name, steps, average, style)]
