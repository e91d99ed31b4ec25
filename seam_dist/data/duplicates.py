"""Images that occur twice in a data set: the same bytes, or the same picture encoded, scaled or trimmed anew.

Pictures are compared by their lowest frequencies (DCT of 64 x 64 gray pixels, without the mean) as in the perceptual
hash pHash, but with their sizes: the signed square root of each (Perronnin et al., ECCV 2010), then the cosine.

At a cosine of 0.9 lie all copies of 787 photographs in JPEG of quality 20, at half the size, in gray, or with 1 % cut
off at each side, and 93 % of those with 2 %; the nearest unrelated ones are at 0.87. Mirrored copies are not found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from seam_dist.config.findings import Findings
from seam_dist.config.phrases import count_of, first_of
from seam_dist.data.images import Pixels
from seam_dist.data.sources.base import Record

LENGTH = 256  # numbers that describe a picture, one byte each
MIN_LIKENESS = 0.9
_GRID, _LOWEST = 64, 16
_MIN_CONTRAST = 2.0  # standard deviation of gray values: of a blank picture only noise would be compared
_BLOCK = 4096  # pictures on each side that are compared at a time: 64 MiB


@dataclass(frozen=True)
class ImageEntry:
    """One image of a split with what identifies its content; `frequencies` is None for a blank one."""

    split: str
    record: Record
    sha256: str
    frequencies: bytes | None

    def __str__(self) -> str:
        """Return split and name."""
        return f"{self.split}/{self.record.source_id}"


@dataclass(frozen=True)
class Duplicate:
    """A pair: the same file listed in two splits, files of equal bytes, or pictures that look the same."""

    sort: Literal["file", "equal", "near"]
    first: ImageEntry
    second: ImageEntry

    @property
    def labels_differ(self) -> bool:
        """Return whether both have image-level labels, and others."""
        one, other = self.first.record.classes, self.second.record.classes
        return one is not None and other is not None and one != other


def picture_frequencies(image: Pixels) -> bytes | None:
    """Return the description (LENGTH int8) of an RGB image (H, W, 3), None for one without contrast."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (_GRID, _GRID), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < _MIN_CONTRAST:
        return None
    lowest = cv2.dct(small)[:_LOWEST, :_LOWEST].reshape(-1)
    lowest[0] = 0
    roots = np.sign(lowest) * np.sqrt(np.abs(lowest))
    scale = 127 / max(float(np.abs(roots).max()), 1e-6)
    return bytes(np.rint(roots * scale).astype(np.int8).tobytes())


def find_duplicates(entries: Sequence[ImageEntry], *, is_training: Callable[[str], bool]) -> list[Duplicate]:
    """Return all pairs of equal files, and for each image the image of another split that looks most like it.

    Of more than two equal files each is paired with the first one in its split and in each earlier split. Splits that
    are both training data (`is_training`) may hold the same images, so they are compared file by file alone.
    """
    return [*_equal_files(entries), *_near_pairs(entries, is_training)]


def _equal_files(entries: Sequence[ImageEntry]) -> Iterator[Duplicate]:
    groups: dict[str, list[ImageEntry]] = defaultdict(list)
    for entry in entries:
        groups[entry.sha256].append(entry)
    for group in groups.values():
        first_of: dict[str, ImageEntry] = {}
        for entry in group:
            for first in first_of.values():
                # Two lists name one file, or two files have the same bytes.
                is_same = first.record.files and first.record.files[:1] == entry.record.files[:1]
                yield Duplicate("file" if is_same else "equal", first, entry)
            first_of.setdefault(entry.split, entry)


