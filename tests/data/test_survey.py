from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from kit import Bytes, MemorySource, encode, index_mask, pixels, records
from PIL import Image

from seam_dist.data import survey as survey_module
from seam_dist.data.sources import SourceError
from seam_dist.data.sources.base import Listing, Record
from seam_dist.data.sources.folder import FolderSource
from seam_dist.data.survey import Survey, survey_dataset


def _survey(*, num_processes: int = 1, **splits: Sequence[Record]) -> Survey:
    return survey_dataset(MemorySource(**splits), list(splits), max_pixels=10**6, num_processes=num_processes)


def _record(
    name: str, classes: tuple[int, ...] | None = (1,), image: bytes | None = None, mask: bytes | None = None
) -> Record:
    """A record with an image of its own."""
    image = encode(pixels(sum(name.encode()) + 1000 * len(name))) if image is None else image
    return Record(name, name, classes, Bytes(image), None if mask is None else Bytes(mask))


def _mask(*rows: Sequence[int]) -> bytes:
    return encode(np.array(rows, np.uint8), "PNG")


def _many(classes: Sequence[tuple[int, ...]], split: str = "t") -> list[Record]:
    return [_record(f"{split}-{k:03d}", ids) for k, ids in enumerate(classes)]


def _texts(survey: Survey, topic: str) -> list[str]:
    return [str(finding) for finding in survey.findings if finding.topic.startswith(topic)]


def test_labels_are_counted_and_which_occur_together() -> None:
    survey = _survey(train=[_record("a", (1, 3)), _record("b", (3,)), _record("c", ()), _record("d", (1, 2, 3))])
    (split,) = survey.splits
    assert (split.num_samples, split.num_labeled, split.num_without_object) == (4, 4, 1)
    assert split.class_counts.tolist() == [2, 1, 3]
    assert split.cooccurrence.tolist() == [[2, 1, 2], [1, 1, 1], [2, 1, 3]]
    assert split.has_labels
    assert not split.has_masks


def test_an_unlabeled_split_has_no_classes() -> None:
    (_, test) = _survey(train=[_record("a")], test=[_record("b", None)]).splits
    assert (test.num_labeled, test.num_without_object, test.class_counts.sum()) == (0, 0, 0)
    assert not test.has_labels


def test_shares_of_masks_are_means_over_images() -> None:
    whole = _mask(*[[1] * 40] * 30)
    half = _mask(*[[0] * 20 + [2] * 10 + [255] * 10] * 30)
    (split,) = _survey(train=[_record("a", (1,), mask=whole), _record("b", (2,), mask=half)]).splits
    assert split.class_shares is not None
    assert split.class_shares.tolist() == [0.25, 0.5, 0.125, 0]
    assert split.void_share == 0.125
    assert split.has_masks


def test_sizes_are_those_of_display() -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = encode(Image.fromarray(pixels(1)), "JPEG", exif=exif)
    (split,) = _survey(train=[_record("a"), _record("b", image=turned)]).splits
    assert split.sizes.tolist() == [[30, 40], [40, 30]]


def test_an_image_whose_mask_cannot_be_used_is_in_no_number_of_usable_ones() -> None:
    survey = _survey(train=[_record("a"), _record("b", mask=_mask([1, 1]))], val=[_record("b")])
    assert [(split.num_unusable, len(split.sizes)) for split in survey.splits] == [(1, 1), (0, 1)]
    assert not survey.duplicates
    assert "b" not in [example.record.source_id for example in survey.examples if example.split == "train"]


