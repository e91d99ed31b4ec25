"""Decoding of untrusted images and masks: the size is read from the header and checked before any pixel is decoded.

JPEG, PNG and WebP are decoded, nothing else. JPEG goes through libjpeg-turbo (simplejpeg); CMYK JPEG, PNG and WebP
through Pillow. Whatever comes in, (H, W, 3) uint8 RGB in display order comes out: gray is repeated, CMYK converted,
alpha dropped, 16 bits reduced to 8, the first frame of an animation taken, the EXIF rotation applied.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from seam_dist.config.schema import IGNORE_INDEX, MAX_CLASSES

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP")
LOSSLESS_TO_PNG = ("GIF", "TIFF", "BMP", "PPM", "JPEG2000")
MAX_SIDE = 65_535  # of a JPEG; no format here needs more
_EXIF_ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPE_AT = 25  # after signature (8), chunk length and name (8), width and height (8), bit depth (1)
_PALETTE_MODE = b"\x03"
_TURBO_COLORS = ("YCbCr", "Gray", "RGB")


class BadImageError(ValueError):
    """An image or mask that cannot be used; the message says why."""


class UnknownFormatError(BadImageError):
    """A file that is none of the formats asked for."""


def single_thread(_: int = 0) -> None:
    """Keep this process to one thread: many decode side by side, and OpenCV's threads do not survive a fork."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file: width and height in pixels as stored, and its EXIF orientation (1 to 8)."""

    extension: Literal["jpg", "png", "webp"]
    width: int
    height: int
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) in display order."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes, *, max_pixels: int) -> ImageHeader:
    """Return the header of a JPEG, PNG or WebP file without decoding it; raise BadImageError for anything else."""
    with _open(data, max_pixels, FORMATS) as image:
        extension: Literal["jpg", "png", "webp"] = "jpg"
        if image.format in ("PNG", "WEBP"):
            extension = "png" if image.format == "PNG" else "webp"
        try:
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        except (
            Exception
        ):  # a damaged EXIF block is no reason to lose the image; Pillow raises errors of many types here
            orientation = 1
        if not isinstance(orientation, int) or not 1 <= orientation <= 8:
            orientation = 1
        return ImageHeader(extension, image.width, image.height, orientation)


def decode_image(
    data: bytes, *, max_pixels: int, orientation: int = 1, min_size: tuple[int, int] | None = None
) -> Pixels:
    """Decode to (H, W, 3) uint8 RGB and turn the image as its EXIF `orientation` says.

    `min_size` (height, width in display order) allows a JPEG of more than twice that size to be decoded at a reduced
    size of at least `min_size`. Raises BadImageError for damaged data and for more than `max_pixels` pixels.
    """
    if not data.startswith(b"\xff\xd8"):
        return orient(_decode_pillow(data, max_pixels), orientation)
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        if color not in _TURBO_COLORS:
            return orient(_decode_pillow(data, max_pixels), orientation)
        least = (0, 0)
        if min_size is not None:
            least = min_size if orientation < 5 else (min_size[1], min_size[0])
            if 2 * least[0] > height or 2 * least[1] > width:
                least = (0, 0)
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
    except BadImageError:
        raise
    except ValueError as error:
        raise BadImageError(f"the JPEG is damaged ({error})") from None
    return orient(pixels, orientation)


def decode_mask(data: bytes, *, max_pixels: int) -> Pixels:
    """Decode a PNG of class indices, gray or palette, to (H, W) uint8; raise BadImageError for anything else."""
    with _open(data, max_pixels, ("PNG",)) as image:
        if image.mode not in ("L", "P"):
            raise BadImageError(
                f"a mask holds class indices in 8-bit gray or palette mode, found mode {image.mode}: convert "
                "colors to indices"
            )
        return np.array(_load(image), dtype=np.uint8)


def decode_labels(data: bytes, *, max_pixels: int, num_classes: int = MAX_CLASSES) -> Pixels:
    """Return the class indices (H, W) uint8 of a palette PNG.

    Raises ValueError for anything else than a palette PNG of at most `max_pixels` pixels, and for indices that are
    neither 0 .. num_classes nor 255. A gray PNG is refused: its values need not be indices.
    """
    try:
        if not data.startswith(_PNG_SIGNATURE) or data[_COLOR_TYPE_AT : _COLOR_TYPE_AT + 1] != _PALETTE_MODE:
            raise BadImageError("it is no palette PNG")
        labels = decode_mask(data, max_pixels=max_pixels)
    except BadImageError as error:
        raise ValueError(f"the label image cannot be used ({error}): write the labels again") from None
    if num_classes < MAX_CLASSES:
        wrong = labels[(labels > num_classes) & (labels != IGNORE_INDEX)]
        if wrong.size:
            raise ValueError(
                f"the label image holds index {wrong[0]}, expected 0 to {num_classes} or {IGNORE_INDEX}: write "
                "the labels again from the same data set"
            )
    return labels


def encode_png(data: bytes, *, max_pixels: int) -> bytes:
    """Return the first frame of a GIF, TIFF, BMP, PPM or JPEG 2000 image as 8-bit RGB PNG, without its metadata."""
    with _open(data, max_pixels, LOSSLESS_TO_PNG) as image:
        pixels = _to_rgb(_load(image))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


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


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise BadImageError(
            f"the image has {width} x {height} pixels, more than data.max_pixels={max_pixels} or {MAX_SIDE} on a side: "
            "make it smaller, or raise data.max_pixels if the file is to be trusted"
        )


def _open(data: bytes, max_pixels: int, formats: tuple[str, ...]) -> Image.Image:
    """Read the header with Pillow and check the size."""
    if "WEBP" not in Image.OPEN:
        Image.init()  # a first open with `formats` knows the most common formats only
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels on; the check below is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise BadImageError(
            f"the image is a decompression bomb or larger than data.max_pixels={max_pixels} ({error})"
        ) from None
    except UnidentifiedImageError:
        raise UnknownFormatError(f"the {len(data)} bytes are not an image of format {' or '.join(formats)}") from None
    except (OSError, SyntaxError, ValueError, TypeError, IndexError) as error:
        raise BadImageError(f"the image header is damaged ({error})") from None
    _check_size(image.width, image.height, max_pixels)
    return image


def _load(image: Image.Image) -> Image.Image:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so damaged images pass for whole ones: unset it"
        )
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, TypeError, IndexError) as error:
        raise BadImageError(f"the image data is damaged ({error})") from None
    return image


def _decode_pillow(data: bytes, max_pixels: int) -> Pixels:
    with _open(data, max_pixels, FORMATS) as image:
        return _to_rgb(_load(image))


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip 16-bit gray to 255; its full range is 0..65535.
        gray = np.clip(np.array(image, dtype=np.int64), 0, 65_535) // 257
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)
