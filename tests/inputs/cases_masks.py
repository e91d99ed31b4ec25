"""Masks as people have them, through conversion to a shard's sample and back."""

from __future__ import annotations

import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from case import Case, Outcome
from kit import Bytes
from pictures import SIGNATURE, chunk, encode, exif, png
from PIL import Image

from seam_dist.data.inspection import inspect_record
from seam_dist.data.masks import decode_mask
from seam_dist.data.shards import decode_sample
from seam_dist.data.sources.base import Record, SourceError

MAX_PIXELS = 10_000
NUM_CLASSES = 3
ROWS = [[0, 1, 2], [3, 3, 255]]
SMALL = [[0, 1, 2], [3, 3, 0]]
VALUES = np.array(ROWS, np.uint8)
SHAPE = VALUES.shape


def convert(mask: bytes, image: bytes, folder: Path) -> Outcome:
    """The mask of the sample that becomes of an image and its mask."""
    record = Record("key", "photo.jpg", (1,), Bytes(image), Bytes(mask))
    inspection = inspect_record(record, num_classes=NUM_CLASSES, max_pixels=MAX_PIXELS)
    inspection.findings.raise_errors(SourceError)
    assert inspection.sample is not None
    values = decode_sample(inspection.sample, masks=True, max_pixels=MAX_PIXELS).mask
    assert values is not None
    stored = inspection.sample.members["png"]
    assert (decode_mask(mask, max_pixels=MAX_PIXELS) == values).all()  # as evaluation and `predict --masks` read it
    assert inspection.mask_pixels == {value: int((values == value).sum()) for value in np.unique(values).tolist()}
    assert stored == mask or (stored[24], stored[25]) == (8, 0)
    return Outcome(values.tolist(), [str(finding) for finding in inspection.findings])


def photo(orientation: int = 1, shape: tuple[int, int] = SHAPE) -> bytes:
    """An image that is stored in a shape and turned for display."""
    return encode(Image.new("RGB", shape[::-1]), "JPEG", exif=exif(orientation))


def case(fault: str, mask: bytes, image: bytes | None = None, **outcome: Any) -> Case:
    return Case(
        reader="mask", fault=fault, run=functools.partial(convert, mask, photo() if image is None else image), **outcome
    )


def colored(mode: str, image: np.ndarray | Image.Image = VALUES) -> Image.Image:
    gray = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return Image.merge(mode, [*[gray] * len(mode.rstrip("A")), *[Image.new("L", gray.size, 255)] * mode.endswith("A")])


def palette() -> Image.Image:
    image = Image.frombytes("P", VALUES.shape[::-1], VALUES.tobytes())
    image.putpalette([*range(256)] * 3)
    return image


COLORS = Image.fromarray(np.array([[[0, 0, 0], [128, 0, 0], [0, 128, 0]]] * 2, np.uint8))
FADED = colored("LA")
FADED.putpixel((0, 0), (0, 9))
_PASSES = zlib.compress(b"\0\0" + b"\0\2" + b"\0\1")  # the columns 0, 2 and 1 of one row
INTERLACED = SIGNATURE + b"".join(
    chunk(name, body)
    for name, body in ((b"IHDR", bytes([0, 0, 0, 3, 0, 0, 0, 1, 8, 0, 0, 0, 1])), (b"IDAT", _PASSES), (b"IEND", b""))
)
TEXT = chunk(b"tEXt", b"Software\0an annotation tool")

