"""The published code's own files: CAM dicts and CRF dicts, one .npy an image, written and read without running them.

CAM dict   {class id from 0: float32 map (H, W)}, normalized, classes of the image's label (PARITY.md section 3).
CRF dict   {0: background, class id from 0 plus 1: ...}, float32 probabilities (H, W), a folder an alpha whose name
           ends in it, such as crf_4.0.
Both are dicts pickled into a .npy file. A pickle can name any function of any module for the reader to call. Here its
opcodes are run, but the five names that such a file needs stand for plain records of this module, and every other name
is an error: nothing of numpy or of anything else is called with what the file says. The arrays are built afterwards,
from bytes whose number fits their shape.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seam_dist.artifacts.outputs import output_folder
from seam_dist.artifacts.provenance import fingerprint
from seam_dist.artifacts.stage import StageError
from seam_dist.config.schema import InferCamConfig

Maps = dict[int, NDArray[np.float32]]

CAM_FILES = "cam_files"
CRF_FILES = ("crf_files_low", "crf_files_high")
"""What infer_cam's record calls the authors' files that it read."""

_LARGEST_FILE = 1 << 32  # bytes; 80 classes at 4,000 x 3,000 pixels are 4 GB
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "bytes",  # how protocol 2 spells bytes
}
_CODES = {"f2": np.float16, "f4": np.float32, "f8": np.float64}


def write_cam_dict(path: Path, classes: Sequence[int], cam: NDArray[np.floating]) -> None:
    """Write the CAM dict of an image: maps (K, H, W) of its classes (ids from 1), whole or not at all.

    Raises OutputError when that would replace a file that was not written here.
    """
    _write_dict(path, {index - 1: full for index, full in zip(classes, cam, strict=True)})


def write_crf_dict(path: Path, classes: Sequence[int], scores: NDArray[np.floating]) -> None:
    """Write the CRF dict of an image: scores (K + 1, H, W) of background and its classes (ids from 1).

    Raises as `write_cam_dict` does.
    """
    _write_dict(path, dict(zip((0, *classes), scores, strict=True)))


def _write_dict(path: Path, maps: Mapping[int, NDArray[np.floating]]) -> None:
    value = {int(index): np.ascontiguousarray(full, np.float32) for index, full in maps.items()}
    with output_folder(path.parent).file(path.name) as temporary, open(temporary, "wb") as file:
        np.save(file, np.array(value, dtype=object), allow_pickle=True)


def crf_folder(prefix: str, alpha: float) -> str:
    """Return the folder name of the CRF dicts of one alpha, as published: prefix_4.0."""
    shown = f"{alpha:.1f}"
    return f"{prefix}_{shown if float(shown) == alpha else alpha}"


def crf_folders(cfg: InferCamConfig) -> tuple[Path, Path] | None:
    """Return the folders of the authors' CRF dicts that infer_cam.crf_from_interop names, for both alphas."""
    start = cfg.crf_from_interop
    if start is None:
        return None
    low, high = cfg.crf_alphas
    return start.with_name(crf_folder(start.name, low)), start.with_name(crf_folder(start.name, high))


def read_crf_dict(path: Path) -> Maps:
    """Return the authors' CRF dict, {0: background, id from 0 plus 1: ...}, float32 (H, W); raises as read_cam_dict."""
    maps = read_cam_dict(path)
    if 0 not in maps:
        raise ValueError(f"{path} has no background (key 0), so it is no CRF dict: read it with read_cam_dict")
    return maps


def find_dict(folder: Path, key: str, source_id: str, setting: str) -> Path:
    """Return the file of the sample `key` in a folder of the authors' dicts, <source id or key>.npy.

    Raises ValueError when there is none; `setting` is what named the folder.
    """
    # A source id is untrusted and may be a path; a key never is.
    names = [name for name in (source_id, key) if name and Path(name).name == name]
    path = next((p for name in names if (p := folder / f"{name}.npy").is_file()), None)
    if path is None:
        wanted = " or ".join(f"{name}.npy" for name in dict.fromkeys(names))
        remedy = "write it, or leave the split out of infer_cam.splits"
        raise ValueError(f"image {key} has no dict {wanted} in {folder} ({setting}): {remedy}")
    return path


def files_fingerprint(folder: Path, setting: str) -> str:
    """Return the identity of the .npy files in a folder: names, sizes and times, since they may be 100 GB."""
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise StageError(f"{folder} ({setting}) holds no .npy file: give the folder of the authors' dicts")
    return fingerprint([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])


