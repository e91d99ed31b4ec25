"""Stage infer_cam on a small procedural set with an untrained network, against the published order of operations."""

from __future__ import annotations

import json
import shutil
from types import ModuleType

import numpy as np
import pytest
import torch
from kit import authors_state_dict
from stage_kit import (
    cam_config,
    cut_jpeg,
    finish_seam,
    prepared_cams,
    rewrite_shard,
    run_on_two_ranks,
    samples_of,
    stored_cams,
)

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.cam_file import store_cam
from seam_dist.artifacts.stage import StageError, input_fingerprint
from seam_dist.config.load import dump_yaml
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import Sample, read_raw
from seam_dist.models import find_trained, load_seam
from seam_dist.stages import infer_cam

prepared, root, finished = prepared_cams()


def published_map(dense_reading: ModuleType, cfg: Config, sample: Sample, which: str) -> np.ndarray:
    """One image, one scale and one direction at a time, every map at full size before it is added, in float64."""
    model = load_seam(find_trained(cfg.run_dir, "train_seam")).double()

    def network(image: torch.Tensor) -> torch.Tensor:
        out = model(image)
        return out.cam_refined if which == "refined" else out.cam

    mean, std = model.backbone.mean, model.backbone.std
    return dense_reading.cam_map(network, sample.image, sample.classes, cfg.infer_cam.scales, mean, std)


def test_every_input_shard_has_its_cams_and_both_maps(finished):
    manifest = load_manifest(finished.shards_dir)
    for split in ("train", "val"):
        samples = samples_of(finished, split)
        stored = stored_cams(finished, split)
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
    stored = stored_cams(finished, "val")[sample.key]
    for which, cam in (("refined", stored.cam), ("plain", stored.plain)):
        expected = store_cam(torch.from_numpy(published_map(dense_reading, finished, sample, which)), 8)
        np.testing.assert_allclose(cam.astype(np.float32), expected.astype(np.float32), atol=2e-3)


def test_a_finished_stage_is_left_alone(finished, capsys):
    folder = finished.stage_dir("infer_cam") / "cams"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    infer_cam.run(finished)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert "done already" in capsys.readouterr().out


def test_an_interrupted_stage_writes_the_missing_shards_only(root):
    cfg = cam_config(root)
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


def test_a_stage_interrupted_before_its_manifest_is_finished(root):
    cfg = cam_config(root)
    infer_cam.run(cfg)
    manifest = cfg.stage_dir("infer_cam") / "manifest.json"
    outputs = read_json(manifest)["outputs"]
    manifest.unlink()
    infer_cam.run(cfg)
    assert read_json(manifest)["outputs"] == outputs


def test_another_split_is_added_to_those_there_are(root):
    infer_cam.run(cam_config(root, infer_cam={"splits": ["train"]}))
    cfg = cam_config(root, infer_cam={"splits": ["train", "val"]})
    first = cfg.stage_dir("infer_cam") / "cams" / "train-00000.tar"
    before = first.stat().st_mtime_ns
    infer_cam.run(cfg)
    assert first.stat().st_mtime_ns == before
    assert len(stored_cams(cfg, "val")) == 3


def test_all_cams_are_rerun_with_other_weights(root):
    cfg = cam_config(root)
    infer_cam.run(cfg)
    before = stored_cams(cfg, "val")
    shutil.rmtree(cfg.stage_dir("train_seam"))
    finish_seam(cfg, seed=1)
    infer_cam.run(cfg)
    assert all(not np.array_equal(cam.cam, before[key].cam) for key, cam in stored_cams(cfg, "val").items())


@pytest.mark.parametrize(
    "sections",
    [{"infer_cam": {"cam": "plain"}}, {"loss": {"ablation": "cam"}}],
    ids=["asked for", "no PCM"],
)
def test_plain_map_alone_is_the_only_one_stored(root, finished, sections):
    cfg = cam_config(root, **sections)
    if "loss" in sections:
        shutil.rmtree(cfg.stage_dir("train_seam"))
        finish_seam(cfg)
    infer_cam.run(cfg)
    assert read_json(cfg.stage_dir("infer_cam") / "manifest.json")["cam"] == "plain"
    for key, cam in stored_cams(cfg, "val").items():
        assert cam.plain is None
        if "infer_cam" in sections:
            assert np.array_equal(cam.cam, stored_cams(finished, "val")[key].plain)


def test_weights_of_another_run_bring_their_network(root, finished):
    other = cam_config(
        root,
        name="other",
        model={"backbone": "lite0", "width": 1.0},
        infer_cam={"checkpoint": str(finished.run_dir)},
    )
    infer_cam.run(other)
    expected = stored_cams(finished, "val")
    assert all(np.array_equal(cam.cam, expected[key].cam) for key, cam in stored_cams(other, "val").items())


