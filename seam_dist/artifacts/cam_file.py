"""The stored form of CAMs and the tars of them.

A stored map holds thousandths of 0..1, compressed, on a grid of ceil(H / stride) x ceil(W / stride) points, the first and
last ones on the corner pixels. It loses what lies between its points: the scales above 1 see grids finer than the
stride. Measured in tests/artifacts/test_cam_file.py on noisy maps of a 375 x 500 image with details of about 32 pixels,
scales 0.5 to 2.0 at a feature stride of 8: the map read back is off by 0.007 on average and 0.12 at most at stride 8,
0.002 and 0.06 at stride 4; at threshold 0.26 it labels 1.2 % and 0.3 % of the pixels otherwise. Full-size maps are exact
(`infer_cam.interop`).
"""

from __future__ import annotations

import io
import json
import re
import tarfile
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

from seam_dist.artifacts.atomic import atomic_file, check_tar_end

STEPS = 1000  # of a stored value; float16 tells all of them apart
FORMAT = "2"  # of the stored form
_LARGEST_MAP = 1 << 28  # bytes of one image's map
_MEMBER = re.compile(r"([A-Za-z0-9_-]{1,80})\.(json|cam|plain\.cam)")


def stored_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return the grid (height, width) that holds the map of an image of `size`."""
    return -(-size[0] // stride), -(-size[1] // stride)


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
    grid = stored_size((cam.shape[1], cam.shape[2]), stride)
    if cam.shape[0] == 0:
        return np.zeros((0, *grid), np.float16)
    rows, columns = (_projection(n, side).to(cam.device) for n, side in zip(grid, cam.shape[1:], strict=True))
    steps = ((rows @ cam.float().clamp(0, 1) @ columns.T).clamp(0, 1) * STEPS).round()
    return (steps / STEPS).half().cpu().numpy()


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
        raise ValueError("the map holds NaN or values outside 0..1: make the CAMs again from finite weights")
    steps = np.rint(cam.astype(np.float32) * STEPS).astype(np.uint16)
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
        raise ValueError(f"the bytes are no stored map ({error}): make the CAMs again") from None
    if planes.dtype != np.uint8 or planes.ndim != 4 or planes.shape[0] != 2:
        raise ValueError(
            f"the array is {planes.dtype} {planes.shape}, expected uint8 (2, K, h, w): make the CAMs again"
        )
    steps = planes[0].astype(np.uint16) << 8 | planes[1]
    if steps.size and steps.max() > STEPS:
        raise ValueError(f"the map holds {steps.max()}, expected 0 to {STEPS}: make the CAMs again")
    cam: NDArray[np.float16] = (steps.astype(np.float32) / STEPS).astype(np.float16)
    return cam


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
    with atomic_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for stored in cams:
            members = {"cam": encode_cam(stored.cam)}
            if stored.plain is not None:
                members["plain.cam"] = encode_cam(stored.plain)
            info = {"classes": list(stored.classes), "size": list(stored.size)}
            members["json"] = json.dumps(info).encode()  # last: it completes the image
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{stored.key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def read_cams(path: Path) -> Iterator[StoredCam]:
    """Yield the images of a tar of CAMs in stored order; ValueError, naming the file, for anything that is not one."""
    key, parts = "", dict[str, bytes]()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                file = tar.extractfile(member) if match is not None and member.isreg() else None
                if match is None or file is None or (parts and match[1] != key):
                    raise ValueError(f"member {member.name!r} is not expected there")
                key = match[1]
                parts[match[2]] = file.read()
                if match[2] == "json":
                    yield _stored_cam(key, parts)
                    parts = {}
            check_tar_end(path, tar.offset)
        if parts:
            raise ValueError("it ends within an image")
    except (tarfile.TarError, OSError, EOFError, KeyError, TypeError, ValueError) as error:
        remedy = "remove it and run `--stage infer_cam`"
        raise ValueError(f"{path} is not a whole tar of CAMs ({error}): {remedy}") from None


def _stored_cam(key: str, parts: dict[str, bytes]) -> StoredCam:
    info = json.loads(parts["json"])
    classes, (height, width) = tuple(int(c) for c in info["classes"]), (int(side) for side in info["size"])
    cam = decode_cam(parts["cam"])
    plain = decode_cam(parts["plain.cam"]) if "plain.cam" in parts else None
    if len(cam) != len(classes) or (plain is not None and plain.shape != cam.shape):
        raise ValueError(f"{key} has maps {cam.shape} for {len(classes)} classes")
    return StoredCam(key, classes, (height, width), cam, plain)
