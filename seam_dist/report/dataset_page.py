"""The page of a data set: one HTML file with its findings, numbers and pictures, that needs nothing but itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from markupsafe import Markup

from seam_dist.artifacts.outputs import OutputFolder
from seam_dist.data.duplicates import Duplicate
from seam_dist.data.sources.base import Record
from seam_dist.data.survey import Survey
from seam_dist.report.dataset_charts import cooccurrence_chart, histogram
from seam_dist.report.dataset_text import (
    class_order,
    class_share,
    describe_contents,
    describe_counts,
    format_survey,
    num_things,
    split_values,
)
from seam_dist.report.overlay import draw_overlay
from seam_dist.report.page import Section, render_page, render_template
from seam_dist.report.pictures import Image, class_colors, data_uri, shrink

__all__ = ["dataset_page", "format_survey", "write_dataset_page"]

_FEW_CLASSES = 24
_LONG_SIDE = (256, 160)  # pixels of a picture with few classes and with many
_MAX_URI = (26_000, 9_000)  # characters of a picture, likewise; a larger one is shrunk
_SHORTEST = 64
_MAX_IN_CHART = 80  # classes
_MAX_ODD, _MAX_PAIRS = 40, 16
_THREADS = 4  # decoders let other threads run
_NUM_COLORS = 5


class Picture(NamedTuple):
    """A small picture, or none, with what stands below it."""

    name: str
    uri: str | None
    text: str = ""


@dataclass(frozen=True)
class PictureGroup:
    """Pictures that belong together, below one line of text."""

    title: str
    text: str
    pictures: Sequence[Picture]


def write_dataset_page(survey: Survey, path: Path) -> None:
    """Write the page of a survey to `path`, whole or not at all; it opens the images that it shows once more.

    Raises OutputError when a file that is no such page is there.
    """
    OutputFolder(path.parent).write(
        path.name, dataset_page(survey).encode("utf-8", "backslashreplace")
    )  # file names can be any bytes


def dataset_page(survey: Survey) -> str:
    """Return the page's HTML, below 5 MB whatever the data set."""
    lead = f"{describe_contents(survey)}; {survey.findings.summary()}. {survey.name}"
    sections = [
        Section("findings", "Findings", render_template("dataset_findings.html", findings=list(survey.findings))),
        Section("splits", "Splits", _splits(survey)),
        Section("classes", "Classes", _classes(survey)),
        Section("together", "Classes that occur together", _cooccurrence(survey)),
        Section("sizes", "Sizes", _sizes(survey)),
        Section("examples", "Examples", _examples(survey)),
        Section("odd", "Images worth a look", _odd_images(survey)),
        Section("duplicates", "Duplicates", _duplicates(survey)),
    ]
    return render_page(f"Data set {Path(survey.name).name}", lead, [], sections)


def _splits(survey: Survey) -> Markup:
    rows = [
        {
            **split_values(split),
            "modes": describe_counts(split.modes),
            "num_turned": sum(count for value, count in split.orientations.items() if value != 1),
            "void_share": split.void_share,
        }
        for split in survey.splits
    ]
    return render_template("dataset_overview.html", splits=rows)


def _classes(survey: Survey) -> Markup:
    masks = [(split.name, split.class_shares) for split in survey.splits if split.class_shares is not None]
    head = ["Class"]
    for split in survey.splits:
        head += [split.name, "%", ""]
    head += [f"mask % {name}" for name, _ in masks]
    shares = [class_share(split, i) or 0.0 for split in survey.splits for i in range(len(survey.classes))]
    longest = max(shares) or 1.0
    rows = [
        {
            "color": class_colors()[i + 1].tolist(),
            "name": survey.classes[i],
            "is_present": any(split.class_counts[i] for split in survey.splits),
            "splits": [
                (
                    split.class_counts[i],
                    share := class_share(split, i),
                    (share or 0) / longest,
                    number % _NUM_COLORS,
                )
                for number, split in enumerate(survey.splits)
            ],
            "masks": [of_split[i + 1] for _, of_split in masks],
        }
        for i in class_order(survey)
    ]
    return render_template(
        "dataset_classes.html",
        head=head,
        numbers=[k for k in range(1, len(head)) if k > 3 * len(survey.splits) or k % 3],
        rows=rows,
        splits=survey.splits,
        train_split=survey.train_split,
        with_masks=bool(masks),
        background=[of_split[0] for _, of_split in masks],
    )


def _cooccurrence(survey: Survey) -> Markup:
    split = next((split for split in survey.splits if split.name == survey.train_split and split.num_labeled), None)
    if split is None:
        return _line(f"Split {survey.train_split} has no image-level labels.")
    order = [i for i in class_order(survey) if split.class_counts[i]]
    if not (split.cooccurrence.sum() - split.class_counts.sum()):
        return _line(f"No image of split {split.name} holds more than one class.")
    shown, order = len(order), order[:_MAX_IN_CHART]
    caption = Markup(
        '<p class="caption">Percentage of the images of split {} with the class of the row that hold that of the column'
        " as well. A class that is never without another is learned together with it: its CAM covers both.</p>"
    ).format(split.name)
    if shown > len(order):
        caption += Markup('<p class="caption">The {} most frequent of {} classes.</p>').format(len(order), shown)
    return caption + cooccurrence_chart(split, survey.classes, order)


def _line(text: str) -> Markup:
    return Markup("<p>{}</p>").format(text)


