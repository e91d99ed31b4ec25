"""Shards are plain webdataset tars, read with nothing lost in silence and nothing run."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import kit
import numpy as np
import pytest
import webdataset
import webdataset.utils

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.data.images import BadSampleError
from seam_dist.data.manifest import Manifest, Shard, ShardError, load_manifest, verify_shards
from seam_dist.data.shards import (
    RawSample,
    SampleInfo,
    decode_sample,
    index_shard,
    parse_info,
    read_raw,
    read_shard,
    write_shard,
)

MAX = 10**6


def first_shard(folder: Path) -> Path:
    return folder / "train-00000.tar"


def test_read_shard_returns_what_was_converted(shards: Path) -> None:
    manifest = load_manifest(shards)
    assert manifest.classes == ("cat", "dog", "horse")
    split = manifest.split("train")
    assert (split.num_samples, split.has_masks, split.has_labels, len(split.shards)) == (24, True, True, 8)
    expected = {record.key: record for record in kit.records(24)}
    seen = []
    for shard in split.shards:
        for sample in read_shard(shards / shard.file, masks=True, max_pixels=MAX):
            record = expected[sample.key]
            raw = RawSample(sample.key, {"jpg": record.image(), "png": record.mask(), "json": b""})
            assert (sample.classes, sample.source_id) == (record.classes, record.source_id)
            assert sample.image.shape == (30, 40, 3)
            assert sample.image.dtype == np.uint8
            assert sample.mask is not None
            info = SampleInfo(record.classes, (30, 40), 1, "x").to_bytes()
            again = decode_sample(RawSample(raw.key, {**raw.members, "json": info}), masks=True, max_pixels=MAX)
            assert np.array_equal(sample.image, again.image)
            assert np.array_equal(sample.mask, again.mask)
            seen.append(sample.key)
    assert sorted(seen) == sorted(expected)


def test_image_and_mask_bytes_are_stored_as_they_came(shards: Path) -> None:
    expected = {record.key: record for record in kit.records(24)}
    for raw in read_raw(first_shard(shards)):
        assert raw.members["jpg"] == expected[raw.key].image()
        assert raw.members["png"] == expected[raw.key].mask()
        assert set(raw.members) == {"jpg", "png", "json"}


def test_shards_are_read_by_webdataset_itself(shards: Path) -> None:
    dataset = webdataset.WebDataset(str(first_shard(shards)), shardshuffle=False)
    plain = [
        (sample["__key__"], sample["jpg"], sample["png"], json.loads(sample["json"])["size"]) for sample in dataset
    ]
    assert plain == [(r.key, r.members["jpg"], r.members["png"], [30, 40]) for r in read_raw(first_shard(shards))]


def test_webdataset_is_in_its_secure_mode() -> None:
    assert webdataset.utils.enforce_security
    assert os.environ["WDS_SECURE"] == "1"


def test_writing_twice_gives_the_same_bytes(shards: Path) -> None:
    samples = list(read_raw(first_shard(shards)))
    once, twice = io.BytesIO(), io.BytesIO()
    write_shard(once, samples)
    write_shard(twice, samples)
    assert once.getvalue() == twice.getvalue() == first_shard(shards).read_bytes()


@pytest.mark.parametrize(
    ("key", "extension"),
    [("../up", "jpg"), ("a/b", "jpg"), ("a b", "jpg"), ("", "jpg"), ("a", "pyd"), ("a", "jpg.gz"), ("a", "py")],
)
def test_writer_refuses_names_that_are_not_allowed(key: str, extension: str) -> None:
    with pytest.raises(ShardError, match="is not allowed"):
        write_shard(io.BytesIO(), [RawSample(key, {extension: b""})])


def add(tar: tarfile.TarFile, name: str, data: bytes = b"{}", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            add(tar, name, data)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a.pyd",
        "a.pkl",
        "a.pickle",
        "a.pth",
        "../../a.jpg",
        "/a.jpg",
        "dir/a.jpg",
        "a\n.jpg",
        "a\x1b[31m.jpg",
        "a.b.c.jpg",
    ],
)
def test_member_of_another_name_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return (Path.touch, (tmp_path / "ran",))

    path = write_tar(tmp_path / "x.tar", ("a.jpg", b""), ("a.json", b"{}"), (name, pickle.dumps(Harmful())))
    with pytest.raises(ShardError, match=r"x\.tar: member .* is not allowed"):
        list(read_raw(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "member_type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CHRTYPE]
)
def test_links_and_sparse_files_are_refused(tmp_path: Path, member_type: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.jpg", b"", type=member_type, linkname="/etc/passwd")
    with pytest.raises(ShardError, match="is not allowed"):
        list(read_raw(tmp_path / "x.tar"))


def test_compressed_tar_is_refused(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "x.tar").write_bytes(gzip.compress(first_shard(shards).read_bytes()))
    with pytest.raises(ShardError, match="header at byte 0 is damaged"):
        list(read_raw(tmp_path / "x.tar"))


def test_shard_cut_at_any_block_is_refused(tmp_path: Path, shards: Path) -> None:
    whole = first_shard(shards).read_bytes()
    end = max(i for i in range(0, len(whole), 512) if any(whole[i : i + 512])) + 512
    cut = tmp_path / "cut.tar"
    for size in [0, 100, *range(512, end + 1, 512), len(whole) // 2]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ShardError, match=r"cut\.tar.*cut"):
            list(read_raw(cut))


def test_flipped_header_bit_is_refused(tmp_path: Path, shards: Path) -> None:
    whole = bytearray(first_shard(shards).read_bytes())
    whole[3] ^= 1
    (tmp_path / "x.tar").write_bytes(whole)
    with pytest.raises(ShardError, match="header at byte 0 is damaged"):
        list(read_raw(tmp_path / "x.tar"))


def test_empty_tar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="is an empty tar"):
        list(read_raw(write_tar(tmp_path / "x.tar")))


@pytest.mark.parametrize(
    "members",
    [
        [("a.jpg", b""), ("a.json", b"{}"), ("b.jpg", b""), ("b.json", b"{}"), ("a.webp", b""), ("a.json", b"{}")],
        [("a.jpg", b""), ("a.json", b"{}"), ("a.jpg", b"")],
    ],
)
def test_key_that_occurs_twice_is_refused(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    with pytest.raises(ShardError, match="holds the key a or a member of it twice"):
        list(read_raw(write_tar(tmp_path / "x.tar", *members)))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["a.jpg"], r"sample a lacks its image or its \.json"),
        (["a.json"], r"sample a lacks its image or its \.json"),
        (["a.json", "a.png"], r"sample a lacks its image or its \.json"),
        (["a.jpg", "a.json", "a.jpg"], "twice"),
    ],
)
def test_incomplete_sample_is_refused_by_both_readers(tmp_path: Path, members: list[str], message: str) -> None:
    path = write_tar(tmp_path / "x.tar", *((name, b"{}") for name in members))
    with pytest.raises(ShardError, match=message):
        list(read_raw(path))
    with pytest.raises(ShardError, match=message):
        index_shard(path, Shard(path.name, 1, path.stat().st_size, ""))


def test_missing_changed_or_cut_shard_is_named_by_verify(shards: Path) -> None:
    manifest = load_manifest(shards)
    path = shards / "train-00005.tar"
    whole = path.read_bytes()
    verify_shards(shards, manifest, "train", "checksum")
    changed = bytearray(whole)
    changed[700] ^= 1
    path.write_bytes(changed)
    verify_shards(shards, manifest, "train", "size")
    with pytest.raises(ShardError, match=r"train-00005\.tar does not have the checksum"):
        verify_shards(shards, manifest, "train", "checksum")
    path.write_bytes(whole[: len(whole) // 2])
    for mode in ("size", "checksum"):
        with pytest.raises(ShardError, match=rf"train-00005\.tar has {len(whole) // 2} bytes, expected {len(whole)}"):
            verify_shards(shards, manifest, "train", mode)
    path.unlink()
    with pytest.raises(ShardError, match=r"train-00005\.tar is missing"):
        verify_shards(shards, manifest, "train", "size")


def test_shard_with_fewer_samples_than_listed_is_refused(shards: Path) -> None:
    shard = load_manifest(shards).split("train").shards[0]
    samples = list(read_raw(shards / shard.file))[:-1]
    with open(shards / shard.file, "wb") as file:
        write_shard(file, samples)
    size = (shards / shard.file).stat().st_size
    for read in (read_raw, index_shard):
        with pytest.raises(ShardError, match="holds 2 samples, expected 3"):
            list(read(shards / shard.file, Shard(shard.file, 3, size, shard.sha256)))


def change_manifest(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    value = read_json(folder / "manifest.json")
    change(value)
    write_json(folder / "manifest.json", value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=2), "has schema 2, expected 1"),
        (lambda m: m.pop("classes"), "classes: Field required: convert the data set again"),
        (lambda m: m["splits"]["train"].update(num_samples="many"), r"splits\.train\.num_samples: .* valid integer"),
        (lambda m: m.update(splits=[]), "not a complete manifest"),
        (lambda m: m.update(classes=[]), "has 0 classes"),
        (lambda m: m["splits"]["train"]["shards"].pop(), "says 24 samples but its shards hold 21"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="../x.tar"), "not a plain file name"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="pipe:touch x.tar"), "not a plain file name"),
    ],
)
def test_malformed_manifest_is_refused(shards: Path, change: Callable[..., object], message: str) -> None:
    change_manifest(shards, change)
    with pytest.raises(ShardError, match=message):
        load_manifest(shards)


def test_missing_manifest_and_unknown_split_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"split 'val' is not in the shards, which have train"):
        load_manifest(shards).split("val")
    with pytest.raises(ShardError, match=r"manifest\.json is missing: run `--only shard`"):
        load_manifest(tmp_path)


def test_manifest_survives_its_file(shards: Path, tmp_path: Path) -> None:
    manifest = load_manifest(shards)
    write_json(tmp_path / "manifest.json", manifest.to_json())
    assert load_manifest(tmp_path) == manifest
    assert isinstance(manifest, Manifest)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1]",
        b'{"size": [30, 40]}',
        b'{"size": [30], "source_id": "x"}',
        b'{"size": [0, 40], "source_id": "x"}',
        b'{"size": [30, 40], "source_id": "x", "classes": [4]}',
        b'{"size": [30, 40], "source_id": "x", "classes": [0]}',
        b'{"size": [30, 40], "source_id": "x", "orientation": 9}',
        b"[" * 100_000,
    ],
)
def test_malformed_description_makes_a_bad_sample(data: bytes) -> None:
    with pytest.raises(BadSampleError, match=r"its \.json"):
        parse_info(data, num_classes=3)


def test_bad_sample_is_handed_over_or_raised_with_its_names(tmp_path: Path) -> None:
    info = SampleInfo((1,), (30, 40), 1, "x").to_bytes()
    good = {"jpg": kit.encode(kit.pixels(0)), "png": kit.index_mask(0), "json": info}
    samples = [
        RawSample("good", good),
        RawSample("truncated", {**good, "jpg": good["jpg"][:300]}),
        RawSample("small-mask", {**good, "png": kit.index_mask(0, 29, 40)}),
        RawSample("no-mask", {name: data for name, data in good.items() if name != "png"}),
        RawSample("pair", {"a.jpg": good["jpg"], "b.jpg": good["jpg"], "png": good["png"], "json": info}),
        RawSample("other-size", {**good, "json": info.replace(b"[30, 40]", b"[40, 30]")}),
        RawSample("last", good),
    ]
    with open(tmp_path / "x.tar", "wb") as file:
        write_shard(file, samples)
    bad: dict[str, str] = {}
    read = read_shard(
        tmp_path / "x.tar", masks=True, max_pixels=MAX, on_bad=lambda key, error: bad.update({key: str(error)})
    )
    assert [sample.key for sample in read] == ["good", "last"]
    assert list(bad) == ["truncated", "small-mask", "no-mask", "pair", "other-size"]
    assert "damaged" in bad["truncated"]
    assert "its mask has (29, 40) pixels (height, width), its image (30, 40)" in bad["small-mask"]
    assert "no mask" in bad["no-mask"]
    assert "0 images" in bad["pair"]
    assert "its .json says (40, 30)" in bad["other-size"]
    with pytest.raises(BadSampleError, match=rf"sample truncated in {tmp_path}/x\.tar"):
        list(read_shard(tmp_path / "x.tar", masks=True, max_pixels=MAX))
    with pytest.raises(BadSampleError, match=r"data\.max_pixels=1199"):
        list(read_shard(tmp_path / "x.tar", masks=False, max_pixels=30 * 40 - 1))


def test_labels_and_mask_values_above_the_number_of_classes_are_bad(tmp_path: Path) -> None:
    def members(index: int, value: int) -> dict[str, bytes]:
        info = SampleInfo((index,), (30, 40), 1, "x").to_bytes()
        return {
            "jpg": kit.encode(kit.pixels(0)),
            "png": kit.encode(np.full((30, 40), value, np.uint8), "PNG"),
            "json": info,
        }

    good = [("ignored", 1, 255), ("last-class", 2, 2)]
    wrong = [("label", 3, 1), ("value", 1, 3)]
    with open(tmp_path / "x.tar", "wb") as file:
        write_shard(file, [RawSample(key, members(index, value)) for key, index, value in [*good, *wrong]])
    bad: list[str] = []
    read = read_shard(
        tmp_path / "x.tar", masks=True, max_pixels=MAX, num_classes=2, on_bad=lambda key, error: bad.append(key)
    )
    assert [sample.key for sample in read] == ["ignored", "last-class"]
    assert bad == ["label", "value"]
