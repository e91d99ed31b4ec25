"""Image files as people have them: every format that is read, with its bit depth, orientation, frames and alpha.

JPEG, PNG and WebP are decoded as shards hold them, the others by Pillow. The EXIF orientation is applied; alpha is
dropped, so that the colors under transparent pixels show.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from seam_dist.data.bit_depth import Depth, read_depth, scale_pixels
from seam_dist.data.images import BadImageError, Pixels, decode_image, open_image, orient, to_rgb
from seam_dist.data.signatures import CONVERTED_FORMATS, KEPT_FORMATS, format_of

ALL_FORMATS = (*KEPT_FORMATS, *CONVERTED_FORMATS)

_TURNED_BY_DECODERS = ("TIFF",)


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file.

    `format` and `mode` are Pillow's names, the format of a JPEG with several pictures is JPEG; `size` is (height,
    width) as displayed; `orientation` the EXIF value, 1 to 8, of the file; `num_frames` counts the frames of an
    animation or the pages of a TIFF.
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int = 1
    num_frames: int = 1
    depth: Depth = field(default_factory=Depth)
    has_alpha: bool = False
    is_exif_damaged: bool = False


def read_header(data: bytes, *, max_pixels: int) -> ImageHeader:
    """Return the header of an image of any format that is read; raise BadImageError for anything else."""
    format = format_of(data) or ""
    depth = read_depth(data, format, max_pixels=max_pixels)
    try:
        with open_image(data, max_pixels=max_pixels, formats=ALL_FORMATS) as image:
            found = find_orientation(image)
            orientation = found or 1
            is_turned = orientation >= 5 and format not in _TURNED_BY_DECODERS
            size = image.size if is_turned else image.size[::-1]
            has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
            frames = 1 if format == "JPEG" else _count_frames(image)
            return ImageHeader(format, image.mode, size, orientation, frames, depth, has_alpha, found == 0)
    except BadImageError:
        if not depth.is_deep or min(depth.size) < 1:
            raise
        return ImageHeader(format, str(depth), depth.size, depth.orientation, depth=depth)


def read_pixels(
    data: bytes, header: ImageHeader, *, max_pixels: int, pixel_range: tuple[float, float] | None = None
) -> Pixels:
    """Decode to (H, W, 3) uint8 RGB in display order.

    With `pixel_range`, images of more than 8 bits are scaled linearly from that range to 0..255. Raises BadImageError
    for damaged data, for signed, 32-bit and float pixels without `pixel_range`, and for NaN.
    """
    depth = header.depth
    if depth.is_deep and (pixel_range is not None or depth.white is None):
        pixels = scale_pixels(data, depth, pixel_range, max_pixels=max_pixels)
        pixels = pixels if header.format in _TURNED_BY_DECODERS else orient(pixels, header.orientation)
    elif header.format in KEPT_FORMATS:
        pixels = decode_image(data, max_pixels=max_pixels, orientation=header.orientation)
    else:
        with open_image(data, max_pixels=max_pixels, formats=CONVERTED_FORMATS) as image:
            is_packed = header.format == "TIFF" and depth.is_deep
            pixels = to_rgb(image, depth.white) if is_packed and depth.white else to_rgb(image)
            if depth.is_inverted and image.mode.startswith("I"):
                pixels = 255 - pixels  # Pillow inverts up to 8 bits only
    if pixels.shape[:2] != header.size:
        raise BadImageError(f"its header says {header.size} pixels and its data {pixels.shape[:2]}: it is damaged")
    return pixels


def read_image_file(path: Path, *, max_pixels: int, pixel_range: tuple[float, float] | None = None) -> Pixels:
    """Return an image file in display order, see `read_pixels`; raise OSError or BadImageError when that fails."""
    data = path.read_bytes()
    header = read_header(data, max_pixels=max_pixels)
    return read_pixels(data, header, max_pixels=max_pixels, pixel_range=pixel_range)


def transparent_share(data: bytes, *, max_pixels: int) -> float:
    """Return the share of the pixels of an image with alpha that are more transparent than opaque."""
    with open_image(data, max_pixels=max_pixels, formats=ALL_FORMATS) as image:
        return float((np.array(image.convert("RGBA"))[..., 3] < 128).mean())


def encode_png(pixels: Pixels) -> bytes:
    """Return pixels, gray or RGB, as PNG without metadata."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def find_orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation of an open image: 1 to 8, 0 for a damaged EXIF block, None without a tag."""
    with warnings.catch_warnings(record=True) as odd:
        warnings.simplefilter("always")
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # of many types, for a damaged EXIF block, which is no reason to lose the image
            return 0
    if isinstance(orientation, int) and 1 <= orientation <= 8:
        return orientation
    return 0 if odd and image.format != "TIFF" else None


def _count_frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # of many types: a later frame is damaged, which does not matter for the first
        return 2
