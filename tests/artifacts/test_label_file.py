"""Label images and their tars: what goes in comes out, bytes are stable, damaged or foreign files are refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seam_dist.artifacts.label_file import encode_labels, read_label_shard, voc_palette, write_labels
from seam_dist.data.masks import decode_labels


def labels_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([0, 1, 7, 20, 254, 255], np.uint8), (height, width))


def test_palette_has_the_published_colors():
    colors = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {index: tuple(colors[index]) for index in known} == known


@pytest.mark.parametrize("size", [(1, 1), (13, 7), (64, 48)])
def test_labels_come_back_and_the_bytes_are_stable(size):
    labels = labels_of(*size)
    data = encode_labels(labels)
    assert np.array_equal(decode_labels(data, max_pixels=10**6), labels)
    assert encode_labels(np.asfortranarray(labels)) == data
    image = Image.open(io.BytesIO(data))
    assert image.mode == "P"
    assert bytes(image.getpalette()) == voc_palette()


def test_labels_of_other_types_or_shapes_are_not_written():
    for labels in (np.zeros((4, 4), np.int64), np.zeros((4, 4, 1), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"expected uint8 \(H, W\)"):
            encode_labels(labels)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_only_palette_images_are_read():
    gray = png(Image.new("L", (8, 8)))
    color = png(Image.new("RGB", (8, 8)))
    bits = png(Image.new("1", (8, 8), 1))
    whole = encode_labels(labels_of(32, 32))
    for data in (gray, color, bits, b"", b"no image", whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="the label image cannot be used"):
            decode_labels(data, max_pixels=10**6)


def test_size_is_checked_before_decoding():
    huge = encode_labels(np.zeros((2000, 2000), np.uint8))
    with pytest.raises(ValueError, match=r"4000000|2000 x 2000"):
        decode_labels(huge[:900], max_pixels=10**6)


def test_indices_beyond_the_classes_are_refused():
    data = encode_labels(np.array([[0, 5, 255]], np.uint8))
    assert decode_labels(data, max_pixels=9, num_classes=5).tolist() == [[0, 5, 255]]
    with pytest.raises(ValueError, match=r"holds the value 5 .*, expected 0 .*1 to 4 .*or 255"):
        decode_labels(data, max_pixels=9, num_classes=4)


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "labels" / "train-00000.tar"
    write_labels(path, [(f"s{i}", labels_of(20, 30, i)) for i in range(4)])
    return path


def test_tar_keeps_order_and_has_stable_bytes(tar, tmp_path):
    assert list(read_label_shard(tar)) == ["s0", "s1", "s2", "s3"]
    stored = read_label_shard(tar)
    for i in range(4):
        assert np.array_equal(decode_labels(stored[f"s{i}"], max_pixels=600), labels_of(20, 30, i))
    write_labels(tmp_path / "again.tar", [(f"s{i}", labels_of(20, 30, i)) for i in range(4)])
    assert (tmp_path / "again.tar").read_bytes() == tar.read_bytes()


def test_empty_tar_is_a_shard_without_usable_images(tmp_path):
    write_labels(tmp_path / "none.tar", [])
    assert read_label_shard(tmp_path / "none.tar") == {}


def test_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"member 's\.png' is there twice"):
        write_labels(tmp_path / "x.tar", [("s", labels_of(4, 4))] * 2)
    with pytest.raises(ValueError, match=r"member '\.\./s\.png' is there twice or not allowed"):
        write_labels(tmp_path / "x.tar", [("../s", labels_of(4, 4))])
    assert list(tmp_path.iterdir()) == []


def members_of(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


def test_every_cut_is_seen(tar):
    data = tar.read_bytes()
    members = members_of(tar)
    ends = [member.offset for member in members[1:]] + [members[-1].offset_data + 30]
    for end in (*ends, len(data) - tarfile.RECORDSIZE // 2 * 2, 700):
        tar.write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"train-00000\.tar is not a whole tar of labels .*: remove it and run"):
            read_label_shard(tar)


def test_flipped_header_byte_is_seen(tar):
    data = bytearray(tar.read_bytes())
    for member in members_of(tar):
        spoilt = bytearray(data)
        spoilt[member.offset + 1] ^= 1
        tar.write_bytes(spoilt)
        with pytest.raises(ValueError, match="is not a whole tar of labels"):
            read_label_shard(tar)


@pytest.mark.parametrize("name", ["../s.png", "s.npy", "a/b.png", "s.png"])
def test_foreign_members_are_refused(tmp_path, name):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        if name == "s.png":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ValueError, match="is not allowed"):
        read_label_shard(tmp_path / "x.tar")


def test_missing_tar_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.tar is not a whole tar of labels"):
        read_label_shard(tmp_path / "gone.tar")