def test_authors_weight_file_gives_the_same_cams(root, finished, tmp_path):
    model = load_seam(find_trained(finished.run_dir, "train_seam"))
    torch.save(authors_state_dict(model), tmp_path / "authors.pth")
    cfg = cam_config(root, name="authors", infer_cam={"checkpoint": str(tmp_path / "authors.pth")})
    infer_cam.run(cfg)
    expected = stored_cams(finished, "val")
    assert all(np.array_equal(cam.cam, expected[key].cam) for key, cam in stored_cams(cfg, "val").items())


def test_a_bad_image_is_left_out_and_reported(root, capsys):
    cfg = cam_config(root, data={"max_bad_fraction": 0.5})
    broken = samples_of(cfg, "val")[-1].key
    rewrite_shard(cfg, "val-00001.tar", lambda s: cut_jpeg(s) if s.key == broken else s)
    infer_cam.run(cfg)
    assert broken not in stored_cams(cfg, "val")
    assert len(stored_cams(cfg, "val")) == 2
    (message,) = read_json(cfg.stage_dir("infer_cam") / "manifest.json")["bad_samples"]
    assert broken in message
    out = capsys.readouterr().out
    assert "1 bad ones left out" in out
    assert out.count(broken) == 1


def test_too_many_bad_images_stop_the_stage(root):
    cfg = cam_config(root, data={"max_bad_fraction": 0.0})
    rewrite_shard(cfg, "val-00001.tar", cut_jpeg)
    with pytest.raises(ValueError, match=r"1 of 8 images cannot be used, more than data\.max_bad_fraction=0;"):
        infer_cam.run(cfg)
    assert not (cfg.stage_dir("infer_cam") / "manifest.json").exists()


def test_training_must_be_finished(root):
    cfg = cam_config(root, name="untrained")
    with pytest.raises(StageError, match=r"stage train_seam is not finished there: run `--only train_seam` first"):
        infer_cam.run(cfg)


def test_a_checkpoint_without_weights_is_refused(root, tmp_path):
    cfg = cam_config(root, infer_cam={"checkpoint": str(tmp_path)})
    with pytest.raises(StageError, match=r"model\.safetensors is missing: run .* or give the folder of a finished run"):
        infer_cam.run(cfg)


def test_weights_of_other_classes_are_refused(root):
    cfg = cam_config(root)
    path = cfg.stage_dir("train_seam") / "final" / "model.json"
    record = read_json(path)
    record["architecture"]["classes"][0] = "unicorn"
    path.write_text(json.dumps(record))
    with pytest.raises(
        StageError, match=r"was trained for 3 classes \(unicorn, .*use the data set that it was trained"
    ):
        infer_cam.run(cfg)


def test_a_split_without_labels_is_refused(root):
    cfg = cam_config(root)
    record = read_json(cfg.shards_dir / "manifest.json")
    record["splits"]["val"]["has_labels"] = False
    write_json(cfg.shards_dir / "manifest.json", record)
    expected = r"split 'val' has no image-level labels, which infer_cam needs: .*\(infer_cam\.splits=\[train\]\)"
    with pytest.raises(StageError, match=expected):
        infer_cam.run(cfg)


def test_bad_images_of_an_earlier_call_count_too(root):
    """One bad image in each of two shards, of 8 images: 2 are too many, 1 is not."""
    cfg = cam_config(root, data={"max_bad_fraction": 0.1})
    for name in ("train-00000.tar", "val-00001.tar"):
        first = next(iter(read_raw(cfg.shards_dir / name))).key
        rewrite_shard(cfg, name, lambda s, first=first: cut_jpeg(s) if s.key == first else s)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2 of 8 images cannot be used, more than data\.max_bad_fraction=0\.1;"):
            infer_cam.run(cfg)
    cfg = cam_config(root, data={"max_bad_fraction": 0.25})
    infer_cam.run(cfg)
    assert len(read_json(cfg.stage_dir("infer_cam") / "manifest.json")["bad_samples"]) == 2


@pytest.mark.slow
def test_two_ranks_share_the_shards_and_write_the_same_files(root):
    alone = cam_config(root)
    infer_cam.run(alone)
    expected = {path.name: path.read_bytes() for path in (alone.stage_dir("infer_cam") / "cams").iterdir()}
    shutil.rmtree(alone.stage_dir("infer_cam"))
    path = root / "config.yaml"
    path.write_text(dump_yaml(alone))
    run_on_two_ranks("infer_cam", path)
    assert {p.name: p.read_bytes() for p in (alone.stage_dir("infer_cam") / "cams").iterdir()} == expected
    assert input_fingerprint(alone.stage_dir("infer_cam"), "infer_cam")
