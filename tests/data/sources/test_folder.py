"""The plain folder reader: what it reads, and how it refuses what it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import kit
import pytest

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
    with pytest.raises(SourceError, match=r"split 'train' is empty.*data\.splits"):
        folder_set(images={}).listing("train")


@pytest.mark.parametrize("rows", [[["a.jpg", "train", "cat"]], [["a.jpg", "train", "cat"], ["b.jpg", "train", ""]]])
def test_image_without_labels_is_refused_by_name(folder_set: Make, rows: list[list[str]]) -> None:
    with pytest.raises(SourceError, match=r"b\.jpg has no labels: add the line b\.jpg,train,CLASS;CLASS to .*labels"):
        folder_set(rows).listing("train")


def test_unknown_class_is_refused_with_the_nearest(folder_set: Make) -> None:
    with pytest.raises(SourceError, match=r"labels\.csv, line 2: class 'hors' is not .* did you mean 'horse'\?"):
        folder_set([["a.jpg", "train", "hors"]]).listing("train")


def test_label_of_a_missing_image_is_refused(folder_set: Make) -> None:
    rows = [["a.jpg", "train", "cat"], ["b.jpg", "train", "cat"], ["c.jpg", "train", "dog"]]
    with pytest.raises(SourceError, match=r"lists 'c\.jpg' in split 'train'.*no such file"):
        folder_set(rows).listing("train")


def test_missing_mask_is_refused(folder_set: Make) -> None:
    source = folder_set()
    (source.root / "masks" / "train" / "b.png").unlink()
    with pytest.raises(SourceError, match=r"b\.jpg has no mask .*masks/train/b\.png"):
        source.listing("train")


def test_images_that_differ_by_extension_only_are_refused(folder_set: Make) -> None:
    image = kit.pixels(0)
    source = folder_set(images={"a.jpg": kit.encode(image), "a.png": kit.encode(image, "PNG")})
    with pytest.raises(SourceError, match=r"a\.jpg and a\.png have the same key 'a'"):
        source.listing("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,classes\na.jpg,cat\n", r"no column 'split' \(found: image, classes\)"),
        ("", "no column 'image'"),
        ("image,split,classes\na.jpg\n", "line 2 has fewer than 3 fields"),
        ("image,split,classes\na.jpg,train,cat\na.jpg,train,dog\n", r"line 3: image 'a\.jpg'.*listed twice"),
    ],
)
def test_malformed_label_file_is_refused(folder_set: Make, text: str, message: str) -> None:
    source = folder_set()
    (source.root / "labels.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        source.listing("train")


def test_malformed_class_list_is_refused(folder_set: Make) -> None:
    source = folder_set()
    for text, message in (("", "names 0 classes"), ("cat\ndog\ncat\n", "'cat' more than once")):
        (source.root / "classes.txt").write_text(text)
        with pytest.raises(SourceError, match=message):
            FolderSource(source.root).listing("train")
    (source.root / "classes.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(SourceError, match="not UTF-8"):
        FolderSource(source.root).listing("train")
    (source.root / "classes.txt").unlink()
    with pytest.raises(SourceError, match=r"classes\.txt is missing"):
        FolderSource(source.root).listing("train")


def test_keys_are_safe_short_and_different() -> None:
    names = ["2007_000032", "my photo", "my_photo", "my.photo", "a" * 200, "a" * 201, "__meta__", "été", "é", "è", "-"]
    keys = [make_key(name) for name in names]
    assert keys[0] == "2007_000032"
    assert len(set(keys)) == len(names)
    for key in keys:
        assert 0 < len(key) <= MAX_KEY
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        assert not key.startswith("__")
