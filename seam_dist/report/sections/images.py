"""Pictures: image, CAM, refined CAM, labels and truth, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from seam_dist.artifacts.layout import CAM, LABEL_TYPES, scores_folder
from seam_dist.config.schema import Config
from seam_dist.data.manifest import Manifest, Split
from seam_dist.report.comparison import MAP_NAMES, number
from seam_dist.report.examples import (
    Example,
    first_keys,
    has_examples,
    keys_without_objects,
    load_examples,
    rank_keys,
)
from seam_dist.report.page import Note, render_template
from seam_dist.report.pictures import class_colors, data_uri, heat_map, heat_scale_uri, label_map
from seam_dist.report.records import RunRecord
from seam_dist.report.sections.classes import class_name

_HEADINGS = {"best": "Best", "median": "Around the median", "worst": "Worst", "first": "First images of the split"}


def images_section(cfg: Config, own: RunRecord, manifest: Manifest | None, command: str) -> Markup | Note:
    """Return the pictures of the report's split, or a note on why there are none."""
    split = cfg.report_split
    if manifest is None or split not in manifest.splits:
        return Note(f"There are no shards of split {split}, so there are no images.", f"{command} --only shard")
    if not has_examples(cfg, manifest.splits[split]):
        text = f"Run {own.name} has neither CAMs nor labels of split {split}, so there are no images."
        stage = "infer_cam" if manifest.splits[split].has_labels else "infer_seg"
        return Note(text, f"{command} --only {stage}")
    try:
        return _pictures(cfg, own, manifest)
    except ValueError as error:
        return Note(f"The images cannot be shown: {error}", f"{command} --only infer_cam --only evaluate")


def _pictures(cfg: Config, own: RunRecord, manifest: Manifest) -> Markup:
    split, count = cfg.report_split, cfg.report.num_images
    wanted, ranked_by = _ranked(cfg, own, manifest.splits[split])
    note = None
    if not wanted:
        wanted = [("first", key, None) for key in first_keys(cfg, manifest, 3 * count)]
        reason = "is not evaluated" if manifest.splits[split].has_masks else "has no masks"
        note = Note(f"Split {split} {reason}, so its images cannot be ranked; these are the first ones.")
    threshold, source = _threshold(cfg, own)
    examples = load_examples(cfg, manifest, wanted, primary=own.primary, threshold=threshold)
    classes = sorted({index for example in examples for index in example.classes})
    groups = [
        (heading, [_card(example, manifest.classes) for example in examples if example.rank == rank])
        for rank, heading in _HEADINGS.items()
    ]
    return render_template(
        "images.html",
        note=note,
        split=split,
        order=f"ordered by the image's own mIoU of the {ranked_by}" if ranked_by else "not ranked",
        threshold=source,
        heat_scale=heat_scale_uri(),
        has_cams=any(example.cams for example in examples),
        both_maps=all(any(name in example.cams for example in examples) for name in MAP_NAMES),
        classes=[(class_colors()[index].tolist(), class_name(index, manifest.classes)) for index in classes],
        groups=[(heading, cards) for heading, cards in groups if cards],
        wide=any(example.labels for example in examples),
    )


def _ranked(cfg: Config, own: RunRecord, split: Split) -> tuple[list[tuple[str, str, float | None]], str]:
    """Return (rank, key, mIoU) of the images to show and whose mIoU ranks them; empty when nothing is evaluated."""
    scored = [label_type for label_type in LABEL_TYPES.values() if split.name in own.labels.get(label_type.name, {})]
    # The last stage's labels rank the images, since they are the result; those of the oracle are none.
    scored.sort(key=lambda label_type: not label_type.uses_image_labels)
    titles = {label_type.name: label_type.title for label_type in reversed(scored)}
    for name, title in {**titles, CAM: "CAM at its best threshold"}.items():
        path = scores_folder(own.dir, name) / f"{split.name}-images.csv"
        if path.is_file() and (keys := rank_keys(path, cfg.report.num_images, keys_without_objects(cfg, split))):
            return [*keys], title
    return [], ""


def _threshold(cfg: Config, own: RunRecord) -> tuple[float, str]:
    """Return the background threshold of the predictions, and how it is introduced."""
    split = cfg.report_split
    if scores := own.scores(split).get(own.primary):
        source = (scores.chosen or {}).get("from", split)
        for point, origin in ((scores.chosen, f"chosen on {source}"), (scores.best, f"the best on {split}")):
            if (value := number(point, "threshold")) is not None:
                return value, f"the background threshold {value:.2f}, {origin}"
    value = cfg.evaluate.default_threshold
    return value, f"the default background threshold {value:.2f}"


def _card(example: Example, names: Sequence[str]) -> dict[str, Any]:
    """Return an image with the pictures of all that was made of it."""
    image = example.image
    maps = [(title, example.cams[name]) for name, title in MAP_NAMES.items() if name in example.cams]
    labels = [] if example.prediction is None else [("labels of the CAM", example.prediction)]
    labels += [(LABEL_TYPES[name].title, of_type) for name, of_type in example.labels.items()]
    if example.truth is not None:
        labels.append(("truth", example.truth))
    return {
        "key": example.key,
        "classes": ", ".join(class_name(index, names) for index in example.classes) or "no class",
        "miou": example.miou,
        "size": image.shape[:2],
        "views": [
            ("image", data_uri(image)),
            *((title, data_uri(heat_map(image, score))) for title, score in maps),
            *((title, data_uri(label_map(image, mask))) for title, mask in labels),
        ],
    }