def test_an_image_that_cannot_be_read_is_counted_and_named_and_does_not_stop_the_survey() -> None:
    broken = [_record(f"broken-{k}", image=b"\xff\xd8 no more") for k in range(9)]
    survey = _survey(train=[*broken, *records(3)], val=[_record("v", image=b"\xff\xd8 no more")])
    train, val = survey.splits
    assert (train.num_samples, train.num_unusable, len(train.sizes)) == (12, 9, 3)
    assert val.num_unusable == 1
    assert train.class_counts.tolist() == [10, 1, 1]
    (finding,) = survey.findings.errors
    assert "broken-0" in finding.text
    assert finding.count == 10
    named = [image.record.source_id for image in survey.odd_images if not image.is_usable and image.split == "train"]
    assert named[:5] == [f"broken-{k}" for k in range(5)]
    assert len(named) < 9


def test_a_split_that_cannot_be_listed_does_not_hide_the_others(folder_set) -> None:
    source: FolderSource = folder_set()
    survey = survey_dataset(source, ["train", "val"], max_pixels=10**6)
    assert [split.num_samples for split in survey.splits] == [2, 0]
    assert len(survey.findings.errors) == 1
    assert "val" in survey.findings.errors[0].text
    with pytest.raises(SourceError, match="nowhere"):
        survey_dataset(FolderSource(Path("nowhere")), ["train"], max_pixels=10**6)


def test_findings_of_the_listing_are_kept() -> None:
    class Odd(MemorySource):
        def listing(self, split: str) -> Listing:
            listing = super().listing(split)
            listing.findings.warning("lists", "one name has a space")
            return listing

    survey = survey_dataset(Odd(train=records(2)), ["train"], max_pixels=10**6)
    assert _texts(survey, "lists") == ["one name has a space"]


def _numbers(survey: Survey) -> list[object]:
    splits = [
        (split.num_samples, split.num_unusable, split.cooccurrence.tolist(), split.sizes.tolist(), split.void_share)
        for split in survey.splits
    ]
    pairs = [(pair.sort, str(pair.first), str(pair.second)) for pair in survey.duplicates]
    return [splits, pairs, [str(finding) for finding in survey.findings]]


def test_processes_see_what_one_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "POOL_START_S", 0.0)
    train, val = records(40), [replace(records(1, first=3)[0], key="copy"), _record("bad", image=b"no image")]
    opened: list[int] = []
    source = MemorySource(train=train, val=val)
    alone = survey_dataset(source, ["train", "val"], max_pixels=10**6)
    pooled = survey_dataset(source, ["train", "val"], max_pixels=10**6, num_processes=2, progress=opened.append)
    assert _numbers(pooled) == _numbers(alone)
    assert sum(opened) == 42
    assert len(opened) == 3


def test_the_death_of_a_process_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "POOL_START_S", 0.0)
    with pytest.raises(ChildProcessError, match="memory"):
        _survey(train=[Record("a", "a", (1,), partial(os._exit, 9))], num_processes=2)


def test_a_class_that_training_lacks_is_named() -> None:
    survey = _survey(train=_many([(1,), (1,)]), val=_many([(1,), (2,)], "v"))
    (alone,) = _texts(survey, "classes-of-val-alone")
    assert "class 'dog' is in split val, but in no image of train" in alone
    (nowhere,) = _texts(survey, "classes-without-image")
    assert "class 'horse' is in the list of classes" in nowhere
    other = survey_dataset(
        MemorySource(train=_many([(1,)]), val=_many([(2, 3)], "v")),
        ["val", "train"],
        max_pixels=10**6,
        train_split="val",
    )
    assert "class 'cat' is in split train, but in no image of val" in _texts(other, "classes-of-train-alone")[0]


def test_a_class_in_nearly_all_images_is_named() -> None:
    usual = [(1,), (2,), (3,)] * 7
    assert not _texts(_survey(train=_many(usual)), "class-everywhere")
    (text,) = _texts(_survey(train=_many([(1, *ids) if ids != (1,) else ids for ids in usual])), "class-everywhere")
    assert "class 'cat' is in 21 of the 21 images of split train" in text


