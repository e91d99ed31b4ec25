"""Random access to shards: the same samples as the readers of the stages, from any process."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from seam_dist.artifacts.atomic import write_json
from seam_dist.data import dataset as dataset_module
from seam_dist.data.dataset import ShardDataset
from seam_dist.data.images import BadSampleError
from seam_dist.data.manifest import ShardError, load_manifest
from seam_dist.data.shards import Sample, read_raw, read_shard


def stored(folder: Path) -> list[Sample]:
    return [
        sample
        for shard in load_manifest(folder).split("train").shards
        for sample in read_shard(folder / shard.file, masks=True, max_pixels=10**6)
    ]


def test_items_are_the_samples_of_the_shards_in_order(shards: Path) -> None:
    data = ShardDataset(shards, masks=True)
    expected = stored(shards)
    assert data.classes == kit.CLASSES
    assert len(data) == len(expected) == 24
    for index in (*range(24), 17, 3, -1):
        item, sample = data[index], expected[index]
        assert (item["key"], item["size"]) == (sample.key, (30, 40))
        assert np.array_equal(item["image"], sample.image)
        assert np.array_equal(item["mask"], sample.mask)
        assert item["label"].dtype == np.float32
        assert item["label"].tolist() == [float(c + 1 in sample.classes) for c in range(3)]
    for index in (24, -25):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 24 samples of split 'train'"):
            data[index]


def test_shards_are_indexed_once_and_only_those_that_are_used(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed = kit.record_paths(monkeypatch, dataset_module, "index_shard")
    data = ShardDataset(shards)
    for index in (22, 7, 6, 23):
        assert set(data[index]) == {"image", "label", "key", "size"}
    assert indexed == ["train-00007.tar", "train-00002.tar"]


def test_data_loader_with_workers_gives_whole_batches(shards: Path) -> None:
    def tensor(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image).permute(2, 0, 1)

    data = ShardDataset(shards, transform=tensor)
    batches = list(DataLoader(data, batch_size=5, num_workers=2, multiprocessing_context="fork"))
    expected = stored(shards)
    assert [key for batch in batches for key in batch["key"]] == [sample.key for sample in expected]
    images = torch.cat([batch["image"] for batch in batches])
    assert torch.equal(images, torch.stack([tensor(sample.image) for sample in expected]))
    assert batches[0]["label"].shape == (5, 3)
    assert batches[-1]["size"][0].tolist() == [30] * 4


def test_data_set_pickles_with_and_without_its_index(shards: Path) -> None:
    data = ShardDataset(shards)
    fresh = pickle.loads(pickle.dumps(data))
    first = data[4]
    for copy in (fresh, pickle.loads(pickle.dumps(data))):
        assert np.array_equal(copy[4]["image"], first["image"])
        assert copy[4]["key"] == first["key"]


def test_split_without_labels_has_items_without_label(shards: Path) -> None:
    manifest = load_manifest(shards)
    unlabeled = replace(manifest, splits={"test": replace(manifest.split("train"), has_labels=False)})
    write_json(shards / "manifest.json", unlabeled.to_json())
    assert set(ShardDataset(str(shards), "test")[0]) == {"image", "key", "size"}


def test_unknown_split_and_missing_masks_are_refused_with_the_remedy(shards: Path) -> None:
    with pytest.raises(ShardError, match="split 'val' is not in the shards, which have train"):
        ShardDataset(shards, "val")
    manifest = load_manifest(shards)
    unmasked = replace(manifest, splits={"train": replace(manifest.split("train"), has_masks=False)})
    write_json(shards / "manifest.json", unmasked.to_json())
    with pytest.raises(ShardError, match=r"split 'train' of .* has no masks: leave masks=False"):
        ShardDataset(shards, masks=True)


def test_damaged_sample_is_named_and_leaves_its_neighbors(shards: Path) -> None:
    path = shards / "train-00001.tar"
    second = list(read_raw(path))[1]
    data = bytearray(path.read_bytes())
    start = data.index(second.members["jpg"])
    data[start : start + 4] = b"\xff\xd8\x00\x00"
    path.write_bytes(data)
    items = ShardDataset(shards)
    with pytest.raises(BadSampleError, match=rf"sample {second.key} in .*train-00001\.tar: the JPEG is damaged"):
        items[4]
    assert items[3]["key"] != items[5]["key"] != second.key


@pytest.mark.parametrize(
    "change", [lambda data: data[:700], lambda data: b"x" + data[1:], lambda data: data + bytes(512)]
)
def test_damaged_shard_is_named(shards: Path, change: Any) -> None:
    path = shards / "train-00001.tar"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ShardError, match=r"train-00001\.tar.*copy it again"):
        ShardDataset(shards)[3]


def test_shard_that_shrinks_after_it_was_indexed_is_named(shards: Path) -> None:
    data = ShardDataset(shards)
    data[3]
    path = shards / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ShardError, match=r"train-00001\.tar: it became shorter"):
        data[5]
