"""Tiny images and masks of every format and layout, made in code."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def ramp(height: int = 6, width: int = 8, *, top: float = 255, channels: int = 0) -> NDArray[np.float64]:
    """Values from 0 to `top`, rising from the upper left to the lower right."""
    shape = (height, width, channels) if channels else (height, width)
    return np.linspace(0, top, int(np.prod(shape))).reshape(shape)


def encode(image: NDArray[Any] | Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, format, **options)
    return out.getvalue()


def tiff(values: NDArray[Any]) -> bytes:
    """A TIFF of any sample type, gray or RGB."""
    return bytes(cv2.imencode(".tiff", values[..., ::-1] if values.ndim == 3 else values)[1])


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a short or long tag."""
    start = struct.unpack("<I", data[4:8])[0]
    for at in range(start + 2, start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0], 12):
        if struct.unpack("<H", data[at : at + 2])[0] == tag:
            return data[: at + 8] + struct.pack("<I", value) + data[at + 12 :]
    raise AssertionError(f"no tag {tag}")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    rows: NDArray[Any] | Sequence[Sequence[int]],
    *,
    bits: int = 8,
    color_type: int = 0,
    orientation: int | None = None,
    before: bytes = b"",
    size: tuple[int, int] | None = None,
) -> bytes:
    """A PNG from its raw samples (H, W) or (H, W, channels); `before` are chunks before the pixels.

    `size` (height, width) is what the header says, if not the truth.
    """
    samples = np.asarray(rows)
    height, width = size or samples.shape[:2]
    lines = samples.reshape(samples.shape[0], -1)
    if bits == 16:
        packed = [line.astype(">u2").tobytes() for line in lines]
    else:
        expanded = np.unpackbits(lines.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        packed = [np.packbits(line.reshape(-1)).tobytes() for line in expanded]
    data = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    if color_type == 3:
        data += chunk(b"PLTE", bytes(range(3 * 2**bits - 1, -1, -1)) if bits < 7 else bytes(3 * 2**bits))
    if orientation is not None:
        data += chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
    return (
        data + before + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in packed))) + chunk(b"IEND", b"")
    )


def recheck(data: bytes) -> bytes:
    """A PNG with the checksums of all chunks made right."""
    fixed, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        fixed += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return fixed