CASES = [
    case("8-bit gray", png(ROWS), works=ROWS),
    case("8-bit palette", encode(palette(), "PNG"), works=ROWS),
    case("palette with transparency", encode(palette(), "PNG", transparency=0), works=ROWS),
    case("gray with a transparent value", png(ROWS, before=chunk(b"tRNS", b"\0\0")), works=ROWS),
    case("with text", png(ROWS, before=TEXT), works=ROWS),
    case("interlaced", INTERLACED, photo(shape=(1, 3)), works=[[0, 1, 2]]),
    case("1-bit gray", png([[0, 1, 1], [0, 0, 1]], bits=1), works=[[0, 1, 1], [0, 0, 1]]),
    case("2-bit gray", png(SMALL, bits=2), works=SMALL),
    case("4-bit gray", png(SMALL, bits=4), works=SMALL),
    case("1-bit palette", png([[0, 1, 1], [0, 0, 1]], bits=1, color_type=3), works=[[0, 1, 1], [0, 0, 1]]),
    case("2-bit palette", png(SMALL, bits=2, color_type=3), works=SMALL),
    case("4-bit palette", png(SMALL, bits=4, color_type=3), works=SMALL),
    case("16-bit gray of small values", png(ROWS, bits=16), works=ROWS),
    case(
        "16-bit gray of large values", png([[0, 1, 300]] * 2, bits=16), refused=r"16-bit gray with the value 300 \(2 p"
    ),
    case("16-bit gray with 65535", png([[0, 1, 65_535]] * 2, bits=16), refused="write 255 for ignored pixels"),
    case("gray stored as RGB", encode(colored("RGB"), "PNG"), works=ROWS),
    case("gray stored as RGBA", encode(colored("RGBA"), "PNG"), works=ROWS),
    case("gray with opaque alpha", encode(colored("LA"), "PNG"), works=ROWS),
    case("gray with alpha", encode(FADED, "PNG"), refused="alpha channel and 17% of its pixels are not opaque"),
    case(
        "colors", encode(COLORS, "PNG"), refused=r"3 colors \(#000000, #008000, #800000; mode RGB\), expected class ind"
    ),
    case("16-bit colors", png(np.ones((2, 3, 3), int), bits=16, color_type=2), refused="16-bit colors"),
    case("JPEG saved as .png", encode(VALUES, "JPEG"), refused="a JPEG file, whose compression changes class indices"),
    case("TIFF saved as .png", encode(VALUES, "TIFF"), refused="it is a TIFF file, expected PNG"),
    case("empty file", b"", refused=r"mask of image photo\.jpg: it is empty"),
    case("web page", b"<html>", refused="mask of image photo.jpg: it is an HTML page"),
    case("truncated", png(ROWS)[:45], refused="mask of image photo.jpg: the PNG is damaged"),
    case("bomb", png([[0]], size=(50_000, 50_000)), refused=r"mask of .*larger than data\.max_pixels=10000"),
    case("one class too many", png([[0, 1, 4]] * 2), refused=r"the value 4 \(2 pixels\), expected 0 .*1 to 3 .*or 255"),
    case("without a background", png([[1, 2, 4]] * 2), refused="without any 0, the background may be 1 here"),
    case(
        "spread for viewing",
        png([[0, 85, 170]] * 2),
        refused=r"85 \(2 pixels\), 170 .*steps of 85 .*number them 0, 1, 2",
    ),
    case("0, 128 and 255", png([[0, 128, 255]] * 2), refused="128 .*spread for viewing"),
    case(
        "interpolated",
        png(np.arange(60).reshape(6, 10) * 4),
        photo(shape=(6, 10)),
        refused=r"the values 4 \(1 pixel\), 8 .* and 54 more, .*resizing with interpolation",
    ),
    case(
        "smaller than its image", png([[0, 1]]), refused=r"it has \(1, 2\) pixels .*its image \(2, 3\): make them equal"
    ),
    case("swapped height and width", png(np.transpose(ROWS)), refused="its image .*height and width are swapped"),
    case("drawn on the unturned image", png(ROWS), photo(6), refused="fits the image before its EXIF rotation"),
    case("with a tag of its own alone", png(ROWS, orientation=6), refused="its own EXIF orientation 6 turns it"),
    case("turned like its image", png(ROWS, orientation=6), photo(6), works=[[3, 0], [3, 1], [255, 2]]),
    case("as displayed, of a turned image", png(np.transpose(ROWS)), photo(6), works=np.transpose(ROWS).tolist()),
    case("by 180 degrees like its image", png(ROWS, orientation=3), photo(3), works=VALUES[::-1, ::-1].tolist()),
    case("without a tag, image by 180 degrees", png(ROWS), photo(3), works=ROWS, warns="taken as displayed"),
    case("with tag 1, image by 180 degrees", png(ROWS, orientation=1), photo(3), works=ROWS),
    case("square, without a tag", png([[0, 1]] * 2), photo(6, (2, 2)), works=[[0, 1]] * 2, warns="orientation 6"),
]
