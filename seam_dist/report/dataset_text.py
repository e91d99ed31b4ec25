"""A survey of a data set in words: a table of the splits, one of the classes, and what cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from seam_dist.data.survey import Survey
from seam_dist.data.survey_split import SplitSurvey
from seam_dist.evaluation.text_table import aligned
from seam_dist.report.page import NONE, percent

_MAX_CLASSES = 24  # listed in full; of more, the most frequent and the rarest
_ENDS = 8
_MAX_UNUSABLE = 5


def format_survey(survey: Survey) -> str:
    """Return the numbers of a survey as plain text, about 30 lines for 20 classes; its findings are not in it."""
    parts = [
        f"{survey.name}: {describe_contents(survey)}",
        _splits_table(survey.splits),
        _classes_table(survey),
    ]
    for split in survey.splits:
        names = [image for image in survey.odd_images if image.split == split.name and not image.is_usable]
        if split.num_unusable:
            shown = "\n".join(f"  {image.reason}" for image in names[:_MAX_UNUSABLE])
            more = "\n  ..." if split.num_unusable > _MAX_UNUSABLE else ""
            title = f"{split.name}: {num_things(split.num_unusable, 'image')} of {split.num_samples} cannot be used"
            parts.append(f"{title}\n{shown}{more}")
    return "\n\n".join(parts) + "\n"


def _splits_table(splits: Sequence[SplitSurvey]) -> str:
    head = ["split", "images", "labels", "masks", "no object", "unusable", "sizes, width x height", "files"]
    rows = [[str(value) for value in split_values(split).values()] for split in splits]
    return aligned([head, *rows], rule=True)


def _classes_table(survey: Survey) -> str:
    """Return images of each class by split, the most frequent of the training split first."""
    order = class_order(survey)
    shown, absent = order, 0
    if len(order) > _MAX_CLASSES:
        present = [i for i in order if any(split.class_counts[i] for split in survey.splits)]
        absent = len(order) - len(present)
        order = present
        shown = order if len(order) <= _MAX_CLASSES else [*order[:_ENDS], *order[-_ENDS:]]
    with_masks = [split for split in survey.splits if split.class_shares is not None]
    head = ["class", *(cell for split in survey.splits for cell in (split.name, "%"))]
    head += [f"{split.name} mask %" for split in with_masks]
    rows = []
    for i in shown:
        row = [survey.classes[i]]
        for split in survey.splits:
            row += [f"{split.class_counts[i]}", percent(class_share(split, i))]
        rows.append([*row, *(percent(split.class_shares[i + 1]) for split in with_masks)])  # type: ignore[index]
    if len(shown) < len(order):
        rows.insert(_ENDS, [f"... {len(order) - len(shown)} more ...", *[""] * (len(head) - 1)])
    table = aligned([head, *rows], num_left=1, rule=True)
    rest = [
        f"{split.name}: {percent(split.class_shares[0])} % background, {percent(split.void_share)} % ignored (255)"
        for split in with_masks
        if split.class_shares is not None
    ]
    notes = [f"{absent} more classes are in no image"] if absent else []
    notes += [f"rest of the masks of {'; '.join(rest)}"] if rest else []
    return "\n".join([table, *notes])


def describe_contents(survey: Survey) -> str:
    """Return the numbers of images, splits and classes."""
    splits, classes = num_things(len(survey.splits), "split"), num_things(len(survey.classes), "class")
    return f"{num_things(survey.num_samples, 'image')} in {splits}, {classes}"


def split_values(split: SplitSurvey) -> dict[str, str | int]:
    """Return what the tables of splits show in text and on the page, by name."""
    return {
        "name": split.name,
        "num_samples": split.num_samples,
        "labels": of_all(split.num_labeled, split.num_samples),
        "masks": of_all(split.num_masks, split.num_samples),
        "num_without_object": split.num_without_object,
        "num_unusable": split.num_unusable,
        "sizes": describe_sizes(split),
        "formats": describe_counts(split.formats),
    }


def class_order(survey: Survey) -> list[int]:
    """Return the indices of the classes (0 is the first name), by images of the training split, then of all splits."""
    train = [split for split in survey.splits if split.name == survey.train_split]
    zeros = np.zeros(len(survey.classes), np.int64)
    main, total = (sum((split.class_counts for split in chosen), zeros) for chosen in (train, survey.splits))
    return sorted(range(len(survey.classes)), key=lambda i: (-main[i], -total[i], i))


def class_share(split: SplitSurvey, index: int) -> float | None:
    """Return the share of labeled images that hold a class, None in a split without labels."""
    return split.class_counts[index] / split.num_labeled if split.num_labeled else None


def describe_sizes(split: SplitSurvey) -> str:
    """Return the smallest, the median and the largest size by area, or the one size of all images."""
    if not len(split.sizes):
        return NONE
    by_area = split.sizes[np.argsort(split.sizes.prod(axis=1), kind="stable")]
    small, median, large = (f"{by_area[i][1]} x {by_area[i][0]}" for i in (0, len(by_area) // 2, -1))
    return f"all {small}" if small == median == large else f"{small} to {large}, median {median}"


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return counts such as `JPEG` or `JPEG 310, PNG 12`."""
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{name} {num}" for name, num in counts.items())


def of_all(count: int, total: int) -> str:
    """Return `all`, `none`, or the count."""
    return "none" if not count else "all" if count == total else f"{count}"


def num_things(count: int, noun: str) -> str:
    """Return a count with its noun."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"
