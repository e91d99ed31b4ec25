"""The report's section of pictures: image, CAM, refined CAM, prediction and truth, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from seam_dist.evaluation.label_scores import LABEL_KINDS
from seam_dist.report.comparison import MAP_NAMES
from seam_dist.report.examples import Example
from seam_dist.report.page import chip, percent
from seam_dist.report.pictures import class_colors, data_uri, heat_map, heat_scale_uri, label_map

KIND_WORDS = {kind.name: kind.words for kind in LABEL_KINDS}
_HEADINGS = {
    "best": "Best",
    "median": "Around the median",
    "worst": "Worst",
    "first": "First images of the split",
}


def gallery(examples: Sequence[Example], names: Sequence[str], *, split: str, threshold: str, ranked_by: str) -> str:
    """Return the examples in groups of their rank.

    `threshold` says in words where the CAM's labels come from, `ranked_by` whose mIoU ranks the images; empty: none.
    """
    if not examples:
        return ""
    kinds = [kind for kind in ("plain", "refined") if any(kind in example.cams for example in examples)]
    has_truth = any(example.truth is not None for example in examples)
    order = f"ordered by the image's own mIoU of the {ranked_by}" if ranked_by else "not ranked"
    caption = (
        f"Images of {split}, {order}. Maps show the largest score over the classes of the image's label, 0 "
        f'<img class="scale" alt="dark blue over green to yellow" src="{heat_scale_uri()}"> to 1; labels of the CAM '
        f"use {escape(threshold)}. Labels and truth are drawn in the colors of the classes over the darkened image."
    )
    if "refined" in kinds and "plain" in kinds:
        caption += (
            " The CAM is what the classifier looks at, often the most telling part only; the refined CAM is the same "
            "after pixels have shared it with pixels that resemble them."
        )
    parts = [f'<p class="caption">{caption}</p>', _class_legend(examples, names)]
    for rank, heading in _HEADINGS.items():
        group = [example for example in examples if example.rank == rank]
        if group:
            cards = "".join(_card(example, names, kinds, has_truth) for example in group)
            # With the labels of later stages a card takes the whole width.
            style = "" if any(example.labels for example in group) else ' class="pair"'
            parts.append(f"<h3>{heading}</h3><div{style}>{cards}</div>")
    return "".join(parts)


def _card(example: Example, names: Sequence[str], kinds: Sequence[str], has_truth: bool) -> str:
    labels = ", ".join(_name(index, names) for index in example.classes) or "no class"
    score = f", mIoU {percent(example.miou)} %" if example.miou is not None else ""
    views = [("image", data_uri(example.image))]
    views += [
        (MAP_NAMES[kind], data_uri(heat_map(example.image, example.cams[kind])))
        for kind in kinds
        if kind in example.cams
    ]
    views.append(("labels of the CAM", data_uri(label_map(example.image, example.prediction))))
    views += [(KIND_WORDS[kind], data_uri(label_map(example.image, labels))) for kind, labels in example.labels.items()]
    if has_truth and example.truth is not None:
        views.append(("truth", data_uri(label_map(example.image, example.truth))))
    height, width = example.image.shape[:2]
    figures = "".join(
        f'<figure><img alt="{escape(text)} of {escape(example.key)}" width="{width}" height="{height}" src="{uri}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for text, uri in views
    )
    note = f"<b>{escape(example.key)}</b>: {escape(labels)}{score}"
    return f'<div class="example"><p>{note}</p><div class="views v{len(views)}">{figures}</div></div>'


def _class_legend(examples: Sequence[Example], names: Sequence[str]) -> str:
    colors = class_colors()
    shown = sorted({index for example in examples for index in example.classes})
    items = []
    for index in shown:
        items.append(f"<li>{chip(colors[index])}{escape(_name(index, names))}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _name(index: int, names: Sequence[str]) -> str:
    return names[index - 1] if 1 <= index <= len(names) else f"class {index}"
