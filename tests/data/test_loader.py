"""The training stream: the same global batches for any ranks and workers, resumed at any sample, robust to bad data."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
import torch

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.config.schema import Config
from seam_dist.data import reader as reader_module
from seam_dist.data.loader import ClassificationLoader, make_classification_loader
from seam_dist.data.manifest import ShardError, load_manifest
from seam_dist.data.shards import RawSample, read_raw, write_shard

GLOBAL_BATCH = 8


def loader(
    cfg: Config, *, rank: int = 0, world_size: int = 1, start: int = 0, batch: int = GLOBAL_BATCH
) -> ClassificationLoader:
    return make_classification_loader(cfg, load_manifest(cfg.shards_dir), rank, world_size, start, batch)


def global_steps(cfg: Config, ranks: int, steps: int, start: int = 0) -> list[list[tuple[int, str, str]]]:
    loaders = [loader(cfg, rank=r, world_size=ranks, start=start, batch=GLOBAL_BATCH // ranks) for r in range(ranks)]
    try:
        return [kit.digest([next(one) for one in loaders]) for _ in range(steps)]
    finally:
        for one in loaders:
            one.close()


def test_global_batches_are_identical_for_any_ranks_and_workers(shards: Path) -> None:
    expected = global_steps(kit.stream_config(shards), 1, steps=5)
    for n, step in enumerate(expected):
        assert [number for number, _, _ in step] == list(range(n * GLOBAL_BATCH, (n + 1) * GLOBAL_BATCH))
    for ranks, workers in ((2, 1), (2, 2), (4, 1)):
        cfg = kit.stream_config(shards, num_workers=workers)
        assert global_steps(cfg, ranks, steps=5) == expected, f"{ranks} ranks x {workers} workers"


def test_resuming_at_another_number_of_ranks_continues_sample_for_sample(shards: Path) -> None:
    expected = global_steps(kit.stream_config(shards), 1, steps=8)
    one = loader(kit.stream_config(shards), rank=1, world_size=2, batch=4)
    for _ in range(3):
        next(one)
    assert one.next_sample == 24
    assert global_steps(kit.stream_config(shards, num_workers=1), 4, steps=5, start=24) == expected[3:]
    assert global_steps(kit.stream_config(shards), 2, steps=5, start=24) == expected[3:]


def test_accumulated_micro_batches_are_the_large_batch(shards: Path) -> None:
    large = loader(kit.stream_config(shards), batch=8)
    small = loader(kit.stream_config(shards), batch=2)
    assert kit.digest([next(large)]) == kit.digest([next(small) for _ in range(4)])


def test_seeking_reads_only_the_groups_it_needs(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = kit.record_paths(monkeypatch, reader_module, "read_raw")
    next(loader(kit.stream_config(shards, shuffle_shards=1), start=4 * 1000, batch=4))
    assert len(opened) == 4  # one shard of each stream, of the two that it has
    opened.clear()
    next(loader(kit.stream_config(shards, shuffle_shards=1), start=4 * 1000, world_size=2, rank=1, batch=2))
    assert len(opened) == 2
    assert {int(name[6:11]) % 2 for name in opened} == {1}


def test_memory_holds_one_group_of_each_stream(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = loader(kit.stream_config(shards, shuffle_shards=1))

    def checked(path: Path, *args: Any) -> Any:
        assert int(path.name[6:11]) % 4 not in one._reader._groups, "the group before is still held"
        return read_raw(path, *args)

    monkeypatch.setattr(reader_module, "read_raw", checked)
    for _ in range(9):
        next(one)
        held = [len(samples) for _, samples in one._reader._groups.values()]
        assert len(held) <= 4
        assert set(held) == {3}


def test_epochs_hold_every_sample_and_reshuffle(shards: Path) -> None:
    one = loader(kit.stream_config(shards))
    epochs = [[key for _ in range(3) for key in next(one)["key"]] for _ in range(3)]
    assert all(len(set(keys)) == 24 for keys in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_seed_changes_order_and_augmentation(shards: Path) -> None:
    first, second = (next(loader(kit.stream_config(shards, seed=seed))) for seed in (0, 1))
    assert first["key"] != second["key"]
    assert not torch.equal(first["color"], second["color"])


def test_batch_has_the_promised_shapes_and_labels(shards: Path) -> None:
    batch = next(loader(kit.stream_config(shards), batch=5))
    assert (batch["image"].shape, batch["image"].dtype) == ((5, 3, 24, 24), torch.uint8)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert (batch["valid"].shape, batch["valid"].dtype) == ((5, 4), torch.int32)
    assert (batch["color"].shape, batch["color"].dtype) == ((5, 8), torch.float32)
    assert (batch["label"].shape, batch["label"].dtype) == ((5, 3), torch.float32)
    for key, row in zip(batch["key"], batch["label"].tolist(), strict=True):
        assert row == [float(int(key[-3:]) % 3 == c) for c in range(3)]


def test_loader_leaves_the_global_random_state_alone(shards: Path) -> None:
    for workers in (0, 1):
        torch.manual_seed(5)
        np.random.seed(5)
        one = loader(kit.stream_config(shards, num_workers=workers))
        next(one)
        one.close()
        drawn = torch.rand(1), np.random.rand()
        torch.manual_seed(5)
        np.random.seed(5)
        assert drawn == (torch.rand(1), np.random.rand())


def test_workers_outlive_a_signal_to_the_whole_job_and_end_with_the_loader(shards: Path) -> None:
    before = set(multiprocessing.active_children())
    one = loader(kit.stream_config(shards, num_workers=2))
    expected = loader(kit.stream_config(shards))
    assert kit.digest([next(one)]) == kit.digest([next(expected)])
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid or 0, signum)
    for _ in range(6):
        assert kit.digest([next(one)]) == kit.digest([next(expected)])
    one.close()
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(StopIteration):
        next(one)


def damage(folder: Path, keys: Sequence[str], change: Any) -> None:
    """Change the members of some samples and bring the manifest up to date, as if they had been converted so."""
    manifest = read_json(folder / "manifest.json")
    for entry in manifest["splits"]["train"]["shards"]:
        path = folder / entry["file"]
        samples = [RawSample(s.key, change(dict(s.members)) if s.key in keys else s.members) for s in read_raw(path)]
        with open(path, "wb") as file:
            write_shard(file, samples)
        entry.update(num_bytes=path.stat().st_size, sha256=sha256_file(path))
    write_json(folder / "manifest.json", manifest)


def truncate(members: dict[str, bytes]) -> dict[str, bytes]:
    return {**members, "jpg": members["jpg"][:-60]}


def test_bad_sample_is_reported_once_and_replaced_the_same_everywhere(
    shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [row for step in global_steps(kit.stream_config(shards), 1, steps=6) for row in step]
    damage(shards, ["image-005"], truncate)
    with caplog.at_level(logging.WARNING):
        one = loader(kit.stream_config(shards))
        with_replacement = kit.digest([next(one) for _ in range(6)])
    (message,) = [r.getMessage() for r in caplog.records]
    assert "bad sample image-005 in" in message
    assert "train-00005.tar is left out: the JPEG is damaged" in message
    assert one.num_replaced == 2  # once in each of the two epochs
    for before, after in zip(good, with_replacement, strict=True):
        assert after[0] == before[0]
        if before[1] == "image-005":
            assert after[1] != "image-005"
        else:
            assert after == before
    for ranks, workers in ((2, 2), (4, 1)):
        cfg = kit.stream_config(shards, num_workers=workers)
        assert [row for step in global_steps(cfg, ranks, steps=6) for row in step] == with_replacement


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: {**m, "json": b"{}"}, "its .json is not readable"),
        (lambda m: {**m, "json": m["json"].replace(b"[30, 40]", b"[30, -1]")}, "its .json has a value out of range"),
        (lambda m: {**m, "json": m["json"].replace(b"[30, 40]", b"[40, 30]")}, "its image has (30, 40) pixels"),
        (lambda m: {"a.jpg": m["jpg"], "json": m["json"]}, "it has 0 images"),
        (lambda m: {**m, "jpg": b"\xff\xd8nonsense"}, "the JPEG is damaged"),
    ],
)
def test_bad_sample_of_any_type_is_replaced(
    shards: Path, caplog: pytest.LogCaptureFixture, change: Any, reason: str
) -> None:
    damage(shards, ["image-002"], change)
    one = loader(kit.stream_config(shards))
    keys = [key for _ in range(3) for key in next(one)["key"]]
    assert "image-002" not in keys
    assert one.num_replaced == 1
    assert reason in caplog.text


def test_image_above_the_pixel_limit_is_never_decoded(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simplejpeg.decode_jpeg", None)
    cfg = kit.stream_config(shards, max_pixels=30 * 40 - 1, max_bad_fraction=1.0)
    with pytest.raises(ShardError, match="none of the 6 samples of train-0000"):
        next(loader(cfg))


@pytest.mark.parametrize("workers", [0, 1])
def test_more_bad_samples_than_allowed_stop_the_job_by_name(shards: Path, workers: int) -> None:
    damage(shards, ["image-001", "image-005"], truncate)  # two of the six samples of stream 1
    allowed = loader(kit.stream_config(shards, max_bad_fraction=0.3))
    for _ in range(3):
        next(allowed)
    assert allowed.num_replaced == 2
    strict = loader(kit.stream_config(shards, max_bad_fraction=0.1, num_workers=workers))
    with pytest.raises(
        ShardError, match=r"2 of the 6 samples of stream 1 .*is image-00[15] in .*max_bad_fraction=0\.1"
    ):
        list(islice(strict, 3))
    strict.close()
    damage(shards, ["image-001"], lambda members: members)
    with pytest.raises(ShardError, match="1 of the 6 samples of stream 1"):
        list(islice(loader(kit.stream_config(shards, max_bad_fraction=0.0)), 3))


def test_missing_or_cut_shard_stops_at_the_start_by_name(shards: Path) -> None:
    path = shards / "train-00006.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match=r"train-00006\.tar has .* bytes, expected"):
        loader(kit.stream_config(shards))
    path.unlink()
    with pytest.raises(ShardError, match=r"train-00006\.tar is missing"):
        loader(kit.stream_config(shards), rank=2, world_size=4)
    loader(kit.stream_config(shards), rank=1, world_size=4)  # does not read that one


def test_changed_shard_stops_at_the_start_when_checksums_are_verified(shards: Path) -> None:
    path = shards / "train-00003.tar"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"train-00003\.tar does not have the checksum"):
        loader(kit.stream_config(shards, verify="checksum"))


def test_numbers_that_do_not_fit_are_refused_with_the_remedy(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.streams=4 is not a multiple of 2 ranks x 3 workers = 6"):
        loader(kit.stream_config(shards, num_workers=3), world_size=2)
    with pytest.raises(ValueError, match=r"num_shards=8 is fewer than data\.streams=16"):
        loader(kit.stream_config(shards, streams=16))
    for wrong in ({"start": 3}, {"rank": 2}, {"start": -2}):
        with pytest.raises(ValueError, match="start_sample a multiple of world_size"):
            loader(kit.stream_config(shards), **{"world_size": 2, **wrong})
    with pytest.raises(ValueError, match="micro_batch_size=0 is less than one image"):
        loader(kit.stream_config(shards), batch=0)
    with pytest.raises(ShardError, match=r"split 'val' is not in the shards, which have train"):
        loader(kit.stream_config(shards, train_split="val"))


def test_split_without_labels_cannot_train(shards: Path) -> None:
    cfg = kit.stream_config(shards)
    manifest = load_manifest(shards)
    unlabeled = replace(manifest, splits={"train": replace(manifest.split("train"), has_labels=False)})
    with pytest.raises(ShardError, match=r"split 'train' has no image-level labels"):
        make_classification_loader(cfg, unlabeled, 0, 1, 0, 1)
