"""Opens one record of a data set: decodes its image and mask, and says all that is wrong or odd with them.

Conversion stores what comes out; `seam-dist check` only counts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from seam_dist.config.findings import Findings
from seam_dist.data.bit_depth import small_range
from seam_dist.data.image_files import ImageHeader, encode_png, read_header, read_pixels, transparent_share
from seam_dist.data.images import BadImageError
from seam_dist.data.masks import read_mask
from seam_dist.data.shards import RawSample, SampleInfo
from seam_dist.data.signatures import KEPT_FORMATS
from seam_dist.data.sources.base import Record

_EXTENSIONS = {"JPEG": "jpg", "PNG": "image.png", "WEBP": "webp"}
_TRANSPARENT_SHARE = 0.01  # of the pixels, from which on a warning says that alpha is dropped


@dataclass(frozen=True)
class Inspection:
    """What opening one record has shown; `sample` is None when the record cannot be used, and `findings` say why.

    `size` is (height, width) as displayed. `mask_pixels` are the pixels of each value in the mask, None without a mask.
    `image_sha256` is that of the image file's bytes, to find duplicates. `format` and `mode` are Pillow's names, such
    as JPEG and RGB, `orientation` is the EXIF value of the image, 1 to 8; they are those of the first image of a pair.
    """

    sample: RawSample | None
    findings: Findings = field(default_factory=Findings)
    size: tuple[int, int] | None = None
    mask_pixels: Mapping[int, int] | None = None
    image_sha256: str = ""
    format: str = ""
    mode: str = ""
    orientation: int = 1


def inspect_record(
    record: Record, *, num_classes: int, max_pixels: int, pixel_range: tuple[float, float] | None = None
) -> Inspection:
    """Load one record and check it by decoding it; never raises for what is wrong with its files.

    JPEG, PNG and WebP keep their bytes, except for more than 8 bits with `pixel_range`. Other images are stored as PNG
    (first frame, 8 bits, display order). A mask that is no 8-bit PNG in display order is stored as one.
    """
    where = f"image {record.source_id}"
    findings = Findings()
    members: dict[str, bytes] = {}
    headers: list[ImageHeader] = []
    infos: list[SampleInfo] = []
    digest = hashlib.sha256()
    mask_pixels: dict[int, int] | None = None
    try:
        record.check_files()
        images = {"": record.image} if record.image_b is None else {"a.": record.image, "b.": record.image_b}
        for part, load in images.items():
            data = _load(load)
            digest.update(data)
            header = read_header(data, max_pixels=max_pixels)
            headers.append(header)
            extension, stored, orientation = _prepare_image(data, header, max_pixels, pixel_range)
            members[part + extension] = stored
            infos.append(SampleInfo(record.classes or (), header.size, orientation, record.source_id))
            for topic, text in _oddities(data, header, max_pixels, pixel_range):
                findings.warning(topic, f"{where}: {text}")
        if infos[0].size != infos[-1].size:
            text = f"the two images have {infos[0].size} and {infos[-1].size} pixels"
            raise BadImageError(f"{text}: give equal sizes", "pair-size")
        if record.mask is not None:
            where = f"mask of image {record.source_id}"
            members["png"], mask_pixels = _prepare_mask(
                findings, where, _load(record.mask), headers[0], num_classes, max_pixels
            )
    except (BadImageError, OSError) as error:
        topic, what = (error.topic, "") if isinstance(error, BadImageError) else ("unreadable", " cannot be read")
        findings.error(f"{where.split()[0]}-{topic}", f"{where}{what}: {error}")
    sample = None
    if not findings.errors:
        members["json"] = infos[0].to_bytes(has_labels=record.classes is not None)
        sample = RawSample(record.key, members)
    if not headers:
        return Inspection(sample, findings, image_sha256=digest.hexdigest())
    size, mode = headers[0].size, headers[0].mode
    sha256, orientation = digest.hexdigest(), headers[0].orientation
    return Inspection(sample, findings, size, mask_pixels, sha256, headers[0].format, mode, orientation)


def _load(load: Callable[[], bytes]) -> bytes:
    """Return the bytes of a file; what somebody's own reader raises is a fault of that image."""
    try:
        return load()
    except (BadImageError, OSError, MemoryError):
        raise
    except Exception as error:
        text = f"its reader failed ({type(error).__name__}: {error}): correct the reader, or remove the image"
        raise BadImageError(text, "reader") from error


