"""Images of every format become RGB in display order, or are refused before they cost memory."""

from __future__ import annotations

import io
import struct
import zlib

import kit
import numpy as np
import pytest
from PIL import Image, ImageOps

from seam_dist.data.image_files import read_header
from seam_dist.data.images import BadImageError, decode_image

MAX = 10**6


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_as_pillow_does(format: str, orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = kit.encode(kit.pixels(0), format, exif=tags)
    header = read_header(data, max_pixels=MAX)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    decoded = decode_image(data, max_pixels=MAX, orientation=header.orientation)
    assert header.size == decoded.shape[:2] == expected.shape[:2]
    assert np.abs(decoded.astype(int) - expected).max() <= 3  # two JPEG decoders


def test_gray_jpeg_is_repeated_to_rgb() -> None:
    image = decode_image(kit.encode(Image.fromarray(kit.pixels(0)).convert("L")), max_pixels=MAX)
    assert image.shape == (30, 40, 3)
    assert (image[..., 0] == image[..., 1]).all()
    assert (image[..., 0] == image[..., 2]).all()


def test_cmyk_jpeg_is_converted_as_pillow_does() -> None:
    data = kit.encode(Image.fromarray(kit.pixels(0)).convert("CMYK"))
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data, max_pixels=MAX), expected)


def test_16_bit_gray_png_keeps_its_range() -> None:
    ramp = np.linspace(0, 65_535, 1200).reshape(30, 40).astype(np.uint16)
    image = decode_image(kit.encode(Image.fromarray(ramp), "PNG"), max_pixels=MAX)
    assert image.shape == (30, 40, 3)
    assert np.abs(image[..., 0].astype(int) - ramp / 257).max() <= 1


def test_alpha_is_dropped_and_palette_resolved() -> None:
    rgb = Image.fromarray(kit.pixels(0))
    with_alpha = rgb.copy()
    with_alpha.putalpha(7)
    assert np.array_equal(decode_image(kit.encode(with_alpha, "PNG"), max_pixels=MAX), np.array(rgb))
    palette = rgb.quantize(32)
    decoded = decode_image(kit.encode(palette, "PNG"), max_pixels=MAX)
    assert np.array_equal(decoded, np.array(palette.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_is_taken(format: str) -> None:
    frames = [Image.fromarray(kit.pixels(seed)) for seed in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = kit.encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.array_equal(decode_image(data, max_pixels=MAX), np.array(frames[0]))


def test_one_pixel_image_is_an_image() -> None:
    for format in ("JPEG", "PNG"):
        assert decode_image(kit.encode(kit.pixels(0, 1, 1), format), max_pixels=MAX).shape == (1, 1, 3)


@pytest.mark.parametrize("keep", [0.5, 0.95])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated_image_is_refused(format: str, keep: float) -> None:
    data = kit.encode(kit.pixels(0, 100, 120), format)
    with pytest.raises(BadImageError, match="damaged"):
        decode_image(data[: int(len(data) * keep)], max_pixels=MAX)


def test_bomb_is_refused_from_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("the pixels of a bomb were decoded")

    jpeg = bytearray(kit.encode(kit.pixels(0)))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 60_000, 60_000)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    monkeypatch.setattr("simplejpeg.decode_jpeg", decoded)
    for data in (bytes(jpeg), png_header(60_000, 60_000), png_header(1001, 1000), png_header(70_000, 1)):
        with pytest.raises(BadImageError, match=r"data\.max_pixels=1000000"):
            decode_image(data, max_pixels=MAX)
        with pytest.raises(BadImageError, match=r"data\.max_pixels=1000000"):
            read_header(data, max_pixels=MAX)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0garbage", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(BadImageError):
        decode_image(data, max_pixels=MAX)
    with pytest.raises(BadImageError):
        read_header(data, max_pixels=MAX)


def test_reduced_decoding_keeps_at_least_the_size_asked_for() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    data = kit.encode(kit.pixels(0, 400, 600), exif=tags)
    assert decode_image(data, max_pixels=MAX, orientation=6, min_size=(150, 100)).shape == (150, 100, 3)
    assert decode_image(data, max_pixels=MAX, orientation=6, min_size=(301, 200)).shape == (600, 400, 3)
