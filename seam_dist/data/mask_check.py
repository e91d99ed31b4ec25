"""Masks against image-level labels: one rule for every reader, from the pixels of each value in each mask.

An image contradicts its labels when its mask holds no object although it is labeled, when it holds objects although the
image is labeled as empty, or when it lacks a labeled class and holds another one instead. Two things are honest, for
they happen in VOC and COCO: a labeled object that is too small or hidden to have pixels, and pixels of an object that
nobody labeled. They give warnings, and so do contradictions in a few images. Contradictions in most images are a fault
of the whole data set (another order of classes, masks of 0 and 255, no masks at all) and give an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seam_dist.config.findings import Findings
from seam_dist.config.phrases import count_of, first_of
from seam_dist.data.mask_labels import MAX_NAMED, MaskLabels

MOST = 0.5
"""Share of the compared images above which contradictions are an error."""
MIN_IMAGES = 2
"""Contradicting images below which there is no error: a single image proves nothing."""
MIN_CLASS_IMAGES = 5
"""The same for a class without any mask, or a value without any label: honest omissions of one class come in pairs."""
CONSISTENT = 0.8
"""Share of a value's images with the same label from which on the value is said to mean that class."""

_REMEDY = "or set source.check_masks=warn to go on"
_LONE_REMEDY = "correct the labels, the masks or the order of the classes"


