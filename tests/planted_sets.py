"""Small data sets in three layouts, made of synthetic scenes or copied from a real one, and faults to plant in them.

`write_*` and `copy_*` make a clean set in a folder; `plant_*` put one of every fault into it, each into an image of its
own, and return what must be said of each.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import kit
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from seam_dist.config.schema import SourceConfig
from seam_dist.data.sources.synthetic import SyntheticSource
from seam_dist.data.sources.voc import CLASSES as VOC_CLASSES

SHARED = Path(os.environ.get("SEAM_DIST_SHARED") or Path(__file__).parents[1] / "../shared") / "data"
NUM_IMAGES = {"train": 30, "val": 8}
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


class Fault(NamedTuple):
    """A line that must be printed once: how it begins, and a pattern of its text."""

    severity: str
    pattern: str


@dataclass
class Scene:
    """One image with all that a layout stores of it."""

    image: bytes
    mask: bytes
    classes: tuple[int, ...]


def scenes() -> tuple[tuple[str, ...], dict[str, list[Scene]]]:
    """The class names and the scenes of each split."""
    cfg = SourceConfig(kind="synthetic", num_images=tuple(NUM_IMAGES.values()), num_classes=3, image_size=(80, 64))
    source = SyntheticSource(cfg, tuple(NUM_IMAGES))
    splits = {}
    for split in NUM_IMAGES:
        splits[split] = []
        for record in source.listing(split).records:
            assert record.mask is not None
            assert record.classes is not None
            splits[split].append(Scene(record.image(), record.mask(), record.classes))
    return source.classes, splits


def write_folder(root: Path) -> None:
    classes, splits = scenes()
    rows = ["image,split,classes"]
    for split, of_split in splits.items():
        for name in ("images", "masks"):
            (root / name / split).mkdir(parents=True)
        for number, scene in enumerate(of_split):
            (root / "images" / split / f"{split}_{number:03d}.jpg").write_bytes(scene.image)
            (root / "masks" / split / f"{split}_{number:03d}.png").write_bytes(scene.mask)
            rows.append(f"{split}_{number:03d}.jpg,{split},{';'.join(classes[i - 1] for i in scene.classes)}")
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")


def copy_folder(source: Path, root: Path) -> None:
    rows = (source / "labels.csv").read_text().splitlines()
    kept = rows[:1]
    for split, number in NUM_IMAGES.items():
        of_split = [row for row in rows[1:] if row.split(",")[1] == split][:number]
        kept += of_split
        for row in of_split:
            name = Path(row.split(",")[0])
            _copy(source, root, f"images/{split}/{name}")
            _copy(source, root, f"masks/{split}/{name.stem}.png")
    _copy(source, root, "classes.txt")
    (root / "labels.csv").write_text("\n".join(kept) + "\n")


def annotation(names: Sequence[str], encoding: str = "utf-8") -> bytes:
    """An annotation of PASCAL VOC's form."""
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotation><folder>照片</folder>{objects}</annotation>'
    return text.encode(encoding)


def write_voc(root: Path) -> None:
    for name in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for split, of_split in scenes()[1].items():
        names = [f"{split}_{number:03d}" for number in range(len(of_split))]
        for name, scene in zip(names, of_split, strict=True):
            (root / "JPEGImages" / f"{name}.jpg").write_bytes(scene.image)
            (root / "SegmentationClass" / f"{name}.png").write_bytes(scene.mask)
            objects = annotation([VOC_CLASSES[i - 1] for i in scene.classes])
            (root / "Annotations" / f"{name}.xml").write_bytes(objects)
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")


