"""Stage infer_cam: labels of the CRF, affinity labels, and the authors' files in place of network and CRF."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from kit import hide_package
from stage_kit import (
    assert_lattice_is_missed,
    cam_config,
    finish_seam,
    prepared_cams,
    rewrite_shard,
    samples_of,
    stored_cams,
    stored_labels,
)

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.authors_files import read_cam_dict, read_crf_dict, write_cam_dict, write_crf_dict
from seam_dist.artifacts.stage import StageError
from seam_dist.commands.status import stage_status
from seam_dist.config.schema import Config
from seam_dist.data.shards import RawSample, Sample
from seam_dist.inference.crf_pool import affinity_labels
from seam_dist.stages import infer_cam, shard

prepared, root, finished = prepared_cams()


CRF = {"impl": "torch", "num_iters": 2, "num_workers": 0, "bilateral_sxy": 20.0}


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run on small images with CRF labels, affinity labels and the authors' files."""
    root = tmp_path_factory.mktemp("refined")
    sizes = {"kind": "synthetic", "num_images": [5, 3], "num_classes": 3, "image_size": [45, 35]}
    cfg = cam_config(root, source=sizes, crf=CRF, infer_cam={"crf": True, "interop": True})
    shard.run(cfg)
    finish_seam(cfg)
    infer_cam.run(cfg)
    return cfg


