"""Random damage to images and masks of every format gives a finding, never another exception, a print or a bomb."""

from __future__ import annotations

import logging
import re
import resource
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import Bytes
from pictures import encode, exif, png, ramp, recheck, tiff
from PIL import Image

from seam_dist.data.inspection import inspect_record
from seam_dist.data.sources.base import Record

MAX_PIXELS = 100_000
MAX_GROWTH_MIB = 200
# Pillow's libtiff prints what it gives up on, and cannot be told not to.
LIBTIFF = re.compile(r"\w+(\.tif)?: ")

_gray, _rgb = ramp().astype(np.uint8), ramp(channels=3).astype(np.uint8)
_deep, _frames = ramp(top=4095).astype(np.uint16), [Image.fromarray(ramp(top=top).astype(np.uint8)) for top in (9, 99)]
_RGB = Image.fromarray(_rgb)

GOOD = Bytes(encode(_RGB, "PNG"))
IMAGES = [
    *(encode(_RGB, format) for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000")),
    *(encode(_gray, format) for format in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM", "JPEG2000")),
    *(encode(_RGB, format, exif=exif(6)) for format in ("JPEG", "PNG", "WEBP", "TIFF")),
    *(encode(_deep, format) for format in ("PNG", "TIFF", "PPM", "JPEG2000")),
    *(encode(_frames[0], name, save_all=True, append_images=_frames[1:]) for name in ("PNG", "GIF", "TIFF", "WEBP")),
    *(encode(_RGB, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
    *(encode(_RGB.convert(mode), format) for mode, format in (("CMYK", "JPEG"), ("CMYK", "TIFF"), ("LAB", "TIFF"))),
    *(encode(_RGB.convert("RGBA"), format) for format in ("PNG", "WEBP", "TIFF")),
    *(tiff(ramp(top=300, channels=3).astype(dtype)) for dtype in (np.uint16, np.float32, np.float64)),
    *(tiff(ramp(top=300).astype(dtype)) for dtype in (np.int16, np.uint32, np.int32, np.float32)),
    encode(_RGB, "JPEG", progressive=True),
    encode(_RGB, "WEBP", lossless=True),
    encode(_RGB.quantize(16), "PNG", transparency=3),
    encode(_RGB.quantize(200), "BMP"),
]
MASKS = [
    *(png(ramp(top=2**bits - 1).round().astype(int) % 3, bits=bits) for bits in (1, 2, 4, 8, 16)),
    *(png(ramp(top=3).round().astype(int), bits=bits, color_type=3) for bits in (2, 4, 8)),
    png(ramp(top=3).round().astype(int), orientation=6),
    encode(_RGB, "PNG"),
    encode(_RGB.convert("RGBA"), "PNG"),
]

edit = st.sampled_from(["set", "flip", "cut", "insert", "remove", "copy"])
edits = st.lists(st.tuples(edit, st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=3)


@dataclass(frozen=True)
class Damage:
    """An image, or the mask of a good one, what happens to it, and the settings of the inspection."""

    data: bytes
    is_mask: bool
    edits: Sequence[tuple[str, int, int]]
    is_rechecked: bool
    pixel_range: tuple[float, float] | None


def damages(files: Sequence[bytes], *, is_mask: bool) -> st.SearchStrategy[Damage]:
    ranges = st.sampled_from([None, (0.0, 4095.0)])
    return st.builds(Damage, st.sampled_from(files), st.just(is_mask), edits, st.booleans(), ranges)


def damaged(data: bytes, edits: Sequence[tuple[str, int, int]], *, rechecked: bool) -> bytes:
    """The bytes after some edits; the checksums of a PNG fit again where that was asked for."""
    for edit, place, value in edits:
        at = place % max(1, len(data))
        head, tail = data[:at], data[at:]
        data = {
            "set": head + bytes([value]) + tail[1:],
            "flip": head + bytes(byte ^ (1 << value % 8) for byte in tail[:1]) + tail[1:],
            "cut": head,
            "insert": head + bytes([value] * (1 + value % 4)) + tail,
            "remove": head + tail[1 + value % 8 :],
            "copy": head + head[-(1 + value % 32) :] + tail,
        }[edit]
    return recheck(data) if rechecked and data.startswith(b"\x89PNG") else data


def run(num_examples: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = {"used": 0, "refused": 0}

    @settings(max_examples=num_examples, derandomize=True, deadline=None, database=None)
    @given(damages(IMAGES, is_mask=False) | damages(IMAGES, is_mask=False) | damages(MASKS, is_mask=True))
    def inspect(damage: Damage) -> None:
        data = damaged(damage.data, damage.edits, rechecked=damage.is_rechecked)
        image, mask = (GOOD, Bytes(data)) if damage.is_mask else (Bytes(data), None)
        record = Record("key", "image.jpg", (1,), image, mask)
        inspection = inspect_record(record, num_classes=20, max_pixels=MAX_PIXELS, pixel_range=damage.pixel_range)
        assert (inspection.sample is None) == bool(inspection.findings.errors)
        outcomes["used" if inspection.sample else "refused"] += 1

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings(record=True) as leaked, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        inspect()
    growth_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert growth_mib < MAX_GROWTH_MIB
    assert [str(warning.message) for warning in leaked] == []
    assert caplog.text == ""
    assert [line for line in capfd.readouterr().err.splitlines() if not LIBTIFF.match(line)] == []
    assert min(outcomes.values()) > num_examples // 20, outcomes


def test_damaged_images_and_masks_give_findings_alone(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    run(4000, caplog, capfd)
