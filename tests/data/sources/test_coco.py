"""The COCO reader: lists, labels, masks by both conventions, and ready-made masks."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco

from seam_dist.config.schema import SourceConfig
from seam_dist.data.images import BadImageError
from seam_dist.data.sources import open_source
from seam_dist.data.sources.base import SourceError
from seam_dist.data.sources.coco_masks import draw_mask, pack_annotation

CATEGORIES = {1: "person", 13: "stop sign", 90: "toothbrush"}
IDS = {1: 1, 13: 2, 90: 3}
SIZE = (24, 32)
Make = Callable[..., Any]


def box(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def annotation(image: int, category: int, outline: Any, **values: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": outline, "area": 1.0, "iscrowd": 0} | values


@pytest.fixture
def coco(tmp_path: Path) -> Make:
    """Writes a data set of three images, the last without an annotation, and returns its reader."""

    def make(
        annotations: list[dict[str, Any]] | None = None, change: dict[str, Any] | None = None, **settings: Any
    ) -> Any:
        folder = tmp_path / "train2014"
        folder.mkdir(exist_ok=True)
        images = []
        for number in (9, 42, 57870):
            name = f"COCO_train2014_{number:012d}.jpg"
            (folder / name).write_bytes(kit.encode(np.full((*SIZE, 3), number % 256, np.uint8)))
            images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        if annotations is None:
            annotations = [
                annotation(9, 90, box(2, 3, 5, 4)),
                annotation(42, 13, box(0, 0, 8, 8)),
                annotation(42, 1, box(4, 4, 8, 8)),
            ]
        value = {
            "images": images[::-1],
            "annotations": annotations,
            "categories": [{"id": id_, "name": name} for id_, name in CATEGORIES.items()],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / "instances_train2014.json").write_text(json.dumps(value | (change or {})))
        return open_source(SourceConfig(kind="coco", root=tmp_path, **settings), ["train2014"])

    return make


def mask_of(record: Any) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(record.mask())))


def test_labels_are_all_annotated_categories_by_ascending_id(coco: Make) -> None:
    source = coco()
    assert source.classes == tuple(CATEGORIES.values())
    first, second = source.listing("train2014").records
    assert (first.source_id, first.classes) == ("COCO_train2014_000000000009", (3,))
    assert (second.source_id, second.classes) == ("COCO_train2014_000000000042", (1, 2))
    assert first.key == "COCO_train2014_000000000009"
    assert first.image().startswith(b"\xff\xd8")


def test_crowd_counts_as_a_label_and_a_polygon_without_pixels_as_well(coco: Make) -> None:
    crowd = annotation(9, 1, {"counts": [24 * 32], "size": list(SIZE)}, iscrowd=1)
    speck = annotation(9, 13, [[3.0, 3.0, 3.1, 3.0, 3.1, 3.1]])
    (record,) = coco([crowd, speck]).listing("train2014").records
    assert record.classes == (1, 2)
    assert not mask_of(record).any()


@pytest.mark.parametrize("spelling", ["COCO_train2014_{:012d}", "{:012d}", "{}", "{:012d}.jpg", "a/{:012d}.jpg"])
def test_a_list_may_name_images_in_any_spelling(coco: Make, tmp_path: Path, spelling: str) -> None:
    (tmp_path / "val.txt").write_text("\n".join(spelling.format(number) for number in (57870, 9)) + "\n\n")
    records = coco(image_list=str(tmp_path / "val.txt")).listing("train2014").records
    assert [record.source_id[-5:] for record in records] == ["00009", "57870"]
    assert [record.classes for record in records] == [(3,), ()]


def test_all_images_or_annotated_ones(coco: Make) -> None:
    assert [r.classes for r in coco(image_list="all").listing("train2014").records] == [(3,), (1, 2), ()]
    assert len(coco(image_list="annotated").listing("train2014").records) == 2


def random_outline(rng: np.random.Generator) -> Any:
    """Return a polygon of several parts, uncompressed or compressed run lengths."""
    choice = rng.integers(4)
    if choice < 2:
        parts = rng.integers(1, 3)
        decimals = 2 if choice == 0 else 5
        return [np.round(rng.uniform(-3, 34, 2 * rng.integers(3, 8)), decimals).tolist() for _ in range(parts)]
    region = np.asfortranarray((rng.random(SIZE) < 0.4).astype(np.uint8))
    rle = pycoco.encode(region)
    if choice == 2:
        return {"size": list(SIZE), "counts": rle["counts"].decode()}
    runs = [(value, len(list(run))) for value, run in groupby(region.reshape(-1, order="F").tolist())]
    counts = [length for _, length in runs]
    if runs[0][0] == 1:
        counts.insert(0, 0)  # run lengths begin with those of the background
    return {"size": list(SIZE), "counts": counts}


def region_of(outline: Any) -> np.ndarray:
    if isinstance(outline, list):
        return pycoco.decode(pycoco.merge(pycoco.frPyObjects(outline, *SIZE))).astype(bool)
    if isinstance(outline["counts"], list):
        outline = pycoco.frPyObjects(outline, *SIZE)
    return pycoco.decode(outline).astype(bool)


def slow_mask(entries: list[dict[str, Any]], overlap: str, crowd: str) -> np.ndarray:
    """Decide pixel by pixel who owns it, from the words of the convention."""
    regions = [region_of(entry["segmentation"]) for entry in entries]
    order = list(range(len(entries)))
    if overlap == "area":
        order.sort(key=lambda i: (entries[i]["area"], i))
    mask = np.zeros(SIZE, np.uint8)
    for y, x in np.ndindex(*SIZE):
        owners = [i for i in order if regions[i][y, x] and not (entries[i]["iscrowd"] and crowd == "background")]
        if owners:
            owner = owners[0] if overlap == "area" else owners[-1]
            ignored = entries[owner]["iscrowd"] and crowd == "ignore"
            mask[y, x] = 255 if ignored else IDS[entries[owner]["category_id"]]
    return mask


@pytest.mark.parametrize("overlap", ["area", "order"])
@pytest.mark.parametrize("crowd", ["class", "background", "ignore"])
def test_masks_equal_a_slow_drawing_bit_for_bit(overlap: Any, crowd: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(170):
        entries = [
            annotation(
                9,
                int(rng.choice(list(IDS))),
                random_outline(rng),
                area=float(rng.integers(1, 4)),  # equal areas are common
                iscrowd=int(rng.random() < 0.3),
            )
            for _ in range(rng.integers(0, 5))
        ]
        data = draw_mask([pack_annotation(entry, SIZE) for entry in entries], SIZE, IDS, overlap, crowd)
        drawn = np.array(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(drawn, slow_mask(entries, overlap, crowd))


def test_a_moved_polygon_or_another_convention_changes_the_record(coco: Make) -> None:
    settings: list[dict[str, Any]] = [{}, {"overlap": "order"}, {"crowd": "ignore"}]
    contents = {coco(**values).listing("train2014").records[0].content for values in settings}
    contents.add(coco([annotation(9, 90, box(2, 3, 5, 5))]).listing("train2014").records[0].content)
    assert len(contents) == 4


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("name", ["{}.png", "{:012d}.png", "COCO_train2014_{:012d}.png"])
def test_ready_made_masks_of_both_numberings_give_class_indices(
    coco: Make, tmp_path: Path, raw: bool, name: str
) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for number, category in ((9, 90), (42, 13)):
        mask = np.zeros(SIZE, np.uint8)
        mask[:4], mask[4] = category if raw else IDS[category], 255
        Image.fromarray(mask).save(folder / name.format(number))
    records = coco(masks=folder).listing("train2014").records
    assert [np.unique(mask_of(record)).tolist() for record in records] == [[0, 3, 255], [0, 2, 255]]
    assert records[0].files[1] == folder / name.format(9)


def test_ready_made_masks_of_other_images_are_refused(coco: Make, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    source = coco([annotation(9, 1, box(1, 1, 4, 4))], masks=folder)
    for number in (9, 42, 57870):
        Image.fromarray(np.full(SIZE, 77, np.uint8)).save(folder / f"{number}.png")
    with pytest.raises(SourceError, match=r"fit the image labels neither .*\(in 0 of 1 masks\).*unset source\.masks"):
        source.listing("train2014")


def test_an_unused_id_in_a_ready_made_mask_is_refused_by_value(coco: Make, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for number, values in ((9, (90, 12)), (42, (13, 1))):
        Image.fromarray(np.tile(np.array(values, np.uint8), (24, 16))).save(tmp_path / "masks" / f"{number}.png")
    first, second = coco(masks=tmp_path / "masks").listing("train2014").records
    assert np.unique(mask_of(second)).tolist() == [1, 2]
    with pytest.raises(BadImageError, match="holds the value 12, which is no category id"):
        first.mask()


@pytest.mark.parametrize(
    ("annotations", "text"),
    [
        ([annotation(7, 1, box(1, 1, 4, 4))], r"annotations\[0\] belongs to image 7, which is not listed"),
        ([annotation(9, 2, box(1, 1, 4, 4))], r"annotations\[0\] belongs to category 2, which is not listed"),
        ([annotation(9, 1, [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]])], r"annotations\[0\] cannot be used .*polygon"),
        ([annotation(9, 1, {"counts": [5, 6], "size": list(SIZE)})], r"run lengths add up to 11, expected 24 x 32"),
        ([annotation(9, 1, {"counts": "ab", "size": [2, 2]})], r"run lengths are for \(2, 2\) pixels, its image has"),
        ([{"image_id": 9}], r"annotations\[0\] cannot be used \(it has no category_id\): correct"),
    ],
)
def test_a_wrong_annotation_is_named(coco: Make, annotations: list[dict[str, Any]], text: str) -> None:
    good = annotation(42, 1, box(1, 1, 4, 4))
    errors = [str(finding) for finding in coco([*annotations, good]).listing("train2014").findings.errors]
    assert len(errors) == 1
    assert re.search(text, errors[0]), errors[0]


def test_files_that_are_no_instances_are_refused(coco: Make, tmp_path: Path) -> None:
    path = tmp_path / "annotations" / "instances_train2014.json"
    with pytest.raises(SourceError, match=r"lists no categories, so it is no instances file"):
        coco(change={"categories": []}).listing("train2014")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(SourceError, match=r"instances_train2014\.json is damaged or no JSON"):
        open_source(SourceConfig(kind="coco", root=tmp_path), ["train2014"]).listing("train2014")
    with pytest.raises(SourceError, match=r"instances_val2014\.json is missing, found train2014"):
        open_source(SourceConfig(kind="coco", root=tmp_path), ["val2014"]).listing("val2014")
    with pytest.raises(SourceError, match=r"mix COCO 2014 and 2017, whose images overlap"):
        open_source(SourceConfig(kind="coco", root=tmp_path), ["train2017", "val2014"]).listing("val2014")


def test_a_missing_image_is_an_error_with_its_name(coco: Make, tmp_path: Path) -> None:
    source = coco()
    (tmp_path / "train2014" / "COCO_train2014_000000000042.jpg").unlink()
    listing = source.listing("train2014")
    assert [record.source_id[-1] for record in listing.records] == ["9"]
    assert "000000000042.jpg is missing but listed" in str(listing.findings.errors[0])
