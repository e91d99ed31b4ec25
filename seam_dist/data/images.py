"""Decoding of untrusted images and masks: the size is read from the header and checked before any pixel is decoded.

JPEG, PNG and WebP are decoded, nothing else. JPEG goes through libjpeg-turbo (simplejpeg); CMYK JPEG, PNG and WebP
through Pillow. Whatever comes in, (H, W, 3) uint8 RGB in display order comes out: gray is repeated, CMYK converted,
alpha dropped, 16 bits reduced to 8, the first frame of an animation taken, the EXIF rotation applied.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from seam_dist.config.schema import IGNORE_INDEX, MAX_CLASSES

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"),
    *(".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
)
"""Endings, in lower case, of the image files that conversion, `predict` and the Python API read."""
LOSSLESS_TO_PNG = ("GIF", "TIFF", "BMP", "PPM", "JPEG2000")
MAX_SIDE = 65_535  # of a JPEG; no format here needs more
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPE_AT = 25  # after signature (8), chunk length and name (8), width and height (8), bit depth (1)
_PALETTE_MODE = b"\x03"
_TURBO_COLORS = ("YCbCr", "Gray", "RGB")
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, IndexError)  # what Pillow raises for damaged files


class BadSampleError(ValueError):
    """A sample that cannot be used; the message says why."""


class BadImageError(BadSampleError):
    """An image or mask that cannot be used."""


class UnknownFormatError(BadImageError):
    """A file that is none of the formats asked for."""


def single_thread() -> None:
    """Keep this process to one thread: many decode side by side, and OpenCV's threads do not survive a fork."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file: "jpg", "png" or "webp", (height, width) as displayed, EXIF orientation (1 to 8)."""

    extension: str
    size: tuple[int, int]
    orientation: int


def read_header(data: bytes, *, max_pixels: int) -> ImageHeader:
    """Return the header of a JPEG, PNG or WebP file without decoding it; raise BadImageError for anything else."""
    with _open_image(data, max_pixels, FORMATS) as image:
        extension = {"PNG": "png", "WEBP": "webp"}.get(image.format or "", "jpg")
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # of many types, for a damaged EXIF block, which is no reason to lose the image
            orientation = 1
        if not isinstance(orientation, int) or not 1 <= orientation <= 8:
            orientation = 1
        return ImageHeader(extension, image.size if orientation >= 5 else image.size[::-1], orientation)


def decode_image(
    data: bytes, *, max_pixels: int, orientation: int = 1, min_size: tuple[int, int] | None = None
) -> Pixels:
    """Decode to (H, W, 3) uint8 RGB and turn the image as its EXIF `orientation` says.

    `min_size` (height, width in display order) allows a JPEG of more than twice that size to be decoded at a reduced
    size of at least `min_size`. Raises BadImageError for damaged data and for more than `max_pixels` pixels.
    """
    color = None
    try:
        if data.startswith(b"\xff\xd8"):
            height, width, color, _ = simplejpeg.decode_jpeg_header(data)
            _check_size(width, height, max_pixels)
        if color not in _TURBO_COLORS:
            with _open_image(data, max_pixels, FORMATS) as image:
                return orient(_to_rgb(_load_pixels(image)), orientation)
        least = min_size or (0, 0)
        if orientation >= 5:
            least = least[::-1]
        if 2 * least[0] > height or 2 * least[1] > width:
            least = (0, 0)
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
    except BadImageError:
        raise
    except ValueError as error:
        raise BadImageError(f"the JPEG is damaged ({error})") from None
    return orient(pixels, orientation)


def read_image_file(path: Path, *, max_pixels: int) -> Pixels:
    """Return an image file in display order; raise OSError or BadImageError when it cannot be used."""
    data = path.read_bytes()
    header = read_header(data, max_pixels=max_pixels)
    return decode_image(data, max_pixels=max_pixels, orientation=header.orientation)


def decode_mask(data: bytes, *, max_pixels: int, num_classes: int = MAX_CLASSES) -> Pixels:
    """Decode a PNG of class indices, gray or palette, to (H, W) uint8; raise BadImageError for anything else."""
    with _open_image(data, max_pixels, ("PNG",)) as image:
        if image.mode not in ("L", "P"):
            raise BadImageError(
                f"a mask holds class indices in 8-bit gray or palette mode, found mode {image.mode}: convert "
                "colors to indices"
            )
        mask = np.array(_load_pixels(image), dtype=np.uint8)
    wrong = mask[(mask > num_classes) & (mask != IGNORE_INDEX)]
    if wrong.size:
        raise BadImageError(
            f"it holds the value {wrong[0]}, expected 0 (background), 1 to {num_classes} (classes) or {IGNORE_INDEX} "
            "(ignored): correct it or add the class"
        )
    return mask


def decode_labels(data: bytes, *, max_pixels: int, num_classes: int = MAX_CLASSES) -> Pixels:
    """Return the class indices (H, W) uint8 of a palette PNG; raise BadImageError where `decode_mask` does.

    A gray PNG is refused as well: its values need not be indices.
    """
    try:
        if not data.startswith(_PNG_SIGNATURE) or data[_COLOR_TYPE_AT : _COLOR_TYPE_AT + 1] != _PALETTE_MODE:
            raise BadImageError("it is no palette PNG")
        return decode_mask(data, max_pixels=max_pixels, num_classes=num_classes)
    except BadImageError as error:
        raise BadImageError(f"the label image cannot be used ({error}): write the labels again") from None


def encode_png(data: bytes, *, max_pixels: int) -> bytes:
    """Return the first frame of a GIF, TIFF, BMP, PPM or JPEG 2000 image as 8-bit RGB PNG, without its metadata."""
    with _open_image(data, max_pixels, LOSSLESS_TO_PNG) as image:
        pixels = _to_rgb(_load_pixels(image))
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


def _open_image(data: bytes, max_pixels: int, formats: tuple[str, ...]) -> Image.Image:
    """Read the header with Pillow and check the size."""
    if "WEBP" not in Image.OPEN:
        Image.init()  # a first open with `formats` knows the most common formats only
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels on; the check below is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise BadImageError(f"the image is larger than data.max_pixels={max_pixels} ({error})") from None
    except UnidentifiedImageError:
        raise UnknownFormatError(f"the {len(data)} bytes are not an image of format {' or '.join(formats)}") from None
    except _DAMAGED as error:
        raise BadImageError(f"the image header is damaged ({error})") from None
    _check_size(image.width, image.height, max_pixels)
    return image


def _load_pixels(image: Image.Image) -> Image.Image:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES lets damaged images pass for whole ones: unset it")
    try:
        image.load()
    except _DAMAGED as error:
        raise BadImageError(f"the image data is damaged ({error})") from None
    return image


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip 16-bit gray to 255; its full range is 0..65535.
        gray = np.clip(np.array(image, dtype=np.int64), 0, 65_535) // 257
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)
