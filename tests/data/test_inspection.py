"""Opening a record: image and mask are turned alike, what is stored is canonical, and nothing costs much memory."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import chunk, encode, exif, png, with_tag
from PIL import Image, ImageOps

from seam_dist.data.inspection import Inspection, inspect_record
from seam_dist.data.masks import decode_mask
from seam_dist.data.shards import RawSample, read_shard, write_shard
from seam_dist.data.sources.base import Record
from seam_dist.data.survey import survey_dataset

MAX_PIXELS = 50_000_000
MAX_GROWTH_MIB = 50
SHAPE = (6, 8)


def inspect(image: bytes, mask: bytes | None = None, **options: Any) -> Inspection:
    record = Record("key", "photo.jpg", (1,), kit.Bytes(image), None if mask is None else kit.Bytes(mask))
    return inspect_record(record, **{"num_classes": 250, "max_pixels": MAX_PIXELS} | options)


def topics(inspection: Inspection) -> list[str]:
    return [finding.topic for finding in inspection.findings]


def numbered(height: int = SHAPE[0], width: int = SHAPE[1]) -> NDArray[np.uint8]:
    """Pixels that are all different."""
    return np.arange(height * width, dtype=np.uint8).reshape(height, width)


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """What Pillow shows of an image with this orientation."""
    data = encode(pixels, "PNG", exif=exif(orientation))
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


def tagged(pixels: NDArray[np.uint8], format: str, orientation: int) -> bytes:
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    return encode(np.repeat(pixels[..., None], 3, axis=2), format, exif=exif(orientation), **options)


def from_shard(sample: RawSample, folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image and mask of a sample that went through a shard."""
    with open(folder / "one.tar", "wb") as file:
        write_shard(file, [sample])
    (read,) = read_shard(folder / "one.tar", masks=True, max_pixels=MAX_PIXELS)
    assert read.mask is not None
    return read.image[..., 0], read.mask


@pytest.mark.parametrize("mask_has_tag", [True, False])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_are_turned_alike(orientation: int, format: str, mask_has_tag: bool, tmp_path: Path) -> None:
    stored = numbered()
    expected = turned(stored, orientation)
    mask = png(stored, orientation=orientation) if mask_has_tag else png(expected)
    inspection = inspect(tagged(stored, format, orientation), mask)
    assert inspection.sample is not None
    assert (inspection.size, inspection.orientation) == (expected.shape, orientation)
    image, values = from_shard(inspection.sample, tmp_path)
    assert np.array_equal(image, expected)
    assert np.array_equal(values, expected)
    assert np.array_equal(decode_mask(mask, max_pixels=MAX_PIXELS), expected)
    is_doubtful = orientation in (2, 3, 4) and not mask_has_tag
    assert topics(inspection) == ["mask-orientation"] * is_doubtful


@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_is_turned_by_its_own_tag_beside_an_image_without_one(orientation: int, tmp_path: Path) -> None:
    expected = turned(numbered(), orientation)
    inspection = inspect(tagged(expected, "PNG", 1), png(numbered(), orientation=orientation))
    assert inspection.sample is not None
    for values in from_shard(inspection.sample, tmp_path):
        assert np.array_equal(values, expected)
    assert topics(inspection) == []