def test_classes_that_always_occur_together_are_named() -> None:
    survey = _survey(train=_many([(1, 2)] * 10 + [(3,)] * 10))
    (text,) = _texts(survey, "classes-always-together")
    assert "classes 'cat' and 'dog' occur in the same 10 images" in text
    assert "CAMs cannot tell them apart" in text
    assert not _texts(survey, "class-never-alone")
    survey = _survey(train=_many([(1, 2)] * 10 + [(2,)] * 3 + [(3,)] * 10))
    (text,) = _texts(survey, "class-never-alone")
    assert "class 'cat' is in 10 images of split train and in each of them with 'dog'" in text
    assert not _texts(survey, "classes-always-together")
    assert not _texts(_survey(train=_many([(1, 2)] * 9 + [(3,)] * 10)), "class")


def test_rare_classes_are_named() -> None:
    train = _many([(1,)] * 150 + [(2,)] * 60 + [(3,)] * 2)
    (text,) = _texts(_survey(train=train), "rare-classes")
    assert "fewer than 10 images of 1 of its 3 classes ('horse' (2))" in text


def _sized(name: str, height: int, width: int) -> Record:
    return _record(name, image=encode(pixels(len(name), height, width)))


def test_small_and_long_images_are_shown_and_the_small_ones_warned_of() -> None:
    survey = _survey(train=[_sized("usual", 40, 60), _sized("tiny", 12, 50), _sized("strip", 40, 170)])
    (text,) = _texts(survey, "small-images")
    assert "split train has 1 of 3 images with a side of less than 32 pixels (the smallest 50 x 12)" in text
    assert [(image.record.source_id, image.reason) for image in survey.odd_images] == [
        ("tiny", "only 50 x 12 pixels"),
        ("tiny", "50 x 12 pixels: one side is 4.2 times the other"),
        ("strip", "170 x 40 pixels: one side is 4.2 times the other"),
    ]


