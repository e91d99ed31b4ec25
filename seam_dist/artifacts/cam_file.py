"""The stored form of CAMs and the tars of them.

A stored map holds thousandths of 0..1, compressed, on a grid of ceil(H / stride) x ceil(W / stride) points, the first
and last ones on the corner pixels. It loses what lies between its points: the scales above 1 see grids finer than the
stride. Measured in tests/inference/test_cam.py on noisy maps of a 375 x 500 image with details of about 32 pixels,
scales 0.5 to 2.0 at a feature stride of 8: the map read back is off by 0.007 on average and 0.12 at most at stride 8,
0.002 and 0.06 at stride 4; at threshold 0.26 it labels 1.2 % and 0.3 % of the pixels differently. Full-size maps are
exact (`infer_cam.interop`).
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from seam_dist.artifacts.tar_file import KEY, naming_tar, read_tar, write_tar

STEPS = 1000  # of a stored value; float16 distinguishes all of them
FORMAT = "2"  # of the stored form
_LARGEST_MAP = 1 << 28  # bytes of one image's map
_MEMBER = re.compile(rf"({KEY})\.(json|cam|plain\.cam)")


@lru_cache(maxsize=1024)
def _projection(points: int, pixels: int) -> Tensor:
    """Return the (points, pixels) matrix that fits `points` to a line of pixels, least squares under upsample_cam."""
    hats = interpolate(torch.eye(points, dtype=torch.float64)[None], pixels, mode="linear", align_corners=True)[0]
    inverse: Tensor = torch.linalg.pinv(hats.T)
    return inverse.float()


def store_cam(cam: Tensor, stride: int) -> NDArray[np.float16]:
    """Return a normalized map (K, H, W) in its stored form, (K, ceil(H / stride), ceil(W / stride)) float16 in 0..1.

    Values below 0 are background at every threshold and count as 0. The grid is the one whose `upsample_cam` is
    nearest in the least squares sense; sampling the points alone gives a quarter to a half more wrong labels.
    """
    grid = [-(-side // stride) for side in cam.shape[1:]]
    if cam.shape[0] == 0:
        return np.zeros((0, *grid), np.float16)
    rows, columns = (_projection(n, side).to(cam.device) for n, side in zip(grid, cam.shape[1:], strict=True))
    return from_steps(to_steps((rows @ cam.float().clamp(0, 1) @ columns.T).clamp(0, 1).cpu().numpy()))


def to_steps(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Return values in 0..1 as the nearest whole thousandths, the precision of the stored form."""
    return np.rint(values.astype(np.float32) * STEPS).astype(np.uint16)


def from_steps(steps: NDArray[np.uint16]) -> NDArray[np.float16]:
    """Return thousandths as float16 in 0..1, the inverse of `to_steps`."""
    return (steps.astype(np.float32) / STEPS).astype(np.float16)


def upsample_cam(stored: NDArray[np.floating] | Tensor, size: tuple[int, int]) -> Tensor:
    """Return a stored map (K, h, w) at image size (height, width), float32: the inverse of `store_cam`."""
    points = torch.as_tensor(stored).float()
    if points.shape[0] == 0:
        return points.new_zeros((0, *size))
    return interpolate(points[None], size, mode="bilinear", align_corners=True)[0]


def encode_cam(cam: NDArray[np.float16]) -> bytes:
    """Return the bytes of a stored map in 0..1: thousandths, all high bytes before all low ones, a compressed .npy.

    Raises ValueError for a map that holds NaN, infinity or values outside 0..1.
    """
    if not ((cam >= 0) & (cam <= 1)).all():
        raise ValueError("the map holds NaN or values outside 0..1: run `--only infer_cam` again with finite weights")
    steps = to_steps(cam)
    planes = np.stack([steps >> 8, steps & 255]).astype(np.uint8)
    file = io.BytesIO()
    np.lib.format.write_array(file, planes, allow_pickle=False)
    return zlib.compress(file.getvalue(), 6)


def decode_cam(data: bytes) -> NDArray[np.float16]:
    """Read what `encode_cam` wrote, float16 (K, h, w) in 0..1; ValueError for anything else."""
    try:
        unpacked = zlib.decompressobj()
        whole = unpacked.decompress(data, _LARGEST_MAP)
        if not unpacked.eof or unpacked.unused_data:
            raise ValueError("it is cut, too large or followed by something else")
        planes = np.lib.format.read_array(io.BytesIO(whole), allow_pickle=False, max_header_size=256)
    except (ValueError, EOFError, OSError, MemoryError, zlib.error) as error:
        raise ValueError(f"the bytes are no stored map ({error}): run `--only infer_cam` again") from None
    if planes.dtype != np.uint8 or planes.ndim != 4 or planes.shape[0] != 2:
        expected = f"{planes.dtype} {planes.shape}, expected uint8 (2, K, h, w)"
        raise ValueError(f"the array is {expected}: run `--only infer_cam` again")
    steps = planes[0].astype(np.uint16) << 8 | planes[1]
    if steps.size and steps.max() > STEPS:
        raise ValueError(f"the map holds {steps.max()}, expected 0 to {STEPS}: run `--only infer_cam` again")
    return from_steps(steps)


@dataclass(frozen=True)
class StoredCam:
    """The stored maps of one image: `cam` (K, h, w) float16 of its classes (ids from 1), and its size in pixels.

    `cam` is the map of infer_cam.cam; `plain` is the classifier's, where `cam` is the refined one.
    """

    key: str
    classes: tuple[int, ...]
    size: tuple[int, int]
    cam: NDArray[np.float16]
    plain: NDArray[np.float16] | None = None


def write_cams(path: Path, cams: Iterable[StoredCam]) -> None:
    """Write a tar of <key>.cam, <key>.plain.cam and <key>.json members, whole or not at all."""

    def members() -> Iterator[tuple[str, bytes]]:
        for stored in cams:
            yield f"{stored.key}.cam", encode_cam(stored.cam)
            if stored.plain is not None:
                yield f"{stored.key}.plain.cam", encode_cam(stored.plain)
            # Last: it completes the image.
            yield f"{stored.key}.json", json.dumps({"classes": stored.classes, "size": stored.size}).encode()

    write_tar(path, _MEMBER, members())


def read_cams(path: Path) -> Iterator[StoredCam]:
    """Yield the images of a tar of CAMs in stored order; ValueError, naming the file, for anything that is not one."""
    key, parts = "", dict[str, bytes]()
    with naming_tar(path, "CAMs", "remove it and run `--only infer_cam`"):
        for match, data in read_tar(path, _MEMBER):
            if parts and match[1] != key:
                raise ValueError(f"member {match[0]!r} comes before {key} is complete")
            key = match[1]
            parts[match[2]] = data
            if match[2] == "json":
                yield _stored_cam(key, parts)
                parts = {}
        if parts:
            raise ValueError("it ends within an image")


def _stored_cam(key: str, parts: dict[str, bytes]) -> StoredCam:
    info = json.loads(parts["json"])
    classes, (height, width) = tuple(int(c) for c in info["classes"]), (int(side) for side in info["size"])
    cam = decode_cam(parts["cam"])
    plain = decode_cam(parts["plain.cam"]) if "plain.cam" in parts else None
    if len(cam) != len(classes) or (plain is not None and plain.shape != cam.shape):
        raise ValueError(f"{key} has maps {cam.shape} for {len(classes)} classes")
    return StoredCam(key, classes, (height, width), cam, plain)
