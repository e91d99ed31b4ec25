"""Data sets as `seam-dist check` surveys them: every image can be read, and yet something speaks against training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from case import Case, Outcome
from kit import encode
from numpy.typing import NDArray
from PIL import Image

from seam_dist.data.sources import SourceError
from seam_dist.data.sources.folder import FolderSource
from seam_dist.data.survey import Survey, survey_dataset

Pixels = NDArray[np.uint8]
Content = tuple[bytes, str]  # an image file and its classes
CLASSES = ("cat", "dog", "emu")


def _photo(seed: int, height: int = 40, width: int = 48) -> Pixels:
    """A picture of coarse and fine shapes, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((width, height)), float)
        for n in (4, 9, 20)
    ]
    return np.asarray(sum(layers) / 3, np.uint8)


def _images(split: str, classes: Sequence[str], **options: int) -> dict[str, Content]:
    first = 1000 * (split != "train")
    return {
        f"{split}/{k:03d}.png": (encode(_photo(first + k, **options), "PNG"), names) for k, names in enumerate(classes)
    }


def _survey(folder: Path, images: Mapping[str, Content], masks: Mapping[str, bytes], **options: Any) -> Survey:
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    rows = ["image,split,classes"]
    for name, (data, classes) in images.items():
        split, file = name.split("/")
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(data)
        rows.append(f"{file},{split},{classes}")
    for name, data in masks.items():
        (folder / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "masks" / name).write_bytes(data)
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    splits = list(dict.fromkeys(name.split("/")[0] for name in images))
    return survey_dataset(FolderSource(folder), splits, max_pixels=10**6, **options)


ALL = ["cat", "dog", "emu"]
GOOD = _images("train", ALL)


def _case(
    fault: str,
    images: Mapping[str, Content],
    value: Callable[[Survey], Any] = lambda survey: [split.num_samples for split in survey.splits],
    *,
    masks: Mapping[str, bytes] | None = None,
    **outcome: Any,
) -> Case:
    def run(folder: Path) -> Outcome:
        survey = _survey(folder, images, masks or {})
        survey.findings.raise_errors(SourceError)
        return Outcome(value(survey), [str(finding) for finding in survey.findings])

    return Case(reader="survey", fault=fault, run=run, **outcome)


