"""The authors' .npy dicts: written as they read them, read without running anything that the file says."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from seam_dist.artifacts.authors_files import crf_folder, read_cam_dict, read_crf_dict, write_cam_dict, write_crf_dict


def save(path: Path, value: object, protocol: int | None = None) -> Path:
    """Write an object as np.save does, with the pickle protocol of an older numpy if asked for."""
    array = np.array(value, dtype=object)
    if protocol is None:
        np.save(path, array, allow_pickle=True)
        return path
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    path.write_bytes(file.getvalue() + pickle.dumps(array, protocol=protocol))
    return path


def maps(count: int = 2, size: tuple[int, int] = (5, 7)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *size)).astype(np.float32)


def test_written_dicts_are_what_the_published_code_loads(tmp_path):
    cam = maps(2)
    write_cam_dict(tmp_path / "cam" / "s.npy", (3, 20), cam)
    loaded = np.load(tmp_path / "cam" / "s.npy", allow_pickle=True).item()
    assert list(loaded) == [2, 19]
    assert all(value.dtype == np.float32 for value in loaded.values())
    np.testing.assert_array_equal(np.stack(list(loaded.values())), cam)
    scores = maps(3)
    write_crf_dict(tmp_path / "crf_4.0" / "s.npy", (3, 20), scores)
    loaded = np.load(tmp_path / "crf_4.0" / "s.npy", allow_pickle=True).item()
    assert list(loaded) == [0, 3, 20]
    np.testing.assert_array_equal(np.stack(list(loaded.values())), scores)


def test_own_files_are_read_back(tmp_path):
    write_cam_dict(tmp_path / "c.npy", (3, 20), maps(2))
    cam = read_cam_dict(tmp_path / "c.npy")
    assert list(cam) == [2, 19]
    np.testing.assert_array_equal(np.stack(list(cam.values())), maps(2))
    write_crf_dict(tmp_path / "r.npy", (3, 20), maps(3))
    assert list(read_crf_dict(tmp_path / "r.npy")) == [0, 3, 20]
    write_cam_dict(tmp_path / "none.npy", (), maps(0))
    assert read_cam_dict(tmp_path / "none.npy") == {}


@pytest.mark.parametrize("protocol", [None, 2, 3, 4])
@pytest.mark.parametrize(
    "array",
    [maps(1)[0], maps(1)[0].astype(np.float64), maps(1)[0].astype(">f4"), np.asfortranarray(maps(1)[0]), maps(1)[0].T],
    ids=["float32", "float64", "big endian", "by columns", "transposed"],
)
def test_files_of_any_numpy_are_read(tmp_path, array, protocol):
    cam = read_cam_dict(save(tmp_path / "s.npy", {14: array}, protocol))
    assert cam[14].dtype == np.float32
    np.testing.assert_array_equal(cam[14], array.astype(np.float32))


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        Calls(os.system, "touch planted"),
        Calls(eval, "open('planted', 'w')"),
        Calls(np.load, "planted"),
        Calls(np.frombuffer, b"12345678"),
        Calls(getattr, "text", "upper"),
    ],
    ids=["os.system", "eval", "numpy.load", "numpy.frombuffer", "getattr"],
)
def test_a_pickle_that_calls_something_is_refused(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "s.npy", {0: call})
    with pytest.raises(
        ValueError, match=r"s\.npy is not a dict of class maps .*it asks for .*refused.*: write it again"
    ):
        read_cam_dict(path)
    assert not (tmp_path / "planted").exists()


class Record:
    """Pickled as a call and the state of its result."""

    def __init__(self, function: object, arguments: tuple[object, ...], state: tuple[object, ...]) -> None:
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


def array_record(shape: tuple[object, ...], dtype: object, content: object) -> Record:
    reconstruct = np.zeros(1).__reduce__()[0]
    return Record(reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, content))


def dtype_record(code: str, *parts: object) -> Record:
    return Record(np.dtype, (code, False, True), (3, "<", *(parts or (None, None, None)), -1, -1, 0))


@pytest.mark.parametrize(
    "entry",
    [
        Calls(np.zeros(1).__reduce__()[0], np.ndarray, (10**15,), b"b"),
        array_record((10**9, 10**6), dtype_record("f4"), b"abcd"),
        array_record((-1, 1), dtype_record("f4"), b"abcd"),
        array_record((1, 1), dtype_record("f4", None, ("a",), {"a": (1, 0)}), b"abcd"),
        array_record((1, 1), dtype_record("O8"), b"12345678"),
        array_record((1, 1), dtype_record("V8"), b"12345678"),
        array_record((1, 1), "f4", b"abcd"),
        Calls(np.dtype, 3),
    ],
    ids=["huge", "few bytes", "negative side", "fields", "pointers", "raw", "no type", "type of a number"],
)
def test_records_that_numpy_must_not_see_are_refused(tmp_path, entry):
    path = save(tmp_path / "s.npy", {0: entry})
    with pytest.raises(ValueError, match="is not a dict of class maps"):
        read_cam_dict(path)


def test_a_record_made_by_hand_is_read(tmp_path):
    path = save(tmp_path / "s.npy", {0: array_record((1, 2), dtype_record("f4"), np.array([1, 2], "<f4").tobytes())})
    np.testing.assert_array_equal(read_cam_dict(path)[0], [[1, 2]])


@pytest.mark.parametrize(
    "value",
    [
        [maps(1)[0]],
        {"2": maps(1)[0]},
        {-1: maps(1)[0]},
        {True: maps(1)[0]},
        {2: [1.0]},
        {2: np.zeros((2, 3, 4), np.float32)},
        {2: np.zeros((2, 3), np.int64)},
        {2: np.full((2, 3), np.nan, np.float32)},
        {2: np.zeros((0, 3), np.float32)},
        {2: maps(1, (2, 3))[0], 3: maps(1, (3, 2))[0]},
        {2: np.array([[None]], dtype=object)},
    ],
    ids=["list", "text key", "negative", "bool", "list map", "3d", "integers", "nan", "empty", "sizes", "objects"],
)
def test_other_content_is_refused(tmp_path, value):
    array = np.empty((), dtype=object)
    array[()] = value
    np.save(tmp_path / "s.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=r"s\.npy is not a dict of class maps that can be read safely"):
        read_cam_dict(tmp_path / "s.npy")


def test_damaged_files_are_refused_at_any_cut(tmp_path):
    path = tmp_path / "s.npy"
    write_cam_dict(path, (1,), maps(1))
    data = path.read_bytes()
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match="is not a dict of class maps"):
            read_cam_dict(path)


def test_a_plain_array_and_a_missing_file_are_named(tmp_path):
    np.save(tmp_path / "s.npy", maps(1))
    with pytest.raises(ValueError, match="instead of a pickled dict"):
        read_cam_dict(tmp_path / "s.npy")
    with pytest.raises(ValueError, match=r"gone\.npy is missing"):
        read_cam_dict(tmp_path / "gone.npy")


def test_a_cam_dict_is_no_crf_dict(tmp_path):
    write_cam_dict(tmp_path / "s.npy", (3,), maps(1))
    with pytest.raises(ValueError, match=r"has no background \(key 0\)"):
        read_crf_dict(tmp_path / "s.npy")


def test_folders_are_named_as_published():
    assert crf_folder("out_crf", 4.0) == "out_crf_4.0"
    assert crf_folder("out_crf", 24.0) == "out_crf_24.0"
    assert crf_folder("out_crf", 4.25) == "out_crf_4.25"