def _sizes(survey: Survey) -> Markup:
    known = [(number, split) for number, split in enumerate(survey.splits) if len(split.sizes)]
    if not known:
        return _line("No image could be opened.")
    every = np.concatenate([split.sizes for _, split in known])
    if (every == every[0]).all():
        return _line(f"All images are {every[0][1]} x {every[0][0]} pixels.")
    long_sides = [(split.name, split.sizes.max(axis=1).astype(float)) for _, split in known]
    shapes = [(split.name, split.sizes[:, 1] / split.sizes[:, 0]) for _, split in known]
    kinds = [
        (long_sides, "Long side", "pixels", "Long side of the images"),
        (shapes, "Shape", "width / height", "Width through height: above 1 is landscape"),
    ]
    charts = [
        (histogram(values, title=title, x_label=label), caption)
        for values, title, label, caption in kinds
        if np.ptp(np.concatenate([of_split for _, of_split in values])) > 0
    ]
    keys = [(split.name, place % _NUM_COLORS) for place, (_, split) in enumerate(known)]
    return render_template("dataset_sizes.html", keys=keys, charts=charts)


def _examples(survey: Survey) -> Markup:
    if not survey.examples:
        return _line("No image can be shown.")
    pictures = _pictures(survey, [(example.split, example.record, "") for example in survey.examples])
    counts = {split.name: split.class_counts for split in survey.splits}
    groups = []
    shown = zip(survey.examples, pictures, strict=True)
    for (index, split), members in groupby(shown, key=lambda pair: (pair[0].class_id, pair[0].split)):
        title = survey.classes[index - 1] if index else "no object"
        number = num_things(int(counts[split][index - 1]), "image") + f" in {split}" if index else ""
        groups.append(PictureGroup(title, number, [picture for _, picture in members]))
    caption = "A few images of each class, with their masks where there are any; ignored pixels are light."
    compact = len(groups) > _FEW_CLASSES
    return render_template("dataset_pictures.html", caption=caption, groups=groups, rest="", compact=compact)


def _odd_images(survey: Survey) -> Markup:
    if not survey.odd_images:
        return _line("None.")
    odd = sorted(survey.odd_images, key=lambda image: image.is_usable)[:_MAX_ODD]
    pictures = _pictures(survey, [(image.split, image.record, image.reason) for image in odd])
    groups = [
        PictureGroup(title, "", chosen)
        for is_usable, title in ((False, "Cannot be used"), (True, "Can be used"))
        if (chosen := [picture for picture, image in zip(pictures, odd, strict=True) if image.is_usable == is_usable])
    ]
    caption = "The first images of each sort, with the reason."
    return render_template("dataset_pictures.html", caption=caption, groups=groups, rest="", compact=False)


def _duplicates(survey: Survey) -> Markup:
    if not survey.duplicates:
        return _line("None: neither equal files nor images of two splits that look the same.")
    listed = [pair for pair in survey.duplicates if pair.sort == "file"]
    pairs = sorted((pair for pair in survey.duplicates if pair.sort != "file"), key=lambda pair: not pair.labels_differ)
    shown = _first_of_each(pairs)
    entries = [entry for pair in shown for entry in (pair.first, pair.second)]
    texts = [", ".join(survey.classes[i - 1] for i in entry.record.classes or ()) for entry in entries]
    pictures = _pictures(
        survey, [(entry.split, entry.record, text) for entry, text in zip(entries, texts, strict=True)]
    )
    groups = [PictureGroup(_title(pair), "", pictures[2 * k : 2 * k + 2]) for k, pair in enumerate(shown)]
    rest = [
        f"{count} images of split {second} are in the list of split {first} as well."
        for (first, second), count in Counter((pair.first.split, pair.second.split) for pair in listed).items()
    ]
    if len(pairs) > len(shown):
        rest.append(f"{len(pairs) - len(shown)} more pairs are not shown.")
    return render_template("dataset_pictures.html", caption="", groups=groups, rest=" ".join(rest), compact=True)


def _title(pair: Duplicate) -> str:
    what = "Equal files" if pair.sort == "equal" else "Look the same"
    return f"{what}, with different labels" if pair.labels_differ else what


def _first_of_each(pairs: Sequence[Duplicate]) -> list[Duplicate]:
    """Return at most _MAX_PAIRS pairs, as many of each sort and pair of splits as there is room for."""
    by_sort: dict[tuple[str, str, str], list[Duplicate]] = {}
    for pair in pairs:
        by_sort.setdefault((pair.sort, pair.first.split, pair.second.split), []).append(pair)
    each = max(1, _MAX_PAIRS // max(1, len(by_sort)))
    return [pair for of_sort in by_sort.values() for pair in of_sort[:each]][:_MAX_PAIRS]


def _pictures(survey: Survey, wanted: Sequence[tuple[str, Record, str]]) -> list[Picture]:
    """Return pictures of (split, record, text), with the mask drawn over the image where there is one."""
    many = len(survey.classes) > _FEW_CLASSES

    def load(item: tuple[str, Record, str]) -> Picture:
        split, record, text = item
        name = f"{split}/{record.source_id}"
        picture = survey.inspector.picture(record)
        return Picture(name, None if picture is None else _thumbnail(*picture, survey.classes, many), text)

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(load, wanted))


def _thumbnail(image: Image, mask: Image | None, classes: Sequence[str], many: bool) -> str:
    longest = _LONG_SIDE[many]
    while True:
        small = shrink(image, longest)
        if mask is not None:
            size = small.shape[1], small.shape[0]
            labels = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
            small = draw_overlay(small, labels, classes)
        uri = data_uri(small)
        if len(uri) <= _MAX_URI[many]:
            return uri
        if longest <= _SHORTEST:  # a legend of many classes
            return data_uri(shrink(small, longest))
        longest = longest * 3 // 4
