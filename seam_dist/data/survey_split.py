"""The numbers of one split of a data set, added up image by image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from seam_dist.config.findings import Findings
from seam_dist.config.schema import IGNORE_INDEX
from seam_dist.data.duplicates import ImageEntry
from seam_dist.data.inspection import Inspection
from seam_dist.data.mask_labels import MaskLabels, MaskRow
from seam_dist.data.sources.base import Record

T = TypeVar("T")

_MAX_SHOWN = 6  # images kept of each sort of oddity
MIN_SIDE = 32
"""Pixels; at stride 8 a smaller image has fewer than 4 x 4 cells to tell classes apart in."""
_LONG_SHAPE = 4.0  # long side through short side


@dataclass(frozen=True)
class OddImage:
    """An image that is worth a look, and why; an unusable one is one that conversion refuses."""

    split: str
    record: Record
    reason: str
    is_usable: bool = True


@dataclass(frozen=True, eq=False)
class SplitSurvey:
    """The numbers of one split; C classes, arrays in the order of the class names.

    Labels and masks are counted over all listed images, sizes and pixels over the usable ones.
    """

    name: str
    num_samples: int
    num_unusable: int
    num_labeled: int
    num_masks: int
    num_without_object: int
    class_counts: NDArray[np.int64]
    """[C]: images whose labels hold the class."""
    cooccurrence: NDArray[np.int64]
    """[C, C]: images whose labels hold both classes; the diagonal is `class_counts`."""
    sizes: NDArray[np.int64]
    """[N, 2]: height and width as displayed."""
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    orientations: Mapping[int, int]
    """EXIF orientation -> images."""
    class_shares: NDArray[np.float64] | None
    """[C + 1]: mean share of background and of each class in the masks, 0..1; None without masks."""
    void_share: float | None
    """Mean share of ignored pixels in the masks, 0..1."""

    @property
    def has_labels(self) -> bool:
        """Return whether every image has image-level labels."""
        return 0 < self.num_labeled == self.num_samples

    @property
    def has_masks(self) -> bool:
        """Return whether every image has a mask."""
        return 0 < self.num_masks == self.num_samples


class OpenedRecord(NamedTuple):
    """What one record has shown, small enough to be sent from process to process: `shown` has no sample."""

    shown: Inspection
    is_usable: bool
    frequencies: bytes | None


class SplitTally:
    """Adds up one split, image by image; keeps of each image what finds it again."""

    def __init__(self, name: str, classes: Sequence[str]) -> None:
        self.name, self.classes, self.findings = name, classes, Findings()
        self.mask_labels = MaskLabels()
        self.entries: list[ImageEntry] = []
        self.odd: list[OddImage] = []
        self.usable_of_class: dict[int, list[Record]] = defaultdict(list)
        self._num_of_reason: Counter[str] = Counter()
        self._num = Counter[str]()
        self._cooccurrence = np.zeros((len(classes), len(classes)), np.int64)
        self._sizes: list[tuple[int, int]] = []
        self._formats, self._modes = Counter[str](), Counter[str]()
        self._orientations = Counter[int]()
        self._shares = np.zeros(256)

    def add(self, record: Record, opened: OpenedRecord) -> None:
        """Count one image."""
        oddities = list(_oddities(opened))
        self.findings.merge(opened.shown.findings)
        self._num.update(
            all=1,
            unusable=int(not opened.is_usable),
            labeled=int(record.classes is not None),
            masks=int(record.mask is not None),
            without_object=int(record.classes == ()),
        )
        ids = np.array(record.classes or (), int) - 1
        self._cooccurrence[np.ix_(ids, ids)] += 1
        if opened.is_usable and opened.shown.size is not None:
            self.entries.append(ImageEntry(self.name, record, opened.shown.image_sha256, opened.frequencies))
            self._sizes.append(opened.shown.size)
            self._formats[opened.shown.format] += 1
            self._modes[opened.shown.mode] += 1
            self._orientations[opened.shown.orientation] += 1
            for index in record.classes or (() if record.classes is None else (0,)):
                self.usable_of_class[index].append(record)
        if opened.is_usable and opened.shown.mask_pixels is not None:
            total = sum(opened.shown.mask_pixels.values())
            for value, count in opened.shown.mask_pixels.items():
                self._shares[value] += count / total
            self._num["pixel_masks"] += 1
            if self.mask_labels.add(MaskRow(record.source_id, record.classes, opened.shown.mask_pixels)):
                held = sorted(value for value in opened.shown.mask_pixels if 0 < value < IGNORE_INDEX)
                oddities.append(("mask", f"labels: {self._names(record.classes)}; mask: {self._names(held)}"))
        for sort, reason in oddities:
            self._num_of_reason[sort] += 1
            if self._num_of_reason[sort] <= _MAX_SHOWN:
                self.odd.append(OddImage(self.name, record, reason, opened.is_usable))
        if opened.is_usable and opened.frequencies is None and not _is_dark(opened):
            self.findings.warning(
                "blank-image",
                f"image {record.source_id} of split {self.name} has one color all over, expected a picture: look at it,"
                " and remove it or convert it again",
            )

    def _names(self, ids: Sequence[int] | None) -> str:
        return ", ".join(self.classes[index - 1] for index in ids or ()) or "no object"

    def result(self) -> SplitSurvey:
        """Return the numbers."""
        num_classes, num_masks = len(self._cooccurrence), self._num["pixel_masks"]
        shares = self._shares / num_masks if num_masks else None
        return SplitSurvey(
            name=self.name,
            num_samples=self._num["all"],
            num_unusable=self._num["unusable"],
            num_labeled=self._num["labeled"],
            num_masks=self._num["masks"],
            num_without_object=self._num["without_object"],
            class_counts=np.diag(self._cooccurrence).copy(),
            cooccurrence=self._cooccurrence,
            sizes=np.array(self._sizes, np.int64).reshape(-1, 2),
            formats=_in_order(self._formats),
            modes=_in_order(self._modes),
            orientations=_in_order(self._orientations),
            class_shares=None if shares is None else shares[: num_classes + 1],
            void_share=None if shares is None else float(shares[IGNORE_INDEX]),
        )


def _in_order(counter: Counter[T]) -> dict[T, int]:
    """Return the counts, the largest first, without what is not known."""
    return {value: count for value, count in counter.most_common() if value}


def _is_dark(opened: OpenedRecord) -> bool:
    """Return whether an image looks blank only because it uses a small part of its range."""
    return any(finding.topic == "small-range" for finding in opened.shown.findings)


def _oddities(opened: OpenedRecord) -> Iterator[tuple[str, str]]:
    """Yield the sort and the description of all that is odd with one image."""
    for finding in opened.shown.findings:
        yield finding.topic, finding.text
    if not opened.is_usable or opened.shown.size is None:
        return
    short, long = sorted(opened.shown.size)
    height, width = opened.shown.size
    if short < MIN_SIDE:
        yield "small", f"only {width} x {height} pixels"
    if long >= _LONG_SHAPE * short:
        yield "shape", f"{width} x {height} pixels: one side is {long / short:.1f} times the other"
    if opened.frequencies is None:
        yield "blank", "one color all over"
