"""CAM inference after the network: accumulation against the published order, normalization, the stored form."""

from __future__ import annotations

import io
import tarfile
import zlib

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from seam_dist.artifacts import cam_file as cams
from seam_dist.inference.cam import fold_mirrored, normalize_cam, sum_scales
from seam_dist.inference.pseudo_labels import predict_labels
from seam_dist.models.grid import scaled_size

SIZE = (37, 50)
SCALES = (0.5, 1.0, 1.5, 2.0)


def grid_maps(seed, size=SIZE, scales=SCALES, num_classes=2, stride=8):
    """(map, map of the mirrored image, scaled size) at each scale, as a network with that stride gives them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for scale in scales:
        scaled = scaled_size(size, scale)
        shape = (num_classes, *(-(-side // stride) for side in scaled))
        found.append((*(torch.randn(shape, generator=generator) for _ in range(2)), scaled))
    return found


def published_normalized(parts, size):
    """Sum and normalization in the published order: every map to full size first, mirrored ones turned there."""
    total = 0
    for plain, mirrored, scaled in parts:
        for grid, flip in ((plain, False), (mirrored, True)):
            at_scale = interpolate(grid[None].double(), scaled, mode="bilinear", align_corners=True)
            full = interpolate(at_scale, size, mode="bilinear", align_corners=False)[0].numpy()
            total = total + (np.flip(full, axis=-1) if flip else full)
    total[total < 0] = 0
    high, low = total.max((1, 2), keepdims=True), total.min((1, 2), keepdims=True)
    total[total < low + 1e-5] = 0
    return (total - low - 1e-5) / (high - low + 1e-5)


def full_size(parts, size=SIZE):
    folded = [(fold_mirrored(plain, mirrored), scaled) for plain, mirrored, scaled in parts]
    return normalize_cam(sum_scales(folded, size))


def test_accumulation_matches_the_published_order():
    parts = grid_maps(0)
    np.testing.assert_allclose(full_size(parts).numpy(), published_normalized(parts, SIZE), rtol=0, atol=2e-6)


def test_scaled_size_rounds_half_to_even():
    assert scaled_size((375, 501), 0.5) == (188, 250)
    assert scaled_size((1, 1), 0.25) == (1, 1)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((240, 320), 1.0, (241, 321)), ((193, 193), 0.5, (97, 97)), ((9, 20), 0.3, (17, 17))],
)
def test_aligned_size_is_the_nearest_multiple_of_the_stride_plus_one(size, scale, expected):
    assert scaled_size(size, scale, align=16) == expected


def test_normalization_matches_hand_calculation():
    out = normalize_cam(torch.tensor([[[-1.0, 0.0, 1.0, 3.0]]], dtype=torch.float64))
    expected = torch.tensor([[[-1e-5, -1e-5, 1 - 1e-5, 3 - 1e-5]]], dtype=torch.float64) / (3 + 1e-5)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=0)


def test_normalization_zeroes_the_minimum_and_leaves_its_input():
    total = torch.tensor([[[2.0, 2.000001, 3.0]]], dtype=torch.float64)
    before = total.clone()
    out = normalize_cam(total)
    expected = torch.tensor([[[-2 - 1e-5, -2 - 1e-5, 1 - 1e-5]]], dtype=torch.float64) / (1 + 1e-5)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=0)
    assert torch.equal(total, before)


def test_a_class_without_any_score_is_background():
    assert (normalize_cam(torch.full((1, 2, 2), -3.0)) < 0).all()


def test_no_scale_is_refused():
    with pytest.raises(
        ValueError, match=r"grids is empty, expected a map for at least one scale: set infer_cam\.scales"
    ):
        sum_scales([], SIZE)


def realistic(seed, size=(375, 500)):
    """A full-size map of two classes with details of about 32 pixels and noise of its own at every scale."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 2, size[0] // 32 + 2, size[1] // 32 + 2, generator=generator)
    parts = []
    for scale in SCALES:
        scaled = scaled_size(size, scale)
        grid = [-(-side // 8) for side in scaled]
        smooth = interpolate(base, grid, mode="bicubic", align_corners=True)[0]
        parts.append((smooth + 0.15 * torch.randn(smooth.shape, generator=generator), scaled))
    return normalize_cam(sum_scales(parts, size))


@pytest.mark.parametrize(("stride", "mean", "largest", "labels"), [(8, 0.010, 0.18, 0.02), (4, 0.003, 0.09, 0.005)])
def test_stored_map_stays_near_the_full_size_map(stride, mean, largest, labels):
    errors, wrong = [], []
    for seed in range(3):
        full = realistic(seed)
        back = cams.upsample_cam(cams.store_cam(full, stride), (375, 500))
        errors.append((full.clamp_min(0) - back).abs())
        wrong.append((predict_labels(full, [1, 2], 0.26) != predict_labels(back, [1, 2], 0.26)).mean())
    error = torch.stack(errors)
    assert error.mean() < mean
    assert error.max() < largest
    assert np.mean(wrong) < labels


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
    assert not predict_labels(back, [], 0.5).any()


def test_labels_follow_the_first_largest_score_above_the_threshold():
    cam = torch.tensor([[[0.25, 0.5, 0.9]], [[0.1, 0.5, 0.95]]])
    assert predict_labels(cam, [3, 7], 0.25).tolist() == [[0, 3, 7]]


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
