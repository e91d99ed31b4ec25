"""The PASCAL VOC reader on a small copy of its layout."""

from __future__ import annotations

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
    with pytest.raises(SourceError, match=r"Segmentation/test\.txt is missing, found train, trainaug, val"):
        VOCSource(voc).listing("test")
    (voc / "ImageSets" / "Segmentation" / "trainaug.txt").unlink()
    with pytest.raises(SourceError, match="10,582"):
        VOCSource(voc).listing("trainaug")


def test_empty_list_is_refused(voc: Path) -> None:
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(SourceError, match="split 'val' is empty"):
        VOCSource(voc).listing("val")


def test_image_without_annotation_or_object_is_refused_by_name(voc: Path) -> None:
    annotate(voc, "2007_3")
    with pytest.raises(SourceError, match=r"image 2007_3 has no labels: .* lists no object"):
        VOCSource(voc).listing("val")
    (voc / "Annotations" / "2007_3.xml").unlink()
    with pytest.raises(SourceError, match=r"image 2007_3 has no labels: .* is missing"):
        VOCSource(voc).listing("val")


def test_test_split_may_lack_annotations(voc: Path) -> None:
    (voc / "Annotations" / "2007_3.xml").unlink()
    (voc / "SegmentationClass" / "2007_3.png").unlink()
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("2007_3\n")
    (record,) = VOCSource(voc).listing("test").records
    assert record.classes is None
    assert record.mask is None


def test_unknown_class_is_refused_with_the_nearest(voc: Path) -> None:
    annotate(voc, "2007_3", "airplane")
    with pytest.raises(SourceError, match=r"2007_3\.xml: class 'airplane'.* did you mean 'aeroplane'"):
        VOCSource(voc).listing("val")


def test_damaged_annotation_is_refused(voc: Path) -> None:
    (voc / "Annotations" / "2007_3.xml").write_text("<annotation><object>")
    with pytest.raises(SourceError, match=r"2007_3\.xml is not readable as XML"):
        VOCSource(voc).listing("val")


def test_missing_image_or_mask_is_refused(voc: Path) -> None:
    (voc / "SegmentationClass" / "2007_1.png").unlink()
    with pytest.raises(SourceError, match=r"mask .*2007_1\.png is missing \(1 of 2\)"):
        VOCSource(voc).listing("train")
    (voc / "JPEGImages" / "2007_3.jpg").unlink()
    with pytest.raises(SourceError, match=r"2007_3\.jpg is missing but listed in .*val\.txt"):
        VOCSource(voc).listing("val")


@pytest.mark.parametrize("line", ["2007_1 -1", "/JPEGImages/2007_1.jpg /a/b.png c", "x.jpg ../../etc/passwd.png"])
def test_malformed_line_is_refused(voc: Path, line: str) -> None:
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text(f"2007_3\n{line}\n")
    with pytest.raises(SourceError, match=r"val\.txt, line 2: .* is not an image id"):
        VOCSource(voc).listing("val")
