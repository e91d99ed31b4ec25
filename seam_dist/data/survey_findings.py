"""What the numbers of a data set say against training on it: classes that cannot be learned, sizes that do not fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seam_dist.config.findings import Findings
from seam_dist.config.phrases import first_of
from seam_dist.data.survey_split import MIN_SIDE, SplitSurvey

_MIN_IMAGES = 10  # labeled images of a split, and images of a class, below which a share says nothing
_MOSTLY, _RARE = 0.9, 0.02
_SCALE = 2.0
_VOID = 0.5
_SHOWN = 5


def balance_findings(classes: Sequence[str], splits: Sequence[SplitSurvey], train_split: str) -> Findings:
    """Return warnings on classes that the training split lacks, has everywhere, or has in pairs alone."""
    findings = Findings()
    train = next((split for split in splits if split.name == train_split and split.num_labeled), None)
    if train is None:
        return findings
    absent = np.flatnonzero(train.class_counts == 0).tolist()
    others = [split for split in splits if split is not train]
    for split in others:
        if wanted := [classes[i] for i in absent if split.class_counts[i]]:
            text = f"{_named(wanted)} in split {split.name}, but in no image of {train_split}: nothing teaches"
            text = f"{text} {_them(wanted)}, so the score is 0; add such images to {train_split}"
            findings.warning(f"classes-of-{split.name}-alone", text)
    if nowhere := [classes[i] for i in absent if not any(split.class_counts[i] for split in others)]:
        text = f"{_named(nowhere)} in the list of classes, but in no image of {train_split}: nothing teaches"
        text = f"{text} {_them(nowhere)}; add images, or take {_them(nowhere)} off the list"
        findings.warning("classes-without-image", text)
    if train.num_labeled >= _MIN_IMAGES:
        findings.merge(_cooccurrence_findings(classes, train))
    return findings


def _cooccurrence_findings(classes: Sequence[str], train: SplitSurvey) -> Findings:
    findings = Findings()
    counts, together = train.class_counts, train.cooccurrence
    few = (counts > 0) & (counts < _MIN_IMAGES) & (counts < _RARE * train.num_labeled)
    if few.any():
        rarest = [f"{classes[i]!r} ({counts[i]})" for i in np.argsort(counts, kind="stable").tolist() if few[i]]
        text = f"split {train.name} has fewer than {_MIN_IMAGES} images of {len(rarest)} of its {len(classes)} classes"
        what = f"{text} ({first_of(rarest)})"
        findings.warning("rare-classes", f"{what}: hardly enough to learn them; add images")
    everywhere = counts > _MOSTLY * train.num_labeled
    for i in np.flatnonzero(everywhere).tolist():
        text = f"class {classes[i]!r} is in {counts[i]} of the {train.num_labeled} images of split {train.name}"
        more = "their labels say next to nothing about where it is; add images without it"
        findings.warning("class-everywhere", f"{text}: {more}")
    enough = (counts >= _MIN_IMAGES) & ~everywhere
    always = together == counts[:, None]  # [C, C]: class i never without class j
    np.fill_diagonal(always, False)
    always &= enough[:, None] & enough[None, :]
    for i, j in np.argwhere(np.triu(always & always.T)).tolist():
        text = f"classes {classes[i]!r} and {classes[j]!r} occur in the same {counts[i]} images of split {train.name}"
        more = "never one without the other: CAMs cannot tell them apart; add images of one alone, or merge them"
        findings.warning("classes-always-together", f"{text}, {more}")
    for i, j in np.argwhere(always & ~always.T).tolist():
        one, other = repr(classes[i]), repr(classes[j])
        text = f"class {one} is in {counts[i]} images of split {train.name} and in each of them with {other}"
        more = f"its CAM may cover {other} as well; add images of {one} without it"
        findings.warning("class-never-alone", f"{text}: {more}")
    return findings


def size_findings(splits: Sequence[SplitSurvey], train_split: str) -> Findings:
    """Return warnings on images too small for a network, splits of another scale, and masks that are mostly void."""
    findings = Findings()
    for split in splits:
        small = int((split.sizes.min(axis=1) < MIN_SIDE).sum()) if len(split.sizes) else 0
        if small:
            height, width = split.sizes[split.sizes.min(axis=1).argmin()]
            text = f"split {split.name} has {small} of {len(split.sizes)} images with a side of less than {MIN_SIDE}"
            more = f"(the smallest {width} x {height}): little is left of that at a feature stride of 8"
            findings.warning(f"small-images-{split.name}", f"{text} pixels {more}; use larger images")
        if split.void_share is not None and split.void_share > _VOID:
            text = f"{100 * split.void_share:.0f} % of the pixels of the masks of split {split.name} are 255 (ignored)"
            more = "so scores rest on few pixels: check that 255 is not the value of a class or of the background"
            findings.warning(f"void-masks-{split.name}", f"{text}, {more}")
    train = next((split for split in splits if split.name == train_split and len(split.sizes)), None)
    for split in splits:
        if train is None or split is train or not len(split.sizes):
            continue
        own, trained = median_side(split), median_side(train)
        if max(own, trained) > _SCALE * min(own, trained):
            text = f"images of split {split.name} are {own / trained:.2g} times as large as those of {train.name}"
            more = f"(median side {own:.0f} and {trained:.0f} pixels): objects have another scale than in training"
            remedy = "scale them alike, or set the scales of inference to match"
            findings.warning(f"scale-of-{split.name}", f"{text} {more}; {remedy}")
    return findings


def median_side(split: SplitSurvey) -> float:
    """Return the median of the square root of an image's area, in pixels."""
    return float(np.median(np.sqrt(split.sizes.prod(axis=1))))


def _them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"class {shown} is" if len(names) == 1 else f"classes {shown}{more} are"
