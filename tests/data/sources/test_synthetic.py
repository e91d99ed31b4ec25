from __future__ import annotations

import pickle
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg

from seam_dist.config.schema import SourceConfig
from seam_dist.data.sources.base import Source, SourceError
from seam_dist.data.sources.synthetic import SyntheticSource, draw_scene


def _fresh_scene(*args: object) -> tuple[np.ndarray, np.ndarray]:
    draw_scene.cache_clear()
    return draw_scene(*args)


def source_of(splits: tuple[str, ...], num_images: tuple[int, ...], **fields: Any) -> SyntheticSource:
    return SyntheticSource(SourceConfig(num_images=num_images, **fields), splits)


def test_an_image_depends_on_seed_split_and_number_alone() -> None:
    short = source_of(("train", "val"), (5, 3), image_size=(64, 48), seed=1)
    long = source_of(("val", "train"), (9, 50), image_size=(64, 48), seed=1)
    draw_scene.cache_clear()
    wanted = [(record.key, record.classes, record.image(), record.mask()) for record in short.listing("train").records]
    draw_scene.cache_clear()
    got = [
        (record.key, record.classes, record.image(), record.mask()) for record in long.listing("train").records[4::-1]
    ]
    assert got[::-1] == wanted


@pytest.mark.parametrize(("split", "seed"), [("train", 1), ("val", 0)])
def test_another_seed_or_split_gives_other_images(split: str, seed: int) -> None:
    for index in range(6):
        image, mask = _fresh_scene(index, "train", 0, 1, (64, 48))
        other_image, other_mask = _fresh_scene(index, split, seed, 1, (64, 48))
        if image.shape == other_image.shape:
            # Grain alone makes images differ; half of the pixels far apart means another scene.
            assert np.mean(np.abs(image.astype(int) - other_image).max(axis=2) > 20) > 0.5
            assert not np.array_equal(mask, other_mask)


@pytest.mark.parametrize(("num_classes", "size"), [(1, (96, 72)), (4, (33, 120)), (20, (32, 32)), (254, (96, 72))])
def test_labels_are_exactly_the_classes_in_the_mask(num_classes: int, size: tuple[int, int]) -> None:
    source = source_of(("train",), (40,), num_classes=num_classes, image_size=size)
    for record in source.listing("train").records:
        assert record.mask is not None
        mask = cv2.imdecode(np.frombuffer(record.mask(), np.uint8), cv2.IMREAD_UNCHANGED)
        image = simplejpeg.decode_jpeg(record.image())
        assert mask.dtype == np.uint8
        assert mask.shape == image.shape[:2]
        assert record.classes == tuple(np.unique(mask[mask > 0]))


def test_every_object_stays_visible_and_background_remains() -> None:
    shares = []
    for index in range(60):
        mask = _fresh_scene(index, "train", 0, 4, (128, 96))[1]
        shares.append(np.count_nonzero(mask) / mask.size)
        for class_id in np.unique(mask[mask > 0]):
            assert np.count_nonzero(mask == class_id) >= 16
    assert 0.1 < np.mean(shares) < 0.4
    assert max(shares) < 0.8


def test_sizes_vary_as_in_photographs() -> None:
    shapes = [_fresh_scene(index, "train", 0, 4, (128, 96))[0].shape[:2] for index in range(60)]
    portraits = sum(height > width for height, width in shapes)
    assert 5 <= portraits <= 30
    assert len(set(shapes)) >= 8
    assert max(max(shape) for shape in shapes) == 128
    assert np.median([max(shape) for shape in shapes]) == 128
    assert 84 <= np.median([min(shape) for shape in shapes]) <= 104


def test_only_a_small_head_shows_the_class() -> None:
    """Two data sets that differ in the number of classes draw the same objects with other heads."""
    shares = []
    for index in range(40):
        pictures = [_fresh_scene(index, "train", 0, count, (256, 192)) for count in (1, 254)]
        (first, mask), (second, other_mask) = pictures
        if not np.array_equal(mask > 0, other_mask > 0) or np.array_equal(mask, other_mask):
            continue  # a second object's place and color may follow from the first one's head
        changed = np.abs(first.astype(int) - second).sum(2) > 60
        shares.append(np.count_nonzero(changed & (mask > 0)) / np.count_nonzero(mask))
        assert np.count_nonzero(changed & (mask == 0)) < 0.02 * np.count_nonzero(mask == 0)
    assert len(shares) >= 5
    assert 0.02 < np.mean(shares) < 0.25


def test_any_number_of_classes_has_distinct_names() -> None:
    names = source_of((), (), num_classes=254).classes
    assert len(set(names)) == 254
    assert names[:2] == ("rings", "stripes")
    assert names[8] == "rings-2"


def test_a_small_split_holds_every_class() -> None:
    records = source_of(("val",), (7,), num_classes=7).listing("val").records
    assert {class_id for record in records for class_id in record.classes or ()} == set(range(1, 8))


def test_records_travel_to_other_processes() -> None:
    source = source_of(("train",), (8,), image_size=(64, 48))
    assert isinstance(source, Source)
    record = source.listing("train").records[-1]
    travelled = pickle.loads(pickle.dumps(record))
    assert travelled.key == "train_000007"
    assert travelled.image() == record.image()


def test_images_too_small_for_an_object_are_refused() -> None:
    with pytest.raises(SourceError, match=r"source\.image_size=\(256, 16\) has a side below 32 pixels"):
        source_of(("train",), (1,), image_size=(256, 16))


def test_unknown_and_empty_splits_are_refused() -> None:
    source = source_of(("train", "val"), (3, 0))
    with pytest.raises(SourceError, match=r"'test' is not one of \['train', 'val'\]"):
        source.listing("test")
    with pytest.raises(SourceError, match="'val' is empty"):
        source.listing("val")
