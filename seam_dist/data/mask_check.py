"""Masks against image-level labels: one rule for every reader, from the pixels of each value in each mask.

An image contradicts its labels when its mask holds no object although it is labeled, when it holds objects although the
image is labeled as empty, or when it lacks a labeled class and holds another one instead. Two things are honest, for
they happen in VOC and COCO: a labeled object that is too small or hidden to have pixels, and pixels of an object that
nobody labeled. They give warnings, and so do contradictions in a few images. Contradictions in most images are a fault
of the whole data set (another order of classes, masks of 0 and 255, no masks at all) and give an error.

A mask of nothing but ignored pixels says nothing and is not compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from seam_dist.config.findings import Findings
from seam_dist.config.schema import IGNORE_INDEX

# All thresholds of the check.
MOST = 0.5
"""Share of the compared images above which contradictions are an error."""
MIN_IMAGES = 2
"""Contradicting images below which there is no error: a single image proves nothing."""
MIN_CLASS_IMAGES = 5
"""The same for a class without any mask, or a value without any label: honest omissions of one class come in pairs."""
MINOR = 0.01
"""Share of the object pixels of a mask below which an unlabeled value is a stray, and no contradiction."""
CONSISTENT = 0.8
"""Share of a value's images with the same label from which on the value is said to mean that class."""

_MAX_NAMED = 5
_REMEDY = "or set source.check_masks=warn to go on"


class MaskRow(NamedTuple):
    """One image: its name, its labels (None: unlabeled split) and the pixels of each value of its mask (None: none)."""

    source_id: str
    classes: Sequence[int] | None
    mask_pixels: Mapping[int, int] | None