@pytest.mark.parametrize("orientation", range(5, 9))
def test_mask_of_the_unturned_image_is_refused_or_doubted(orientation: int) -> None:
    oblong = inspect(tagged(numbered(), "PNG", orientation), png(numbered()))
    assert [str(finding) for finding in oblong.findings] == [
        "mask of image photo.jpg: it has (6, 8) pixels (height, width), its image (8, 6); it fits the image before its "
        f"EXIF rotation (orientation {orientation}), masks are expected after the image's EXIF rotation: turn it, or "
        "give it the same EXIF orientation"
    ]
    square = inspect(tagged(numbered(5, 5), "PNG", orientation), png(numbered(5, 5)))
    assert topics(square) == ["mask-orientation"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_image_of_16_bits_is_turned_when_it_is_scaled(format: str, orientation: int) -> None:
    deep = numbered().astype(np.uint16) * 10
    data = encode(deep, format, exif=exif(orientation))
    inspection = inspect(data, png(numbered(), orientation=orientation), pixel_range=(0, 2550))
    assert inspection.sample is not None
    stored = np.array(Image.open(io.BytesIO(inspection.sample.members["image.png"])))
    assert np.array_equal(stored[..., 0], turned(numbered(), orientation))


def test_canonical_files_keep_their_bytes_and_others_are_stored_anew() -> None:
    image, plain = encode(kit.pixels(0), "JPEG"), kit.index_mask(0)
    inspection = inspect(image, plain)
    assert inspection.sample is not None
    assert inspection.sample.members["jpg"] == image
    assert inspection.sample.members["png"] == plain
    for other in (png(numbered() % 4, bits=2), png(numbered(), bits=16), png(numbered(), orientation=3)):
        sample = inspect(encode(numbered(), "PNG"), other).sample
        assert sample is not None
        assert sample.members["png"] != other
        stored = np.array(Image.open(io.BytesIO(sample.members["png"])))
        assert np.array_equal(stored, decode_mask(other, max_pixels=MAX_PIXELS))


def test_image_of_8_bits_keeps_its_bytes_with_a_pixel_range() -> None:
    for format, extension in (("JPEG", "jpg"), ("PNG", "image.png"), ("WEBP", "webp")):
        data = encode(kit.pixels(0), format)
        sample = inspect(data, pixel_range=(0, 4095)).sample
        assert sample is not None
        assert sample.members[extension] == data


@pytest.mark.parametrize(
    ("data", "format", "mode", "orientation"),
    [
        (encode(kit.pixels(0), "JPEG", exif=exif(6)), "JPEG", "RGB", 6),
        (encode(Image.new("CMYK", (4, 3)), "JPEG"), "JPEG", "CMYK", 1),
        (encode(Image.new("L", (4, 3)), "TIFF", tiffinfo={274: 8}), "TIFF", "L", 8),
        (encode(Image.new("P", (4, 3)), "GIF"), "GIF", "P", 1),
        (encode(Image.new("F", (4, 3)), "TIFF"), "TIFF", "F", 1),
    ],
)
def test_inspection_names_format_mode_and_orientation(data: bytes, format: str, mode: str, orientation: int) -> None:
    inspection = inspect(data)
    assert (inspection.format, inspection.mode, inspection.orientation) == (format, mode, orientation)


def test_second_image_of_a_pair_is_checked_as_well() -> None:
    record = Record("key", "pair", (1,), kit.Bytes(encode(numbered(), "PNG")))
    deep = kit.Bytes(encode(numbered().astype(np.uint16), "PNG"))
    inspection = inspect_record(replace(record, image_b=deep), num_classes=1, max_pixels=MAX_PIXELS)
    assert topics(inspection) == ["small-range"]


def animation(width: int, height: int) -> bytes:
    """A WebP animation whose canvas is larger than its one frame."""
    frame = bytes(6) + struct.pack("<I", 1)[:3] * 2 + bytes(4) + encode(kit.pixels(0, 2, 2), "WEBP", lossless=True)[12:]
    canvas = bytes([2, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    parts = ((b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", frame))
    body = b"".join(name + struct.pack("<I", len(part)) + part for name, part in parts)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def resized(format: str, at: int, layout: str) -> bytes:
    data = encode(numbered(), format)
    return data[:at] + struct.pack(layout, 12_000, 12_000) + data[at + struct.calcsize(layout) :]


_compressor = zlib.compressobj()  # row by row: the test itself must not need the memory
ROWS_OF_ZEROS = b"".join(_compressor.compress(bytes(12_001)) for _ in range(12_000)) + _compressor.flush()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("PNG", png([[0]], size=(12_000, 12_000), before=chunk(b"IDAT", ROWS_OF_ZEROS))),
        ("PNG text", png([[0]], before=chunk(b"zTXt", b"a\0\0" + ROWS_OF_ZEROS))),
        ("PNG profile", png([[0]], before=chunk(b"iCCP", b"a\0\0" + ROWS_OF_ZEROS))),
        ("WebP canvas", animation(12_000, 12_000)),
        ("GIF canvas", resized("GIF", 6, "<HH")),
        ("BMP", resized("BMP", 18, "<ii")),
        ("PGM", b"P5 12000 12000 255\n" + bytes(99)),
        ("TIFF", with_tag(with_tag(encode(np.zeros((2, 2), np.float32), "TIFF"), 256, 12_000), 257, 12_000)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bomb_is_refused_and_costs_no_memory(name: str, data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inspection = inspect(data, pixel_range=(0, 1))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MAX_GROWTH_MIB
    assert topics(inspection) in (["image-too-large"], ["image-damaged"]), name


def test_unreadable_files_are_findings(tmp_path: Path) -> None:
    good = kit.Bytes(encode(numbered(), "PNG"))
    for gone in (
        Record("key", "a.jpg", (), (tmp_path / "a.jpg").read_bytes),
        Record("key", "a.jpg", (), good, tmp_path.read_bytes),
    ):
        inspection = inspect_record(gone, num_classes=1, max_pixels=MAX_PIXELS)
        assert inspection.sample is None
        assert "image a.jpg cannot be read: " in str(inspection.findings.errors[0])


def test_each_sort_of_fault_has_a_topic_of_its_own() -> None:
    image, mask = encode(numbered(), "PNG"), png(numbered())
    assert [
        topics(inspect(data))[0]
        for data in (
            b"",
            b"<html>",
            b"version https://git-lfs.github.com/spec/v1",
            b"%PDF-1",
            image[:45],
            encode(np.zeros((2, 2), np.float32), "TIFF"),
            png([[0]], size=(60_000, 60_000)),
        )
    ] == [f"image-{topic}" for topic in ("empty", "text", "pointer", "format", "damaged", "depth", "too-large")]
    assert [
        topics(inspect(image, data))[0]
        for data in (
            b"",
            encode(numbered(), "TIFF"),
            mask[:45],
            encode(kit.pixels(0), "PNG"),
            png(numbered() + 250),
            png([[1]]),
        )
    ] == [f"mask-{topic}" for topic in ("empty", "format", "damaged", "colors", "values", "size")]


def _no_index() -> bytes:
    raise IndexError("tuple index out of range")


def test_what_a_reader_raises_is_an_error_of_its_image() -> None:
    picture = encode(kit.pixels(0), "PNG")
    for record, text in (
        (Record("a", "a.jpg", (1,), _no_index), "image a.jpg: its reader failed"),
        (Record("a", "a.jpg", (1,), kit.Bytes(picture), _no_index), "mask of image a.jpg: its reader failed"),
    ):
        inspection = inspect_record(record, num_classes=1, max_pixels=MAX_PIXELS)
        assert inspection.sample is None
        assert str(inspection.findings.errors[0]).startswith(f"{text} (IndexError: tuple index out of range)")
        source = kit.MemorySource(train=[record, *kit.records(1)])
        survey = survey_dataset(source, ["train"], max_pixels=MAX_PIXELS)
        assert (survey.splits[0].num_samples, survey.splits[0].num_unusable) == (2, 1)
        assert any(str(finding).startswith(text) for finding in survey.findings.errors)
