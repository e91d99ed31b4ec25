"""Images as people have them, through conversion to a shard's sample and back, and through the Python API."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from case import Case, Outcome
from kit import Bytes
from pictures import chunk, encode, exif, png, ramp, tiff, with_tag
from PIL import Image

from seam_dist.api import read_image
from seam_dist.data.inspection import inspect_record
from seam_dist.data.shards import decode_sample
from seam_dist.data.sources.base import Record, SourceError

MAX_PIXELS = 10_000
RED_TO_BLUE = np.zeros((2, 3, 3), np.uint8)
RED_TO_BLUE[0, :, 0] = RED_TO_BLUE[1, :, 2] = 255
RGB = Image.fromarray(RED_TO_BLUE)
COLORS = [[255, 0, 0], [0, 0, 255]]  # of the first and the last pixel
GRAY = np.array([[0, 64, 255]], np.uint8)
TWELVE_BITS = np.array([[0, 2048, 4095]], np.uint16)
UNIT = np.array([[0, 0.5, 1]], np.float32)


def convert(data: bytes, folder: Path, **options: Any) -> Outcome:
    """First and last pixel of the sample that becomes of an image, one number each where they are gray."""
    record = Record("key", "photo.jpg", (1,), Bytes(data))
    inspection = inspect_record(record, num_classes=3, max_pixels=MAX_PIXELS, **options)
    inspection.findings.raise_errors(SourceError)
    assert inspection.sample is not None
    pixels = decode_sample(inspection.sample, masks=False, max_pixels=MAX_PIXELS).image
    return Outcome(ends(pixels), [str(finding) for finding in inspection.findings])


def ends(pixels: np.ndarray) -> list[Any]:
    values = [pixels[0, 0].tolist(), pixels[-1, -1].tolist()]
    return [value[0] for value in values] if all(len(set(value)) == 1 for value in values) else values


def api(data: bytes, suffix: str) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        (folder / f"image{suffix}").write_bytes(data)
        return Outcome(ends(read_image(folder / f"image{suffix}")))

    return run


def case(fault: str, data: bytes, options: dict[str, Any] | None = None, **outcome: Any) -> Case:
    return Case(reader="image", fault=fault, run=functools.partial(convert, data, **(options or {})), **outcome)


def frames(format: str, **options: Any) -> bytes:
    second = Image.fromarray(RED_TO_BLUE[::-1].copy())
    return encode(RGB, format, save_all=True, append_images=[second], **options)


def with_alpha(alpha: list[list[int]]) -> Image.Image:
    image = RGB.copy()
    image.putalpha(Image.fromarray(np.array(alpha, np.uint8)))
    return image


def without_end(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def preview() -> bytes:
    return encode(RGB, "TIFF", tiffinfo={254: 1})


def packed() -> bytes:
    """A TIFF of two pixels of 12 bits, 0 and 4095."""
    data = encode(np.array([[0, 15, 255]], np.uint8), "TIFF")
    return with_tag(with_tag(data, 256, 2), 258, 12)


SAME = Image.new("RGB", (16, 16), (90, 90, 90))
NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
RANGE = {"pixel_range": (0.0, 4095.0)}

CASES = [
    *(
        case(f"{format} is read", encode(RGB, format, **options), works=COLORS)
        for format, options in (
            ("PNG", {}),
            ("WEBP", {"lossless": True}),
            ("TIFF", {}),
            ("BMP", {}),
            ("PPM", {}),
            ("JPEG2000", {"irreversible": False}),
        )
    ),
    case("GIF is read", encode(RGB.quantize(4), "GIF"), works=COLORS),
    *(
        Case("API", f"{suffix} is read", api(encode(RGB, format), suffix), works=COLORS)
        for suffix, format in (
            (".tif", "TIFF"),
            (".bmp", "BMP"),
            (".ppm", "PPM"),
            (".gif", "GIF"),
            (".jp2", "JPEG2000"),
        )
    ),
    case("GIF with two frames", frames("GIF"), works=COLORS, warns="has 2 frames or pages.*first is used"),
    case("APNG", frames("PNG"), works=COLORS, warns="has 2 frames"),
    case("animated WebP", frames("WEBP", lossless=True), works=COLORS, warns="has 2 frames"),
    case("TIFF with two pages", frames("TIFF"), works=COLORS, warns="has 2 frames or pages"),
    case("float TIFF of 0..1", encode(UNIT, "TIFF"), refused=r"32-bit float from 0 to 1: set source\.pixel_range"),
    case(
        "float TIFF of 0..1000", encode(UNIT * 1000, "TIFF"), refused=r"float from 0 to 1000: set source\.pixel_range"
    ),
    case(
        "float TIFF with NaN and inf",
        encode(np.array([[0, np.nan, np.inf, 3]], np.float32), "TIFF"),
        refused="from 0 to 3 and 2 NaN or infinite",
    ),
    case("float64 color TIFF", tiff(ramp(2, 3, channels=3, top=7)), refused="3 x 64-bit float from 0 to 7"),
    case(
        "32-bit integers",
        encode(np.array([[-5, 70_000]], np.int32), "TIFF"),
        refused="signed integers from -5 to 70000",
    ),
    case("unsigned 32-bit integers", tiff(np.array([[0, 2**32 - 1]], np.uint32)), refused="from 0 to 4294967295"),
    case("signed 16-bit integers", tiff(np.array([[-1000, 3000]], np.int16)), refused="16-bit signed.*-1000 to 3000"),
    case("signed 8-bit integers", tiff(np.array([[-1, 1]], np.int8)), refused="8-bit signed.*convert it to 8-bit PNG"),
    case("float TIFF with a range", encode(UNIT, "TIFF"), {"pixel_range": (0.0, 1.0)}, works=[0, 255]),
    case(
        "float color TIFF with a range",
        tiff(ramp(2, 3, channels=3, top=17) + 1),
        {"pixel_range": (1.0, 18.0)},
        works=[[0, 15, 30], [225, 240, 255]],
    ),
    case(
        "infinite pixels are clipped", encode(np.array([[-np.inf, np.inf]], np.float32), "TIFF"), RANGE, works=[0, 255]
    ),
    case("NaN with a range", encode(np.array([[0, np.nan]], np.float32), "TIFF"), RANGE, refused="with 1 NaN: give"),
    case(
        "negative integers with a range",
        encode(np.array([[-1000, 3000]], np.int32), "TIFF"),
        {"pixel_range": (-1000.0, 1000.0)},
        works=[0, 255],
    ),
    case("12 bits in 16", encode(TWELVE_BITS, "PNG"), works=[0, 15], warns=r"4095 of 65535.*pixel_range=\[0, 4095\]"),
    case(
        "12 bits in a color PNG",
        png(np.full((1, 2, 3), 3000), bits=16, color_type=2),
        works=[11, 11],
        warns=r"3000 of 65535.*\[0, 4095\]",
    ),
    case("10 bits in a 16-bit TIFF", encode(TWELVE_BITS // 4, "TIFF"), works=[0, 3], warns=r"pixel_range=\[0, 1023\]"),
    case("12 bits in 16 with a range", encode(TWELVE_BITS, "PNG"), RANGE, works=[0, 255]),
    case(
        "12 bits in a color PNG with a range",
        png(np.full((1, 2, 3), 4095), bits=16, color_type=2),
        RANGE,
        works=[255, 255],
    ),
    case("16 bits", encode(TWELVE_BITS * 16, "PNG"), works=[0, 254]),
    case("8 bits with a range", encode(GRAY, "PNG"), RANGE, works=[0, 255]),
    case("PGM of 12 bits", b"P5 3 1 4095\n" + TWELVE_BITS.astype(">u2").tobytes(), works=[0, 255]),
    case("PGM of 12 bits with a range", b"P5 3 1 4095\n" + TWELVE_BITS.astype(">u2").tobytes(), RANGE, works=[0, 255]),
    case("PFM", b"Pf\n2 1\n-1.0\n" + np.array([0, 9], "<f4").tobytes(), refused="32-bit float from 0 to 9"),
    case("16-bit TIFF where 0 is white", encode(TWELVE_BITS * 16, "TIFF", tiffinfo={262: 0}), works=[255, 1]),
    case("TIFF of 12 bits", packed(), works=[0, 255]),
    case("TIFF of 12 bits with a range", packed(), {"pixel_range": (0.0, 8190.0)}, works=[0, 128]),
    case("JPEG with a second picture", encode(SAME, "MPO", save_all=True, append_images=[SAME]), works=[90, 90]),
    case("JPEG with bytes after its end", encode(SAME, "JPEG") + b"SEFT" * 9, works=[90, 90]),
    case(
        "JPEG with bytes before its end",
        encode(SAME, "JPEG")[:-2] + bytes(9) + b"\xff\xd9",
        refused="the JPEG is damaged .*extraneous bytes.*open it in an image editor and save it",
    ),
    case("1-bit gray", png([[0, 1]], bits=1), works=[0, 255]),
    case("2-bit gray", png([[0, 2]], bits=2), works=[0, 170]),
    case("4-bit gray", png([[0, 5]], bits=4), works=[0, 85]),
    case("2-bit palette", png([[0, 3]], bits=2, color_type=3), works=[[11, 10, 9], [2, 1, 0]]),
    case("palette with a transparent color", png([[0, 1, 1]], bits=1, color_type=3), works=[[5, 4, 3], [2, 1, 0]]),
    case("CMYK TIFF", encode(RGB.convert("CMYK"), "TIFF"), works=COLORS),
    case("JPEG in a TIFF", encode(SAME, "TIFF", compression="jpeg"), works=[90, 90]),
    case("LAB TIFF", encode(Image.new("LAB", (2, 1), (255, 128, 128)), "TIFF"), works=[[254, 255, 254]] * 2),
    case(
        "gray with alpha",
        encode(Image.merge("LA", [Image.fromarray(GRAY), Image.new("L", (3, 1), 255)]), "PNG"),
        works=[0, 255],
    ),
    case("RGBA that is opaque", encode(with_alpha([[255] * 3] * 2), "PNG"), works=COLORS),
    case(
        "RGBA that is transparent",
        encode(with_alpha([[255] * 3, [0] * 3]), "PNG"),
        works=COLORS,
        warns="50% of its pixels are transparent",
    ),
    case(
        "palette with a transparent index",
        encode(RGB.quantize(4), "PNG", transparency=0),
        works=COLORS,
        warns="transparent",
    ),
    case("EXIF turns a TIFF by 180 degrees", encode(RGB, "TIFF", tiffinfo={274: 3}), works=COLORS[::-1]),
    case("EXIF turns a PNG by 180 degrees", encode(RGB, "PNG", exif=exif(3)), works=COLORS[::-1]),
    case("EXIF turns a WebP by 180 degrees", encode(RGB, "WEBP", lossless=True, exif=exif(3)), works=COLORS[::-1]),
    case("EXIF turns a scaled TIFF", encode(TWELVE_BITS, "TIFF", tiffinfo={274: 3}), RANGE, works=[255, 0]),
    case("EXIF turns a scaled PNG", encode(TWELVE_BITS, "PNG", exif=exif(3)), RANGE, works=[255, 0]),
    case("EXIF orientation 0", encode(RGB, "PNG", exif=exif(0)), works=COLORS),
    case(
        "damaged EXIF",
        png([[0, 255]], before=chunk(b"eXIf", b"MM\0*nonsense" * 3)),
        works=[0, 255],
        warns="EXIF data is damaged",
    ),
    case("truncated JPEG", without_end(encode(NOISE, "JPEG")), refused="image photo.jpg: the JPEG is damaged.*cut off"),
    case("truncated PNG", without_end(encode(NOISE, "PNG")), refused="the PNG is damaged.*cut off"),
    case("truncated BMP", without_end(encode(NOISE, "BMP")), refused="the BMP is damaged.*cut off"),
    case("JPEG cut in its header", encode(NOISE, "JPEG")[:30], refused="the JPEG is damaged"),
    case("empty file", b"", refused=r"it is empty \(0 bytes\).*download it again"),
    case("zeros", bytes(99), refused="all its 99 bytes are zero"),
    case(
        "web page", b"<!DOCTYPE html><title>404</title>", refused="an HTML page, probably an error page of a download"
    ),
    case("error of a server", b'{"error": "not found"}', refused="JSON, probably an error answer"),
    case("text", b"see folder 7\n", refused="text that begins with 'see folder 7'"),
    case("Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\n", refused="Git LFS pointer.*git lfs pull"),
    case("AppleDouble file", b"\0\x05\x16\x07\0\2\0\0Mac OS X", refused="AppleDouble.*remove it"),
    case("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0", refused="HEIC or HEIF photo.*convert it to JPEG or PNG"),
    case("AVIF", encode(RGB, "AVIF"), refused="an AVIF image.*convert it to JPEG or PNG"),
    case("SVG", b"<?xml version='1.0'?>\n<svg/>", refused="an SVG drawing"),
    case("PDF", b"%PDF-1.7\n", refused="a PDF document"),
    case("Photoshop", b"8BPS\0\1", refused="a Photoshop file"),
    case("video", b"\0\0\0\x18ftypisom\0\0\0\0", refused="a video"),
    case("Canon raw", b"II*\0\x10\0\0\0CR\2\0", refused="a camera raw file"),
    case("raw file with a preview", preview(), refused="preview, as in camera raw files"),
    case(
        "more pixels than allowed",
        encode(np.zeros((101, 100), np.uint8), "PNG"),
        refused=r"100 x 101 pixels.*data\.max_pixels=10000",
    ),
    case("bomb", png([[0]], size=(60_000, 60_000)), refused=r"larger than data\.max_pixels=10000.*3600000000 pixels"),
    case(
        "TIFF of 20 channels", with_tag(encode(RGB, "TIFF"), 277, 20), refused="20 channels, expected gray, RGB or CMYK"
    ),
]
