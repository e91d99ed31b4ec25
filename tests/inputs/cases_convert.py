"""Inputs of the conversion: splits, masks against labels, images without objects, and source files that changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
import numpy as np
from case import Case, Outcome

from seam_dist.data.conversion_plan import plan_conversion
from seam_dist.data.convert import write_shards
from seam_dist.data.mask_labels import MaskRow
from seam_dist.data.sources.base import Record, SourceError
from seam_dist.stages.shard import without_empty_images

CLASSES = ("cat", "dog", "horse")
IMAGE = kit.encode(kit.pixels(0, 4, 4), "PNG")
Pixels = dict[int, int]
Rows = Sequence[tuple[tuple[int, ...] | None, Pixels | None]]


def checked(*rows: Rows) -> Callable[[Path], Outcome]:
    """Check masks against labels; refused where conversion refuses."""

    def run(folder: Path) -> Outcome:
        named = [
            MaskRow(f"{i}.jpg", classes, pixels)
            for i, (classes, pixels) in enumerate(row for part in rows for row in part)
        ]
        findings = kit.check_masks(CLASSES, named)
        findings.raise_errors(SourceError)
        return Outcome(len(named), [str(finding) for finding in findings.warnings])

    return run


def held(*values: int) -> Pixels:
    return {0: 100, **dict.fromkeys(values, 50)}


GOOD: Rows = [((i % 3 + 1,), held(i % 3 + 1)) for i in range(9)]


def records(folder: Path, count: int = 3, **fields: Any) -> list[Record]:
    """Records of files in a folder, with masks that fit."""
    made = []
    for i in range(count):
        image, mask = folder / f"{i}.png", folder / f"mask{i}.png"
        image.write_bytes(IMAGE)
        values = np.pad(np.full((2, 2), i % 3 + 1, np.uint8), 1)
        mask.write_bytes(kit.encode(values, "PNG", compress_level=0))
        for path in (image, mask):
            os.utime(path, (10**9, 10**9))
        record = Record(f"k{i}", f"{i}.png", (i % 3 + 1,), image.read_bytes, mask.read_bytes, files=(image, mask))
        made.append(replace(record, **fields))
    return made


def converted(change: Callable[[Path, list[Record]], Any], *, count: int = 3, split: str = "train") -> Any:
    """Convert records after `change`; the value is the number of samples."""

    def run(folder: Path) -> Outcome:
        made = records(folder, count)
        made = change(folder, made) or made
        plan = plan_conversion(
            CLASSES, {split: made}, folder / "shards", settings={}, samples_per_shard=1, streams=1, max_pixels=100
        )
        manifest, findings = write_shards(plan, check_masks="refuse")
        return Outcome(manifest.split(split).num_samples, [str(finding) for finding in findings.warnings])

    return run


def reconverted(change: Callable[[Path, list[Record]], Any]) -> Callable[[Path], Outcome]:
    """Convert, then `change`, then plan again: what changed, and how many of three shards are written."""

    def run(folder: Path) -> Outcome:
        options: dict[str, Any] = {"settings": {}, "samples_per_shard": 1, "streams": 1, "max_pixels": 100}
        made = records(folder)
        write_shards(plan_conversion(CLASSES, {"train": made}, folder / "shards", **options), check_masks="refuse")
        made = change(folder, made) or made
        (part,) = plan_conversion(CLASSES, {"train": made}, folder / "shards", **options).splits
        return Outcome((part.describe_changes(), part.num_to_write))

    return run


def without_mask(folder: Path, made: list[Record]) -> list[Record]:
    return [replace(made[0], mask=None), *made[1:]]


def relabeled(index: int, classes: tuple[int, ...] | None) -> Callable[[Path, list[Record]], list[Record]]:
    def change(folder: Path, made: list[Record]) -> list[Record]:
        return [*made[:index], replace(made[index], classes=classes), *made[index + 1 :]]

    return change


def written(name: str, data: bytes) -> Callable[[Path, list[Record]], None]:
    def change(folder: Path, made: list[Record]) -> None:
        (folder / name).write_bytes(data)

    return change


def flipped_mask(folder: Path, made: list[Record]) -> None:
    """Another mask in as many bytes."""
    path = folder / "mask0.png"
    size = path.stat().st_size
    path.write_bytes(kit.encode(np.pad(np.full((2, 2), 3, np.uint8), 1), "PNG", compress_level=0))
    assert path.stat().st_size == size


def resized_in_its_old_time(folder: Path, made: list[Record]) -> None:
    (folder / "2.png").write_bytes(IMAGE + b"\0")
    os.utime(folder / "2.png", (10**9, 10**9))


def touched(folder: Path, made: list[Record]) -> None:
    for path in folder.glob("*.png"):
        os.utime(path)


def users_tar(folder: Path, made: list[Record]) -> None:
    (folder / "shards").mkdir()
    (folder / "shards" / "train-00001.tar").write_bytes(b"mine")


def dropped(*labels: tuple[int, ...]) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        made = [Record(f"k{i}", f"{i}", classes, kit.Bytes(IMAGE)) for i, classes in enumerate(labels)]
        return Outcome([record.source_id for record in without_empty_images(made, "train")])

    return run


def mask_case(fault: str, *rows: Rows, **outcome: Any) -> Case:
    return Case(reader="masks against labels", fault=fault, run=checked(*rows), **outcome)


CASES = [
    mask_case("all agree", GOOD, works=9),
    mask_case("images without objects agree", GOOD, [((), held())] * 3, works=12),
    mask_case("masks wholly ignored say nothing", GOOD, [((1,), {255: 9})] * 20, works=29),
    mask_case("no masks at all", [((1,), None)] * 3, works=3),
    mask_case("0 and 255 for one class", [((1,), {0: 9, 255: 9})] * 3, refused=r"hold only 0 and 255 \(3 of 3"),
    mask_case("0 and 255 in one image", [((1,), {0: 9, 255: 9})], works=1, warns="1 hold 255, which means ignored"),
    mask_case("0 and 255, no labels", [(None, {0: 9, 255: 9})] * 2, works=2, warns="all 2 masks hold only 0 and 255"),
    mask_case("no object anywhere", [((2,), held())] * 3, refused="in 3 of 3 labeled images: no mask holds an object"),
    mask_case(
        "classes in another order",
        [((i % 3 + 1,), held((i + 1) % 3 + 1)) for i in range(9)],
        refused=r"the masks' value 2 lies in images labeled 'cat' \(1\) in 3 of 3 cases.*list the classes in the order",
    ),
    mask_case(
        "two classes exchanged among many images",
        [((1,), held(2)), ((2,), held(1))] * 3,
        [((3,), held(3))] * 9,
        works=15,
        warns=r"in 6 of 15 images the mask contradicts.*value 1 lies in images labeled 'dog' \(2\) in 3 of 3",
    ),
    mask_case(
        "masks count classes from 0",
        [((i % 3 + 1,), held(*range(i % 3, i % 3 + (i % 3 > 0)))) for i in range(9)],
        refused="all values are shifted, .*add 1 to the values of the masks",
    ),
    mask_case(
        "masks count background as 1",
        [((i % 2 + 1,), held(i % 2 + 2)) for i in range(8)],
        refused="all values are shifted, .*subtract 1 from the values",
    ),
    mask_case("one value for all classes", [((i % 3 + 1,), held(1)) for i in range(9)], refused="no value but 1"),
    mask_case(
        "class that no mask holds",
        GOOD,
        [((1, 2), held(1))],
        [((3,), held(3))],
        works=11,
        warns=r"'dog' \(2\) in 1 \(9\.jpg\) of 11 images: tiny or hidden",
    ),
    mask_case(
        "class of some images that no mask holds",
        [((1,), held(1))] * 4 + [((1, 3), held(1))] * 3,
        works=7,
        warns=r"no mask holds the labeled 'horse' \(3\) in 3 images",
    ),
    mask_case(
        "class of all images that no mask holds",
        [((1, 3), held(1))] * 5,
        refused=r"no mask holds the labeled 'horse' \(3\) in 5 images.*source\.check_masks=warn",
    ),
    mask_case(
        "value that no label names",
        [((1,), held(1))] * 4 + [((1,), held(1, 2))] * 2,
        works=6,
        warns=r"no label names what masks hold, 'dog' \(2\) in 2 masks",
    ),
    mask_case("labeled image with an empty mask", GOOD, [((1,), held())], works=10, warns=r"no object: 9\.jpg"),
    mask_case("empty image with objects in its mask", GOOD, [((), held(2))], works=10, warns=r"no label, .*: 9\.jpg"),
    mask_case("half of the images contradict", GOOD, [((1,), held(2))] * 9, works=18, warns="in 9 of 18 images"),
    mask_case("more than half contradict", GOOD, [((1,), held(2))] * 10, refused="in 10 of 19 labeled images"),
    mask_case("stray pixels", [((1,), held(1) | {2: 1})] * 2 + list(GOOD), works=11, warns=r"'dog' \(2\) in 2 "),
    Case("conversion", "good records", converted(lambda folder, made: None), works=3),
    Case(
        "conversion",
        "one mask is missing",
        converted(without_mask),
        refused=r"split 'train': image 0\.png has no mask \(1 of 3 images\), others have: give all of them or none",
    ),
    Case(
        "conversion",
        "one image has no labels",
        converted(relabeled(1, None)),
        refused=r"image 1\.png has no classes \(1 of 3 images\)",
    ),
    Case(
        "conversion",
        "split without images",
        converted(lambda folder, made: None, count=0),
        refused="split 'train' is empty: add images",
    ),
    Case(
        "conversion",
        "split name with a slash",
        converted(lambda folder, made: None, split="a/b"),
        refused="split name 'a/b' has other characters",
    ),
    Case(
        "conversion",
        "image that is text",
        converted(written("1.png", b"hello")),
        refused=r"(?s)1 image cannot be converted .*image 1\.png: ",
    ),
    Case(
        "conversion",
        "image and mask that cannot be read",
        converted(lambda folder, made: [(folder / name).unlink() for name in ("0.png", "mask1.png")] and None),
        refused=r"(?s)1 image cannot .*image 0\.png cannot be read: .*1 mask cannot .*mask of image 1\.png cannot",
    ),
    Case(
        "conversion",
        "tar of the user's in the way",
        converted(users_tar),
        refused=r"train-00001\.tar has the name of a shard .* move it away, or choose another data\.shards",
    ),
    Case("reconversion", "nothing changed", reconverted(lambda folder, made: None), works=("", 0)),
    Case("reconversion", "files touched", reconverted(touched), works=("", 0)),
    Case(
        "reconversion",
        "image replaced",
        reconverted(written("1.png", kit.encode(kit.pixels(5, 4, 4), "BMP"))),
        works=("1 image changed: 1.png", 1),
    ),
    Case(
        "reconversion",
        "image of another size with its old time",
        reconverted(resized_in_its_old_time),
        works=("1 image changed: 2.png", 1),
    ),
    Case("reconversion", "mask edited, same size", reconverted(flipped_mask), works=("1 mask changed: 0.png", 1)),
    Case("reconversion", "label corrected", reconverted(relabeled(2, (1, 3))), works=("1 label changed: 2.png", 1)),
    Case(
        "reconversion", "image without objects now", reconverted(relabeled(0, ())), works=("1 label changed: 0.png", 1)
    ),
    Case(
        "reconversion",
        "masks removed",
        reconverted(lambda folder, made: [replace(r, mask=None, files=r.files[:1]) for r in made]),
        works=("3 masks removed: 0.png, 1.png, 2.png", 3),
    ),
    Case(
        "reconversion",
        "polygon corrected",
        reconverted(lambda folder, made: [replace(made[0], content="new"), *made[1:]]),
        works=("1 mask changed: 0.png", 1),
    ),
    Case(
        "reconversion",
        "last image removed",
        reconverted(lambda folder, made: made[:2]),
        works=("1 image removed: 2.png", 0),
    ),
    Case(
        "reconversion",
        "list in another order",
        reconverted(lambda folder, made: [made[1], made[0], made[2]]),
        works=("images in another order", 2),
    ),
    Case("empty images", "left out", dropped((1,), (), (2,)), works=["0", "2"]),
    Case("empty images", "nothing else", dropped((), ()), refused=r"source\.empty_images=drop"),
]