def stack_maps(
    path: Path, maps: Mapping[int, NDArray[np.float32]], ids: Sequence[int], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the maps of a dict in the order of `ids`, float32 (K, H, W).

    Raises ValueError when the dict has other ids or its maps another size (height, width).
    """
    if sorted(maps) != sorted(ids):
        expected = f"ids {sorted(maps)}, the label of its image says {sorted(ids)}"
        raise ValueError(f"{path} has maps of the {expected}: use the maps of this data set")
    wrong = [full.shape for full in maps.values() if full.shape != size]
    if wrong:
        raise ValueError(f"{path} has maps of {wrong[0]} pixels, its image has {size}: use maps at the image's size")
    return np.stack([maps[index] for index in ids]) if maps else np.empty((0, *size), np.float32)


def read_cam_dict(path: Path) -> Maps:
    """Return the authors' CAM dict, {class id from 0: float32 (H, W)}; the maps have one size and are finite.

    Raises ValueError, naming the file, when it is missing or anything else; nothing in the file is run.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: write it with the authors' code, or with infer_cam.interop=true")
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than the {_LARGEST_FILE} that maps may have")
    try:
        return _maps(_unpickle(path.read_bytes()))
    except Exception as error:  # a hostile pickle can raise anything
        raise ValueError(
            f"{path} is not a dict of class maps that can be read safely ({error}): write it again with "
            "np.save(path, {class id: float32 array (H, W)})"
        ) from None


def _maps(value: object) -> Maps:
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__}, expected a dict")
    maps: Maps = {}
    for key, entry in value.items():
        if type(key) is not int or key < 0 or not isinstance(entry, _Array):
            raise ValueError(f"entry {key!r} is no class id with an array")
        full = entry.to_numpy()
        if full.ndim != 2 or full.size == 0 or not np.isfinite(full).all():
            raise ValueError(f"the map of {key} has shape {full.shape} or is not finite, expected (H, W)")
        maps[key] = full
    shapes = {full.shape for full in maps.values()}
    if len(shapes) > 1:
        raise ValueError(f"its maps have different sizes {sorted(shapes)}")
    return maps


def _unpickle(data: bytes) -> object:
    """Return what the .npy file of one object holds, arrays as `_Array`."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its .npy version is {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file, max_header_size=1000)
    if dtype != np.dtype(object) or shape != ():
        raise ValueError(f"it is an array {dtype} {shape} instead of a pickled dict")
    whole = _Unpickler(file).load()
    if not isinstance(whole, _Array) or not isinstance(whole.content, list) or len(whole.content) != 1:
        raise ValueError("it holds no single object")
    return whole.content[0]


class _Unpickler(pickle.Unpickler):
    """Runs the opcodes of a pickle with `_Name` in place of every function and class."""

    def find_class(self, module: str, name: str) -> _Name:
        """Return what a name stands for; UnpicklingError for all but those of an array."""
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return _Name(_NAMES[module, name])


class _Name:
    """One of the allowed names; calling it makes a record, and never calls what the name means elsewhere."""

    __slots__ = ("meaning",)

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning

    def __call__(self, *arguments: Any) -> object:
        """Return the record of the call."""
        if self.meaning == "array":
            return _Array()
        if self.meaning == "dtype" and arguments and isinstance(arguments[0], str):
            return _DType(arguments[0])
        if self.meaning == "bytes" and len(arguments) == 2 and isinstance(arguments[0], str):
            return arguments[0].encode("latin1")
        raise pickle.UnpicklingError(f"it calls {self.meaning} with {len(arguments)} arguments that do not fit")


class _DType:
    """An element type: code such as f4 and byte order."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code.lstrip("<>|="), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order; a type with parts is refused."""
        if state[1] not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an element type has parts")
        self.order = state[1]


class _Array:
    """An array: shape, element type, order, and its bytes or, of objects, the list of them."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype = _DType("")
        self.by_columns = False
        self.content: object = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take what numpy stores of an array."""
        _, shape, dtype, by_columns, content = state
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise pickle.UnpicklingError("an array has no shape")
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array has no element type")
        self.shape, self.dtype, self.by_columns, self.content = shape, dtype, bool(by_columns), content

    def to_numpy(self) -> NDArray[np.float32]:
        """Return the array in float32; ValueError when it has another type or its bytes do not fit its shape."""
        if self.dtype.code not in _CODES:
            raise ValueError(f"an array has type {self.dtype.code!r}, expected one of {', '.join(_CODES)}")
        dtype = np.dtype(_CODES[self.dtype.code]).newbyteorder(self.dtype.order)  # type: ignore[arg-type]
        if not isinstance(self.content, bytes) or len(self.content) != math.prod(self.shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {self.shape} has other bytes than it needs")
        array = np.frombuffer(self.content, dtype).reshape(self.shape, order="F" if self.by_columns else "C")
        return np.array(array, np.float32, order="C")
