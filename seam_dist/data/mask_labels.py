"""What the masks and the image-level labels of a split have in common, counted image by image.

mask_check.py says what the counts mean. A mask of nothing but ignored pixels says nothing and is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from seam_dist.config.schema import IGNORE_INDEX

MINOR = 0.01
"""Share of the object pixels of a mask below which an unlabeled value is a stray, and no contradiction."""
MAX_NAMED = 5
"""Images, classes or values that a text names."""


class MaskRow(NamedTuple):
    """One image: its name, its labels (None: unlabeled split) and the pixels of each value of its mask (None: none)."""

    source_id: str
    classes: Sequence[int] | None
    mask_pixels: Mapping[int, int] | None


@dataclass
class Cases:
    """Images of one sort: how many, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one image."""
        self.count += 1
        self.first = [*self.first, name][:MAX_NAMED]

    def __str__(self) -> str:
        return ", ".join(self.first) + (", ..." if self.count > len(self.first) else "")


@dataclass
class MaskLabels:
    """What the masks and labels of the images of one split have in common.

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
    without_object: Cases = field(default_factory=Cases)
    without_label: Cases = field(default_factory=Cases)
    explained_labels: Counter[int] = field(default_factory=Counter)  # class -> images without object
    explained_values: Counter[int] = field(default_factory=Counter)  # value -> images without label
    replaced: dict[tuple[tuple[int, ...], tuple[int, ...]], Cases] = field(default_factory=dict)
    missing: dict[int, Cases] = field(default_factory=dict)
    extra: dict[int, Cases] = field(default_factory=dict)

    def add(self, row: MaskRow) -> bool:
        """Count one image; return whether its mask contradicts its labels."""
        pixels = row.mask_pixels
        if pixels is None:
            return False
        objects = {value: count for value, count in pixels.items() if count and value not in (0, IGNORE_INDEX)}
        is_void = not objects and bool(pixels.get(0)) and bool(pixels.get(IGNORE_INDEX))
        if row.classes is None:
            self.num_unlabeled_masks += 1
            self.num_void += is_void
            return False
        if not objects and not pixels.get(0):
            return False
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
            self.explained_labels.update(labels)
        elif values and not labels:
            self.without_label.add(row.source_id)
            self.explained_values.update(values)
        elif missing and extra & largely:
            key = (tuple(sorted(missing)), tuple(sorted(extra & largely)))
            self.replaced.setdefault(key, Cases()).add(row.source_id)
        else:
            for label in missing:
                self.missing.setdefault(label, Cases()).add(row.source_id)
            for value in extra:
                self.extra.setdefault(value, Cases()).add(row.source_id)
            return False
        return True
