"""Images of more than 8 bits a sample: how deep they are, and their scaling to 8 bits by a range that was chosen.

Without `source.pixel_range` unsigned images of up to 16 bits use the range that their file declares (65535 is white in
16 bits); signed, 32-bit and float images do not declare one and are refused. OpenCV reads the raw samples: Pillow
reduces color to 8 bits, wraps unsigned 32 bits and knows neither float64 nor float color.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from seam_dist.data.images import BadImageError, check_size, damaged, open_image
from seam_dist.data.signatures import format_of

Samples: TypeAlias = Literal["unsigned", "signed", "float", "complex"]

_SMALL_SHARE = 4
"""An image whose largest value is below white divided by this uses a small part of its range."""
_USUAL_BITS = (8, 10, 12, 14)
_MAX_CHANNELS = 6  # that Pillow reads, extra ones included
_PNG_DEPTH_AT = 24  # after signature (8), chunk length and name (8), width and height (8)
_PNG_COLOR_TYPE_AT = 25
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}

_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P([2356])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")
_PFM = re.compile(rb"P([fF])\s+(\d{1,9})\s+(\d{1,9})\s")
_J2K_CODESTREAM = b"\xff\x4f\xff\x51"

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _CHANNELS = 256, 257, 258, 262, 274, 277
_PAGE_TYPE, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT, _DNG_VERSION = 254, 322, 323, 339, 50706
_WHITE_IS_ZERO = 0
_SAMPLES: Mapping[int, Samples] = {1: "unsigned", 2: "signed", 3: "float", 5: "complex", 6: "complex"}


@dataclass(frozen=True)
class Depth:
    """Samples of an image as they are stored: `white` is the value that its file declares as white, None for none.

    `is_inverted` where 0 is white. `has_range` where a range can be applied to the raw samples. `size` is (height,
    width) as displayed and `orientation` the EXIF value, of a TIFF or PFM alone, which Pillow cannot always open.
    """

    bits: int = 8
    samples: Samples = "unsigned"
    num_channels: int = 3
    white: int | None = 255
    is_inverted: bool = False
    has_range: bool = True
    size: tuple[int, int] = (0, 0)
    orientation: int = 1

    @property
    def is_deep(self) -> bool:
        """Return whether a pixel range applies."""
        return self.bits > 8 or self.samples != "unsigned"

    def __str__(self) -> str:
        """Return the depth in words, such as `3 x 32-bit float`."""
        return f"{'' if self.num_channels == 1 else f'{self.num_channels} x '}{self.bits}-bit {self.samples}"


def read_depth(data: bytes, format: str, *, max_pixels: int) -> Depth:
    """Return the depth of an image from its header; raise BadImageError where that is damaged or too large."""
    if format == "PNG" and len(data) > _PNG_COLOR_TYPE_AT and data[_PNG_DEPTH_AT] == 16:
        return Depth(16, "unsigned", _PNG_CHANNELS.get(data[_PNG_COLOR_TYPE_AT], 3), 65_535)
    if format == "TIFF":
        return _tiff_depth(data, max_pixels)
    if format == "PPM" and (match := _PNM.match(data)):
        white = int(match[4])
        if white > 255:
            return Depth(white.bit_length(), "unsigned", 3 if match[1] in b"36" else 1, white)
    if format == "PPM" and (match := _PFM.match(data)):
        width, height = int(match[2]), int(match[3])
        check_size(width, height, max_pixels)
        return Depth(32, "float", 1 if match[1] == b"f" else 3, None, size=(height, width))
    if format == "JPEG2000":
        header = data[data.find(_J2K_CODESTREAM) :][:43]
        if header.startswith(_J2K_CODESTREAM) and len(header) == 43 and (bits := (header[42] & 127) + 1) > 8:
            channels = int.from_bytes(header[40:42], "big")
            if header[42] > 127:
                return Depth(bits, "signed", channels, None)
            return Depth(bits, "unsigned", channels, 2**bits - 1, has_range=bits == 16)
    return Depth()


def scale_pixels(
    data: bytes, depth: Depth, pixel_range: tuple[float, float] | None, *, max_pixels: int
) -> NDArray[np.uint8]:
    """Return a deep image as (H, W, 3) uint8 RGB, its range scaled to 0..255 and values outside of it clipped.

    A TIFF comes in display order, any other as it is stored. Raises BadImageError without a range, for NaN, and for
    samples that cannot be read.
    """
    if pixel_range is None:
        text = f"its pixels are {depth} {_describe_range(data, depth, max_pixels)}"
        raise BadImageError(f"{text}: {_remedy(depth)}", "depth")
    raw = _read_samples(data, depth, max_pixels)
    if depth.samples == "float" and np.isnan(raw).any():
        raise BadImageError(f"its pixels are {depth} with {int(np.isnan(raw).sum())} NaN: give these a value", "depth")
    low, high = pixel_range
    exact = np.float32 if depth.bits <= 16 or raw.dtype == np.float32 else np.float64
    with np.errstate(over="ignore"):  # infinite values are clipped like others
        scaled = (raw.astype(exact) - exact(low)) * exact(255 / (high - low))
    pixels = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    if depth.is_inverted:
        pixels = 255 - pixels
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def small_range(data: bytes, depth: Depth, *, max_pixels: int) -> str | None:
    """Return what is odd about a 16-bit image that uses a small part of its range; None for all others."""
    if depth.bits != 16 or depth.samples != "unsigned" or depth.white != 65_535 or not depth.has_range:
        return None
    try:
        largest = int(_read_samples(data, depth, max_pixels).max())
    except BadImageError:
        return None  # of a layout without raw samples, such as gray with alpha
    if largest == 0 or largest >= (depth.white + 1) // _SMALL_SHARE:
        return None
    bits = next(bits for bits in _USUAL_BITS if largest < 2**bits)
    text = f"its largest value is {largest} of {depth.white}, so it is nearly black: if its values have {bits} bits"
    return f"{text}, set source.pixel_range=[0, {2**bits - 1}]"


def _remedy(depth: Depth) -> str:
    if depth.samples == "complex" or depth.bits <= 8:
        return "convert it to 8-bit PNG"
    return "set source.pixel_range=[lo, hi] to what is black and white in all images, or convert them to 8 bits"


def _describe_range(data: bytes, depth: Depth, max_pixels: int) -> str:
    if depth.samples == "complex":
        return "numbers"
    values = _read_samples(data, depth, max_pixels, with_range=False)
    if depth.samples != "float":
        return f"integers from {int(values.min())} to {int(values.max())}"
    finite = values[np.isfinite(values)]
    others = values.size - finite.size
    extent = f"from {finite.min():g} to {finite.max():g}" if finite.size else "without a finite value"
    return extent + (f" and {others} NaN or infinite" if others else "")


def _read_samples(data: bytes, depth: Depth, max_pixels: int, *, with_range: bool = True) -> NDArray[Any]:
    """Return the raw samples (H, W) or (H, W, 3) RGB."""
    if with_range and (not depth.has_range or depth.samples == "complex" or depth.bits <= 8):
        text = f"its pixels are {depth}, to which no range can be applied"
        raise BadImageError(f"{text}: convert it to 8-bit PNG", "depth")
    if depth.num_channels not in (1, 3, 4):
        text = f"its pixels are {depth}, expected 1, 3 or 4 channels"
        raise BadImageError(f"{text}: convert it to 8-bit RGB or gray", "depth")
    is_packed = depth.bits == 12 and format_of(data) == "TIFF"
    if is_packed or format_of(data) == "PNG":
        # Pillow unpacks 12 bits; OpenCV prints what is wrong with a damaged PNG.
        with open_image(data, max_pixels=max_pixels, formats=("TIFF", "PNG")) as image:
            image.load()
            if is_packed or image.mode == "I;16":
                return np.array(image)
    try:
        with _silent_opencv():
            raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except Exception as error:  # of many types, for damaged files
        raise BadImageError(damaged("image", error)) from None
    if raw is None:
        raise BadImageError(f"its pixels are {depth}, which cannot be decoded: convert it to 8-bit PNG", "depth")
    samples: NDArray[Any] = raw if raw.ndim == 2 else raw[..., 2::-1]
    return samples


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """Keep OpenCV from printing what libtiff says about odd tags; damage is found by what comes out."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


