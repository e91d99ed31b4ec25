from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kit import encode, pixels
from numpy.typing import NDArray
from PIL import Image

from seam_dist.data.duplicates import (
    LENGTH,
    MIN_LIKENESS,
    ImageEntry,
    duplicate_findings,
    find_duplicates,
    find_nearest,
    picture_frequencies,
)
from seam_dist.data.images import decode_image
from seam_dist.data.sources.base import Record


def _photo(seed: int) -> NDArray[np.uint8]:
    return pixels(seed, 120, 160)


def _cut(image: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    top, left = round(share * height), round(share * width)
    return np.ascontiguousarray(image[top : height - top, left : width - left])


def _coded(image: NDArray[np.uint8], format: str = "JPEG", **options: int) -> NDArray[np.uint8]:
    return decode_image(encode(image, format, **options), max_pixels=10**6)


def _half(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2)))


def _likeness(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    described = [np.frombuffer(picture_frequencies(image) or b"", np.int8)[None] for image in (one, other)]
    return float(find_nearest(*described)[1][0])


@pytest.mark.parametrize(
    "change",
    [
        lambda image: _coded(image, quality=20),
        lambda image: _coded(image, "PNG"),
        lambda image: _coded(image, "WEBP", quality=50),
        _half,
        lambda image: _cut(image, 0.01),
        lambda image: np.clip(image * 1.2 + 10, 0, 255).astype(np.uint8),
        lambda image: np.repeat(np.array(Image.fromarray(image).convert("L"))[..., None], 3, axis=2),
    ],
    ids=["jpeg", "png", "webp", "half", "cut", "bright", "gray"],
)
def test_a_copy_is_near(change) -> None:
    for seed in range(5):
        image = _photo(seed)
        assert _likeness(image, change(image)) >= MIN_LIKENESS


def test_noise_on_a_smooth_picture_does_not_part_copies() -> None:
    ramp = np.linspace(40, 200, 160)[None, :, None] + np.linspace(0, 30, 120)[:, None, None]
    smooth = np.repeat(ramp, 3, axis=2)
    noise = np.random.default_rng(0).normal(0, 6, smooth.shape)
    assert _likeness(smooth.astype(np.uint8), (smooth + noise).clip(0, 255).astype(np.uint8)) >= MIN_LIKENESS


def test_unrelated_images_are_far_apart() -> None:
    photos = [_photo(seed) for seed in range(30)]
    assert max(_likeness(a, b) for i, a in enumerate(photos) for b in photos[:i]) < MIN_LIKENESS
    assert _likeness(photos[0], 255 - photos[0]) < 0
    assert _likeness(photos[0], np.ascontiguousarray(photos[0][:, ::-1])) < MIN_LIKENESS


def test_a_blank_image_is_like_no_other() -> None:
    assert picture_frequencies(np.full((40, 50, 3), 77, np.uint8)) is None
    faint = np.full((40, 50, 3), 77, np.uint8)
    faint[:, 25:] += 1
    assert picture_frequencies(faint) is None
    assert picture_frequencies(np.zeros((1, 1, 3), np.uint8)) is None


def test_the_nearest_is_that_of_a_plain_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seam_dist.data.duplicates._BLOCK", 7)
    rng = np.random.default_rng(0)
    queries, others = (rng.integers(-127, 128, (count, LENGTH), dtype=np.int8) for count in (11, 23))
    queries[3] = others[20]
    a, b = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (queries, others)
    )
    nearest, likeness = find_nearest(queries, others)
    assert nearest.tolist() == (a @ b.T).argmax(axis=1).tolist()
    assert likeness == pytest.approx((a @ b.T).max(axis=1), abs=1e-5)
    assert nearest[3] == 20


@pytest.mark.parametrize(("num_queries", "num_others"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_is_near_where_there_is_nothing(num_queries: int, num_others: int) -> None:
    queries, others = (np.zeros((count, LENGTH), np.int8) for count in (num_queries, num_others))
    assert (find_nearest(queries, others)[1] < MIN_LIKENESS).all()


def _entry(split: str, name: str, data: str, look: int | None = None, *, classes=(1,), file: str = "") -> ImageEntry:
    """An image of content `data` and of the look number `look`."""
    files = (Path(file),) if file else ()
    record = Record(key=name, source_id=name, classes=classes, image=bytes, files=files)
    described = None if look is None else np.random.default_rng(look).bytes(LENGTH)
    return ImageEntry(split, record, data.encode(), described)


def _is_training(split: str) -> bool:
    return split.startswith("train")


def _pairs(*entries: ImageEntry) -> list[tuple[str, str, str]]:
    found = find_duplicates(entries, is_training=_is_training)
    return [(pair.sort, str(pair.first), str(pair.second)) for pair in found]


def _texts(*entries: ImageEntry) -> list[str]:
    found = find_duplicates(entries, is_training=_is_training)
    findings = duplicate_findings(found, ("cat", "dog"), is_training=_is_training)
    assert not findings.errors
    return [str(finding) for finding in findings]


def test_copies_are_found_within_and_between_splits() -> None:
    entries = [
        _entry("train", "a", "x", 1),
        _entry("train", "b", "y", 2),
        _entry("train", "c", "x", 1),
        _entry("val", "d", "x", 1),
        _entry("val", "e", "z", 2),
        _entry("val", "f", "w", 3),
    ]
    assert _pairs(*entries) == [
        ("equal", "train/a", "train/c"),
        ("equal", "train/a", "val/d"),
        ("near", "train/b", "val/e"),
    ]


def test_many_copies_of_one_image_give_a_pair_each() -> None:
    assert len(_pairs(*(_entry("train", f"{k}", "x", 1) for k in range(100)))) == 99


def test_a_leak_is_named_with_its_first_pairs() -> None:
    train = [_entry("train", f"t{k}", f"{k}", k) for k in range(5)]
    (equal,) = _texts(*train, *(_entry("val", f"v{k}", f"{k}", k) for k in range(5)))
    assert "split val has 5 images with the same bytes as images of train" in equal
    assert "(val/v0 = train/t0; val/v1 = train/t1; val/v2 = train/t2; ...)" in equal
    assert "trained on" in equal
    (near,) = _texts(*train, _entry("val", "v", "other", 4))
    assert "split val has 1 image that looks like images of train (val/v = train/t4)" in near


def test_the_same_image_with_other_labels_is_named_with_both() -> None:
    texts = _texts(_entry("train", "a", "x", classes=(1,)), _entry("train", "b", "x", classes=(1, 2)))
    assert "train/a and train/b are the same image with different labels: cat, and cat, dog" in texts[0]
    assert "split train has 1 image that is a copy of another (train/b = train/a)" in texts[1]
    texts = _texts(_entry("train", "a", "x", classes=(1,)), _entry("test", "b", "x", classes=None))
    assert not any("different labels" in text for text in texts)


def test_a_training_list_within_another_is_no_leak() -> None:
    both = [_entry(split, "a", "x", 1, file="a.jpg") for split in ("trainaug", "train")]
    assert [sort for sort, *_ in _pairs(*both)] == ["file"]
    assert not _texts(*both)
    assert not _pairs(_entry("trainaug", "a", "x", 1), _entry("train", "b", "y", 1))
    (text,) = _texts(_entry("train", "a", "x", 1, file="a.jpg"), _entry("val", "a", "x", 1, file="a.jpg"))
    assert "split val has 1 image that the list of train names as well (val/a = train/a)" in text


def test_copies_outside_training_are_warned_of_as_well() -> None:
    (text,) = _texts(_entry("val", "a", "x", 1), _entry("test", "b", "x", 1))
    assert "not independent" in text
