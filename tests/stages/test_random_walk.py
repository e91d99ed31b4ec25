"""Stage random_walk on a small procedural set with untrained networks, against N x N matrices and loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from kit import run_config
from stage_kit import (
    assert_lattice_is_missed,
    cut_jpeg,
    finish_training,
    finished_copy,
    prepared_run,
    rewrite_shard,
    samples_of,
    stored_cams,
    stored_labels,
)

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.cam_file import StoredCam, read_cams, upsample_cam, write_cams
from seam_dist.artifacts.stage import StageError, open_stage
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.data.masks import decode_labels
from seam_dist.data.shards import Sample, read_shard
from seam_dist.inference.crf_pool import CrfPool, refine_labels
from seam_dist.inference.random_walk import start_scores, walk_samples
from seam_dist.models import affinity_architecture, build_affinity_net
from seam_dist.stages import random_walk, shard

BASE = {
    "source": {"image_size": [108, 92]},
    "model": {"backbone": "resnet38d", "width": 0.05},
    "train_affinity": {"channels": [4, 6, 8]},
    "random_walk": {"crf": False, "batch_size": 2},
}


def config(root: Path, name: str = "run", **sections: dict[str, object]) -> Config:
    return run_config(root, name, BASE, **sections)


def finish_cams(cfg: Config) -> None:
    """Leave what infer_cam leaves, with a random bump for each class."""
    manifest = load_manifest(cfg.shards_dir)
    stage = open_stage(cfg, "infer_cam", settings=("infer_cam",))
    rng = np.random.default_rng(0)
    for split in manifest.splits.values():
        for part in split.shards:
            cams = []
            for sample in read_shard(cfg.shards_dir / part.file, masks=False, max_pixels=10**6):
                height, width = sample.image.shape[:2]
                rows, columns = np.mgrid[: -(-height // 8), : -(-width // 8)]
                places = rng.random((len(sample.classes), 2, 1, 1)) * [[[rows.max() + 1]], [[columns.max() + 1]]]
                far = (rows - places[:, 0]) ** 2 + (columns - places[:, 1]) ** 2
                cam = np.exp(-far / 8).astype(np.float16)
                cams.append(StoredCam(sample.key, sample.classes, (height, width), cam))
            write_cams(stage.dir / "cams" / part.file, cams)
    stage.finish((stage.dir / "cams").iterdir())


def finish_affinity(cfg: Config) -> None:
    """Leave what train_affinity leaves, with random weights."""
    torch.manual_seed(0)
    model, _ = build_affinity_net(cfg)
    with torch.no_grad():
        model.f9.weight.mul_(6)  # features far enough apart for affinities from 0 to 1
    finish_training(cfg, "train_affinity", model, affinity_architecture(cfg, load_manifest(cfg.shards_dir).classes))


prepared, root = prepared_run(config, shard.run, finish_cams, finish_affinity)


def published_labels(
    dense_reading: ModuleType, cfg: Config, sample: Sample, cam: np.ndarray, log_steps: int
) -> np.ndarray:
    net = random_walk.load_network(cfg, load_manifest(cfg.shards_dir))
    backbone = net.backbone.double()
    net.double()

    def network(image: torch.Tensor) -> torch.Tensor:
        return net.forward_grid(image)

    return dense_reading.random_walk(
        network,
        sample.image,
        cam,
        sample.classes,
        3,
        backbone.mean,
        backbone.std,
        stride=8,
        radius=cfg.train_affinity.radius,
        border=cfg.train_affinity.border,
        alpha=cfg.random_walk.alpha,
        beta=cfg.random_walk.beta,
        log_steps=log_steps,
    )


@pytest.mark.parametrize(
    ("border", "walk", "log_steps"),
    [
        ("full", {"num_steps": 64}, 6),
        ("paper", {"num_steps": 64}, 6),
        ("full", {"num_steps": 256, "method": "chebyshev", "alpha": 16.0}, 8),
    ],
)
def test_labels_equal_the_dense_reading(root, dense_reading, border, walk, log_steps):
    cfg = config(
        root,
        train_affinity={"border": border},
        random_walk={"splits": ["val"], **walk},
    )
    random_walk.run(cfg)
    labels, cams = stored_labels(cfg, "random_walk", "labels", "val"), stored_cams(cfg, "val")
    same = total = several = 0
    for sample in samples_of(cfg, "val"):
        height, width = sample.image.shape[:2]
        assert (height % 8, width % 8) != (0, 0)
        cam = upsample_cam(cams[sample.key].cam, (height, width)).numpy()
        expected = published_labels(dense_reading, cfg, sample, cam, log_steps)
        same += int((labels[sample.key] == expected).sum())
        total += expected.size
        several += len(np.unique(expected)) > 1
    assert several == 3
    assert same >= 0.999 * total


EXACT_CRF = {"impl": "torch", "source_stride": 4, "num_workers": 0, "num_iters": 7, "bilateral_sxy": 20.0}


@pytest.fixture(scope="module")
def finished(prepared: Path) -> Config:
    """A run of the split val with CRF labels and files."""
    walk = {"crf": True, "splits": ["val"], "crf_num_iters": 2, "files": True}
    return finished_copy(prepared, config, random_walk.run, crf=EXACT_CRF, random_walk=walk)


def walked_scores(cfg: Config, samples: list[Sample], cams: dict[str, StoredCam]) -> dict[str, np.ndarray]:
    net = random_walk.load_network(cfg, load_manifest(cfg.shards_dir))
    return {walker.sample.key: scores.numpy() for walker, scores in walk_samples(net, iter(samples), cams, cfg)}


def test_every_image_has_labels_with_and_without_crf_and_a_file(finished):
    samples = samples_of(finished, "val")
    labels, refined = (
        stored_labels(finished, "random_walk", "labels", "val"),
        stored_labels(finished, "random_walk", "labels_crf", "val"),
    )
    assert list(labels) == list(refined) == [sample.key for sample in samples]
    for sample in samples:
        assert labels[sample.key].shape == refined[sample.key].shape == sample.image.shape[:2]
        assert set(np.unique(labels[sample.key])) <= {0, *sample.classes}
        data = (finished.stage_dir("random_walk") / "files" / f"{sample.key}.png").read_bytes()
        np.testing.assert_array_equal(decode_labels(data, max_pixels=10**6), labels[sample.key])
    assert any(not np.array_equal(labels[key], refined[key]) for key in labels)


def test_crf_refines_the_walked_scores_with_its_own_iterations(finished):
    sample = samples_of(finished, "val")[0]
    scores = walked_scores(finished, [sample], stored_cams(finished, "val"))[sample.key]
    with CrfPool(finished.crf, 0) as pool:
        expected = pool.submit(refine_labels, sample.image, scores, sample.classes, 2, 20.0).result()
    np.testing.assert_array_equal(stored_labels(finished, "random_walk", "labels_crf", "val")[sample.key], expected)


def test_manifest_lists_outputs_and_metadata(finished):
    record = read_json(finished.stage_dir("random_walk") / "manifest.json")
    names = {f"{folder}/val-0000{i}.tar" for folder in ("labels", "labels_crf") for i in range(2)}
    assert {name for name in record["outputs"] if name.endswith(".tar")} == names
    assert sum(name.startswith("files/") for name in record["outputs"]) == 3
    assert record["num_images"] == 3
    assert record["images_per_s"] > 0
    assert record["host_peak_gib"] > 0
    assert set(record["inputs"]) == {"shards", "infer_cam", "train_affinity"}


def test_a_finished_stage_is_left_alone_and_an_interrupted_one_resumes(finished, capsys):
    folder = finished.stage_dir("random_walk")
    random_walk.run(finished)
    assert "done already" in capsys.readouterr().out
    tars = sorted(folder.rglob("*.tar"))
    contents = {path: path.read_bytes() for path in tars}
    times = {path: path.stat().st_mtime_ns for path in tars}
    (folder / "labels_crf" / "val-00001.tar").unlink()
    (folder / "manifest.json").unlink()
    random_walk.run(finished)
    assert {path: path.read_bytes() for path in tars} == contents
    assert {path.name for path in tars if path.stat().st_mtime_ns != times[path]} == {"val-00001.tar"}
    assert (folder / "manifest.json").is_file()


def test_images_of_any_size_walk_together_as_they_walk_alone(prepared):
    rng = np.random.default_rng(1)
    sizes = [(64, 40), (16, 16), (40, 64), (9, 90), (64, 40), (1, 1)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    classes = [(1, 3), (2,), (), (1,), (2, 3), (3,)]
    samples = [Sample(f"s{i}", im, ids, None, "") for i, (im, ids) in enumerate(zip(images, classes, strict=True))]
    cams = {
        f"s{i}": StoredCam(f"s{i}", ids, size, rng.random((len(ids), -(-size[0] // 8), -(-size[1] // 8))).astype("f2"))
        for i, (size, ids) in enumerate(zip(sizes, classes, strict=True))
    }
    together = walked_scores(config(prepared, random_walk={"batch_size": 4}), samples, cams)
    for sample in samples:
        alone = walked_scores(config(prepared, random_walk={"batch_size": 1}), [sample], cams)[sample.key]
        assert together[sample.key].shape == (len(sample.classes) + 1, *sample.image.shape[:2])
        np.testing.assert_allclose(together[sample.key], alone, atol=1e-5)
    np.testing.assert_array_equal(together["s2"].argmax(0), np.zeros((40, 64)))


def test_an_image_without_classes_walks_beside_others_and_stays_background(prepared):
    cfg = config(prepared)
    samples, cams = samples_of(cfg, "train"), stored_cams(cfg, "train")
    alone = walked_scores(cfg, samples, cams)
    empty = samples[1].key
    samples[1] = replace(samples[1], classes=())
    cams[empty] = replace(cams[empty], classes=(), cam=cams[empty].cam[:0])
    together = replace(cfg, random_walk=replace(cfg.random_walk, batch_size=len(samples)))
    scores = walked_scores(together, samples, cams)
    assert scores[empty].shape == (1, *samples[1].image.shape[:2])
    assert scores[empty].min() > 0
    for key in scores.keys() - {empty}:
        np.testing.assert_allclose(scores[key], alone[key], rtol=1e-4, atol=1e-6)


def test_leaving_absent_classes_out_is_exact():
    rng = np.random.default_rng(0)
    stored = StoredCam("s", (2,), (20, 28), rng.random((1, 3, 4)).astype(np.float16))
    absent = np.zeros((1, 3, 4), np.float16)
    all_classes = StoredCam("s", (1, 2, 3), (20, 28), np.concatenate([absent, stored.cam, absent]))
    few, many = (start_scores(cam, 8, 6.0, torch.device("cpu")) for cam in (stored, all_classes))
    np.testing.assert_array_equal(many[[0, 2]], few)
    assert not many[[1, 3]].any()


def test_scores_are_zero_outside_the_image_background_included():
    stored = StoredCam("s", (1,), (4, 12), np.zeros((1, 1, 2), np.float16))
    scores = start_scores(stored, 8, 6.0, torch.device("cpu"))
    np.testing.assert_allclose(scores[0], [[0.5, 0.25]])


def rewrite_cams(cfg: Config, name: str, change) -> None:
    path = cfg.stage_dir("infer_cam") / "cams" / name
    write_cams(path, [cam for cam in map(change, list(read_cams(path))) if cam is not None])


def test_an_image_that_infer_cam_left_out_is_left_out(root, capsys):
    cfg = config(root, random_walk={"splits": ["val"]})
    key = samples_of(cfg, "val")[0].key
    rewrite_cams(cfg, "val-00000.tar", lambda cam: None if cam.key == key else cam)
    with pytest.raises(StageError, match=f"image {key} has no CAM: run `--only infer_cam` again"):
        random_walk.run(cfg)
    rewrite_shard(cfg, "val-00000.tar", lambda s: cut_jpeg(s) if s.key == key else s)
    random_walk.run(cfg)
    assert len(stored_labels(cfg, "random_walk", "labels", "val")) == 2


def test_cams_that_do_not_fit_the_images_are_refused(root):
    cfg = config(root, random_walk={"splits": ["val"]})
    rewrite_cams(cfg, "val-00000.tar", lambda cam: replace(cam, size=(cam.size[0] - 1, cam.size[1])))
    with pytest.raises(StageError, match=r"has a CAM for .* and not .* pixels: run `--only infer_cam` again"):
        random_walk.run(cfg)


def test_a_split_without_cams_is_named(root):
    cfg = config(root, random_walk={"splits": ["val"]})
    (cfg.stage_dir("infer_cam") / "cams" / "val-00001.tar").unlink()
    with pytest.raises(StageError, match=r"val-00001\.tar is missing, so split 'val' has no CAMs: add it"):
        random_walk.run(cfg)


@pytest.mark.parametrize("stage", ["infer_cam", "train_affinity"])
def test_earlier_stages_must_be_finished(root, stage):
    cfg = config(root)
    (cfg.stage_dir(stage) / "manifest.json").unlink()
    with pytest.raises(StageError, match=f"stage {stage} is not finished there: run `--only {stage}` first"):
        random_walk.run(cfg)


def test_weights_of_another_network_are_refused(root):
    cfg = config(root, train_affinity={"channels": [4, 6, 9]})
    with pytest.raises(StageError, match=r"channels: \[4, 6, 8\] -> \[4, 6, 9\].*run `--only train_affinity` again"):
        random_walk.run(cfg)


def test_missing_lattice_stops_before_the_stage_begins(root, monkeypatch):
    message = r"pip install 'seam-dist\[crf\]'.*random_walk\.crf"
    assert_lattice_is_missed(monkeypatch, random_walk, config(root, random_walk={"crf": True}), message)
