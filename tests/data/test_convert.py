"""Conversion: the same bytes every time, resumed where it was cut, and bad images named instead of stored."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
from PIL import Image

from seam_dist.data.conversion_plan import Plan, count_shards, plan_conversion
from seam_dist.data.convert import write_shards
from seam_dist.data.inspection import inspect_record
from seam_dist.data.manifest import Manifest, ShardError, load_manifest, verify_shards
from seam_dist.data.shards import RawSample, parse_info, read_raw, read_shard, write_shard
from seam_dist.data.sources.base import Record, SourceError

MAX = 10**6


def run(source: Any, folder: Path, *splits: str, **changes: Any) -> Manifest:
    options: dict[str, Any] = {"settings": {}, "samples_per_shard": 3, "streams": 4, "max_pixels": MAX} | changes
    records = {split: source.listing(split).records for split in splits or ("train",)}
    return kit.convert(source.classes, records, folder, **options)


def planned(records: Sequence[Record], folder: Path, **changes: Any) -> Plan:
    options: dict[str, Any] = {"settings": {}, "samples_per_shard": 3, "streams": 4, "max_pixels": MAX} | changes
    return plan_conversion(kit.CLASSES, {"train": records}, folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize(
    ("samples", "per_shard", "streams", "expected"),
    [(24, 3, 4, 8), (25, 3, 4, 12), (280, 256, 4, 4), (10_582, 256, 4, 44), (1, 256, 4, 1), (7, 1, 4, 7), (3, 9, 4, 3)],
)
def test_number_of_shards_is_a_multiple_of_streams_where_possible(
    samples: int, per_shard: int, streams: int, expected: int
) -> None:
    assert count_shards(samples, samples_per_shard=per_shard, streams=streams) == expected


def test_shard_and_stream_sizes_differ_by_at_most_one(tmp_path: Path) -> None:
    manifest = run(kit.MemorySource(train=kit.records(30, masks=False)), tmp_path)
    counts = [shard.num_samples for shard in manifest.split("train").shards]
    assert len(counts) == 12
    assert max(counts) - min(counts) <= 1
    streams = [sum(counts[stream::4]) for stream in range(4)]
    assert max(streams) - min(streams) <= 1


def test_same_input_gives_the_same_bytes_in_any_number_of_processes(tmp_path: Path) -> None:
    source = kit.MemorySource(train=kit.records(13), val=kit.records(5, first=50))
    run(source, tmp_path / "a", "train", "val")
    run(source, tmp_path / "b", "train", "val", num_processes=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == {
        "manifest.json",
        *(f"train-{i:05d}.tar" for i in range(8)),
        *(f"val-{i:05d}.tar" for i in range(4)),
    }


class Gather:
    """Collect a value of each of several threads, as ranks do."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def __call__(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        gathered = list(self.values)
        self.barrier.wait()
        return gathered


def run_ranks(records: Sequence[Record], folder: Path, size: int = 2) -> list[Manifest | Exception]:
    """Convert on several ranks, each a thread; return what each of them gives or raises."""
    plan, gather = planned(records, folder), Gather(size)
    results: dict[int, Manifest | Exception] = {}

    def rank(index: int) -> None:
        try:
            options: dict[str, Any] = {"rank": index, "world_size": size, "gather": partial(gather, index)}
            results[index] = write_shards(plan, check_masks="warn", **options)[0]
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(size)]


def test_ranks_share_the_work_and_agree_on_the_manifest(tmp_path: Path) -> None:
    records = kit.records(13)
    manifests = run_ranks(records, tmp_path / "ranks")
    assert isinstance(manifests[0], Manifest)
    assert manifests[0] == manifests[1]
    assert [record.image.calls for record in records] == [1] * 13
    run(kit.MemorySource(train=kit.records(13)), tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "ranks")


def test_every_rank_names_the_bad_images_of_all_of_them(tmp_path: Path) -> None:
    records = kit.records(12)
    for i in (0, 1):  # one of each rank
        records[i] = replace(records[i], image=kit.Bytes(b"hello"))
    texts = [str(error) for error in run_ranks(records, tmp_path)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("2 images cannot be converted")
    assert [f"image image {i}: " in texts[0] for i in range(3)] == [True, True, False]


def test_every_rank_stops_when_one_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, samples: Any) -> None:
        if Path(file.name).name.startswith(".train-00001"):
            raise OSError(28, "No space left on device")
        write_shard(file, samples)

    monkeypatch.setattr("seam_dist.data.convert.write_shard", full)
    errors = run_ranks(kit.records(12), tmp_path)
    assert all("train-00001.tar cannot be written" in str(error) for error in errors)