@pytest.mark.parametrize(
    ("classes", "values", "reason"),
    [
        ((1,), (0, 2), "labels: cat; mask: dog"),
        ((1, 3), (0, 2, 3), "labels: cat, horse; mask: dog, horse"),
        ((1,), (0, 255), "labels: cat; mask: no object"),
        ((), (0, 3), "labels: no object; mask: horse"),
        ((1, 2), (0, 2), None),
        ((1,), (0, 1, 2), None),
        ((1,), (255, 255), None),
        ((), (0, 255), None),
        (None, (0, 1), None),
    ],
)
def test_a_mask_that_contradicts_the_labels_is_shown(classes, values, reason) -> None:
    mask = _mask(*[[*values] * (48 // len(values))] * 40)
    record = _record("a", classes, encode(pixels(1, 40, 48)), mask)
    odd = [image.reason for image in _survey(train=[record]).odd_images]
    assert odd == ([] if reason is None else [reason])


def test_masks_against_labels_are_judged_over_the_whole_split() -> None:
    swapped = _mask(*[[0] * 24 + [2] * 24] * 40), _mask(*[[0] * 24 + [1] * 24] * 40)
    train = [_record(f"t{k}", (k % 2 + 1,), encode(pixels(k, 40, 48)), swapped[k % 2]) for k in range(8)]
    source = MemorySource(train=train)
    (error,) = survey_dataset(source, ["train"], max_pixels=10**6).findings.errors
    assert "masks contradict the image-level labels in 8 of 8" in error.text
    warned = survey_dataset(source, ["train"], max_pixels=10**6, refuse_masks=False)
    assert not warned.findings.errors
    assert "masks contradict" in _texts(warned, "masks-contradict-labels")[0]


def test_formats_modes_and_orientations_are_counted() -> None:
    deep = Image.fromarray(np.linspace(0, 1000, 40 * 48).reshape(40, 48).astype(np.uint16))
    exif = Image.Exif()
    exif[274] = 8
    turned = encode(Image.fromarray(pixels(1)), "JPEG", exif=exif)
    source = MemorySource(train=[_record("a"), _record("b", image=turned), _record("c", image=encode(deep, "PNG"))])
    survey = survey_dataset(source, ["train"], max_pixels=10**6, pixel_range=(0, 1000))
    (split,) = survey.splits
    assert split.formats == {"JPEG": 2, "PNG": 1}
    assert split.modes == {"RGB": 2, "I;16": 1}
    assert split.orientations == {1: 2, 8: 1}
    picture = survey.inspector.picture(source.splits["train"][2])
    assert picture is not None
    assert picture[0].max() == 255


def test_splits_of_other_sizes_are_warned_of() -> None:
    train = [_sized(f"t{k}", 40, 60) for k in range(3)]
    assert not _texts(_survey(train=train, val=[_sized("v", 60, 90)]), "scale")
    (text,) = _texts(_survey(train=train, val=[_sized("v", 120, 180)]), "scale")
    assert "images of split val are 3 times as large as those of train (median side 147 and 49 pixels)" in text


def test_masks_that_are_mostly_ignored_are_warned_of() -> None:
    void = _mask(*[[255] * 30 + [1] * 10] * 30)
    (text,) = _texts(_survey(train=[_record("a", mask=void)]), "void-masks")
    assert "75 % of the pixels of the masks of split train are 255" in text


def test_a_blank_image_is_named() -> None:
    blank = encode(np.full((40, 50, 3), 90, np.uint8))
    survey = _survey(train=[_record("a"), _record("b", image=blank)])
    (text,) = _texts(survey, "blank-image")
    assert "image b of split train has one color all over" in text


def test_a_copy_in_another_split_is_a_leak() -> None:
    image = pixels(7, 90, 120)
    again = encode(Image.fromarray(image).resize((80, 60)), "PNG")
    survey = _survey(
        train=[_record("a", image=encode(image)), _record("b")],
        val=[_record("same", image=encode(image)), _record("like", image=again)],
    )
    assert "(val/same = train/a)" in _texts(survey, "equal-duplicates-train-val")[0]
    assert "(val/like = train/a)" in _texts(survey, "near-duplicates-train-val")[0]
    assert not _texts(_survey(train=records(20), val=records(20, first=20)), "near")


def test_examples_show_each_class_from_all_over_the_split() -> None:
    survey = _survey(train=[*_many([(1,)] * 9 + [()]), _record("bad", (1,), b"")], val=_many([(2,)], "v"))
    shown = {(example.class_id, example.split): [] for example in survey.examples}
    for example in survey.examples:
        shown[example.class_id, example.split].append(example.record.source_id)
    assert shown == {
        (1, "train"): ["t-000", "t-003", "t-005", "t-008"],
        (2, "val"): ["v-000"],
        (0, "train"): ["t-009"],
    }


def test_examples_come_from_the_training_split_where_it_has_any() -> None:
    source = MemorySource(val=_many([(1,), (2,)], "v"), train=_many([(1,)]))
    survey = survey_dataset(source, ["val", "train"], max_pixels=10**6, train_split="train")
    assert [(example.class_id, example.split) for example in survey.examples] == [(1, "train"), (2, "val")]


def test_pictures_come_with_the_mask_that_fits() -> None:
    survey = _survey(train=records(1))
    inspector = survey.inspector
    good = inspector.picture(_record("a", mask=index_mask(1)))
    assert good is not None
    assert good[0].shape == (30, 40, 3)
    assert good[1] is not None
    other_size = inspector.picture(_record("a", mask=_mask([1, 1])))
    assert other_size is not None
    assert other_size[1] is None
    assert inspector.picture(_record("a", image=b"no")) is None


def test_a_pair_of_images_is_opened_as_one() -> None:
    pair = replace(_record("a"), image_b=Bytes(encode(pixels(5))))
    survey = _survey(train=[pair])
    assert survey.splits[0].num_unusable == 0
    picture = survey.inspector.picture(pair)
    assert picture is not None
    assert picture[0].shape == (30, 40, 3)