def reading_of(dense_reading: ModuleType, cfg: Config, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The scores of both CRFs from the full-size map, by the dense reading."""
    crf = dense_reading.dense_crf(2, (3.0, 3.0), (20.0, 13.0, 10.0))
    cam = read_cam_dict(cfg.stage_dir("infer_cam") / "interop" / f"{sample.key}.npy")
    full = np.stack([cam[index - 1] for index in sample.classes])
    return tuple(dense_reading.crf_scores(crf, sample.image, full, alpha) for alpha in (4.0, 24.0))


def test_crf_and_affinity_labels_equal_the_dense_reading(refined, dense_reading):
    labels, affinity = (
        stored_labels(refined, "infer_cam", "crf", "train"),
        stored_labels(refined, "infer_cam", "affinity", "train"),
    )
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
    cfg = cam_config(
        root,
        crf={"num_workers": 0},
        infer_cam={"crf": True, "splits": ["train"], "from_interop": str(finished.stage_dir("infer_cam") / "interop")},
    )
    infer_cam.run(cfg)
    crf = dense_reading.lattice_crf(10, (3, 3), (80, 13, 10))
    labels, affinity = (
        stored_labels(cfg, "infer_cam", "crf", "train"),
        stored_labels(cfg, "infer_cam", "affinity", "train"),
    )
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


def test_affinity_labels_are_written_for_the_split_that_trains_only(refined):
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

    plain = {f"infer_cam.{name}" for name in ("scales", "flip", "cam", "cam_stride", "interop", "crf")}
    assert settings(finished) == plain
    assert settings(refined) - plain >= {"infer_cam.crf_alphas", "crf.num_iters", "crf.impl"}
    assert "crf.num_workers" not in settings(refined)
    assert not (finished.stage_dir("infer_cam") / "crf").exists()


def test_missing_lattice_stops_before_the_stage_begins(root, monkeypatch):
    cfg = cam_config(root, infer_cam={"crf": True})
    assert_lattice_is_missed(monkeypatch, infer_cam, cfg, r"pip install 'seam-dist\[crf\]'")
    infer_cam.run(cam_config(root, infer_cam={"splits": ["val"]}))


def test_authors_files_take_the_place_of_a_network(root, finished):
    folder = finished.stage_dir("infer_cam") / "interop"
    cfg = cam_config(root, name="authors", infer_cam={"from_interop": str(folder)})
    infer_cam.run(cfg)
    expected = stored_cams(finished, "val")
    cams = stored_cams(cfg, "val")
    assert list(cams) == list(expected)
    for key, cam in cams.items():
        np.testing.assert_array_equal(cam.cam, expected[key].cam)
        assert cam.classes == expected[key].classes
        assert cam.plain is None
    assert read_json(cfg.stage_dir("infer_cam") / "manifest.json")["cam"] == "plain"


def test_authors_files_may_be_named_by_source(root, finished, tmp_path):
    shutil.copytree(finished.stage_dir("infer_cam") / "interop", tmp_path / "named")
    cfg = cam_config(root, name="named", infer_cam={"from_interop": str(tmp_path / "named"), "splits": ["val"]})
    for name in ("val-00000.tar", "val-00001.tar"):
        rewrite_shard(cfg, name, lambda s: with_source(s, f"2007_{s.key}"))
    for sample in samples_of(cfg, "val"):
        (tmp_path / "named" / f"{sample.key}.npy").rename(tmp_path / "named" / f"2007_{sample.key}.npy")
    infer_cam.run(cfg)
    assert len(stored_cams(cfg, "val")) == 3


def with_source(sample: RawSample, source: str) -> RawSample:
    info = json.loads(sample.members["json"]) | {"source_id": source}
    return RawSample(sample.key, {**sample.members, "json": json.dumps(info).encode()})


@pytest.mark.parametrize("fault", ["missing", "class", "size", "path"])
def test_authors_files_that_do_not_fit_are_refused(root, finished, tmp_path, fault):
    shutil.copytree(finished.stage_dir("infer_cam") / "interop", tmp_path / "authors")
    cfg = cam_config(root, name="authors", infer_cam={"from_interop": str(tmp_path / "authors"), "splits": ["val"]})
    sample = samples_of(cfg, "val")[1]
    path = tmp_path / "authors" / f"{sample.key}.npy"
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
    cfg = cam_config(root, name="none", infer_cam={"from_interop": str(tmp_path)})
    with pytest.raises(StageError, match=r"\(infer_cam\.from_interop\) holds no \.npy file"):
        infer_cam.run(cfg)


def test_changed_authors_files_rerun_the_stage(root, finished, tmp_path):
    shutil.copytree(finished.stage_dir("infer_cam") / "interop", tmp_path / "authors")
    cfg = cam_config(root, name="authors", infer_cam={"from_interop": str(tmp_path / "authors"), "splits": ["val"]})
    infer_cam.run(cfg)
    sample = samples_of(cfg, "val")[0]
    cam = np.full((len(sample.classes), *sample.image.shape[:2]), 0.5, np.float32)
    write_cam_dict(tmp_path / "authors" / f"{sample.key}.npy", sample.classes, cam)
    infer_cam.run(cfg)
    assert stored_cams(cfg, "val")[sample.key].cam.min() == np.float16(0.5)


def authors_run_with_crf(refined: Config, start: Path) -> Config:
    """A run on the same shards that starts from copies of that run's CAM dicts and CRF dicts."""
    for folder in refined.stage_dir("infer_cam").glob("interop*"):
        shutil.copytree(folder, start.parent / folder.name.replace("interop_crf", start.name))
    infer = replace(refined.infer_cam, from_interop=start.parent / "interop", crf_from_interop=start, interop=False)
    return replace(refined, run=replace(refined.run, dir=start.parent / "runs"), infer_cam=infer)


def test_authors_crf_dicts_take_the_place_of_the_crf(refined, tmp_path, monkeypatch):
    cfg = authors_run_with_crf(refined, tmp_path / "out_crf")
    with monkeypatch.context() as patch:
        patch.setattr("seam_dist.inference.crf_pool.dense_crf", None)
        hide_package(patch, "pydensecrf")
        infer_cam.run(cfg)
    for split, folder in (("train", "crf"), ("val", "crf"), ("train", "affinity")):
        labels, expected = (stored_labels(each, "infer_cam", folder, split) for each in (cfg, refined))
        assert list(labels) == list(expected)
        assert all(np.array_equal(labels[key], expected[key]) for key in labels)
    assert stage_status(cfg, "infer_cam").state == "done"
    # The run that computed its own CRFs would be rerun with the authors' files, and this one without.
    for run, folder, detail in (
        (
            refined,
            cfg.infer_cam.crf_from_interop,
            f"it was made without the authors' files in {tmp_path / 'out_crf_4.0'}",
        ),
        (cfg, None, "the authors' files (not asked for now) changed"),
    ):
        status = stage_status(replace(run, infer_cam=replace(run.infer_cam, crf_from_interop=folder)), "infer_cam")
        assert status.state == "outdated"
        assert detail in status.detail
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
    cfg = authors_run_with_crf(refined, tmp_path / "out_crf")
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