def copy_voc(source: Path, root: Path) -> None:
    for split, number in NUM_IMAGES.items():
        path = f"ImageSets/Segmentation/{split}.txt"
        names = (source / path).read_text().split()
        names = names[:: max(1, len(names) // number)][:number]
        for name in names:
            for place in (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png", f"Annotations/{name}.xml"):
                _copy(source, root, place)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("\n".join(names) + "\n")


def write_coco(root: Path) -> None:
    classes, splits = scenes()
    for split, of_split in splits.items():
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number, scene in enumerate(of_split, start=1):
            (root / split / f"{split}_{number:03d}.jpg").write_bytes(scene.image)
            mask = np.array(Image.open(io.BytesIO(scene.mask)))
            size = {"height": mask.shape[0], "width": mask.shape[1]}
            images.append({"id": number, "file_name": f"{split}_{number:03d}.jpg", **size})
            for index in scene.classes:
                runs: Any = coco.encode(np.asfortranarray(mask == index, np.uint8))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": index,
                        "iscrowd": 0,
                        "area": int((mask == index).sum()),
                        "segmentation": {"size": list(mask.shape), "counts": runs["counts"].decode()},
                    }
                )
        categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
        write_instances(root, split, {"images": images, "annotations": annotations, "categories": categories})


def copy_coco(source: Path, root: Path) -> None:
    content = read_instances(source, "train2017")
    annotated = {entry["image_id"] for entry in content["annotations"]}
    images = [entry for entry in content["images"] if entry["id"] in annotated]
    first = 0
    for split, number in NUM_IMAGES.items():
        chosen = images[first : first + number]
        first += number
        for entry in chosen:
            _copy(source, root, f"train2017/{entry['file_name']}", f"{split}/{entry['file_name']}")
        ids = {entry["id"] for entry in chosen}
        kept = [entry for entry in content["annotations"] if entry["image_id"] in ids]
        write_instances(root, split, {**content, "images": chosen, "annotations": kept})


def read_instances(root: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    return content


def write_instances(root: Path, split: str, content: Mapping[str, Any]) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _copy(source: Path, root: Path, path: str, to: str | None = None) -> None:
    target = root / (to or path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / path, target)


@dataclass
class ImageFaults:
    """Replaces images and masks by faulty ones; `lines` collects what must be said of them."""

    lines: list[Fault] = field(default_factory=list)

    def images(self, paths: Sequence[Path]) -> list[Path]:
        """Spoil eight images and return the files that are there now; the last two lie on their side or head."""
        cut, html, floats, deep, frames, turned, upside_down = paths
        pixels = [np.array(Image.open(path).convert("RGB")) for path in paths]
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
        html.write_bytes(HTML)
        gray = pixels[2].mean(axis=2)
        floats = _replace(floats, ".tif", kit.encode(Image.fromarray((gray / 255).astype(np.float32)), "TIFF"))
        deep = _replace(deep, ".png", kit.encode(pixels[3].mean(axis=2).astype(np.uint16) * 16, "PNG"))
        moving = [Image.fromarray(pixels[4]), Image.fromarray(255 - pixels[4])]
        frames = _replace(frames, ".gif", kit.encode(moving[0], "GIF", save_all=True, append_images=moving[1:]))
        for path, orientation, picture in ((turned, 6, pixels[5]), (upside_down, 3, pixels[6])):
            exif = Image.Exif()
            exif[0x0112] = orientation
            path.write_bytes(kit.encode(picture, exif=exif, quality=90))
        self.lines += [
            Fault("error", rf"image {cut.stem}\S*: .*(truncated|cut)"),
            Fault("error", rf"image {html.stem}\S*: .*(web page|HTML)"),
            Fault("error", rf"image {floats.stem}\S*: .*float"),
            Fault("warning", rf"image {deep.stem}\S*: .*nearly black"),
            Fault("warning", rf"image {frames.stem}\S*: it has 2 frames"),
            Fault("error", rf"mask of image {turned.stem}\S*: .*before its EXIF rotation \(orientation 6\)"),
            Fault("warning", rf"mask of image {upside_down.stem}\S*: its image has the EXIF orientation 3"),
        ]
        return [cut, html, floats, deep, frames, turned, upside_down]

    def masks(self, paths: Sequence[Path], num_classes: int) -> None:
        """Spoil four masks and write another in four bits, which is none."""
        small, above, colors, gone, four_bits = paths
        small.write_bytes(kit.encode(np.zeros((5, 7), np.uint8), "PNG"))
        values = read_mask(above)
        values[:9, :9] = num_classes + 1
        above.write_bytes(kit.encode(values, "PNG"))
        colors.write_bytes(kit.encode(np.stack([read_mask(colors)] * 2 + [255 - read_mask(colors)], 2), "PNG"))
        gone.unlink()
        values = read_mask(four_bits)
        image = Image.fromarray(np.where(values == 255, 0, values).astype(np.uint8), "P")
        image.putpalette(list(range(48)))
        four_bits.write_bytes(kit.encode(image, "PNG", bits=4))
        self.lines += [
            Fault("error", rf"mask of image {small.stem}\S*: it has \(5, 7\) pixels"),
            Fault("error", rf"mask of image {above.stem}\S*: .*{num_classes + 1}"),
            Fault("error", rf"mask of image {colors.stem}\S*: .*colors"),
            Fault("error", rf"{gone.stem}\S* has no mask|{gone.name} is missing"),
        ]


def _replace(path: Path, suffix: str, data: bytes) -> Path:
    path.unlink()
    path = path.with_suffix(suffix)
    path.write_bytes(data)
    return path


def read_mask(path: Path) -> NDArray[np.uint8]:
    return np.array(Image.open(path))


def empty_mask(path: Path) -> None:
    path.write_bytes(kit.encode(np.zeros_like(read_mask(path)), "PNG"))


def plant_folder(root: Path) -> list[Fault]:
    """Spoil a plain folder; images are taken in the order of labels.csv."""
    classes = (root / "classes.txt").read_text().split()
    with open(root / "labels.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    train, val = ([row for row in rows if row[1] == split] for split in NUM_IMAGES)
    image = {row[0]: root / "images" / row[1] / row[0] for row in rows}
    mask = {row[0]: root / "masks" / row[1] / f"{Path(row[0]).stem}.png" for row in rows}
    name = [row[0] for row in train]
    faults = ImageFaults()
    for row, path in zip(train[:7], faults.images([image[n] for n in name[:7]]), strict=True):
        row[0] = path.name
    faults.masks([mask[n] for n in name[7:12]], len(classes))
    train[12][2] = f"{classes[0]},{classes[1]}"
    train[13][0] = name[13].upper()
    accented = image[name[14]].with_name(unicodedata.normalize("NFD", "é.jpg"))
    image[name[14]].rename(accented)
    mask[name[14]].rename(mask[name[14]].with_name(f"{accented.stem}.png"))
    train[14][0] = unicodedata.normalize("NFC", accented.name)
    train[15][2] = "sofaa"
    _twin(image, mask, train, 16, 17)
    train[17][2] = train[16][2]
    shutil.copyfile(image[name[18]], image[val[0][0]])
    shutil.copyfile(mask[name[18]], mask[val[0][0]])
    val[0][2] = train[18][2]
    train[19][2] = ""
    empty_mask(mask[name[19]])
    held = set(train[20][2].split(";"))
    train[20][2] = next(c for c in classes if c not in held)
    (root / "images/train/notes.txt").write_text("taken in May")
    (root / "images/train/._a.jpg").write_bytes(b"\0\5\26\7")
    lines = [
        "\N{ZERO WIDTH NO-BREAK SPACE}image,split,classes",
        *(",".join(row) for row in rows if row is not train[21]),
    ]
    (root / "labels.csv").write_text("\n".join([*lines, f"ghost.jpg,train,{classes[0]}"]) + "\n")
    return [
        *faults.lines,
        Fault("error", r"line 14: .* has 4 fields, the first line has 3: .*write \S+;\S+"),
        Fault("error", r"line 17: class 'sofaa' is not one of"),
        Fault("error", rf"{name[21]} has no labels"),
        Fault("error", r"it lists 'ghost.jpg' in split 'train'"),
        Fault("warning", rf"train/{name[17]} = train/{name[16]}|train/{name[16]} = train/{name[17]}"),
        Fault("warning", rf"val/{val[0][0]} = train/{name[18]}|train/{name[18]} = val/{val[0][0]}"),
        Fault("warning", rf"the mask contradicts the labels: {name[20]}|some classes .*{name[20]}"),
        Fault("warning", r"notes.txt is no image by its name"),
    ]


def _twin(image: Mapping[str, Path], mask: Mapping[str, Path], rows: Sequence[Sequence[str]], a: int, b: int) -> None:
    shutil.copyfile(image[rows[a][0]], image[rows[b][0]])
    shutil.copyfile(mask[rows[a][0]], mask[rows[b][0]])


def plant_voc(root: Path) -> list[Fault]:
    """Spoil a data set of PASCAL VOC's layout; images are taken in the order of the list."""
    lists = {split: root / "ImageSets/Segmentation" / f"{split}.txt" for split in NUM_IMAGES}
    train, val = (lists[split].read_text().split() for split in NUM_IMAGES)

    def image(name: str) -> Path:
        return root / "JPEGImages" / f"{name}.jpg"

    def mask(name: str) -> Path:
        return root / "SegmentationClass" / f"{name}.png"

    def xml(name: str) -> Path:
        return root / "Annotations" / f"{name}.xml"

    faults = ImageFaults()
    faults.images([image(name) for name in train[:7]])
    faults.masks([mask(name) for name in train[7:12]], len(VOC_CLASSES))
    present = [VOC_CLASSES[v - 1] for v in np.unique(read_mask(mask(train[12]))) if 0 < v < 255]
    xml(train[12]).write_bytes(annotation(present, "gb2312"))
    xml(train[13]).write_bytes(xml(train[13]).read_bytes()[:-9])
    xml(train[14]).write_bytes(annotation(["sofaa"]))
    xml(train[15]).unlink()
    for a, b in ((train[16], train[17]), (train[18], val[0])):
        for place in (image, mask, xml):
            shutil.copyfile(place(a), place(b))
    xml(train[19]).write_bytes(annotation([]))
    empty_mask(mask(train[19]))
    held = {VOC_CLASSES[v - 1] for v in np.unique(read_mask(mask(train[20]))) if 0 < v < 255}
    xml(train[20]).write_bytes(annotation([next(c for c in VOC_CLASSES if c not in held)]))
    (root / "JPEGImages/notes.txt").write_text("taken in May")
    (root / "JPEGImages/._a.jpg").write_bytes(b"\0\5\26\7")
    lines = [*train[:21], train[21].upper(), *train[22:], train[23], "ghost"]
    lists["train"].write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return [
        *faults.lines,
        Fault("error", rf"{train[13]}.xml is not readable as XML"),
        Fault("error", rf"{train[14]}.xml: class 'sofaa' is not one of the 20 classes: did you mean 'sofa'\?"),
        Fault("error", rf"{train[15]}.xml is missing"),
        Fault("error", rf"line 31 lists {train[23]}.jpg again, first in line 24"),
        Fault("error", r"ghost is missing in JPEGImages but listed in .*, line 32"),
        Fault("warning", rf"train/{train[17]} = train/{train[16]}|train/{train[16]} = train/{train[17]}"),
        Fault("warning", rf"val/{val[0]} = train/{train[18]}|train/{train[18]} = val/{val[0]}"),
        Fault("warning", rf"the mask contradicts the labels: {train[20]}|some classes .*{train[20]}"),
    ]


def plant_coco(root: Path) -> list[Fault]:
    """Spoil a data set of COCO's layout; images are taken in the order of their ids."""
    content, other = (read_instances(root, split) for split in NUM_IMAGES)
    images = sorted(content["images"], key=lambda entry: entry["id"])
    annotations = content["annotations"]
    paths = [root / "train" / entry["file_name"] for entry in images]
    faults = ImageFaults()
    for entry, path in zip(images[:7], faults.images(paths[:7]), strict=True):
        entry["file_name"] = path.name
    of_image = {entry["image_id"]: entry for entry in annotations}
    annotations += [
        {**annotations[0], "id": 900_001, "image_id": 987_654},
        {**annotations[0], "id": 900_002, "image_id": images[16]["id"], "category_id": 4321},
    ]
    height, width = images[7]["height"], images[7]["width"]
    of_image[images[7]["id"]]["segmentation"] = {"size": [height, width], "counts": [3, 4]}
    paths[8].unlink()
    images[9]["height"] += 3
    for entry in annotations:
        if entry["image_id"] == images[9]["id"]:
            entry["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    content["images"].append({**images[10]})
    content["images"].append({**images[11], "id": 987_655})
    shutil.copyfile(paths[12], paths[13])
    for entry in (images[12], images[13]):
        entry.update(height=images[12]["height"], width=images[12]["width"])
    annotations = [entry for entry in annotations if entry["image_id"] != images[13]["id"]]
    annotations += [
        {**entry, "image_id": images[13]["id"]} for entry in annotations if entry["image_id"] == images[12]["id"]
    ]
    shutil.copyfile(paths[14], root / "val" / paths[14].name)
    other["images"].append({**images[14], "id": 987_656})
    other["annotations"] += [
        {**entry, "image_id": 987_656} for entry in annotations if entry["image_id"] == images[14]["id"]
    ]
    empty = images[15]["id"]
    content["annotations"] = [entry for entry in annotations if entry["image_id"] != empty]
    (root / "train/notes.txt").write_text("taken in May")
    (root / "train/._a.jpg").write_bytes(b"\0\5\26\7")
    write_instances(root, "train", content)
    write_instances(root, "val", other)
    stem = [path.stem for path in paths]
    return [
        *faults.lines,
        Fault("error", r"belongs to image 987654, which is not listed"),
        Fault("error", r"belongs to category 4321, which is not listed"),
        Fault("error", rf"its run lengths add up to 7, expected {height} x {width}"),
        Fault("error", rf"{paths[8].name} is missing but listed"),
        Fault("error", rf"mask of image {stem[9]}: it has"),
        Fault("error", rf"image id {images[10]['id']} is given twice"),
        Fault("error", rf"{stem[11]} and {stem[11]} have the same key"),
        Fault("warning", rf"train/{stem[13]} = train/{stem[12]}|train/{stem[12]} = train/{stem[13]}"),
        Fault("warning", rf"val/{stem[14]} = train/{stem[14]}|train/{stem[14]} = val/{stem[14]}"),
    ]