def _near_pairs(entries: Sequence[ImageEntry], is_training: Callable[[str], bool]) -> Iterator[Duplicate]:
    described: dict[str, list[ImageEntry]] = defaultdict(list)
    for entry in entries:
        if entry.frequencies is not None:
            described[entry.split].append(entry)
    for first, second in combinations(described, 2):
        if is_training(first) and is_training(second):
            continue
        known = {entry.sha256 for entry in described[first]}
        rest = [entry for entry in described[second] if entry.sha256 not in known]
        nearest, likeness = find_nearest(_stack(rest), _stack(described[first]))
        for i in np.flatnonzero(likeness >= MIN_LIKENESS).tolist():
            yield Duplicate("near", described[first][nearest[i]], rest[i])


def find_nearest(queries: NDArray[np.int8], others: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each query (Q, LENGTH) the index of the most similar one of others (N, LENGTH), and the cosine.

    The cosine is -1 where there are no others.
    """
    nearest, likeness = np.zeros(len(queries), np.int64), np.full(len(queries), -1, np.float32)
    for row in range(0, len(queries), _BLOCK):
        rows = slice(row, row + _BLOCK)
        of_rows = _unit(queries[rows])
        for column in range(0, len(others), _BLOCK):
            cosine = of_rows @ _unit(others[column : column + _BLOCK]).T  # [Q, N]
            best = cosine.argmax(axis=1)
            value = np.take_along_axis(cosine, best[:, None], axis=1)[:, 0]
            nearest[rows] = np.where(value > likeness[rows], best + column, nearest[rows])
            likeness[rows] = np.maximum(value, likeness[rows])
    return nearest, likeness


def _unit(described: NDArray[np.int8]) -> NDArray[np.float32]:
    values = described.astype(np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-6), np.float32)


def _stack(entries: Sequence[ImageEntry]) -> NDArray[np.int8]:
    data = b"".join(entry.frequencies for entry in entries if entry.frequencies is not None)
    return np.frombuffer(data, np.int8).reshape(-1, LENGTH)


def duplicate_findings(
    duplicates: Sequence[Duplicate], classes: Sequence[str], *, is_training: Callable[[str], bool]
) -> Findings:
    """Return a warning for each sort of duplicate and pair of splits, with the first three pairs."""
    findings = Findings()
    groups: dict[tuple[str, str, str], list[Duplicate]] = defaultdict(list)
    for pair in duplicates:
        groups[pair.sort, pair.first.split, pair.second.split].append(pair)
    if different := [pair for pair in duplicates if pair.sort != "near" and pair.labels_differ]:
        pair = different[0]
        one, other = (_names(entry.record.classes, classes) for entry in (pair.first, pair.second))
        text = f"{pair.first} and {pair.second} are the same image with different labels: {one}, and {other}"
        findings.warning("duplicate-labels", f"{text}; correct the labels or remove one of them", len(different))
    for (sort, first, second), pairs in groups.items():
        if first == second:
            copies = "1 image that is a copy of another" if len(pairs) == 1 else f"{len(pairs)} copies of other images"
            text = f"split {first} has {copies} ({_shown(pairs)})"
            findings.warning(f"duplicates-in-{first}", f"{text}: what is there twice counts twice; remove the copies")
        elif sort == "file" and is_training(first) and is_training(second):
            continue  # such as trainaug, which holds train
        else:
            how = {
                "file": f"that the list of {first} names as well",
                "equal": f"with the same bytes as images of {first}",
                "near": f"that {'looks' if len(pairs) == 1 else 'look'} like images of {first}",
            }[sort]
            leak = is_training(first) or is_training(second)
            why = "scores on images that were trained on are too good" if leak else "the two are not independent"
            text = f"split {second} has {count_of(len(pairs), 'image')} {how} ({_shown(pairs)})"
            findings.warning(f"{sort}-duplicates-{first}-{second}", f"{text}: {why}; keep each image in one split")
    return findings


def _names(ids: tuple[int, ...] | None, classes: Sequence[str]) -> str:
    return ", ".join(classes[index - 1] for index in ids or ()) or "no object"


def _shown(pairs: Sequence[Duplicate]) -> str:
    return first_of([f"{pair.second} = {pair.first}" for pair in pairs], 3, "; ")