@dataclass
class _Cases:
    """Images of one sort: how many, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.merge(_Cases(1, [name]))

    def merge(self, other: _Cases) -> None:
        self.count += other.count
        self.first = [*self.first, *other.first][:_MAX_NAMED]

    def __str__(self) -> str:
        return ", ".join(self.first) + (", ..." if self.count > len(self.first) else "")


@dataclass
class MaskLabels:
    """What the masks and labels of the images of one split have in common; small, picklable, and merged across shards.

    Cases are kept by what they are about: a class, a value, or the labeled and the held classes of an image.
    """

    num_compared: int = 0
    num_labeled: int = 0  # of these, images with at least one class
    num_unlabeled_masks: int = 0
    num_void: int = 0  # masks that hold 0 and 255 and nothing else, of labeled images and unlabeled splits
    labeled: Counter[int] = field(default_factory=Counter)  # class -> images
    held: Counter[int] = field(default_factory=Counter)  # value -> masks
    held_largely: Counter[int] = field(default_factory=Counter)  # value -> labeled images
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)  # value held largely, class -> images
    without_object: _Cases = field(default_factory=_Cases)
    without_label: _Cases = field(default_factory=_Cases)
    replaced: dict[tuple[tuple[int, ...], tuple[int, ...]], _Cases] = field(default_factory=dict)
    missing: dict[int, _Cases] = field(default_factory=dict)
    extra: dict[int, _Cases] = field(default_factory=dict)

    def add(self, row: MaskRow) -> None:
        """Count one image."""
        pixels = row.mask_pixels
        if pixels is None:
            return
        objects = {value: count for value, count in pixels.items() if count and value not in (0, IGNORE_INDEX)}
        is_void = not objects and bool(pixels.get(0)) and bool(pixels.get(IGNORE_INDEX))
        if row.classes is None:
            self.num_unlabeled_masks += 1
            self.num_void += is_void
            return
        if not objects and not pixels.get(0):
            return
        labels, values = set(row.classes), set(objects)
        least = MINOR * sum(objects.values())
        largely = {value for value, count in objects.items() if count >= least}
        self.num_compared += 1
        self.labeled.update(labels)
        self.held.update(values)
        if labels:
            self.num_labeled += 1
            self.num_void += is_void
            self.held_largely.update(largely)
            self.pairs.update((value, label) for value in largely for label in labels)
        missing, extra = labels - values, values - labels
        if labels and not values:
            self.without_object.add(row.source_id)
        elif values and not labels:
            self.without_label.add(row.source_id)
        elif missing and extra & largely:
            key = (tuple(sorted(missing)), tuple(sorted(extra & largely)))
            self.replaced.setdefault(key, _Cases()).add(row.source_id)
        else:
            for label in missing:
                self.missing.setdefault(label, _Cases()).add(row.source_id)
            for value in extra:
                self.extra.setdefault(value, _Cases()).add(row.source_id)

    def merge(self, other: MaskLabels) -> None:
        """Add the images of another part of the split."""
        self.num_compared += other.num_compared
        self.num_labeled += other.num_labeled
        self.num_unlabeled_masks += other.num_unlabeled_masks
        self.num_void += other.num_void
        for own, more in (
            (self.labeled, other.labeled),
            (self.held, other.held),
            (self.held_largely, other.held_largely),
        ):
            own.update(more)
        self.pairs.update(other.pairs)
        self.without_object.merge(other.without_object)
        self.without_label.merge(other.without_label)
        for key, cases in other.replaced.items():
            self.replaced.setdefault(key, _Cases()).merge(cases)
        for own_cases, more_cases in ((self.missing, other.missing), (self.extra, other.extra)):
            for value, cases in more_cases.items():
                own_cases.setdefault(value, _Cases()).merge(cases)

    def findings(self, split: str, class_names: Sequence[str], *, refuse: bool = True) -> Findings:
        """Return what is wrong or odd in the split; with `refuse`, what is wrong in most images is an error."""
        return _Report(self, split, class_names, refuse).findings()


def check_masks(
    class_names: Sequence[str], rows_by_split: Mapping[str, Iterable[MaskRow]], *, refuse: bool = True
) -> Findings:
    """Return how masks and labels disagree, one line a split and sort of fault.

    `class_names` are the foreground classes, the first has id 1. Without `refuse` there are warnings only.
    """
    findings = Findings()
    for split, rows in rows_by_split.items():
        counts = MaskLabels()
        for row in rows:
            counts.add(row)
        findings.merge(counts.findings(split, class_names, refuse=refuse))
    return findings


@dataclass(frozen=True)
class _Report:
    """The findings of one split."""

    counts: MaskLabels
    split: str
    class_names: Sequence[str]
    refuse: bool

    def findings(self) -> Findings:
        counts, findings = self.counts, Findings()
        if counts.num_unlabeled_masks >= MIN_IMAGES and counts.num_void == counts.num_unlabeled_masks:
            findings.warning(
                f"masks-of-0-and-255-{self.split}",
                f"split {self.split!r}: all {counts.num_void} masks hold only 0 and 255, expected class indices: "
                f"255 means ignored, write {self._all_indices()} for objects",
            )
        if not counts.num_compared:
            return findings
        if text := self._contradiction():
            self._add(findings, "masks-contradict-labels", text, is_error=True)
            return findings
        lone_classes = [label for label in sorted(counts.labeled) if not counts.held[label]]
        lone_values = [value for value in sorted(counts.held) if not counts.labeled[value]]
        self._add_lone(findings, lone_classes, lone_values)
        self._add_cases(findings, lone_classes, lone_values)
        return findings

    def _contradiction(self) -> str | None:
        """Return the text on contradictions in most images, None when they are fewer."""
        counts = self.counts
        replaced = sum(cases.count for cases in counts.replaced.values())
        among_labeled = counts.without_object.count + replaced
        number = among_labeled + counts.without_label.count
        if among_labeled >= MIN_IMAGES and among_labeled > MOST * counts.num_labeled:
            of = f"{among_labeled} of {counts.num_labeled} labeled images"
        elif number >= MIN_IMAGES and number > MOST * counts.num_compared:
            of = f"{number} of {counts.num_compared} images"
        else:
            return None
        if counts.without_label.count > among_labeled:
            reason = (
                f"{counts.without_label.count} images have no label but objects in their mask, first "
                f"{counts.without_label}: label them"
            )
        elif counts.without_object.count == counts.num_labeled:
            reason = self._without_any_object()
        else:
            reason = self._mapping() or f"first {self._first_contradictions()}: correct the labels or the masks"
        return f"split {self.split!r}: masks contradict the image-level labels in {of}: {reason}, {_REMEDY}"

    def _without_any_object(self) -> str:
        counts = self.counts
        if counts.num_void > MOST * counts.num_labeled:
            return (
                f"the masks hold only 0 and 255 ({counts.num_void} of {counts.num_labeled}, first "
                f"{counts.without_object}), and 255 means ignored: write class indices, {self._all_indices()}"
            )
        return (
            f"no mask holds an object, first {counts.without_object}: write class indices, {self._all_indices()}, "
            "or remove the masks"
        )

    def _all_indices(self) -> str:
        last = len(self.class_names)
        return f"1 = {self.class_names[0]!r}" + (f" to {last} = {self.class_names[-1]!r}" if last > 1 else "")

    def _meaning(self, value: int) -> tuple[int, int]:
        """Return the class whose images are most like those of a value (Jaccard index), and the images of both."""
        counts = self.counts

        def likeness(label: int) -> tuple[float, int]:
            both = counts.pairs[value, label]
            return both / (counts.held_largely[value] + counts.labeled[label] - both), -label

        label = max(counts.labeled, key=likeness)
        return label, counts.pairs[value, label]

    def _mapping(self) -> str | None:
        """Return what the values of the masks seem to mean where that is another class, None where nothing fits."""
        counts = self.counts
        values = sorted(counts.held_largely)
        if len(values) == 1 and len(counts.labeled) > 1 and counts.held_largely[values[0]] > MOST * counts.num_labeled:
            return (
                f"the masks hold no value but {values[0]}, in images of {len(counts.labeled)} classes: write the index "
                f"of the class, {self._all_indices()}"
            )
        meanings = {value: self._meaning(value) for value in values}
        consistent = {
            value: label
            for value, (label, both) in meanings.items()
            if both >= CONSISTENT * counts.held_largely[value] and both >= MIN_IMAGES
        }
        moved = [value for value, label in consistent.items() if value != label]
        if not moved:
            return None
        lines = [self._meaning_text(value) for value in moved[:_MAX_NAMED]]
        text = "; ".join(lines) + ("; ..." if len(moved) > len(lines) else "")
        shifts = {label - value for value, label in consistent.items()}
        if len(shifts) == 1 and len(consistent) > 1:
            shift = shifts.pop()
            add = f"add {shift} to" if shift > 0 else f"subtract {-shift} from"
            return (
                f"{text}: all values are shifted, expected 0 = background, {self._all_indices()}: {add} the values of "
                "the masks"
            )
        return f"{text}: list the classes in the order of the masks' values, or rewrite the masks"

    def _meaning_text(self, value: int) -> str:
        label, both = self._meaning(value)
        return (
            f"the masks' value {value} lies in images labeled {self._name(label)} in {both} of "
            f"{self.counts.held_largely[value]} cases"
        )

    def _name(self, index: int) -> str:
        name = repr(self.class_names[index - 1]) if 1 <= index <= len(self.class_names) else "no class"
        return f"{name} ({index})"

    def _names(self, indices: Sequence[int]) -> str:
        return ", ".join(map(self._name, indices[:_MAX_NAMED])) + (", ..." if len(indices) > _MAX_NAMED else "")

    def _first_contradictions(self, skip: Iterable[tuple[tuple[int, ...], tuple[int, ...]]] = ()) -> str:
        """Return the first images whose mask holds other classes than their labels, each with both."""
        known = set(skip)
        texts = [
            f"{cases} (labeled {self._names(missing)}, the mask holds {self._names(extra)})"
            for (missing, extra), cases in self.counts.replaced.items()
            if (missing, extra) not in known
        ]
        more = [f"{self.counts.without_object} (no object in the mask)"] if not texts else []
        return ", ".join((texts + more)[:_MAX_NAMED])

    def _add_lone(self, findings: Findings, classes: Sequence[int], values: Sequence[int]) -> None:
        """Add the classes that no mask holds and the values that no label holds."""
        counts = self.counts

        def listed(indices: Sequence[int], numbers: Mapping[int, int], unit: str) -> str:
            named = [
                f"{self._name(i)} in {numbers[i]} {unit}{'' if numbers[i] == 1 else 's'}" for i in indices[:_MAX_NAMED]
            ]
            return ", ".join(named) + (", ..." if len(indices) > len(named) else "")

        def is_systematic(numbers: Iterable[int]) -> bool:
            most = max(numbers)
            return most >= MIN_CLASS_IMAGES and most > MOST * counts.num_labeled

        if classes:
            text = (
                f"split {self.split!r}: no mask holds the labeled {listed(classes, counts.labeled, 'image')}: correct "
                "the labels, the masks or the order of the classes"
            )
            is_error = is_systematic(counts.labeled[label] for label in classes)
            self._add(findings, "class-in-no-mask", f"{text}, {_REMEDY}" if is_error else text, is_error=is_error)
        if values:
            meant = [v for v in values if counts.pairs and self._meaning(v)[1] >= CONSISTENT * counts.held_largely[v]]
            meant = [v for v in meant if self._meaning(v)[1] >= MIN_IMAGES and self._meaning(v)[0] in classes]
            hint = "".join(f"; {self._meaning_text(value)}" for value in meant[:_MAX_NAMED])
            text = (
                f"split {self.split!r}: no label names what masks hold, {listed(values, counts.held, 'mask')}{hint}: "
                "correct the labels, the masks or the order of the classes"
            )
            is_error = is_systematic(counts.held[value] for value in values)
            self._add(findings, "value-in-no-label", f"{text}, {_REMEDY}" if is_error else text, is_error=is_error)

    def _add_cases(self, findings: Findings, classes: Sequence[int], values: Sequence[int]) -> None:
        """Add the single images that disagree, as far as classes and values of their own line do not explain them."""
        counts = self.counts
        of = f"of {counts.num_compared} images"
        for topic, cases, text in (
            ("masks-without-objects", counts.without_object, "are labeled, but their mask holds no object"),
            ("objects-without-labels", counts.without_label, "have no label, but their mask holds objects"),
        ):
            if cases.count:
                text = f"split {self.split!r}: {cases.count} {of} {text}: {cases}: correct one of both"
                self._add(findings, topic, text)
        explained = [key for key in counts.replaced if set(key[0]) <= {*classes} and set(key[1]) <= {*values}]
        number = sum(cases.count for key, cases in counts.replaced.items() if key not in explained)
        if number:
            first, mapping = self._first_contradictions(explained), self._mapping()
            text = f"in {number} {of} the mask contradicts the labels: {first}" + (f"; {mapping}" if mapping else "")
            self._add(findings, "masks-contradict-labels", f"split {self.split!r}: {text}: correct one of both")
        for topic, by_index, known, text in (
            ("labels-without-pixels", counts.missing, classes, "are labeled but have no pixel in the mask"),
            ("pixels-without-label", counts.extra, values, "have pixels in the mask but no label"),
        ):
            shown = {index: cases for index, cases in sorted(by_index.items()) if index not in known}
            if shown:
                named = [f"{self._name(index)} in {cases.count} ({cases})" for index, cases in shown.items()]
                more = ", ..." if len(named) > _MAX_NAMED else ""
                self._add(
                    findings,
                    topic,
                    f"split {self.split!r}: some classes {text}, {', '.join(named[:_MAX_NAMED])}{more} {of}: tiny or "
                    "hidden objects do no harm, correct the others",
                )

    def _add(self, findings: Findings, topic: str, text: str, *, is_error: bool = False) -> None:
        (findings.error if is_error and self.refuse else findings.warning)(f"{topic}-{self.split}", text)
