"""Opens one record of a data set: decodes its image and mask, and says all that is wrong or odd with them.

Conversion stores what comes out; `seam-dist check` only counts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from seam_dist.config.findings import Findings
from seam_dist.data.images import (
    BadImageError,
    UnknownFormatError,
    decode_image,
    decode_mask,
    encode_png,
    read_header,
)
from seam_dist.data.shards import RawSample, SampleInfo
from seam_dist.data.sources.base import Record


@dataclass(frozen=True)
class Inspection:
    """What opening one record has shown; `sample` is None when the record cannot be used, and `findings` say why.

    `size` is (height, width) as displayed. `mask_pixels` are the pixels of each value in the mask, None without a mask.
    `image_sha256` is that of the image file's bytes, to find duplicates.
    """

    sample: RawSample | None
    findings: Findings = field(default_factory=Findings)
    size: tuple[int, int] | None = None
    mask_pixels: Mapping[int, int] | None = None
    image_sha256: str = ""


def inspect_record(record: Record, *, num_classes: int, max_pixels: int) -> Inspection:
    """Load one record and check it by decoding it; never raises for what is wrong with its files.

    JPEG, PNG and WebP keep their bytes. GIF, TIFF, BMP, PPM and JPEG 2000 are stored as PNG (first frame, 8 bits).
    """
    where = f"image {record.source_id}"
    findings = Findings()
    members: dict[str, bytes] = {}
    infos: list[SampleInfo] = []
    digest = hashlib.sha256()
    mask_pixels: dict[int, int] | None = None
    try:
        images = {"": record.image} if record.image_b is None else {"a.": record.image, "b.": record.image_b}
        for part, load in images.items():
            data = load()
            digest.update(data)
            extension, stored, info = _prepare_image(data, record, max_pixels)
            members[part + extension] = stored
            infos.append(info)
        if infos[0].size != infos[-1].size:
            raise BadImageError(f"the two images have {infos[0].size} and {infos[-1].size} pixels: give equal sizes")
        if record.mask is not None:
            where = f"mask of image {record.source_id}"
            members["png"] = record.mask()
            mask_pixels = _check_mask(members["png"], infos[0], num_classes, max_pixels)
    except (BadImageError, OSError) as error:
        unreadable = f"cannot be read: {error}" if isinstance(error, OSError) else f"{error}"
        topic = "mask" if where.startswith("mask") else "image"
        findings.error(f"bad-{topic}", f"{where}{' ' if isinstance(error, OSError) else ': '}{unreadable}")
        return Inspection(None, findings, infos[0].size if infos else None, None, digest.hexdigest())
    members["json"] = infos[0].to_bytes(has_labels=record.classes is not None)
    return Inspection(RawSample(record.key, members), findings, infos[0].size, mask_pixels, digest.hexdigest())


def _prepare_image(data: bytes, record: Record, max_pixels: int) -> tuple[str, bytes, SampleInfo]:
    """Return the member extension, the bytes to store and the description of one image."""
    try:
        header = read_header(data, max_pixels=max_pixels)
    except UnknownFormatError:
        data = encode_png(data, max_pixels=max_pixels)
        header = read_header(data, max_pixels=max_pixels)
    pixels = decode_image(data, max_pixels=max_pixels, orientation=header.orientation)
    if pixels.shape[:2] != header.size:
        raise BadImageError(f"its header says {header.size} pixels and its data {pixels.shape[:2]}: it is damaged")
    extension = "image.png" if header.extension == "png" else header.extension
    return extension, data, SampleInfo(record.classes or (), header.size, header.orientation, record.source_id)


def _check_mask(data: bytes, info: SampleInfo, num_classes: int, max_pixels: int) -> dict[int, int]:
    """Return the pixels of each value of a mask; raise BadImageError when it does not fit its image."""
    mask = decode_mask(data, max_pixels=max_pixels, num_classes=num_classes)
    if mask.shape != info.size:
        hint = "; masks are expected after the image's EXIF rotation" if info.orientation >= 5 else ""
        raise BadImageError(f"it has {mask.shape} pixels (height, width), its image {info.size}{hint}: make them equal")
    counts = np.bincount(mask.reshape(-1), minlength=256)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
