"""The plain folder reader: what it reads, and how it refuses what it cannot."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import kit
import pytest

from seam_dist.config.findings import Findings
from seam_dist.config.schema import SourceConfig
from seam_dist.data.sources import open_source
from seam_dist.data.sources.base import MAX_KEY, Source, SourceError, make_key
from seam_dist.data.sources.folder import FolderSource

Make = Callable[..., FolderSource]


def test_records_come_by_name_with_labels_masks_and_original_bytes(folder_set: Make) -> None:
    source = folder_set([["b.jpg", "train", "horse; cat;horse"], ["a.jpg", "train", "dog"]])
    assert isinstance(source, Source)
    assert source.classes == ("cat", "dog", "horse")
    first, second = source.listing("train").records
    assert (first.key, first.source_id, first.classes) == ("a", "a.jpg", (2,))
    assert (second.key, second.source_id, second.classes) == ("b", "b.jpg", (1, 3))
    assert first.image() == kit.encode(kit.pixels(0))
    assert first.mask is not None
    assert first.mask() == kit.index_mask(0)


def test_split_without_mask_folder_has_no_masks(folder_set: Make) -> None:
    source = folder_set()
    for path in (source.root / "masks" / "train").iterdir():
        path.unlink()
    (source.root / "masks" / "train").rmdir()
    assert [record.mask for record in source.listing("train").records] == [None, None]


def test_missing_root_is_refused_with_the_name_beside_it(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(SourceError, match=r"photo is not a folder \(there is 'photos' beside it\).*source\.root"):
        FolderSource(tmp_path / "photo").listing("train")
    with pytest.raises(SourceError, match=r"source\.root is not set"):
        open_source(SourceConfig(kind="folder"), ["train"])


def test_missing_split_folder_is_refused(folder_set: Make) -> None:
    with pytest.raises(SourceError, match=r"images/trian is not a folder \(there is 'train' beside it\)"):
        folder_set().listing("trian")


def test_empty_split_is_refused(folder_set: Make) -> None:
    source = folder_set(images={})
    assert source.listing("train").records == []
    (error,) = kit.listing_errors(source, "train")
    assert re.search(r"split 'train' is empty.*data\.splits", error)


def test_image_without_a_row_is_an_error_by_name(folder_set: Make) -> None:
    source = folder_set([["a.jpg", "train", "cat"]])
    (error,) = kit.listing_errors(source, "train")
    assert re.search(r"b\.jpg has no labels: add the line b\.jpg,train,CLASS;CLASS to .*labels", error)
    assert [record.key for record in source.listing("train").records] == ["a"]


def test_image_of_another_split_is_said_where_it_is(folder_set: Make) -> None:
    (error,) = kit.listing_errors(folder_set([["a.jpg", "train", "cat"], ["b.jpg", "val", "cat"]]), "train")
    assert re.search(r"b\.jpg has no labels \(line 3 lists it in split 'val'\)", error)


def test_image_with_an_empty_row_shows_no_object(folder_set: Make) -> None:
    listing = folder_set([["a.jpg", "train", "cat"], ["b.jpg", "train", ""]]).listing("train")
    assert [record.classes for record in listing.records] == [(1,), ()]
    assert not list(listing.findings)


def test_split_without_any_row_is_unlabelled_with_a_warning(folder_set: Make) -> None:
    source = folder_set([["a.jpg", "val", "cat"]])
    (source.root / "images" / "val").mkdir()
    listing = source.listing("train")
    assert [record.classes for record in listing.records] == [None, None]
    (warning,) = listing.findings.warnings
    assert warning.topic == "unlabelled-split"
    assert "labels.csv has no line of split 'train': its 2 images count as unlabelled" in warning.text
    for part in ("images", "masks"):
        (source.root / part / "train").rename(source.root / part / "test-b")
    assert not list(FolderSource(source.root).listing("test-b").findings)


def test_split_whose_rows_name_no_folder_is_not_taken_for_an_unlabelled_one(folder_set: Make) -> None:
    (error,) = kit.listing_errors(folder_set([["a.jpg", "trian", "cat"], ["b.jpg", "trian", "cat"]]), "train")
    assert re.search(
        r"line 2: split 'trian' has no folder.*'train' has the image 'a\.jpg' and no line.*\(2 such", error
    )


def test_records_name_the_files_that_they_read(folder_set: Make) -> None:
    source = folder_set()
    first = source.listing("train").records[0]
    assert first.files == (source.root / "images/train/a.jpg", source.root / "masks/train/a.png")


def test_all_faults_come_at_once(folder_set: Make) -> None:
    source = folder_set([["a.jpg", "train", "hors"], ["c.jpg", "train", "cat"], ["d.jpg", "train", "cat", "dog"]])
    (source.root / "masks" / "train" / "b.png").unlink()
    topics = [finding.topic for finding in source.listing("train").findings.errors]
    assert topics == [
        *("labels-extra-field", "unknown-class", "label-without-image", "image-without-labels", "mask-missing")
    ]


def test_faults_of_the_table_are_counted_once_for_several_splits(folder_set: Make) -> None:
    source = folder_set([["a.jpg", "train", "cat", "dog"], ["b.jpg", "train", "cat"]])
    findings = Findings()
    for _ in range(2):
        findings.merge(source.listing("train").findings)
    (error,) = findings.errors
    assert error.count == 1


def test_missing_mask_is_an_error(folder_set: Make) -> None:
    source = folder_set()
    (source.root / "masks" / "train" / "b.png").unlink()
    (error,) = kit.listing_errors(source, "train")
    assert re.search(r"b\.jpg has no mask .*masks/train/b\.png", error)


def test_images_that_differ_by_extension_only_are_refused(folder_set: Make) -> None:
    image = kit.pixels(0)
    source = folder_set(images={"a.jpg": kit.encode(image), "a.png": kit.encode(image, "PNG")})
    (error,) = kit.listing_errors(source, "train")
    assert "a.jpg and a.png have the same key 'a'" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,classes\na.jpg,cat\n", r"no column 'split' \(found: image, classes\)"),
        ("", "no column 'image'"),
        ("a.jpg,train,cat\n", r"no column 'image' .*add the line image,split,classes before it"),
        ("image,split,classes,classes\n", "column 'classes' is there twice"),
    ],
)
def test_table_without_its_columns_is_refused(folder_set: Make, text: str, message: str) -> None:
    source = folder_set()
    (source.root / "labels.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        source.listing("train")


def test_malformed_class_list_is_refused(folder_set: Make) -> None:
    source = folder_set()
    for text, message in (("", "names 0 classes"), ("cat\ndog\ncat\n", "line 3: 'cat' is named more than once")):
        (source.root / "classes.txt").write_text(text)
        assert any(message in error for error in kit.listing_errors(FolderSource(source.root), "train"))
        with pytest.raises(SourceError, match=message):
            _ = FolderSource(source.root).classes
    (source.root / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(SourceError, match=r"classes\.txt, line 1: byte 0xe9 is no UTF-8 .*cp1252"):
        FolderSource(source.root).listing("train")
    (source.root / "classes.txt").rename(source.root / "Classes.txt")
    with pytest.raises(SourceError, match=r"classes\.txt is missing \(there is 'Classes\.txt' beside it\)"):
        FolderSource(source.root).listing("train")


def test_thousands_of_rows_that_fit_nothing_stay_fast(folder_set: Make) -> None:
    rows = [[f"image {index}.jpg", "train", f"class {index}"] for index in range(20_000)]
    source = folder_set([["a.jpg", "train", "cat"], *rows])
    with mock.patch("difflib.get_close_matches", wraps=difflib.get_close_matches) as compared:
        source.listing("train")
    assert compared.call_count <= 2


def test_keys_are_safe_short_and_different() -> None:
    names = ["2007_000032", "my photo", "my_photo", "my.photo", "a" * 200, "a" * 201, "__meta__", "été", "é", "è", "-"]
    keys = [make_key(name) for name in names]
    assert keys[0] == "2007_000032"
    assert len(set(keys)) == len(names)
    for key in keys:
        assert 0 < len(key) <= MAX_KEY
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        assert not key.startswith("__")
