"""COCO's layout as other tools export it: ids, sizes, names, categories and outlines that are not like COCO's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import kit
import numpy as np
from case import Case, Outcome

from seam_dist.config.schema import SourceConfig
from seam_dist.data.masks import decode_mask
from seam_dist.data.sources import SourceError
from seam_dist.data.sources.coco import CocoSource

coco = partial(Case, "COCO")
Change = Callable[[dict[str, Any], Path], Any]
BOX = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]]
INNER = [[3.0, 3.0, 5.0, 3.0, 5.0, 5.0, 3.0, 5.0]]
LABELS = {"a": ((1,), [0, 1]), "b": ((2,), [0, 2])}
NO_MASKS = {"a": ((1,), None), "b": ((2,), None)}


def _annotation(image: int, category: int, **more: Any) -> dict[str, Any]:
    return {"id": image, "image_id": image, "category_id": category, "area": 64, "segmentation": BOX, **more}


def read(change: Change, *, encoding: str = "utf-8", **options: Any) -> Callable[[Path], Outcome]:
    """Read two images, one of a cat and one of a dog, whose files `change` has spoiled.

    The outcome is the labels of each image and the values of its mask.
    """

    def run(root: Path) -> Outcome:
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 12, "width": 16}],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
            "annotations": [_annotation(1, 3), _annotation(2, 7)],
        }
        content["images"].append({**content["images"][0], "id": 2, "file_name": "b.jpg"})
        (root / "train").mkdir()
        (root / "annotations").mkdir()
        for seed, name in enumerate(("a.jpg", "b.jpg")):
            (root / "train" / name).write_bytes(kit.encode(kit.pixels(seed, 12, 16)))
        change(content, root)
        (root / "annotations/instances_train.json").write_bytes(json.dumps(content).encode(encoding))
        listing = CocoSource(SourceConfig(kind="coco", root=root, **options), ["train"]).listing("train")
        listing.findings.raise_errors(SourceError)

        def values(load: Callable[[], bytes] | None) -> list[int] | None:
            return None if load is None else np.unique(decode_mask(load(), max_pixels=10**6)).tolist()

        value = {record.source_id: (record.classes, values(record.mask)) for record in listing.records}
        return Outcome(value, [str(finding) for finding in listing.findings.warnings])

    return run


def put(section: str, without: str = "", **values: Any) -> Change:
    """Set values in all entries of a section, and remove one."""

    def change(content: dict[str, Any], root: Path) -> None:
        for entry in content[section]:
            entry.update(values)
            entry.pop(without, None)

    return change


def first(section: str, **values: Any) -> Change:
    """Set values in the first entry of a section."""
    return lambda content, root: content[section][0].update(values)


def names(pattern: str) -> Change:
    """Write the name of each image by a pattern."""

    def change(content: dict[str, Any], root: Path) -> None:
        for entry in content["images"]:
            entry["file_name"] = pattern.format(entry["file_name"], entry["file_name"][0])

    return change


def ids(convert: Callable[[int], Any]) -> Change:
    """Write the ids of images and categories in another form."""

    def change(content: dict[str, Any], root: Path) -> None:
        for entry in content["images"]:
            entry["id"] = convert(entry["id"])
        for entry in content["annotations"]:
            entry.update(image_id=convert(entry["image_id"]))

    return change


def categories(*entries: Mapping[str, Any] | str) -> Change:
    return lambda content, root: content.update(categories=list(entries))


def zero_category(content: dict[str, Any], root: Path) -> None:
    content["categories"] = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    for entry in content["annotations"]:
        entry["category_id"] = int(entry["category_id"] == 7)


def nested(content: dict[str, Any], root: Path) -> None:
    (root / "train/sub").mkdir()
    (root / "train/a.jpg").rename(root / "train/sub/a.jpg")


def box_in_a_box(content: dict[str, Any], root: Path) -> None:
    """Two annotations without an area, the smaller one first behind and then before the larger one."""
    content["annotations"] = [
        _annotation(1, 3),
        _annotation(1, 7, segmentation=INNER),
        _annotation(2, 7, segmentation=INNER),
        _annotation(2, 3),
    ]
    for entry in content["annotations"]:
        del entry["area"]


CASES = [
    coco("folders before the names", read(names("images/train/{}")), works=LABELS),
    coco("folders of Windows before the names", read(names("images\\train\\{}")), works=LABELS),
    coco("names in capitals", read(lambda c, r: c["images"][0].update(file_name="A.JPG")), works=LABELS),
    coco("names without a suffix", read(names("{1}")), works=LABELS),
    coco("names with a query", read(names("http://host/{}?v=1")), refused=r"a\.jpg\?v=1 is missing but listed"),
    coco("images in a folder below", read(nested), refused=r"but \S+train/sub/a\.jpg is there: move the images"),
    coco("no name", read(first("images", file_name=None)), refused=r"images\[0\].*file_name=None is no name"),
    coco("ids in quotes", read(ids(str)), works=LABELS),
    coco("ids that are floats", read(ids(float)), works=LABELS),
    coco("ids that are words", read(ids("im{}".format)), refused=r"images\[0\].* cannot be used \(.*'im1'"),
    coco("sizes that are floats", read(put("images", height=12.0, width=16.0)), works=LABELS),
    coco("sizes with fractions", read(put("images", height=12.5)), refused=r"height=12\.5 is no whole number"),
    coco("sizes of 0", read(put("images", height=0, width=0)), refused=r"it has 0 x 0 pixels"),
    coco("no sizes", read(put("images", "height")), refused=r"images\[0\].*\(it has no height\)"),
    coco("category 0", read(zero_category), works=LABELS),
    coco(
        "a background category",
        read(lambda c, r: c["categories"].insert(0, {"id": 0, "name": "_background_"})),
        refused=r"category 0: '_background_' is no class",
    ),
    coco(
        "two categories of one name",
        read(put("categories", name="cat")),
        refused=r"category 7: 'cat' is named more than once, first in category 3",
    ),
    coco("two categories of one id", read(put("categories", id=3)), refused=r"category id 3 is given twice"),
    coco("a category without a name", read(first("categories", name=" ")), refused=r"name=' ' is no name"),
    coco("a category that is a name", read(categories("cat")), refused=r"categories\[0\]='cat' cannot be used"),
    coco("a category that is true", read(first("categories", id=True)), refused=r"id=True is no whole number"),
    coco(
        "too many categories",
        read(lambda c, r: c["categories"].extend({"id": 100 + i, "name": f"c{i}"} for i in range(300))),
        refused=r"names 302 classes, expected 1 to 254",
    ),
    coco("no area, no crowd flag", read(put("annotations", "area")), works=LABELS),
    coco("null for area and crowd", read(put("annotations", area=None, iscrowd=None)), works=LABELS),
    coco(
        "no area where objects overlap",
        read(box_in_a_box),
        works={"a": ((1, 2), [0, 1, 2]), "b": ((1, 2), [0, 1, 2])},
    ),
    coco("a crowd flag in quotes", read(put("annotations", iscrowd="0"), crowd="background"), works=LABELS),
    coco(
        "boxes alone",
        read(put("annotations", "segmentation")),
        works=NO_MASKS,
        warns="none of its 2 .*outline",
    ),
    coco(
        "empty outlines",
        read(put("annotations", segmentation=[])),
        works=NO_MASKS,
        warns="image-level labels alone",
    ),
    coco(
        "keypoints",
        read(put("annotations", "segmentation", keypoints=[1, 1, 2], num_keypoints=1)),
        works=NO_MASKS,
        warns="none of its 2 annotations has an outline",
    ),
    coco(
        "a box among outlines",
        read(first("annotations", segmentation=[])),
        works={**LABELS, "a": ((1,), [0])},
        warns=r"annotations\[0\] has no outline .* background in the mask",
    ),
    coco("a flat outline", read(put("annotations", segmentation=BOX[0])), refused=r"is not a list of polygons"),
    coco(
        "an outline of points",
        read(put("annotations", segmentation=[[[1, 1], [9, 1], [9, 9]]])),
        refused=r"not a list of polygons, each a list of x, y",
    ),
    coco(
        "an outline that is text",
        read(put("annotations", segmentation="[]x")),
        refused=r"not a list of polygons",
    ),
    coco(
        "run lengths of the swapped size",
        read(put("annotations", segmentation={"size": [16, 12], "counts": [0, 192]})),
        refused=r"run lengths are for \(16, 12\) pixels, its image has \(12, 16\)",
    ),
    coco(
        "run lengths without a size",
        read(put("annotations", segmentation={"counts": [192]})),
        refused="has no size",
    ),
    coco(
        "no annotations",
        read(lambda c, r: c.pop("annotations")),
        refused=r"none of the 2 images .* has an annotation",
    ),
    coco(
        "an annotation of no image",
        read(first("annotations", image_id=99)),
        refused=r"image 99, which is not listed",
    ),
    coco(
        "an entry that is null",
        read(lambda c, r: c["images"].append(None)),
        refused=r"images\[2\]=None cannot be used",
    ),
    coco("captions", read(lambda c, r: c.pop("categories")), refused=r"lists no categories"),
    coco("a byte order mark", read(put("images"), encoding="utf-8-sig"), works=LABELS),
    coco("UTF-16", read(put("images"), encoding="utf-16"), refused=r"instances_train\.json is UTF-16"),
]