def test_interrupted_conversion_resumes_with_the_missing_shards(tmp_path: Path) -> None:
    def killed() -> bytes:
        raise KeyboardInterrupt

    records = kit.records(12)
    cut = [*records[:6], replace(records[6], image=killed), *records[7:]]
    with pytest.raises(KeyboardInterrupt):
        run(kit.MemorySource(train=cut), tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").glob("*.tar")) == ["train-00000.tar", "train-00001.tar"]
    assert not list((tmp_path / "a").glob(".*.tmp"))
    (tmp_path / "a" / ".train-00002.tar.x.tmp").touch()  # of a process that could not clean up
    for record in records:
        record.image.calls = 0
    run(kit.MemorySource(train=records), tmp_path / "a")
    assert [record.image.calls for record in records] == [0, 0, 1, 1] * 3
    run(kit.MemorySource(train=kit.records(12)), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_shard_of_other_records_is_not_taken_over(tmp_path: Path) -> None:
    records = kit.records(12)
    with pytest.raises(SourceError):
        run(kit.MemorySource(train=[*records[:11], replace(records[11], image=lambda: b"")]), tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.tar"))) == 3
    changed = [replace(record, classes=(3,)) for record in records]
    run(kit.MemorySource(train=changed), tmp_path / "a")
    for shard in load_manifest(tmp_path / "a").split("train").shards:
        for raw in read_raw(tmp_path / "a" / shard.file):
            assert parse_info(raw.members["json"]).classes == (3,)


def test_shards_of_an_earlier_plan_are_removed(tmp_path: Path) -> None:
    run(kit.MemorySource(train=kit.records(12)), tmp_path, samples_per_shard=1, settings={"samples_per_shard": 1})
    assert len(list(tmp_path.glob("*.tar"))) == 12
    (tmp_path / "train-00099.tar").write_bytes(b"the user's")
    settings = {"samples_per_shard": 3}
    manifest = run(kit.MemorySource(train=kit.records(12)), tmp_path, samples_per_shard=3, settings=settings)
    assert sorted(tmp_path.glob("*.tar")) == [
        *(tmp_path / f"train-0000{i}.tar" for i in range(4)),
        tmp_path / "train-00099.tar",
    ]
    assert len(list((tmp_path / "sources").iterdir())) == 4
    verify_shards(tmp_path, manifest, "train", "checksum")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writes beyond `size` bytes fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_is_reported_with_the_folder_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    source = kit.MemorySource(train=kit.records(12))
    folder = tmp_path / "shards"
    with largest_file(4096), pytest.raises(ShardError, match=rf"train-00000\.tar cannot be written to {folder}.*room"):
        run(source, folder)
    assert [path.name for path in folder.iterdir()] == ["sources"]
    assert not list(folder.rglob("*.tmp"))
    verify_shards(folder, run(source, folder), "train", "checksum")


def record(image: bytes, mask: bytes | None = None) -> Record:
    return Record("k", "my image.jpg", (1,), kit.Bytes(image), kit.Bytes(mask) if mask is not None else None)


def converted(image: bytes, mask: bytes | None = None) -> RawSample:
    inspection = inspect_record(record(image, mask), num_classes=3, max_pixels=MAX)
    inspection.findings.raise_errors(SourceError)
    assert inspection.sample is not None
    return inspection.sample


def turned(image: np.ndarray, orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return bytes(kit.encode(image, exif=tags))


def test_jpeg_png_and_webp_keep_their_bytes_under_their_own_extension() -> None:
    for format, extension in (("JPEG", "jpg"), ("PNG", "image.png"), ("WEBP", "webp")):
        data = kit.encode(kit.pixels(0), format)
        assert converted(data).members[extension] == data


def test_gif_is_stored_as_png_of_its_first_frame() -> None:
    frames = [Image.fromarray(kit.pixels(seed)).quantize(64) for seed in range(2)]
    raw = converted(kit.encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert set(raw.members) == {"image.png", "json"}


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_mask_is_in_display_order_and_so_is_the_sample(tmp_path: Path, orientation: int) -> None:
    height, width = (40, 30) if orientation >= 5 else (30, 40)
    mask = kit.index_mask(0, height, width)
    source = kit.MemorySource(train=[record(turned(kit.pixels(0), orientation), mask)])
    manifest = run(source, tmp_path)
    (sample,) = read_shard(tmp_path / manifest.split("train").shards[0].file, masks=True, max_pixels=MAX)
    assert sample.image.shape[:2] == (height, width)
    assert sample.mask is not None
    assert sample.mask.shape == (height, width)


def test_mask_of_a_turned_image_in_stored_order_is_refused() -> None:
    with pytest.raises(SourceError, match=r"mask of image my image\.jpg: .*after the image's EXIF rotation"):
        converted(turned(kit.pixels(0), 6), kit.index_mask(0))


def test_mask_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(SourceError, match=r"it has \(29, 40\) pixels .*its image \(30, 40\): make them equal"):
        converted(kit.encode(kit.pixels(0)), kit.index_mask(0, 29, 40))


def test_mask_with_an_unknown_index_is_refused() -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[3, 3] = 4
    with pytest.raises(
        SourceError, match=r"holds the value 4 \(1 pixel\), expected 0 \(background\), 1 to 3 \(classes\) or 255"
    ):
        converted(kit.encode(kit.pixels(0)), kit.encode(mask, "PNG"))


def test_gray_cmyk_and_one_pixel_images_are_accepted() -> None:
    image = Image.fromarray(kit.pixels(0))
    assert "jpg" in converted(kit.encode(image.convert("L"))).members
    assert "jpg" in converted(kit.encode(image.convert("CMYK"))).members
    assert parse_info(converted(kit.encode(kit.pixels(0, 1, 1))).members["json"]).size == (1, 1)


def test_all_bad_images_are_named_and_the_other_shards_kept(tmp_path: Path) -> None:
    records = kit.records(12)
    jpeg = records[0].image()
    records[0] = replace(records[0], image=kit.Bytes(jpeg[:-100]))
    records[4] = replace(records[4], image=kit.Bytes(b"hello"))
    records[5] = replace(records[5], image=kit.Bytes(kit.encode(np.zeros((1001, 1000), np.uint8), "PNG")))
    with pytest.raises(SourceError) as caught:
        run(kit.MemorySource(train=records), tmp_path)
    lines = str(caught.value).splitlines()
    for place, topic in enumerate(("damaged", "text", "too-large")):
        assert lines[2 * place].startswith(f"1 image cannot be converted (image-{topic})")
    assert "image image 0: the JPEG is damaged (Premature end" in lines[1]
    assert "image image 4: it is text that begins with 'hello', expected JPEG, PNG, " in lines[3]
    assert "image image 5: the image has 1000 x 1001 pixels, more than data.max_pixels=1000000" in lines[5]
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["train-00002.tar", "train-00003.tar"]
    assert not (tmp_path / "manifest.json").exists()


def test_errors_of_images_and_masks_come_together_with_the_first_of_each(tmp_path: Path) -> None:
    records = kit.records(12)
    for i in range(8):
        records[i] = replace(records[i], image=kit.Bytes(b"hello"))
    records[9] = replace(records[9], mask=kit.Bytes(kit.index_mask(0, 3, 3)))
    with pytest.raises(SourceError) as caught:
        run(kit.MemorySource(train=records), tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("8 images cannot be converted (image-text, the first 5 are):")
    assert all(line.startswith("  image image ") for line in lines[1:6])
    assert lines[6].startswith("1 mask cannot be converted (mask-size):")
    assert lines[7].startswith("  mask of image image 9: ")
    assert len(lines) == 8


def test_image_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = replace(kit.records(1)[0], image=(tmp_path / "gone.jpg").read_bytes)
    with pytest.raises(SourceError, match=r"image image 0 cannot be read: .*gone\.jpg"):
        run(kit.MemorySource(train=[gone]), tmp_path)


@pytest.mark.parametrize("field", ["mask", "classes"])
def test_split_where_only_some_have_masks_or_labels_is_refused(tmp_path: Path, field: str) -> None:
    records = kit.records(4)
    records[2] = replace(records[2], **{field: None})
    with pytest.raises(SourceError, match=rf"split 'train': image image 2 has no {field} \(1 of 4 images\)"):
        run(kit.MemorySource(train=records), tmp_path)


def test_split_without_labels_says_so(tmp_path: Path) -> None:
    records = [replace(record, classes=None, mask=None) for record in kit.records(4)]
    split = run(kit.MemorySource(test=records), tmp_path, "test").split("test")
    assert (split.has_labels, split.has_masks) == (False, False)


def test_pair_is_stored_as_two_images_and_must_match_in_size(tmp_path: Path) -> None:
    pair = replace(kit.records(1)[0], image_b=kit.Bytes(kit.encode(kit.pixels(9), "PNG")))
    run(kit.MemorySource(train=[pair]), tmp_path)
    (raw,) = read_raw(tmp_path / "train-00000.tar")
    assert set(raw.members) == {"a.jpg", "b.image.png", "json", "png"}
    odd = replace(pair, image_b=kit.Bytes(kit.encode(kit.pixels(9, 31, 40))))
    with pytest.raises(SourceError, match="the two images have"):
        inspect_record(odd, num_classes=3, max_pixels=MAX).findings.raise_errors(SourceError)


def test_split_name_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"split name '\.\./up' has other characters"):
        kit.convert(
            ["cat"],
            {"../up": kit.records(1)},
            tmp_path / "shards",
            settings={},
            samples_per_shard=1,
            streams=1,
            max_pixels=MAX,
        )
    assert not list(tmp_path.glob("*.tar"))
