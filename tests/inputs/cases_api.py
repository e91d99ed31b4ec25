"""What people pass to `import seam_dist as seam`: paths, images, classes, scales, devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from case import Case, Outcome
from PIL import Image
from predict_kit import picture, save, trained_run

import seam_dist as seam
from seam_dist.api import SEAMModel, Segmenter
from seam_dist.config.inference import LARGEST_SCALE

PIXELS = np.asarray(picture(8, 12))


@lru_cache(maxsize=1)
def final() -> Segmenter:
    return seam.load(trained_run(), "final", device="cpu")


@lru_cache(maxsize=1)
def small_seam() -> SEAMModel:
    return SEAMModel(classes=["cat", "dog"], width=1 / 16, pcm_channels=[4, 4], device="cpu")


def done(call: Callable[[], Any]) -> Callable[[Path], Outcome]:
    return lambda folder: Outcome(call())


def segmented(image: Any, **settings: Any) -> Callable[[Path], Outcome]:
    return done(lambda: final().segment(image, **settings).shape)


def file(name: str, image: Image.Image, **options: Any) -> Callable[[Path], Outcome]:
    """Save an image and segment it by its path; the value is whether the labels are those of the pixels."""

    def run(folder: Path) -> Outcome:
        image.save(folder / name, **options)
        labels = final().segment(name)
        return Outcome(labels.shape)

    return run


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def at_home(name: str, call: Callable[[str], Any]) -> Callable[[Path], Outcome]:
    """Call with a path below `~`, which is the folder of the test."""

    def run(folder: Path) -> Outcome:
        save(folder / "a.png", picture(8, 12))
        (folder / "run").symlink_to(trained_run())
        with mock.patch.dict(os.environ, HOME=str(folder)):
            return Outcome(call(f"~/{name}"))

    return run


def cut_jpeg(folder: Path) -> Outcome:
    whole = save(folder / "a.jpg", picture(40, 56))
    (folder / "b.jpg").write_bytes(whole.read_bytes()[:700])
    with Image.open("b.jpg") as image:
        return Outcome(final().segment(image).shape)


def gray16(folder: Path) -> Outcome:
    Image.fromarray(np.array([[0, 256], [40_000, 65_535]], np.uint16)).save("a.png")
    from_file = final().segment("a.png")
    from_pixels = final().segment(np.array([[[0] * 3, [1] * 3], [[156] * 3, [255] * 3]], np.uint8))
    return Outcome((from_file == from_pixels).all())


def works(fault: str, value: Any, run: Callable[[Path], Outcome]) -> Case:
    return Case(reader="Python API", fault=fault, run=run, works=value)


def refused(fault: str, message: str, run: Callable[[Path], Outcome]) -> Case:
    return Case(reader="Python API", fault=fault, run=run, refused=message)


def load(path: Any, *arguments: Any, **options: Any) -> Callable[[Path], Outcome]:
    return done(lambda: seam.load(path, *arguments, **options))


def cam(classes: Any) -> Callable[[Path], Outcome]:
    return done(lambda: list(small_seam().cam(PIXELS, classes, scales=[1.0], flip=False)))


def build(**options: Any) -> Callable[[Path], Outcome]:
    return done(lambda: SEAMModel(width=1 / 16, device="cpu", **options))


_PATHS = [
    works("run below ~", ("cat", "dog", "hen"), at_home("run", lambda path: seam.load(path, device="cpu").classes)),
    works("image below ~", (8, 12), at_home("a.png", lambda path: final().segment(path).shape)),
    refused("shards below ~", r"/none/manifest.json is missing", at_home("none", lambda p: seam.ShardDataset(p, "a"))),
    refused("run in $HOME", r"holds \$HOME, which is not expanded", load("$HOME/run")),
    refused("run in a bucket", "remote files are not supported", load("s3://bucket/run")),
    refused("run of Windows", "is a path of Windows", load("C:\\runs\\pets")),
    refused("run without a name", "path '' is empty", load("")),
    refused("run that is a number", "run is a int, expected a path", load(5)),
    refused("run that is None", "run is a NoneType, expected a path", load(None)),
    refused("image without a name", "path '' is empty", segmented("")),
    refused("folder as image", "cannot be read .Is a directory.", segmented(".")),
    refused("shards in a bucket", "remote files are not supported", done(lambda: seam.ShardDataset("s3://b/x", "a"))),
    refused("part in a list", r"part=\['seam'\] is not a network", done(lambda: seam.load(trained_run(), ["seam"]))),  # type: ignore[call-overload]
    refused("part in capitals", "part='Final' is not a network", done(lambda: seam.load(trained_run(), "Final"))),  # type: ignore[call-overload]
    refused(
        "device that is no device",
        "device='gpu' is no device of torch",
        done(lambda: seam.load(trained_run(), device="gpu")),
    ),
]

_IMAGES = [
    *(
        works(f"image.{suffix}", (8, 12), file(f"a.{suffix}", picture(8, 12)))
        for suffix in ("tif", "bmp", "webp", "gif", "ppm", "jp2")
    ),
    *(
        works(
            f"file of EXIF orientation {n}",
            (8, 12) if n < 5 else (12, 8),
            file("a.jpg", picture(8, 12), exif=turned(n)),
        )
        for n in (1, 3, 6, 8)
    ),
    works("16-bit gray file", True, gray16),
    works("PIL image with a palette", (8, 12), segmented(picture(8, 12).convert("P"))),
    works("PIL image in CMYK", (8, 12), segmented(picture(8, 12).convert("CMYK"))),
    works("array seen from behind", (8, 12), segmented(PIXELS[::-1, :, ::-1])),
    works("tensor that needs a gradient", (8, 12), segmented(torch.rand(3, 8, 12, requires_grad=True))),
    refused("PIL image of 16 bits", "mode I;16, expected 8 bits.* scale it", segmented(Image.new("I;16", (12, 8)))),
    refused("PIL image that is cut", "image cannot be decoded", cut_jpeg),
    refused("list of paths", "image is a list, expected", segmented(["a.png", "b.png"])),
    refused("bytes of a file", "image is a bytes, expected", segmented(b"\x89PNG")),
    refused("array with alpha", r"shape \(8, 12, 4\), expected uint8 RGB", segmented(np.zeros((8, 12, 4), np.uint8))),
    refused("array on its side", r"shape \(3, 8, 12\), expected uint8 RGB", segmented(PIXELS.transpose(2, 0, 1))),
    refused("tensor of 0..255 in float", "values from .* expected 0..1", segmented(torch.full((3, 8, 12), 255.0))),
    refused("tensor of NaN", "values from nan to nan, expected 0..1", segmented(torch.full((3, 8, 12), float("nan")))),
    refused("batch as an image", r"shape \(1, 3, 8, 12\), expected RGB", segmented(torch.rand(1, 3, 8, 12))),
    refused("array as a batch", "images is a ndarray, expected a tensor", done(lambda: small_seam()(PIXELS))),  # type: ignore[arg-type]
]

_SETTINGS = [
    refused("one scale", "scales=1.0: expected a list of numbers", segmented(PIXELS, scales=1.0)),
    refused("scales in words", r"scales=\['a'\]: expected a list of numbers", segmented(PIXELS, scales=["a"])),
    refused("text as scales", "scales='1': expected a list of numbers", segmented(PIXELS, scales="1")),
    refused("scale that no memory holds", f"expected at most {LARGEST_SCALE}", segmented(PIXELS, scales=[1e9])),
    refused("flip in words", "flip='no': expected True or False", segmented(PIXELS, flip="no")),
    works("NumPy's id of a class", ["dog"], cam([np.int64(2)])),
    works("array of ids", ["cat", "dog"], cam(np.array([1, 2]))),
    works("class by name and id", ["dog"], cam(["dog", 2])),
    refused("classes None", "class None is a NoneType, expected a name", cam(None)),
    refused("class in capitals", "did you mean cat", cam("Cat")),
    refused("classes of a table's row", "class 'cat;dog' is not one of", cam("cat;dog")),
    refused("class that is a float", "class 1.0 is a float", cam(1.0)),
    refused("half a class", "num_classes=2.5: give the number", build(num_classes=2.5)),
    refused("number of classes as text", "num_classes=3: give the number", build(num_classes="3")),
    refused("names that are numbers", r"classes=\[1, 2\] are not names", build(classes=[1, 2])),
    refused("misspelled setting", "unknown key model.strid", build(num_classes=2, strid=8)),
]

CASES = _PATHS + _IMAGES + _SETTINGS