def _prepare_image(
    data: bytes, header: ImageHeader, max_pixels: int, pixel_range: tuple[float, float] | None
) -> tuple[str, bytes, int]:
    """Return the member extension, the bytes to store and their EXIF orientation."""
    pixels = read_pixels(data, header, max_pixels=max_pixels, pixel_range=pixel_range)
    is_scaled = pixel_range is not None and header.depth.is_deep
    if header.format in KEPT_FORMATS and not is_scaled:
        return _EXTENSIONS[header.format], data, header.orientation
    return _EXTENSIONS["PNG"], encode_png(pixels), 1


def _oddities(
    data: bytes, header: ImageHeader, max_pixels: int, pixel_range: tuple[float, float] | None
) -> Iterator[tuple[str, str]]:
    """Yield the topic and the text of all that is odd about an image that can be used."""
    if (frames := header.num_frames) > 1:
        text = f"it has {frames} frames or pages, expected 1: the first is used"
        yield "several-frames", f"{text}; save the one that is meant as an image of its own"
    if header.is_exif_damaged:
        yield "exif", "its EXIF data is damaged, so it is not turned: save it again if it lies on its side"
    if pixel_range is None and (small := small_range(data, header.depth, max_pixels=max_pixels)) is not None:
        yield "small-range", small
    if header.has_alpha and (share := transparent_share(data, max_pixels=max_pixels)) > _TRANSPARENT_SHARE:
        text = f"{share:.0%} of its pixels are transparent, and the colors that they hide are used"
        yield "transparent", f"{text}: put it on a background"


def _prepare_mask(
    findings: Findings, where: str, data: bytes, image: ImageHeader, num_classes: int, max_pixels: int
) -> tuple[bytes, dict[int, int]]:
    """Return the mask to store and the pixels of each value; raise BadImageError when it does not fit its image."""
    mask = read_mask(data, max_pixels=max_pixels, num_classes=num_classes)
    values = mask.values
    if values.shape != image.size:
        raise BadImageError(
            f"it has {values.shape} pixels (height, width), its image {image.size}"
            f"{_size_hint(values.shape == image.size[::-1], mask.orientation, image.orientation)}",
            "turned" if values.shape == image.size[::-1] else "size",
        )
    is_square = image.size[0] == image.size[1]
    if mask.orientation is None and (image.orientation in (2, 3, 4) or (image.orientation >= 5 and is_square)):
        text = f"{where}: its image has the EXIF orientation {image.orientation} and it has none, so it is taken as"
        remedy = "displayed: if it was drawn on the unturned image, give it the same EXIF orientation"
        findings.warning("mask-orientation", f"{text} {remedy}")
    counts = np.bincount(values.reshape(-1), minlength=256)
    pixels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return data if mask.is_plain else encode_png(values), pixels


def _size_hint(is_transposed: bool, of_mask: int | None, of_image: int) -> str:
    """Return the likely cause of a mask of another size than its image, and the remedy."""
    if not is_transposed:
        return ": make them equal"
    if of_image >= 5 and of_mask is None:
        text = f"; it fits the image before its EXIF rotation (orientation {of_image}), masks are expected after the"
        return f"{text} image's EXIF rotation: turn it, or give it the same EXIF orientation"
    if of_mask is not None and of_mask >= 5:
        return f"; its own EXIF orientation {of_mask} turns it: remove that, or give the image the same"
    return "; height and width are swapped: turn it"
