"""Images that occur twice in a data set: the same bytes, or the same picture encoded, scaled or trimmed anew.

Equal files are found by the SHA-256 of their bytes. For the rest each image has a perceptual hash (pHash, Zauner 2010)
of 256 bits: the signs of the 16 x 16 lowest frequencies of the picture at 64 x 64 gray pixels, less their median. JPEG
at quality 20, half the size, brighter by 20 % and a border of 2 % cut off change at most 36 of them in 95 of 100
photographs, while unrelated ones differ in 50 and more of them. Larger cuts and mirror images are not found.

OpenCV has all that it takes; the package imagehash would add three more for the same hash.
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
from seam_dist.data.images import Pixels
from seam_dist.data.sources.base import Record

HASH_BYTES = 32
MAX_DISTANCE = 36  # bits of 256
_GRID, _LOWEST = 64, 16
_MIN_CONTRAST = 2.0  # standard deviation of gray values; the hash of a blank picture is that of its noise
_BLOCK = 65_536  # hashes compared with at a time: OpenCV's matcher takes fewer than 2^18
_SHOWN = 3


@dataclass(frozen=True)
class ImageEntry:
    """One image of a split with what identifies its content; `phash` is None for a blank or unusable one."""

    split: str
    record: Record
    sha256: bytes
    phash: bytes | None

    def is_same_file(self, other: ImageEntry) -> bool:
        """Return whether two lists name one file, rather than two files having the same bytes."""
        return bool(self.record.files) and self.record.files[:1] == other.record.files[:1]

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


def perceptual_hash(image: Pixels) -> bytes | None:
    """Return the hash (HASH_BYTES) of an RGB image (H, W, 3), None for one without contrast."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (_GRID, _GRID), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < _MIN_CONTRAST:
        return None
    lowest = cv2.dct(small)[:_LOWEST, :_LOWEST]
    return np.packbits(lowest > np.median(lowest)).tobytes()


def find_duplicates(entries: Sequence[ImageEntry], *, is_training: Callable[[str], bool]) -> list[Duplicate]:
    """Return all pairs of equal files, and for each image the image of another split that looks most like it.

    Of more than two equal files each is paired with the first one in its split and in each earlier split. Splits that
    are both training data (`is_training`) may hold the same images, so they are compared file by file alone.
    """
    return [*_equal_files(entries), *_near_pairs(entries, is_training)]


def _equal_files(entries: Sequence[ImageEntry]) -> Iterator[Duplicate]:
    groups: dict[bytes, list[ImageEntry]] = defaultdict(list)
    for entry in entries:
        groups[entry.sha256].append(entry)
    for group in groups.values():
        first_of: dict[str, ImageEntry] = {}
        for entry in group:
            for first in first_of.values():
                yield Duplicate("file" if first.is_same_file(entry) else "equal", first, entry)
            first_of.setdefault(entry.split, entry)


def _near_pairs(entries: Sequence[ImageEntry], is_training: Callable[[str], bool]) -> Iterator[Duplicate]:
    hashed: dict[str, list[ImageEntry]] = defaultdict(list)
    for entry in entries:
        if entry.phash is not None:
            hashed[entry.split].append(entry)
    for first, second in combinations(hashed, 2):
        if is_training(first) and is_training(second):
            continue
        known = {entry.sha256 for entry in hashed[first]}
        rest = [entry for entry in hashed[second] if entry.sha256 not in known]
        nearest, distance = nearest_hashes(_stack(rest), _stack(hashed[first]))
        for i in np.flatnonzero(distance <= MAX_DISTANCE):
            yield Duplicate("near", hashed[first][nearest[i]], rest[i])


def nearest_hashes(queries: Pixels, hashes: Pixels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each query (Q, bytes) the index of the nearest of the hashes (N, bytes) and its distance in bits."""
    nearest = np.zeros(len(queries), np.int64)
    distance = np.full(len(queries), 8 * HASH_BYTES + 1, np.int64)
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING)
    for start in range(0, len(hashes) if len(queries) else 0, _BLOCK):
        matches = matcher.match(queries, hashes[start : start + _BLOCK])
        index = np.array([match.trainIdx for match in matches], np.int64) + start
        bits = np.array([match.distance for match in matches], np.int64)
        nearest, distance = np.where(bits < distance, index, nearest), np.minimum(bits, distance)
    return nearest, distance


def _stack(entries: Sequence[ImageEntry]) -> Pixels:
    data = b"".join(entry.phash for entry in entries if entry.phash is not None)
    return np.frombuffer(data, np.uint8).reshape(-1, HASH_BYTES)


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
        findings.warning(
            "duplicate-labels",
            f"{pair.first} and {pair.second} are the same image with different labels: {one}, and {other}; correct "
            "the labels or remove one of them",
            len(different),
        )
    for (sort, first, second), pairs in groups.items():
        if first == second:
            copies = "1 image that is a copy of another" if len(pairs) == 1 else f"{len(pairs)} copies of other images"
            findings.warning(
                f"duplicates-in-{first}",
                f"split {first} has {copies} ({_shown(pairs)}): what is there twice counts twice; remove the copies",
            )
        elif sort == "file" and is_training(first) and is_training(second):
            continue  # such as trainaug, which holds train
        else:
            how = {
                "file": f"that the list of {first} names as well",
                "equal": f"with the same bytes as images of {first}",
                "near": f"that look like images of {first}",
            }[sort]
            leak = is_training(first) or is_training(second)
            why = "scores on images that were trained on are too good" if leak else "the two are not independent"
            findings.warning(
                f"{sort}-duplicates-{first}-{second}",
                f"split {second} has {len(pairs)} image{'s' * (len(pairs) > 1)} {how} ({_shown(pairs)}): {why}; keep "
                "each image in one split",
            )
    return findings


def _names(ids: tuple[int, ...] | None, classes: Sequence[str]) -> str:
    return ", ".join(classes[index - 1] for index in ids or ()) or "no object"


def _shown(pairs: Sequence[Duplicate]) -> str:
    return "; ".join(f"{pair.second} = {pair.first}" for pair in pairs[:_SHOWN]) + ("; ..." * (len(pairs) > _SHOWN))
