"""The stored form of CAMs and the tars of them."""

from __future__ import annotations

import io
import tarfile
import zlib

import numpy as np
import pytest
import torch

from seam_dist.artifacts import cam_file as cams


def test_a_map_that_is_linear_between_the_points_is_stored_without_loss():
    points = torch.rand(3, 5, 7)
    full = cams.upsample_cam(points, (37, 50))
    stored = cams.store_cam(full, 8)
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored.astype(np.float32), points, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (9, 17)])
def test_stored_form_of_small_images(size):
    stored = cams.store_cam(torch.full((1, *size), 0.5), 8)
    assert stored.shape == (1, -(-size[0] // 8), -(-size[1] // 8))
    torch.testing.assert_close(cams.upsample_cam(stored, size), torch.full((1, *size), 0.5), atol=1e-3, rtol=0)


def test_an_image_without_classes_has_an_empty_map():
    stored = cams.store_cam(torch.zeros(0, 20, 30), 8)
    assert stored.shape == (0, 3, 4)
    back = cams.upsample_cam(cams.decode_cam(cams.encode_cam(stored)), (20, 30))
    assert back.shape == (0, 20, 30)


def test_stored_map_survives_its_bytes():
    stored = cams.store_cam(torch.rand(2, 37, 50), 8)
    assert np.array_equal(cams.decode_cam(cams.encode_cam(stored)), stored)


def npy(array, allow_pickle=False):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return zlib.compress(file.getvalue())


def test_a_stored_map_takes_a_third_of_its_16_bits():
    smooth = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 8), (480, 640), mode="bicubic")[0].clamp(0, 1)
    stored = cams.store_cam(smooth, 8)
    assert len(cams.encode_cam(stored)) < 0.8 * stored.nbytes


def test_a_map_outside_its_range_is_not_written():
    for value in (np.nan, np.inf, -0.1, 1.1):
        with pytest.raises(ValueError, match="holds NaN or values outside"):
            cams.encode_cam(np.full((1, 2, 2), value, np.float16))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the bytes are no stored map"),
        (b"\x93NUMPY\x01\x00 nothing of the kind", "the bytes are no stored map"),
        (npy(np.zeros((2, 1, 4, 4), np.uint8))[:-3], "the bytes are no stored map"),
        (npy(np.zeros((2, 1, 4, 4), np.uint8)) + b"x", "the bytes are no stored map"),
        (npy(np.array({0: 1}, dtype=object), allow_pickle=True), "the bytes are no stored map"),
        (npy(np.zeros((2, 1, 4, 4), np.float32)), r"the array is float32 \(2, 1, 4, 4\), expected uint8"),
        (npy(np.zeros((1, 4, 4), np.uint8)), r"the array is uint8 \(1, 4, 4\), expected uint8 \(2, K, h, w\)"),
        (npy(np.full((2, 1, 4, 4), 4, np.uint8)), "the map holds 1028, expected 0 to 1000"),
    ],
)
def test_bytes_that_are_no_stored_map_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        cams.decode_cam(data)


def image_cams(key, num_classes=2, plain=True):
    rng = np.random.default_rng(num_classes)
    maps = [(rng.integers(0, 1001, (num_classes, 3, 4)) / 1000).astype(np.float16) for _ in range(2)]
    return cams.StoredCam(key, tuple(range(1, num_classes + 1)), (20, 30), maps[0], maps[1] if plain else None)


def test_a_tar_of_cams_is_read_as_written(tmp_path):
    written = [image_cams("a"), image_cams("b", 0), image_cams("c", 1, plain=False)]
    cams.write_cams(tmp_path / "x.tar", written)
    read = list(cams.read_cams(tmp_path / "x.tar"))
    assert [(cam.key, cam.classes, cam.size) for cam in read] == [(cam.key, cam.classes, cam.size) for cam in written]
    for one, other in zip(read, written, strict=True):
        assert np.array_equal(one.cam, other.cam)
        assert (one.plain is None) == (other.plain is None)
        assert one.plain is None or np.array_equal(one.plain, other.plain)


def test_the_same_cams_give_the_same_bytes(tmp_path):
    for name in ("x.tar", "y.tar"):
        cams.write_cams(tmp_path / name, [image_cams("a")])
    assert (tmp_path / "x.tar").read_bytes() == (tmp_path / "y.tar").read_bytes()


def test_a_failed_write_leaves_no_file(tmp_path):
    def failing():
        yield image_cams("a")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        cams.write_cams(tmp_path / "x.tar", failing())
    assert list(tmp_path.iterdir()) == []


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


CAM = npy(np.zeros((2, 1, 3, 4), np.uint8))
INFO = b'{"classes": [1], "size": [20, 30]}'


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.cam", CAM), ("b.json", INFO)], "member 'b.json' comes before a is complete"),
        ([("../a.cam", CAM), ("../a.json", INFO)], "member '../a.cam' .* is not allowed"),
        ([("a.pkl", b"")], "member 'a.pkl' .* is not allowed"),
        ([("a.cam", CAM), ("a.json", INFO)] * 2, "member 'a.cam' is there twice"),
        ([("a.cam", CAM)], "it ends within an image"),
        ([("a.json", INFO)], "'cam'"),
        ([("a.cam", CAM), ("a.json", b'{"classes": [1, 2], "size": [20, 30]}')], r"maps \(1, 3, 4\) for 2 classes"),
        ([("a.cam", CAM), ("a.json", b"[")], "Expecting value"),
    ],
)
def test_tars_that_are_none_of_cams_are_refused(tmp_path, members, message):
    tar_of(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=rf"x\.tar is not a whole tar of CAMs \(.*{message}.*\): remove it and run"):
        list(cams.read_cams(tmp_path / "x.tar"))


def test_a_cut_tar_of_cams_is_refused(tmp_path):
    cams.write_cams(tmp_path / "x.tar", [image_cams("a"), image_cams("b")])
    data = (tmp_path / "x.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:
        ends = [member.offset for member in tar][1:]
    for end in (*ends, ends[0] + 100, len(data) // 2):
        (tmp_path / "x.tar").write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"x\.tar is not a whole tar of CAMs"):
            list(cams.read_cams(tmp_path / "x.tar"))
