"""The whole pipeline on a data set of which a third of the images, in train and in val, shows no object."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pipeline_kit import PIPELINE, pipeline_config, record, run_pipeline
from stage_kit import run_on_two_ranks, samples_of, stored_cams, stored_labels

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.authors_files import read_cam_dict, read_crf_dict, write_cam_dict
from seam_dist.artifacts.label_file import write_labels
from seam_dist.artifacts.stage import open_stage
from seam_dist.config.load import dump_yaml
from seam_dist.config.schema import Config
from seam_dist.data.loader import make_classification_loader
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import read_raw
from seam_dist.stages import evaluate, infer_cam

pytestmark = pytest.mark.usefixtures("own_world")
CLASSES = ("cat", "dog", "cow")
SIZE = (44, 56)
LABELS = {"train": [(1,), (), (2,), (1, 3), (), (2,), (3,), (), (1,)], "val": [(1,), (), (2, 3), (), (3,), (1,)]}


def make_config(root: Path, **sections: dict[str, object]) -> Config:
    splits = {
        split: [record(30 * number + place, SIZE, ids) for place, ids in enumerate(labels)]
        for number, (split, labels) in enumerate(LABELS.items())
    }
    more = {"infer_cam": {"interop": True}, "infer_seg": {"oracle": True}, "random_walk": {"files": True}}
    return pipeline_config(root, CLASSES, splits, **more, **sections)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory, own_world: None) -> Config:
    cfg = make_config(tmp_path_factory.mktemp("empty"))
    run_pipeline(cfg)
    return cfg


def empty_keys(cfg: Config, split: str) -> list[str]:
    keys = [sample.key for sample in samples_of(cfg, split) if not sample.classes]
    assert len(keys) == {"train": 3, "val": 2}[split]
    return keys


def masks_of(cfg: Config, split: str) -> dict[str, NDArray[np.uint8]]:
    return {sample.key: sample.mask for sample in samples_of(cfg, split, masks=True) if sample.mask is not None}


def test_their_label_in_training_is_zero_for_every_class(cfg: Config) -> None:
    loader = make_classification_loader(cfg, load_manifest(cfg.shards_dir), 0, 1, 0, 9)
    batch = next(loader)
    rows = dict(zip(batch["key"], batch["label"].tolist(), strict=True))
    assert [rows[key] for key in empty_keys(cfg, "train")] == [[0, 0, 0]] * 3
    assert sum(sum(row) > 0 for row in rows.values()) == 6


@pytest.mark.parametrize("split", ["train", "val"])
def test_they_have_no_maps_and_all_that_is_made_with_their_label_is_background(cfg: Config, split: str) -> None:
    cams, folder = stored_cams(cfg, split), cfg.stage_dir("infer_cam")
    for key in empty_keys(cfg, split):
        assert cams[key].classes == ()
        assert cams[key].cam.shape == cams[key].plain.shape == (0, 6, 7)
        assert read_cam_dict(folder / "interop" / f"{key}.npy") == {}
        crf = read_crf_dict(folder / "interop_crf_4.0" / f"{key}.npy")
        assert list(crf) == [0]
        assert (crf[0] == 1).all()
        for stage, name in (
            ("infer_cam", "crf"),
            ("random_walk", "labels"),
            ("random_walk", "labels_crf"),
            ("infer_seg", "labels_oracle"),
        ):
            labels = stored_labels(cfg, stage, name, split)[key]
            assert labels.shape == SIZE
            assert not labels.any(), name
        if split == "train":
            affinity = stored_labels(cfg, "infer_cam", "affinity", "train")[key]
            assert affinity.shape == (6, 7)
            assert not affinity.any()
        assert (cfg.stage_dir("random_walk") / "files" / f"{key}.png").is_file()


@pytest.mark.parametrize("left_out", [False, True], ids=["empty dicts", "no files"])
def test_authors_files_may_be_empty_or_leave_them_out(cfg: Config, tmp_path: Path, left_out: bool) -> None:
    start = tmp_path / "interop_crf"
    for name in ("interop", "interop_crf_4.0", "interop_crf_24.0"):
        shutil.copytree(cfg.stage_dir("infer_cam") / name, tmp_path / name)
    for key in empty_keys(cfg, "train") if left_out else ():
        for path in tmp_path.glob(f"*/{key}.npy"):
            path.unlink()
    authors = replace(
        cfg,
        run=replace(cfg.run, dir=tmp_path / "runs"),
        infer_cam=replace(
            cfg.infer_cam, from_interop=tmp_path / "interop", crf_from_interop=start, interop=False, splits=("train",)
        ),
    )
    infer_cam.run(authors)
    for key, stored in stored_cams(authors, "train").items():
        assert np.array_equal(stored.cam, stored_cams(cfg, "train")[key].cam)
    for name in ("crf", "affinity"):
        expected = stored_labels(cfg, "infer_cam", name, "train")
        labels = stored_labels(authors, "infer_cam", name, "train")
        assert all(np.array_equal(labels[key], value) for key, value in expected.items())


def test_a_map_in_the_dict_of_an_image_without_objects_is_refused(cfg: Config, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(cfg.stage_dir("infer_cam") / "interop", tmp_path / "interop"))
    key = empty_keys(cfg, "train")[0]
    write_cam_dict(folder / f"{key}.npy", (1,), np.zeros((1, *SIZE), np.float32))
    infer = replace(cfg.infer_cam, from_interop=folder, crf=False, interop=False)
    with pytest.raises(ValueError, match=rf"{key}\.npy has maps of the ids \[0\], the label of its image says \[\]"):
        infer_cam.run(replace(cfg, run=replace(cfg.run, dir=tmp_path / "runs"), infer_cam=infer))


def test_what_is_predicted_on_them_counts_as_wrong(tmp_path: Path) -> None:
    """Three predictions equal the mask; on one image without objects 100 pixels are class 2, on the other none."""
    ids = [(1,), (), (2,), (), (1, 2)]
    cfg = pipeline_config(tmp_path, CLASSES, {"val": [record(place, SIZE, one) for place, one in enumerate(ids)]})
    wrong = np.zeros(SIZE, np.uint8)
    wrong[:10, :10] = 2
    labels = masks_of(cfg, "val") | {"im-001": wrong}
    stage = open_stage(cfg, "infer_seg", settings=("run.seed",))
    for part in load_manifest(cfg.shards_dir).split("val").shards:
        keys = [raw.key for raw in read_raw(cfg.shards_dir / part.file)]
        write_labels(stage.dir / "labels" / part.file, [(key, labels[key]) for key in keys])
    stage.finish((stage.dir / "labels").iterdir())
    evaluate.run(cfg)
    scores = read_json(cfg.stage_dir("evaluate") / "seg" / "val.json")
    pixels, stripe = SIZE[0] * SIZE[1], SIZE[0] // 2 * 3  # of an object in a mask
    background = 5 * pixels - 4 * stripe
    expected = [(background - 100) / background, 1.0, 2 * stripe / (2 * stripe + 100)]
    assert scores["iou"] == [*(pytest.approx(value, rel=1e-12) for value in expected), None]
    assert scores["miou"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert scores["num_images"] == 5
    with open(cfg.stage_dir("evaluate") / "seg" / "val-images.csv", newline="") as file:
        own = {row["key"]: float(row["miou"]) for row in csv.DictReader(file)}
    # The background's share and 0 for the class that is not there; without any prediction the background alone.
    assert own["im-001"] == pytest.approx((pixels - 100) / pixels / 2, abs=1e-6)
    assert own["im-003"] == 1


def test_their_cams_are_right_at_every_threshold(cfg: Config) -> None:
    with open(cfg.stage_dir("evaluate") / "cam" / "val-images.csv", newline="") as file:
        own = {row["key"]: (float(row["miou"]), float(row["miou_plain"])) for row in csv.DictReader(file)}
    assert [own[key] for key in empty_keys(cfg, "val")] == [(1.0, 1.0)] * 2
    record = read_json(cfg.stage_dir("evaluate") / "cam" / "val.json")
    assert record["num_images"] == 6
    masks, predicted = masks_of(cfg, "val"), record["best"]
    truth = np.array([sum(int((mask == index).sum()) for mask in masks.values()) for index in range(4)])
    hits = np.array(predicted["recall"]) * truth
    assert hits[0] >= sum(masks[key].size for key in empty_keys(cfg, "val"))


def test_the_report_shows_them_and_never_as_the_best(cfg: Config) -> None:
    html = (cfg.stage_dir("report") / "report.html").read_text()
    best = html[html.index("<h3>Best</h3>") : html.index("<h3>Around the median</h3>")]
    assert "no class" not in best
    assert all(f"<b>{key}</b>" not in best for key in empty_keys(cfg, "val"))
    assert any(f"<b>{key}</b>: no class" in html for key in empty_keys(cfg, "val"))
    assert "nan" not in html.lower().replace("resonan", "")


def test_losses_are_finite_in_every_training(cfg: Config) -> None:
    for stage in ("train_seam", "train_affinity", "train_seg"):
        for line in (cfg.stage_dir(stage) / "metrics.jsonl").read_text().splitlines():
            assert all(np.isfinite(value) for value in json.loads(line).values())


def test_a_training_split_of_such_images_alone_gives_background(tmp_path: Path) -> None:
    cfg = pipeline_config(tmp_path, CLASSES, {"train": [record(number, SIZE, ()) for number in range(4)]})
    run_pipeline(cfg)
    assert all(not labels.any() for labels in stored_labels(cfg, "random_walk", "labels_crf", "train").values())
    scores = read_json(cfg.stage_dir("evaluate") / "walk" / "train.json")
    assert (scores["miou"], scores["iou"]) == (1.0, [1.0, None, None, None])


@pytest.mark.slow
def test_two_ranks_write_what_one_does(cfg: Config, tmp_path: Path) -> None:
    two = make_config(tmp_path)
    (tmp_path / "config.yaml").write_text(dump_yaml(two))
    run_on_two_ranks(",".join(PIPELINE), tmp_path / "config.yaml")
    for split in ("train", "val"):
        for key in empty_keys(two, split):
            assert stored_cams(two, split)[key].cam.shape == (0, 6, 7)
            assert not stored_labels(two, "random_walk", "labels_crf", split)[key].any()
        assert read_json(two.stage_dir("evaluate") / "seg" / f"{split}.json")["num_images"] == len(LABELS[split])
    # The first step has the weights of the seed: its losses are those of the same batch.
    first = [
        json.loads((run.stage_dir("train_seam") / "metrics.jsonl").read_text().splitlines()[0]) for run in (cfg, two)
    ]
    for name in ("loss/total", "loss/cls", "loss/ecr", "loss/er", "loss/min_pool"):
        assert first[1][name] == pytest.approx(first[0][name], rel=1e-4), name
