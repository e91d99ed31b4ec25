"""The PASCAL VOC reader on a small copy of its layout."""

from __future__ import annotations

import re
from pathlib import Path

import kit
import pytest

from seam_dist.data.sources.base import Source, SourceError
from seam_dist.data.sources.voc import VOCSource

XML = "<annotation><filename>x.jpg</filename>{}</annotation>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult><part><name>head</name></part></object>"


def annotate(root: Path, name: str, *classes: str) -> None:
    body = "".join(OBJECT.format(c, i % 2) for i, c in enumerate(classes))
    (root / "Annotations" / f"{name}.xml").write_text(XML.format(body))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three images: train has 1 and 2, val 3; trainaug lists paths of 1 and 3."""
    root = tmp_path / "VOC2012"
    folders = "JPEGImages Annotations SegmentationClass SegmentationClassAug ImageSets/Segmentation ImageSets/Main"
    for folder in folders.split():
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(("2007_1", "2007_2", "2007_3")):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(kit.encode(kit.pixels(i)))
        (root / "SegmentationClass" / f"{name}.png").write_bytes(kit.index_mask(i))
        (root / "SegmentationClassAug" / f"{name}.png").write_bytes(kit.index_mask(10 + i))
    annotate(root, "2007_1", "person", "aeroplane", "person")
    annotate(root, "2007_2", "tvmonitor")
    annotate(root, "2007_3", "train")
    sets = root / "ImageSets"
    (sets / "Segmentation" / "train.txt").write_text("2007_2\n2007_1\n\n")
    (sets / "Segmentation" / "val.txt").write_text("2007_3\n")
    (sets / "Segmentation" / "trainaug.txt").write_text(
        "/JPEGImages/2007_1.jpg /SegmentationClassAug/2007_1.png\n"
        "JPEGImages/2007_3.jpg SegmentationClassAug/2007_3.png\n"
    )
    (sets / "Main" / "train.txt").write_text("2007_3\n")
    (sets / "Main" / "detection.txt").write_text("2007_3\n2007_2\n")
    return root


def test_labels_are_all_objects_of_the_annotation(voc: Path) -> None:
    source = VOCSource(voc)
    assert isinstance(source, Source)
    assert len(source.classes) == 20
    records = source.listing("train").records
    assert [(r.key, r.classes) for r in records] == [("2007_2", (20,)), ("2007_1", (1, 15))]
    assert records[0].mask is not None
    assert records[0].mask() == kit.index_mask(1)
    assert records[0].image() == kit.encode(kit.pixels(1))


@pytest.mark.parametrize("by_path", [True, False])
def test_trainaug_takes_the_augmented_masks(voc: Path, by_path: bool) -> None:
    if not by_path:
        (voc / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("2007_1\n2007_3\n")
    records = VOCSource(voc).listing("trainaug").records
    assert [r.key for r in records] == ["2007_1", "2007_3"]
    assert [r.mask() for r in records if r.mask] == [kit.index_mask(10), kit.index_mask(12)]


def test_list_of_main_serves_where_segmentation_has_none(voc: Path) -> None:
    (voc / "SegmentationClass" / "2007_3.png").unlink()
    records = VOCSource(voc).listing("detection").records
    assert [(r.key, r.mask) for r in records] == [("2007_3", None), ("2007_2", None)]


def test_root_above_the_images_is_refused_with_the_right_one(voc: Path) -> None:
    with pytest.raises(SourceError, match=rf"set source\.root to {voc}"):
        VOCSource(voc.parent).listing("train")


def test_missing_list_is_refused_with_those_there_are(voc: Path) -> None:
    with pytest.raises(SourceError, match=r"Segmentation/test\.txt is missing, found detection, train, trainaug, val"):
        VOCSource(voc).listing("test")
    (voc / "ImageSets" / "Segmentation" / "trainaug.txt").unlink()
    with pytest.raises(SourceError, match="10,582"):
        VOCSource(voc).listing("trainaug")


def test_empty_list_is_an_error(voc: Path) -> None:
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    assert "split 'val' is empty" in kit.listing_errors(VOCSource(voc), "val")[0]


def test_image_without_an_object_is_legal(voc: Path) -> None:
    annotate(voc, "2007_3")
    listing = VOCSource(voc).listing("val")
    assert [record.classes for record in listing.records] == [()]
    assert not list(listing.findings)


def test_missing_annotations_are_counted(voc: Path) -> None:
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_1\n2007_2\n2007_3\n")
    for name in ("2007_1", "2007_3"):
        (voc / "Annotations" / f"{name}.xml").unlink()
    (error,) = kit.listing_errors(VOCSource(voc), "val")
    assert re.search(r"image 2007_1\.jpg has no labels: .*2007_1\.xml is missing.*\(2 such cases\)", error)


def test_split_without_annotations_is_unlabelled_with_a_warning_unless_it_is_for_testing(voc: Path) -> None:
    (voc / "Annotations" / "2007_3.xml").unlink()
    (voc / "SegmentationClass" / "2007_3.png").unlink()
    (record,) = VOCSource(voc).listing("val").records
    assert (record.classes, record.mask, record.files) == (None, None, (voc / "JPEGImages" / "2007_3.jpg",))
    (warning,) = kit.listing_warnings(VOCSource(voc), "val")
    assert re.search(r"no image of .*val\.txt has an annotation .*its 1 images count as unlabelled", warning)
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("2007_3\n")
    listing = VOCSource(voc).listing("test")
    assert [record.classes for record in listing.records] == [None]
    assert not list(listing.findings)


def test_missing_image_or_mask_is_an_error(voc: Path) -> None:
    (voc / "SegmentationClass" / "2007_1.png").unlink()
    (error,) = kit.listing_errors(VOCSource(voc), "train")
    assert re.search(r"mask .*2007_1\.png is missing \(1 of 2\)", error)
    (voc / "JPEGImages" / "2007_3.jpg").unlink()
    (error,) = kit.listing_errors(VOCSource(voc), "val")
    assert re.search(r"2007_3 is missing in JPEGImages but listed in .*val\.txt, line 1", error)


def test_records_name_the_files_that_they_read(voc: Path) -> None:
    (record,) = VOCSource(voc).listing("val").records
    assert record.files == (voc / "JPEGImages" / "2007_3.jpg", voc / "SegmentationClass" / "2007_3.png")


def test_all_faults_come_at_once(voc: Path) -> None:
    annotate(voc, "2007_2", "airplane")
    (voc / "Annotations" / "2007_1.xml").unlink()
    (voc / "SegmentationClass" / "2007_1.png").unlink()
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_1\n2007_2\n2007_1\n2007_9\n2007_2 1\n")
    topics = [finding.topic for finding in VOCSource(voc).listing("train").findings.errors]
    assert topics == [
        *("listed-twice", "image-missing", "list-of-class", "mask-missing", "annotation-missing", "unknown-class")
    ]
