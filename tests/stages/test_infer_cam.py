"""Stage infer_cam on a small procedural set with an untrained network, against the published order of operations."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from kit import authors_state_dict
from safetensors.torch import save_file

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.authors_files import read_cam_dict, read_crf_dict, write_cam_dict, write_crf_dict
from seam_dist.artifacts.cam_file import read_cams, store_cam
from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.artifacts.stage import StageError, input_fingerprint, open_stage
from seam_dist.commands.status import stage_status
from seam_dist.config.load import dump_yaml, from_tree
from seam_dist.config.schema import Config
from seam_dist.data.images import decode_labels
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import RawSample, Sample, read_raw, read_shard, write_shard
from seam_dist.inference.batching import by_size
from seam_dist.inference.cam import find_checkpoint, infer_samples, load_model
from seam_dist.inference.crf_pool import affinity_labels
from seam_dist.models import build_seam, seam_architecture
from seam_dist.stages import infer_cam, shard

SCALES = [0.5, 1.0]


def make_config(root: Path, name: str = "run", **sections: dict[str, object]) -> Config:
    tree: dict[str, dict[str, object]] = {
        "run": {"name": name, "dir": str(root / "runs"), "device": "cpu"},
        "source": {"kind": "synthetic", "num_images": [5, 3], "num_classes": 3, "image_size": [64, 48]},
        "data": {"shards": str(root / "shards"), "samples_per_shard": 2, "streams": 1},
        "model": {"backbone": "resnet38d", "width": 0.05, "pcm_channels": [8, 8]},
        "infer_cam": {"scales": SCALES, "batch_size": 2, "crf": False},
    }
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    return from_tree(tree)


def finish_training(cfg: Config, seed: int = 0) -> None:
    """Leave what train_seam leaves, with random weights."""
    manifest = load_manifest(cfg.shards_dir)
    torch.manual_seed(seed)
    model, _ = build_seam(cfg, manifest.num_classes)
    torch.nn.init.normal_(model.fc8.weight, std=5)
    stage = open_stage(cfg, "train_seam", settings=("model", "loss"))
    final = stage.dir / "final"
    final.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, final / "model.safetensors")
    write_json(final / "model.json", {"architecture": seam_architecture(cfg, manifest.classes)})
    stage.finish(final.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("infer")
    cfg = make_config(root)
    shard.run(cfg)
    finish_training(cfg)
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy of shards and training, for tests that write."""
    shutil.copytree(trained, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture(scope="module")
def finished(trained: Path) -> Config:
    """A run whose CAMs are made, with the authors' files."""
    root = trained.parent / "finished-cams"
    shutil.copytree(trained, root)
    cfg = make_config(root, infer_cam={"interop": True, "scales": SCALES, "batch_size": 2})
    infer_cam.run(cfg)
    return cfg


def samples_of(cfg: Config, split: str) -> list[Sample]:
    return [
        sample
        for part in load_manifest(cfg.shards_dir).split(split).shards
        for sample in read_shard(cfg.shards_dir / part.file, masks=False, max_pixels=10**6)
    ]


def stored_of(cfg: Config, split: str) -> dict[str, object]:
    parts = load_manifest(cfg.shards_dir).split(split).shards
    return {cam.key: cam for part in parts for cam in read_cams(cfg.stage_dir("infer_cam") / "cams" / part.file)}


def published_map(dense_reading: ModuleType, cfg: Config, sample: Sample, kind: str) -> np.ndarray:
    """One image, one scale and one direction at a time, every map at full size before it is added, in float64."""
    manifest = load_manifest(cfg.shards_dir)
    model = load_model(cfg, manifest, find_checkpoint(cfg)).eval().double()

    def network(image: torch.Tensor) -> torch.Tensor:
        out = model(image)
        return out.cam_refined if kind == "refined" else out.cam

    mean, std = model.backbone.mean, model.backbone.std
    return dense_reading.cam_map(network, sample.image, sample.classes, cfg.infer_cam.scales, mean, std)


def test_every_input_shard_has_its_cams_and_both_maps(finished):
    manifest = load_manifest(finished.shards_dir)
    for split in ("train", "val"):
        samples = samples_of(finished, split)
        stored = stored_of(finished, split)
        assert list(stored) == [sample.key for sample in samples]
        for sample in samples:
            cam = stored[sample.key]
            height, width = sample.image.shape[:2]
            assert cam.classes == sample.classes
            assert cam.size == (height, width)
            assert cam.cam.shape == cam.plain.shape == (len(sample.classes), -(-height // 8), -(-width // 8))
            assert not np.array_equal(cam.cam, cam.plain)
            assert cam.cam.min() >= 0
            assert cam.cam.max() <= 1
    record = read_json(finished.stage_dir("infer_cam") / "manifest.json")
    assert record["cam"] == "refined"
    shards = {f"cams/{part.file}" for split in manifest.splits.values() for part in split.shards}
    assert shards <= set(record["outputs"])


def test_interop_files_equal_the_published_computation(finished, dense_reading):
    for sample in samples_of(finished, "val"):
        path = finished.stage_dir("infer_cam") / "interop" / f"{sample.key}.npy"
        maps = np.load(path, allow_pickle=True).item()
        assert list(maps) == [index - 1 for index in sample.classes]
        assert all(cam.dtype == np.float32 for cam in maps.values())
        # float32 against float64 through a network: ulps of the sums, divided by the range.
        expected = published_map(dense_reading, finished, sample, "refined")
        np.testing.assert_allclose(np.stack(list(maps.values())), expected, atol=1e-4)


def test_stored_maps_are_the_published_ones_on_the_grid(finished, dense_reading):
    sample = samples_of(finished, "val")[0]
    stored = stored_of(finished, "val")[sample.key]
    for kind, cam in (("refined", stored.cam), ("plain", stored.plain)):
        expected = store_cam(torch.from_numpy(published_map(dense_reading, finished, sample, kind)), 8)
        np.testing.assert_allclose(cam.astype(np.float32), expected.astype(np.float32), atol=2e-3)


def test_a_finished_stage_is_left_alone(finished, capsys):
    folder = finished.stage_dir("infer_cam") / "cams"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    infer_cam.run(finished)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert "done already" in capsys.readouterr().out


def test_a_stage_cut_short_makes_the_missing_shards_only(root):
    cfg = make_config(root)
    infer_cam.run(cfg)
    folder = cfg.stage_dir("infer_cam")
    files = sorted((folder / "cams").iterdir())
    contents = [path.read_bytes() for path in files]
    (folder / "manifest.json").unlink()
    files[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    infer_cam.run(cfg)
    assert [path.read_bytes() for path in files] == contents
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "manifest.json").is_file()


def test_a_stage_cut_before_its_manifest_is_finished(root):
    cfg = make_config(root)
    infer_cam.run(cfg)
    manifest = cfg.stage_dir("infer_cam") / "manifest.json"
    outputs = read_json(manifest)["outputs"]
    manifest.unlink()
    infer_cam.run(cfg)
    assert read_json(manifest)["outputs"] == outputs


def test_another_split_is_added_to_those_there_are(root):
    infer_cam.run(make_config(root, infer_cam={"scales": SCALES, "splits": ["train"]}))
    cfg = make_config(root, infer_cam={"scales": SCALES, "splits": ["train", "val"]})
    first = cfg.stage_dir("infer_cam") / "cams" / "train-00000.tar"
    before = first.stat().st_mtime_ns
    infer_cam.run(cfg)
    assert first.stat().st_mtime_ns == before
    assert len(stored_of(cfg, "val")) == 3


def test_other_weights_make_all_cams_anew(root):
    cfg = make_config(root)
    infer_cam.run(cfg)
    before = stored_of(cfg, "val")
    shutil.rmtree(cfg.stage_dir("train_seam"))
    finish_training(cfg, seed=1)
    infer_cam.run(cfg)
    assert all(not np.array_equal(cam.cam, before[key].cam) for key, cam in stored_of(cfg, "val").items())


def test_batches_do_not_change_the_maps(trained):
    cfg = make_config(trained)
    manifest = load_manifest(cfg.shards_dir)
    model = load_model(cfg, manifest, find_checkpoint(cfg)).eval()
    rng = np.random.default_rng(0)
    sizes = [(32, 40), (40, 32), (32, 40), (32, 40), (24, 24)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    samples = [Sample(f"s{i}", image, (1, 1 + i % 3)[i % 3 == 0 :], None, "") for i, image in enumerate(images)]
    several = infer_samples(model, samples, cfg.infer_cam)
    alone = [infer_samples(model, [sample], cfg.infer_cam)[0] for sample in samples]
    assert [cam.key for cam in several] == ["s0", "s1", "s2", "s3", "s4"]
    for one, other in zip(several, alone, strict=True):
        np.testing.assert_allclose(one.cam.astype(np.float32), other.cam.astype(np.float32), atol=2e-3)


def sample_of_size(index, size):
    return Sample(f"s{index}", np.zeros((*size, 3), np.uint8), (1,), None, "")


def test_images_of_one_size_are_batched_and_few_wait():
    sizes = [(2, 3), (3, 2), (2, 3), (2, 3), (3, 2), (2, 3)]
    batches = list(by_size((sample_of_size(i, s) for i, s in enumerate(sizes)), 2))
    assert [[index for index, _ in batch] for batch in batches] == [[0, 2], [1, 4], [3, 5]]


def test_at_most_eight_batches_of_images_wait():
    drawn = []

    def stream():
        for index in range(40):
            drawn.append(index)
            yield sample_of_size(index, (1, index + 1))

    first = next(by_size(stream(), 2))
    assert len(drawn) == 16
    assert len(first) == 1


def test_an_image_without_classes_gets_an_empty_map(trained):
    cfg = make_config(trained)
    model = load_model(cfg, load_manifest(cfg.shards_dir), find_checkpoint(cfg)).eval()
    sample = Sample("s", np.zeros((24, 32, 3), np.uint8), (), None, "")
    (stored,) = infer_samples(model, [sample], cfg.infer_cam)
    assert stored.cam.shape == stored.plain.shape == (0, 3, 4)


@pytest.mark.parametrize(
    "sections",
    [{"infer_cam": {"scales": SCALES, "cam": "plain"}}, {"loss": {"ablation": "cam"}}],
    ids=["asked for", "no PCM"],
)
def test_plain_map_alone_is_stored_first_hand(root, finished, sections):
    cfg = make_config(root, **sections)
    if "loss" in sections:
        shutil.rmtree(cfg.stage_dir("train_seam"))
        finish_training(cfg)
    infer_cam.run(cfg)
    assert read_json(cfg.stage_dir("infer_cam") / "manifest.json")["cam"] == "plain"
    for key, cam in stored_of(cfg, "val").items():
        assert cam.plain is None
        if "infer_cam" in sections:
            assert np.array_equal(cam.cam, stored_of(finished, "val")[key].plain)


def test_weights_of_another_run_bring_their_network(root, finished):
    other = make_config(
        root,
        name="other",
        model={"backbone": "lite0", "width": 1.0},
        infer_cam={"scales": SCALES, "checkpoint": str(finished.run_dir)},
    )
    infer_cam.run(other)
    expected = stored_of(finished, "val")
    assert all(np.array_equal(cam.cam, expected[key].cam) for key, cam in stored_of(other, "val").items())


def test_authors_weight_file_gives_the_same_cams(root, finished, tmp_path):
    manifest = load_manifest(finished.shards_dir)
    model = load_model(finished, manifest, find_checkpoint(finished))
    torch.save(authors_state_dict(model), tmp_path / "authors.pth")
    cfg = make_config(root, name="authors", infer_cam={"scales": SCALES, "checkpoint": str(tmp_path / "authors.pth")})
    infer_cam.run(cfg)
    expected = stored_of(finished, "val")
    assert all(np.array_equal(cam.cam, expected[key].cam) for key, cam in stored_of(cfg, "val").items())


def rewrite_shard(cfg: Config, name: str, change) -> None:
    """Pass the samples of one shard through `change` and correct the manifest."""
    path = cfg.shards_dir / name
    samples = [change(sample) for sample in read_raw(path)]
    with open(path, "wb") as file:
        write_shard(file, samples)
    record = read_json(cfg.shards_dir / "manifest.json")
    for split in record["splits"].values():
        for part in split["shards"]:
            if part["file"] == name:
                part["num_bytes"] = path.stat().st_size
    write_json(cfg.shards_dir / "manifest.json", record)


def break_jpeg(sample: RawSample) -> RawSample:
    return RawSample(sample.key, {**sample.members, "jpg": sample.members["jpg"][:40]})


def test_a_bad_image_is_left_out_and_reported(root, capsys):
    cfg = make_config(root, data={"max_bad_fraction": 0.5, "shards": str(root / "shards")})
    spoilt = samples_of(cfg, "val")[-1].key
    rewrite_shard(cfg, "val-00001.tar", lambda s: break_jpeg(s) if s.key == spoilt else s)
    infer_cam.run(cfg)
    assert spoilt not in stored_of(cfg, "val")
    assert len(stored_of(cfg, "val")) == 2
    (message,) = read_json(cfg.stage_dir("infer_cam") / "manifest.json")["bad_samples"]
    assert spoilt in message
    assert "1 bad ones left out" in capsys.readouterr().out


def test_too_many_bad_images_stop_the_stage(root):
    cfg = make_config(root)
    rewrite_shard(cfg, "val-00001.tar", break_jpeg)
    with pytest.raises(ValueError, match=r"1 of 8 images cannot be used, more than data\.max_bad_fraction=0\.01"):
        infer_cam.run(cfg)
    assert not (cfg.stage_dir("infer_cam") / "manifest.json").exists()


def test_training_must_be_finished(root):
    cfg = make_config(root, name="untrained")
    with pytest.raises(StageError, match=r"stage train_seam is not finished there: run `--stage train_seam` first"):
        infer_cam.run(cfg)


def test_a_checkpoint_without_weights_is_refused(root, tmp_path):
    cfg = make_config(root, infer_cam={"checkpoint": str(tmp_path)})
    with pytest.raises(StageError, match=r"model\.safetensors is missing: run .* or set infer_cam\.checkpoint"):
        infer_cam.run(cfg)


def test_weights_of_other_classes_are_refused(root):
    cfg = make_config(root)
    path = cfg.stage_dir("train_seam") / "final" / "model.json"
    record = read_json(path)
    record["architecture"]["classes"][0] = "unicorn"
    path.write_text(json.dumps(record))
    with pytest.raises(
        StageError, match=r"was trained for 3 classes \(unicorn, .*use the data set that it was trained"
    ):
        infer_cam.run(cfg)


def test_a_split_without_labels_is_refused(root):
    cfg = make_config(root)
    record = read_json(cfg.shards_dir / "manifest.json")
    record["splits"]["val"]["has_labels"] = False
    write_json(cfg.shards_dir / "manifest.json", record)
    with pytest.raises(StageError, match=r"split 'val' has no image-level labels"):
        infer_cam.run(cfg)


CRF = {"impl": "torch", "num_iters": 2, "num_workers": 0, "bilateral_sxy": 20.0}


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run on small images with CRF labels, affinity labels and the authors' files."""
    root = tmp_path_factory.mktemp("refined")
    sizes = {"kind": "synthetic", "num_images": [5, 3], "num_classes": 3, "image_size": [45, 35]}
    cfg = make_config(root, source=sizes, crf=CRF, infer_cam={"scales": SCALES, "crf": True, "interop": True})
    shard.run(cfg)
    finish_training(cfg)
    infer_cam.run(cfg)
    return cfg


def tar_labels(cfg: Config, split: str, folder: str) -> dict[str, np.ndarray]:
    return {
        key: decode_labels(data, max_pixels=10**6, num_classes=3)
        for part in load_manifest(cfg.shards_dir).split(split).shards
        for key, data in read_label_shard(cfg.stage_dir("infer_cam") / folder / part.file).items()
    }


def reading_of(dense_reading: ModuleType, cfg: Config, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The scores of both CRFs from the full-size map, by the dense reading."""
    crf = dense_reading.dense_crf(2, (3.0, 3.0), (20.0, 13.0, 10.0))
    cam = read_cam_dict(cfg.stage_dir("infer_cam") / "interop" / f"{sample.key}.npy")
    full = np.stack([cam[index - 1] for index in sample.classes])
    return tuple(dense_reading.crf_scores(crf, sample.image, full, alpha) for alpha in (4.0, 24.0))


def test_crf_and_affinity_labels_equal_the_dense_reading(refined, dense_reading):
    labels, affinity = tar_labels(refined, "train", "crf"), tar_labels(refined, "train", "affinity")
    samples = samples_of(refined, "train")
    assert list(labels) == list(affinity) == [sample.key for sample in samples]
    seen = set()
    for sample in samples[:3]:
        low, high = reading_of(dense_reading, refined, sample)
        assert sample.image.shape[0] % 8
        assert sample.image.shape[1] % 8
        np.testing.assert_array_equal(labels[sample.key], np.array([0, *sample.classes])[low.argmax(0)])
        expected = dense_reading.affinity_labels(low, high, sample.classes, 8)
        np.testing.assert_array_equal(affinity[sample.key], expected)
        seen |= set(np.unique(expected))
    assert {0, 255} < seen


def test_crf_dicts_equal_the_dense_reading(refined, dense_reading):
    for sample in samples_of(refined, "val")[:1]:
        for folder, scores in zip(("4.0", "24.0"), reading_of(dense_reading, refined, sample), strict=True):
            path = refined.stage_dir("infer_cam") / f"interop_crf_{folder}" / f"{sample.key}.npy"
            maps = read_crf_dict(path)
            assert list(maps) == [0, *sample.classes]
            np.testing.assert_allclose(np.stack(list(maps.values())), scores, atol=1e-4)


def test_lattice_labels_equal_the_published_ones(root, finished, dense_reading):
    pytest.importorskip("pydensecrf")
    cfg = make_config(
        root,
        crf={"num_workers": 0},
        infer_cam={"crf": True, "splits": ["train"], "from_interop": str(finished.stage_dir("infer_cam") / "interop")},
    )
    infer_cam.run(cfg)
    crf = dense_reading.lattice_crf(10, (3, 3), (80, 13, 10))
    labels, affinity = tar_labels(cfg, "train", "crf"), tar_labels(cfg, "train", "affinity")
    for sample in samples_of(cfg, "train"):
        cam = read_cam_dict(cfg.infer_cam.from_interop / f"{sample.key}.npy")
        full = np.stack([cam[index - 1] for index in sample.classes])
        low, high = (dense_reading.crf_scores(crf, sample.image, full, alpha) for alpha in (4.0, 24.0))
        np.testing.assert_array_equal(labels[sample.key], np.array([0, *sample.classes])[low.argmax(0)])
        expected = dense_reading.affinity_labels(low, high, sample.classes, 8)
        np.testing.assert_array_equal(affinity[sample.key], expected)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("top", "left"), [(0, 0), (8, 16), (-16, 8), (24, -8)])
def test_stored_affinity_labels_are_exact_after_cropping(dense_reading, top, left, flip):
    """The published order: crop and flip the scores at full size, then block means, argmax and the rule."""
    rng = np.random.default_rng(0)
    low, high = (rng.random((3, 5, 7)).repeat(8, 1).repeat(8, 2)[:, :37, :53] ** 3 for _ in range(2))
    low, high = low + 0.3 * rng.random(low.shape), high + 0.3 * rng.random(high.shape)
    side = 32
    crops = (dense_reading.crop_scores(scores, top, left, side, flip=flip) for scores in (low, high))
    published = dense_reading.affinity_labels(*crops, (2, 3), 8)
    stored = affinity_labels(low.astype(np.float32), high.astype(np.float32), (2, 3), 8)
    around = np.full((20, 20), 255, np.uint8)
    around[8 : 8 + stored.shape[0], 8 : 8 + stored.shape[1]] = stored
    crop = around[8 + top // 8 :, 8 + left // 8 :][: side // 8, : side // 8]
    np.testing.assert_array_equal(crop[:, ::-1] if flip else crop, published)


def test_affinity_labels_are_made_for_the_split_that_trains_only(refined):
    folder = refined.stage_dir("infer_cam")
    assert sorted(path.name for path in (folder / "affinity").iterdir()) == [f"train-0000{i}.tar" for i in range(3)]
    assert len(list((folder / "crf").iterdir())) == 5
    outputs = read_json(folder / "manifest.json")["outputs"]
    assert {"affinity/train-00000.tar", "crf/val-00000.tar", "cams/val-00000.tar"} <= set(outputs)


def test_a_shard_counts_as_done_with_all_its_tars_only(refined, tmp_path):
    shutil.copytree(refined.run.dir.parent, tmp_path / "copy")
    cfg = replace(refined, run=replace(refined.run, dir=tmp_path / "copy" / "runs"))
    folder = cfg.stage_dir("infer_cam")
    tars = sorted(folder.rglob("*.tar"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tars}
    (folder / "affinity" / "train-00001.tar").unlink()
    (folder / "manifest.json").unlink()
    infer_cam.run(cfg)
    assert {path: path.read_bytes() for path in tars} == {path: data for path, (data, _) in before.items()}
    made = {path.name for path in tars if path.stat().st_mtime_ns != before[path][1]}
    assert made == {"train-00001.tar"}


def test_settings_of_the_crf_count_only_where_there_is_one(finished, refined):
    def settings(cfg: Config) -> set[str]:
        return set(read_json(cfg.stage_dir("infer_cam") / "stage.json")["settings"])

    plain = {"infer_cam.scales", "infer_cam.flip", "infer_cam.cam", "infer_cam.cam_stride", "infer_cam.interop"}
    assert settings(finished) == plain
    assert settings(refined) - plain >= {"infer_cam.crf", "infer_cam.crf_alphas", "crf.num_iters", "crf.impl"}
    assert "crf.num_workers" not in settings(refined)
    assert not (finished.stage_dir("infer_cam") / "crf").exists()


def test_missing_lattice_stops_before_the_stage_begins(root, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cfg = make_config(root, infer_cam={"crf": True, "scales": SCALES})
    with pytest.raises(ValueError, match=r"pip install 'seam-dist\[crf\]'"):
        infer_cam.run(cfg)
    assert not cfg.stage_dir("infer_cam").exists()
    infer_cam.run(make_config(root, infer_cam={"crf": False, "scales": SCALES, "splits": ["val"]}))


def test_authors_files_take_the_place_of_a_network(root, finished):
    folder = finished.stage_dir("infer_cam") / "interop"
    cfg = make_config(root, name="theirs", infer_cam={"from_interop": str(folder)})
    infer_cam.run(cfg)
    expected = stored_of(finished, "val")
    found = stored_of(cfg, "val")
    assert list(found) == list(expected)
    for key, cam in found.items():
        np.testing.assert_array_equal(cam.cam, expected[key].cam)
        assert cam.classes == expected[key].classes
        assert cam.plain is None
    assert read_json(cfg.stage_dir("infer_cam") / "manifest.json")["cam"] == "plain"


def test_authors_files_may_be_named_by_source(root, finished, tmp_path):
    shutil.copytree(finished.stage_dir("infer_cam") / "interop", tmp_path / "named")
    cfg = make_config(root, name="named", infer_cam={"from_interop": str(tmp_path / "named"), "splits": ["val"]})
    for name in ("val-00000.tar", "val-00001.tar"):
        rewrite_shard(cfg, name, lambda s: with_source(s, f"2007_{s.key}"))
    for sample in samples_of(cfg, "val"):
        (tmp_path / "named" / f"{sample.key}.npy").rename(tmp_path / "named" / f"2007_{sample.key}.npy")
    infer_cam.run(cfg)
    assert len(stored_of(cfg, "val")) == 3


def with_source(sample: RawSample, source: str) -> RawSample:
    info = json.loads(sample.members["json"]) | {"source_id": source}
    return RawSample(sample.key, {**sample.members, "json": json.dumps(info).encode()})


@pytest.mark.parametrize("fault", ["missing", "class", "size", "path"])
def test_authors_files_that_do_not_fit_are_refused(root, finished, tmp_path, fault):
    shutil.copytree(finished.stage_dir("infer_cam") / "interop", tmp_path / "theirs")
    cfg = make_config(root, name="theirs", infer_cam={"from_interop": str(tmp_path / "theirs"), "splits": ["val"]})
    sample = samples_of(cfg, "val")[1]
    path = tmp_path / "theirs" / f"{sample.key}.npy"
    cam = np.zeros((len(sample.classes), *sample.image.shape[:2]), np.float32)
    if fault in ("missing", "path"):
        path.rename(tmp_path / "outside.npy")
        expected = r"has no dict .*\.npy in .* \(infer_cam\.from_interop\): write it, or leave"
        if fault == "path":
            for name in ("val-00000.tar", "val-00001.tar"):
                rewrite_shard(cfg, name, lambda s: with_source(s, "../outside"))
    elif fault == "class":
        write_cam_dict(path, [index % 3 + 1 for index in sample.classes], cam)
        expected = r"has maps of the ids \[.*\], the label of its image says"
        if len(sample.classes) == 3:
            write_cam_dict(path, sample.classes[:2], cam[:2])
    else:
        write_cam_dict(path, sample.classes, cam[:, 1:])
        expected = "use maps at the image's size"
    with pytest.raises(ValueError, match=expected):
        infer_cam.run(cfg)


def test_a_folder_without_the_authors_files_is_named(root, tmp_path):
    cfg = make_config(root, name="none", infer_cam={"from_interop": str(tmp_path)})
    with pytest.raises(StageError, match=r"\(infer_cam\.from_interop\) holds no \.npy file"):
        infer_cam.run(cfg)


def test_changed_authors_files_make_the_cams_anew(root, finished, tmp_path):
    shutil.copytree(finished.stage_dir("infer_cam") / "interop", tmp_path / "theirs")
    cfg = make_config(root, name="theirs", infer_cam={"from_interop": str(tmp_path / "theirs"), "splits": ["val"]})
    infer_cam.run(cfg)
    sample = samples_of(cfg, "val")[0]
    cam = np.full((len(sample.classes), *sample.image.shape[:2]), 0.5, np.float32)
    write_cam_dict(tmp_path / "theirs" / f"{sample.key}.npy", sample.classes, cam)
    infer_cam.run(cfg)
    assert stored_of(cfg, "val")[sample.key].cam.min() == np.float16(0.5)


def theirs_with_crf(refined: Config, start: Path) -> Config:
    """A run on the same shards that starts from copies of that run's CAM dicts and CRF dicts."""
    for folder in refined.stage_dir("infer_cam").glob("interop*"):
        shutil.copytree(folder, start.parent / folder.name.replace("interop_crf", start.name))
    infer = replace(refined.infer_cam, from_interop=start.parent / "interop", crf_from_interop=start, interop=False)
    return replace(refined, run=replace(refined.run, dir=start.parent / "runs"), infer_cam=infer)


def test_authors_crf_dicts_take_the_place_of_the_crf(refined, tmp_path, monkeypatch):
    cfg = theirs_with_crf(refined, tmp_path / "out_crf")
    with monkeypatch.context() as patch:
        patch.setattr("seam_dist.inference.crf_pool.dense_crf", None)
        patch.setattr("importlib.util.find_spec", lambda name: None)
        infer_cam.run(cfg)
    for split, folder in (("train", "crf"), ("val", "crf"), ("train", "affinity")):
        found, expected = tar_labels(cfg, split, folder), tar_labels(refined, split, folder)
        assert list(found) == list(expected)
        for key, labels in found.items():
            np.testing.assert_array_equal(labels, expected[key])
    assert stage_status(cfg, "infer_cam").state == "done"
    # The run that computed its own CRFs would be made again with theirs, and this one without.
    for made, asked, words in (
        (
            refined,
            cfg.infer_cam.crf_from_interop,
            f"it was made without the authors' files in {tmp_path / 'out_crf_4.0'}",
        ),
        (cfg, None, "the authors' files (not asked for now) changed"),
    ):
        status = stage_status(replace(made, infer_cam=replace(made.infer_cam, crf_from_interop=asked)), "infer_cam")
        assert status.state == "outdated"
        assert words in status.detail
    # Other numbers are other folders.
    other = replace(cfg, infer_cam=replace(cfg.infer_cam, crf_alphas=(4.0, 16.0)))
    with pytest.raises(StageError, match=r"out_crf_16\.0 \(infer_cam\.crf_from_interop\) holds no \.npy file"):
        infer_cam.run(other)
    path = next((tmp_path / "out_crf_24.0").glob("*.npy"))
    path.write_bytes(path.read_bytes() + b" ")
    status = stage_status(cfg, "infer_cam")
    assert (status.state, status.detail) == ("outdated", f"the authors' files ({tmp_path / 'out_crf_24.0'}) changed")


@pytest.mark.parametrize("fault", ["missing", "class", "size", "background"])
def test_authors_crf_dicts_that_do_not_fit_are_refused(refined, tmp_path, fault):
    cfg = theirs_with_crf(refined, tmp_path / "out_crf")
    sample = samples_of(cfg, "train")[1]
    path = tmp_path / "out_crf_24.0" / f"{sample.key}.npy"
    scores = np.zeros((len(sample.classes) + 1, *sample.image.shape[:2]), np.float32)
    if fault == "missing":
        path.unlink()
        expected = r"has no dict .*\.npy in .*out_crf_24\.0 \(infer_cam\.crf_from_interop\)"
    elif fault == "class":
        write_crf_dict(path, [9, *sample.classes[1:]], scores)
        expected = r"has maps of the ids \[0, .*9\], the label of its image says"
    elif fault == "size":
        write_crf_dict(path, sample.classes, scores[:, 1:])
        expected = "use maps at the image's size"
    else:
        write_cam_dict(path, [index + 1 for index in sample.classes], scores[1:])
        expected = "has no background"
    with pytest.raises(ValueError, match=expected):
        infer_cam.run(cfg)


def test_bad_images_of_an_earlier_call_count_too(root):
    """One bad image in each of two shards, of 8 images: 2 are too many, 1 is not."""
    cfg = make_config(root, data={"max_bad_fraction": 0.15, "shards": str(root / "shards")})
    for name in ("train-00000.tar", "val-00001.tar"):
        first = next(iter(read_raw(cfg.shards_dir / name))).key
        rewrite_shard(cfg, name, lambda s, first=first: break_jpeg(s) if s.key == first else s)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2 of 8 images cannot be used, more than data\.max_bad_fraction=0\.15"):
            infer_cam.run(cfg)
    cfg = make_config(root, data={"max_bad_fraction": 0.25, "shards": str(root / "shards")})
    infer_cam.run(cfg)
    assert len(read_json(cfg.stage_dir("infer_cam") / "manifest.json")["bad_samples"]) == 2


@pytest.mark.slow
def test_two_ranks_share_the_shards_and_write_the_same_files(root):
    alone = make_config(root)
    infer_cam.run(alone)
    expected = {path.name: path.read_bytes() for path in (alone.stage_dir("infer_cam") / "cams").iterdir()}
    shutil.rmtree(alone.stage_dir("infer_cam"))
    code = (
        "import sys; from pathlib import Path; from seam_dist.config.load import load_config;"
        "from seam_dist.stages import infer_cam;"
        "infer_cam.run(load_config(Path(sys.argv[1]), [], None).config)"
    )
    config = root / "config.yaml"
    config.write_text(dump_yaml(alone))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(config)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors.decode()
    assert {p.name: p.read_bytes() for p in (alone.stage_dir("infer_cam") / "cams").iterdir()} == expected
    assert input_fingerprint(alone.stage_dir("infer_cam"), "infer_cam")