def _tiff_depth(data: bytes, max_pixels: int) -> Depth:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd tags that matter are missed below
            tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2:3] in b"+" or data[3:4] in b"+" else 8])
            file = io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            bits, samples = _all_equal(tags.get(_BITS, (1,))), _all_equal(tags.get(_SAMPLE_FORMAT, (1,)))
            channels, photometric = int(tags.get(_CHANNELS, 1)), tags.get(_PHOTOMETRIC, 1)
            width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
            tile = int(tags.get(_TILE_WIDTH, 0)), int(tags.get(_TILE_HEIGHT, 0))
            orientation = tags.get(_ORIENTATION, 1)
            is_preview = _DNG_VERSION in tags or tags.get(_PAGE_TYPE, 0) & 1
    except Exception as error:  # of many types, for damaged files
        raise BadImageError(damaged("TIFF", error)) from None
    check_size(width, height, max_pixels)
    check_size(*tile, max_pixels)
    if is_preview:
        text = "its first picture is a preview, as in camera raw files (DNG, NEF, ARW)"
        raise BadImageError(f"{text}: export the picture as JPEG or PNGformat")
    kind = _SAMPLES.get(samples, "unsigned")
    if channels > _MAX_CHANNELS:
        text = f"it has {channels} channels, expected gray, RGB or CMYK"
        raise BadImageError(f"{text}: choose three and save them as RGB")
    white = 2**bits - 1 if kind == "unsigned" and bits <= 16 else None
    has_range, is_inverted = photometric in (_WHITE_IS_ZERO, 1, 2), photometric == _WHITE_IS_ZERO
    size = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    orientation = orientation if orientation in range(1, 9) else 1
    return Depth(bits, kind, channels, white, is_inverted, has_range, size, orientation)


def _all_equal(values: Any) -> int:
    """Return the value of a tag that has one for each channel."""
    different = set(values if isinstance(values, tuple) else (values,))
    if len(different) != 1:
        raise ValueError(f"its channels have different depths {sorted(different)}")
    return int(different.pop())
