"""Masks: PNG images whose samples are class indices, 0 for the background and 255 for ignored pixels.

Gray of any depth gives its raw sample values, a palette of any depth its indices; colors are refused unless they are
gray throughout. A mask is turned by its own EXIF orientation, like an image; without one it is in display order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seam_dist.config.phrases import count_of, first_of
from seam_dist.config.schema import IGNORE_INDEX, MAX_CLASSES
from seam_dist.data.image_files import find_orientation
from seam_dist.data.images import BadImageError, Pixels, open_image, orient
from seam_dist.data.signatures import describe_bytes, format_of

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH_AT = 24  # after signature (8), chunk length and name (8), width and height (8)
_COLOR_TYPE_AT = 25
_GRAY, _PALETTE = 0, 3
_SPREAD_STEP = 16  # between values, from which on nobody numbered classes that way
_MAX_NAMED = 5  # wrong values in an error


@dataclass(frozen=True)
class Mask:
    """A decoded mask: `values` (H, W) uint8 in display order.

    `orientation` is the EXIF value of the file, None without one. `is_plain` where the stored samples are the values in
    display order and 8 bits; other files are better stored anew.
    """

    values: Pixels
    orientation: int | None
    is_plain: bool


def decode_mask(data: bytes, *, max_pixels: int, num_classes: int = MAX_CLASSES) -> Pixels:
    """Decode a PNG of class indices to (H, W) uint8 in display order; raise BadImageError where `read_mask` does."""
    return read_mask(data, max_pixels=max_pixels, num_classes=num_classes).values


def read_mask(data: bytes, *, max_pixels: int, num_classes: int = MAX_CLASSES) -> Mask:
    """Decode a PNG of class indices.

    Raises BadImageError for other formats, damaged data, colors, and values other than 0 to `num_classes` and 255.
    """
    if format_of(data) != "PNG":
        topic, text = _describe_other(data)
        raise BadImageError(text, topic)
    with open_image(data, max_pixels=max_pixels, formats=("PNG",)) as image:
        image.load()
        depth, color_type = data[_BIT_DEPTH_AT], data[_COLOR_TYPE_AT]
        orientation = find_orientation(image) if image.info else None
        if depth == 8 and image.mode in ("L", "P"):
            values, is_plain = np.array(image, dtype=np.uint8), True
        else:
            values, is_plain = _raw_values(image, depth, color_type), False
    if values.max() > num_classes:
        wrong = values[(values > num_classes) & (values != IGNORE_INDEX)]
        if wrong.size:
            raise BadImageError(_describe_wrong(values, num_classes), "values")
    if orientation is not None and orientation > 1:
        values, is_plain = orient(values, orientation), False
    return Mask(values, orientation or None, is_plain)


def decode_labels(data: bytes, *, max_pixels: int, num_classes: int = MAX_CLASSES) -> Pixels:
    """Return the class indices (H, W) uint8 of a palette PNG; raise BadImageError where `decode_mask` does.

    A gray PNG is refused as well: its values need not be indices.
    """
    try:
        if not data.startswith(_PNG_SIGNATURE) or data[_COLOR_TYPE_AT : _COLOR_TYPE_AT + 1] != bytes([_PALETTE]):
            raise BadImageError("it is no palette PNG")
        return decode_mask(data, max_pixels=max_pixels, num_classes=num_classes)
    except BadImageError as error:
        raise BadImageError(f"the label image cannot be used ({error}): write the labels again") from None


def _raw_values(image: Image.Image, depth: int, color_type: int) -> Pixels:
    """Return the sample values of a PNG of another kind than 8-bit gray or palette."""
    if color_type == _PALETTE:
        return np.array(image, dtype=np.uint8)
    if color_type == _GRAY and depth < 8:
        scaled = np.array(image.convert("L"), dtype=np.uint8)  # by Pillow, to 0..255
        return np.asarray(scaled // (255 // (2**depth - 1)), np.uint8)
    if color_type == _GRAY:
        deep = np.array(image)
        if deep.max() > IGNORE_INDEX:
            hint = " (write 255 for ignored pixels)" if deep.max() == 65_535 else ""
            text = f"it is 16-bit gray with {_count(deep, deep > IGNORE_INDEX)}, expected class indices of 8 bits{hint}"
            raise BadImageError(f"{text}: save its class indices as 8-bit gray PNG", "values")
        return deep.astype(np.uint8)
    return _gray_of_colors(image, depth)


def _gray_of_colors(image: Image.Image, depth: int) -> Pixels:
    """Return the values of a color image that is gray and opaque throughout; raise BadImageError for others."""
    remedy = "write the class index of each pixel as 8-bit gray or palette PNG"
    if depth != 8:
        raise BadImageError(f"it holds {depth}-bit colors, expected class indices: {remedy}", "colors")
    colors = np.array(image.convert("RGBA"), dtype=np.uint8)
    if (colors[..., 3] != 255).any():
        share = float((colors[..., 3] != 255).mean())
        text = f"it has an alpha channel and {share:.0%} of its pixels are not opaque, expected class indices: {remedy}"
        raise BadImageError(text, "colors")
    red, green, blue = (colors[..., channel] for channel in range(3))
    if (red != green).any() or (red != blue).any():
        codes = colors[..., :3].astype(np.uint32) @ np.array([65_536, 256, 1], np.uint32)
        named = [f"#{code:06x}" for code in np.unique(codes)]
        text = f"it holds {len(named)} colors ({first_of(named)}; mode {image.mode}), expected class indices: {remedy}"
        raise BadImageError(text, "colors")
    return np.ascontiguousarray(red)


def _describe_other(data: bytes) -> tuple[str, str]:
    """Return the sort of fault of a mask that is no PNG, and the text on it."""
    format = format_of(data)
    if format in ("JPEG", "WEBP", "JPEG2000"):
        text = f"it is a {format} file, whose compression changes class indices, expected PNG: make it again as PNG"
        return "format", text
    return describe_bytes(data, "PNG")


def _describe_wrong(values: Pixels, num_classes: int) -> str:
    """Return which values of a mask are wrong, how many pixels have them, and what that may mean."""
    is_wrong = (values > num_classes) & (values != IGNORE_INDEX)
    present = np.unique(values).tolist()
    wrong = [value for value in present if num_classes < value != IGNORE_INDEX]
    return (
        f"it holds {_count(values, is_wrong)}, expected 0 (background), 1 to {num_classes} (classes) or "
        f"{IGNORE_INDEX} (ignored){_likely_cause(present, wrong, num_classes)}"
    )


def _likely_cause(present: Sequence[int], wrong: Sequence[int], num_classes: int) -> str:
    """Return what wrong values of a mask may mean, and the remedy."""
    if len(present) > max(16, 2 * num_classes) and len(wrong) > len(present) // 2:
        return "; so many values come from resizing with interpolation, compression or a photo: make it again without"
    if wrong == [num_classes + 1] and 0 not in present:
        return "; without any 0, the background may be 1 here: subtract 1"
    steps = {after - before for before, after in pairwise(present)}
    if present[0] == 0 and min(steps) >= _SPREAD_STEP and max(steps) - min(steps) <= 1:
        return f"; steps of {min(steps)} look like indices that were spread for viewing: number them 0, 1, 2, ..."
    return ": correct it or add the class"


def _count(values: NDArray[np.generic], chosen: NDArray[np.bool_]) -> str:
    """Return the distinct chosen values with their pixels, the first few by name."""
    distinct, counts = np.unique(values[chosen], return_counts=True)
    named = [f"{v} ({count_of(n, 'pixel')})" for v, n in zip(distinct.tolist(), counts.tolist(), strict=True)]
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return f"the value{'s' if len(named) > 1 else ''} {', '.join(named[:_MAX_NAMED])}{more}"
