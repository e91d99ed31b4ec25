"""Decoding of untrusted images: the size is read from the header and checked before any pixel is decoded.

What shards hold is decoded here: JPEG through libjpeg-turbo (simplejpeg); CMYK JPEG, PNG and WebP through Pillow.
Whatever comes in, (H, W, 3) uint8 RGB in display order comes out: gray is repeated, CMYK converted, alpha dropped, 16
bits reduced to 8, the first frame of an animation taken, the EXIF rotation applied. `image_files.py` reads the other
formats, `masks.py` masks.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from seam_dist.data.signatures import KEPT_FORMATS, describe_bytes, format_of

Pixels = NDArray[np.uint8]

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"),
    *(".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
)
"""Endings, in lower case, of the image files that conversion, `predict` and the Python API read."""
MAX_SIDE = 65_535  # of a JPEG; no format here needs more
_TURBO_COLORS = ("YCbCr", "Gray", "RGB")
_WHITE_16_BIT = 65_535
_CUT_OFF = ("truncated", "premature end", "eof", "end of file", "not enough", "incomplete", "broken data stream")


class BadSampleError(ValueError):
    """A sample that cannot be used; the message says why."""


class BadImageError(BadSampleError):
    """An image or mask that cannot be used; `topic` is the sort of fault, a short stable name."""

    def __init__(self, text: str, topic: str = "damaged") -> None:
        super().__init__(text)
        self.topic = topic


def single_thread() -> None:
    """Keep this process to one thread: many decode side by side, and OpenCV's threads do not survive a fork."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def decode_image(
    data: bytes, *, max_pixels: int, orientation: int = 1, min_size: tuple[int, int] | None = None
) -> Pixels:
    """Decode a JPEG, PNG or WebP to (H, W, 3) uint8 RGB and turn the image as its EXIF `orientation` says.

    `min_size` (height, width in display order) allows a JPEG of more than twice that size to be decoded at a reduced
    size of at least `min_size`. Raises BadImageError for damaged data and for more than `max_pixels` pixels.
    """
    color = None
    try:
        if data.startswith(b"\xff\xd8"):
            height, width, color, _ = simplejpeg.decode_jpeg_header(data)
            check_size(width, height, max_pixels)
        if color not in _TURBO_COLORS:
            with open_image(data, max_pixels=max_pixels, formats=KEPT_FORMATS) as image:
                return orient(to_rgb(image), orientation)
        least = min_size or (0, 0)
        if orientation >= 5:
            least = least[::-1]
        if 2 * least[0] > height or 2 * least[1] > width:
            least = (0, 0)
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
    except BadImageError:
        raise
    except ValueError as error:
        raise BadImageError(damaged("JPEG", error)) from None
    return orient(pixels, orientation)


def orient(pixels: Pixels, orientation: int) -> Pixels:
    """Turn stored pixels into display order; `orientation` is the EXIF value, 1 to 8."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise BadImageError for an image of more than `max_pixels` pixels."""
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise BadImageError(
            f"the image has {width} x {height} pixels, more than data.max_pixels={max_pixels} or {MAX_SIDE} on a side: "
            "make it smaller, or raise data.max_pixels if the file is to be trusted",
            "too-large",
        )


def damaged(what: str, error: Exception | str) -> str:
    """Return the text on a file that a decoder gave up on."""
    said = str(error) or type(error).__name__
    if any(sign in said.lower() for sign in _CUT_OFF):
        return f"the {what} is damaged ({said}): it is cut off, so copy or download it again"
    return f"the {what} is damaged ({said}): copy it again, or open it in an image editor and save it"


@contextmanager
def open_image(data: bytes, *, max_pixels: int, formats: Sequence[str]) -> Iterator[Image.Image]:
    """Yield the image with its header read and its size checked, not decoded yet.

    Raises BadImageError for bytes of other formats, for a size above `max_pixels`, and for whatever Pillow raises in
    the block, which is of many types for damaged files.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES lets damaged images pass for whole ones: unset it")
    format = format_of(data)
    if format is None or format not in formats:
        expected = " or ".join([", ".join(formats[:-1]), formats[-1]])
        topic, text = describe_bytes(data, expected)
        raise BadImageError(text, topic)
    if format not in Image.OPEN:
        Image.init()  # a first open with `formats` knows the most common formats only
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, which are checked below; of odd metadata, of which only the orientation
            # matters (see image_files.py); and of palettes whose transparency is dropped.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=(format,)) as image:
                check_size(image.width, image.height, max_pixels)
                yield image
    except Image.DecompressionBombError as error:
        limits = f"data.max_pixels={max_pixels}, or than Pillow decodes"
        raise BadImageError(f"the image is larger than {limits} ({error}): make it smaller", "too-large") from None
    except UnidentifiedImageError:
        layout = "its header does not fit, or is of a rare variant"
        raise BadImageError(damaged(format, layout)) from None
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(damaged(format, error)) from None


def to_rgb(image: Image.Image, white: int = _WHITE_16_BIT) -> Pixels:
    """Return the pixels of an open image as (H, W, 3) uint8 RGB; `white` is that of 9 to 16 bits."""
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit gray to 255.
        values = np.clip(np.array(image, dtype=np.int64), 0, white)
        gray = values // 257 if white == _WHITE_16_BIT else (255 * values + white // 2) // white
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)