def mask_findings(counts: MaskLabels, split: str, class_names: Sequence[str], *, refuse: bool = True) -> Findings:
    """Return what is wrong or odd in a split; with `refuse`, what is wrong in most images is an error."""
    return _Report(counts, split, class_names, refuse).findings()


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
            text = f"all {counts.num_void} masks hold only 0 and 255, expected class indices: 255 means ignored"
            self._add(findings, "masks-of-0-and-255", f"{text}, write {self._all_indices()} for objects")
        if not counts.num_compared:
            return findings
        if contradiction := self._contradiction():
            self._add(findings, "masks-contradict-labels", contradiction, is_error=True)
            return findings
        # What images without any object, or without any label, explain is said in their line.
        classes, values = counts.labeled - counts.explained_labels, counts.held - counts.explained_values
        lone_classes = sorted(label for label in classes if not counts.held[label])
        lone_values = sorted(value for value in values if not counts.labeled[value])
        self._add_lone(findings, lone_classes, lone_values)
        self._add_cases(findings, lone_classes, lone_values)
        return findings

    def _contradiction(self) -> str | None:
        """Return the text on contradictions in most images, None when they are fewer."""
        counts = self.counts
        without_object, without_label = counts.without_object, counts.without_label
        among_labeled = without_object.count + sum(cases.count for cases in counts.replaced.values())
        number = among_labeled + without_label.count
        if among_labeled >= MIN_IMAGES and among_labeled > MOST * counts.num_labeled:
            of = f"{among_labeled} of {counts.num_labeled} labeled images"
        elif number >= MIN_IMAGES and number > MOST * counts.num_compared:
            of = f"{number} of {counts.num_compared} images"
        else:
            return None
        if without_label.count > among_labeled:
            reason = f"{without_label.count} images have no label but objects in their mask, first {without_label}"
        elif without_object.count < counts.num_labeled:
            reason = self._mapping() or f"first {self._first_contradictions()}: correct the labels or the masks"
        elif counts.num_void > MOST * counts.num_labeled:
            reason = (
                f"the masks hold only 0 and 255 ({counts.num_void} of {counts.num_labeled}, first {without_object}), "
                f"and 255 means ignored: write class indices, {self._all_indices()}"
            )
        else:
            reason = f"no mask holds an object, first {without_object}: write {self._all_indices()} or remove the masks"
        return f"masks contradict the image-level labels in {of}: {reason}, {_REMEDY}"

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
            text = f"the masks hold no value but {values[0]}, in images of {len(counts.labeled)} classes"
            return f"{text}: write the index of the class, {self._all_indices()}"
        meanings = {value: self._meaning(value) for value in values}
        consistent = {
            value: label
            for value, (label, both) in meanings.items()
            if both >= CONSISTENT * counts.held_largely[value] and both >= MIN_IMAGES
        }
        moved = [value for value, label in consistent.items() if value != label]
        if not moved:
            return None
        strongest = sorted(moved, key=lambda value: -meanings[value][1])[:MAX_NAMED]
        text = "; ".join([*map(self._meaning_text, sorted(strongest)), *["..."] * (len(moved) > MAX_NAMED)])
        shifts = {label - value for value, label in consistent.items()}
        if len(shifts) == 1 and len(consistent) > 1:
            shift = shifts.pop()
            add = f"add {shift} to" if shift > 0 else f"subtract {-shift} from"
            shifted = f"all values are shifted, expected 0 = background, {self._all_indices()}"
            return f"{text}: {shifted}: {add} the values of the masks"
        return f"{text}: list the classes in the order of the masks' values, or rewrite the masks"

    def _meaning_text(self, value: int) -> str:
        label, both = self._meaning(value)
        of = self.counts.held_largely[value]
        return f"the masks' value {value} lies in images labeled {self._name(label)} in {both} of {of} cases"

    def _name(self, index: int) -> str:
        name = repr(self.class_names[index - 1]) if 1 <= index <= len(self.class_names) else "no class"
        return f"{name} ({index})"

    def _names(self, indices: Sequence[int]) -> str:
        return first_of([self._name(index) for index in indices], MAX_NAMED)

    def _first_contradictions(self, skip: Sequence[tuple[tuple[int, ...], tuple[int, ...]]] = ()) -> str:
        """Return the first images whose mask holds other classes than their labels, each with both."""
        texts = [
            f"{cases} (labeled {self._names(missing)}, the mask holds {self._names(extra)})"
            for (missing, extra), cases in self.counts.replaced.items()
            if (missing, extra) not in skip
        ]
        return ", ".join(texts[:MAX_NAMED]) or f"{self.counts.without_object} (no object in the mask)"

    def _add_lone(self, findings: Findings, classes: Sequence[int], values: Sequence[int]) -> None:
        """Add the classes that no mask holds and the values that no label holds."""
        counts = self.counts
        meant = [v for v in values if counts.pairs and self._meaning(v)[1] >= CONSISTENT * counts.held_largely[v]]
        meant = [v for v in meant if self._meaning(v)[1] >= MIN_IMAGES and self._meaning(v)[0] in classes]
        hint = "".join(f"; {self._meaning_text(value)}" for value in meant[:MAX_NAMED])
        for topic, text, indices, numbers, noun in (
            ("class-in-no-mask", "no mask holds the labeled", classes, counts.labeled, "image"),
            ("value-in-no-label", "no label names what masks hold,", values, counts.held, "mask"),
        ):
            if not indices:
                continue
            named = first_of([f"{self._name(i)} in {count_of(numbers[i], noun)}" for i in indices], MAX_NAMED)
            most = max(numbers[index] for index in indices)
            is_error = most >= MIN_CLASS_IMAGES and most > MOST * counts.num_labeled
            text = f"{text} {named}{hint if indices is values else ''}: {_LONE_REMEDY}"
            self._add(findings, topic, f"{text}, {_REMEDY}" if is_error else text, is_error=is_error)

    def _add_cases(self, findings: Findings, classes: Sequence[int], values: Sequence[int]) -> None:
        """Add the single images that disagree, as far as classes and values of their own line do not explain them."""
        counts = self.counts
        of = f"of {counts.num_compared} images"
        no_object = "are labeled, but their mask holds no object"
        if counts.num_void:
            no_object += f" ({counts.num_void} hold 255, which means ignored)"
        for topic, cases, text in (
            ("masks-without-objects", counts.without_object, no_object),
            ("objects-without-labels", counts.without_label, "have no label, but their mask holds objects"),
        ):
            if cases.count:
                self._add(findings, topic, f"{cases.count} {of} {text}: {cases}: correct one of both")
        explained = [key for key in counts.replaced if set(key[0]) <= {*classes} and set(key[1]) <= {*values}]
        number = sum(cases.count for key, cases in counts.replaced.items() if key not in explained)
        if number:
            first, mapping = self._first_contradictions(explained), self._mapping()
            text = f"in {number} {of} the mask contradicts the labels: {first}" + (f"; {mapping}" if mapping else "")
            self._add(findings, "masks-contradict-labels", f"{text}: correct one of both")
        for topic, by_index, known, text in (
            ("labels-without-pixels", counts.missing, classes, "are labeled but have no pixel in the mask"),
            ("pixels-without-label", counts.extra, values, "have pixels in the mask but no label"),
        ):
            if named := [
                f"{self._name(i)} in {by_index[i].count} ({by_index[i]})" for i in sorted({*by_index} - {*known})
            ]:
                text = f"some classes {text}, {first_of(named, MAX_NAMED)} {of}: tiny or hidden objects do no harm"
                self._add(findings, topic, f"{text}, correct the others")

    def _add(self, findings: Findings, topic: str, text: str, *, is_error: bool = False) -> None:
        add = findings.error if is_error and self.refuse else findings.warning
        add(f"{topic}-{self.split}", f"split {self.split!r}: {text}")