def _mask(*values: int) -> bytes:
    """A mask of 40 x 48 with a column of equal width for each value."""
    return encode(np.array(values, np.uint8).repeat(48 // len(values))[None].repeat(40, 0), "PNG")


PHOTO = encode(_photo(0), "PNG")
LARGE = _photo(77, 120, 160)
LARGE_PNG = encode(LARGE, "PNG")
SMALLER = encode(Image.fromarray(LARGE).resize((80, 60)), "JPEG", quality=40)
TRIMMED = encode(np.ascontiguousarray(LARGE[1:-1, 2:-2]), "WEBP", quality=80)
BLANK = encode(np.full((40, 48, 3), 128, np.uint8), "PNG")
LARGE_TRAIN = _images("train", ALL, height=120, width=160)

CASES = [
    _case(
        "a sound set",
        {**GOOD, **_images("val", ALL)},
        lambda survey: [split.class_counts.tolist() for split in survey.splits],
        works=[[1, 1, 1], [1, 1, 1]],
    ),
    _case(
        "masks, some pixels of them ignored",
        _images("train", ["cat;dog;emu"] * 2),
        lambda survey: (survey.splits[0].class_shares.tolist(), survey.splits[0].void_share),
        masks={"train/000.png": _mask(0, 1, 2, 3), "train/001.png": _mask(255, 1, 2, 3)},
        works=([0.125, 0.25, 0.25, 0.25], 0.125),
    ),
    _case(
        "masks that are mostly 255",
        _images("train", ["cat;dog;emu"]),
        masks={"train/000.png": _mask(1, 2, 3, 255, 255, 255, 255, 255)},
        works=[1],
        warns=r"62 % of the pixels of the masks of split train are 255 \(ignored\)",
    ),
    _case(
        "the same file twice",
        {**GOOD, "train/again.png": (PHOTO, "cat")},
        works=[4],
        warns=r"split train has 1 image that is a copy of another \(train/again\.png = train/000\.png\)",
    ),
    _case(
        "the same file in train and val",
        {**GOOD, "val/000.png": (PHOTO, "cat")},
        works=[3, 1],
        warns=r"split val has 1 image with the same bytes as images of train \(val/000\.png = train/000\.png\)",
    ),
    _case(
        "an image of train in val, at half the size as JPEG",
        {**LARGE_TRAIN, "train/x.png": (LARGE_PNG, "cat"), "val/small.jpg": (SMALLER, "cat")},
        works=[4, 1],
        warns=r"split val has 1 image that looks like images of train \(val/small\.jpg = train/x\.png\)",
    ),
    _case(
        "an image of train in val, trimmed as WebP",
        {**LARGE_TRAIN, "train/x.png": (LARGE_PNG, "cat"), "val/trimmed.webp": (TRIMMED, "cat")},
        works=[4, 1],
        warns=r"looks like images of train \(val/trimmed\.webp = train/x\.png\)",
    ),
    _case(
        "blank images in train and val",
        {
            **GOOD,
            "train/blank.png": (BLANK, "cat"),
            "val/blank.jpg": (encode(np.full((40, 48, 3), 128, np.uint8)), "cat"),
        },
        works=[4, 1],
        warns=r"image blank\.png of split train has one color all over.*\(2 such cases\)",
    ),
    _case(
        "a class without any image",
        _images("train", ["cat", "dog", "cat"]),
        works=[3],
        warns="class 'emu' is in the list of classes, but in no image of train",
    ),
    _case(
        "a class in val that train lacks",
        {**_images("train", ["cat", "dog"]), **_images("val", ["emu"])},
        works=[2, 1],
        warns="class 'emu' is in split val, but in no image of train",
    ),
    _case(
        "a class in all images",
        _images("train", ["cat;dog", "cat;emu"] * 6),
        works=[12],
        warns="class 'cat' is in 12 of the 12 images of split train",
    ),
    _case(
        "two classes never apart",
        _images("train", ["cat;dog"] * 10 + ["emu"] * 10),
        works=[20],
        warns="classes 'cat' and 'dog' occur in the same 10 images of split train",
    ),
    _case(
        "a class never without another",
        _images("train", ["cat;dog"] * 10 + ["emu", "dog"] * 5),
        works=[20],
        warns="class 'cat' is in 10 images of split train and in each of them with 'dog'",
    ),
    _case(
        "a class in few images",
        _images("train", ["cat", "dog"] * 60 + ["emu"]),
        works=[121],
        warns=r"fewer than 10 images of 1 of its 3 classes \('emu' \(1\)\)",
    ),
    _case(
        "an icon among photographs",
        {**GOOD, "train/icon.png": (encode(_photo(9, 16, 24), "PNG"), "cat")},
        works=[4],
        warns=r"split train has 1 of 4 images with a side of less than 32 pixels \(the smallest 24 x 16\)",
    ),
    _case(
        "val in full size, train in thumbnails",
        {**GOOD, **_images("val", ALL, height=160, width=192)},
        works=[3, 3],
        warns=r"images of split val are 4 times as large as those of train \(median side 175 and 44 pixels\)",
    ),
    _case(
        "an image cut off in the middle",
        {**GOOD, "train/cut.jpg": (encode(_photo(5))[:600], "cat")},
        refused=r"cut\.jpg",
    ),
    _case(
        "two broken images of one sort",
        {**GOOD, "train/a.png": (b"", "cat"), "train/b.png": (b"", "dog")},
        refused=r"image a\.png.*2 such cases",
    ),
]
