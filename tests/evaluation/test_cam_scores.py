"""Scores of CAMs made from the masks of a small procedural set, against direct confusion matrices."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from kit import run_config
from stage_kit import finished_copy, miou_of, prepared_run, write_cams_from_masks

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.cam_file import read_cams, upsample_cam, write_cams
from seam_dist.artifacts.stage import StageError
from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.manifest import ShardError, load_manifest
from seam_dist.data.shards import RawSample, read_raw, read_shard, write_shard
from seam_dist.evaluation.cam_scores import evaluate_cams
from seam_dist.inference.pseudo_labels import predict_labels
from seam_dist.stages import shard


def make_config(root: Path, **sections: dict[str, object]) -> Config:
    return run_config(root, base={"evaluate": {"num_thresholds": 10}}, **sections)


def evaluate(cfg: Config) -> None:
    evaluate_cams(cfg, load_manifest(cfg.shards_dir), init_world(cfg))


prepared, root = prepared_run(make_config, shard.run, write_cams_from_masks)


@pytest.fixture(scope="module")
def finished(prepared: Path) -> Config:
    return finished_copy(prepared, make_config, evaluate)


def direct_confusion(cfg: Config, split: str, name: str, threshold: float, key: str | None = None) -> np.ndarray:
    """The confusion matrix from labels predicted image by image at one threshold."""
    manifest = load_manifest(cfg.shards_dir)
    confusion = np.zeros((manifest.num_classes + 1,) * 2, np.int64)
    for part in manifest.split(split).shards:
        cams = {cam.key: cam for cam in read_cams(cfg.stage_dir("infer_cam") / "cams" / part.file)}
        for sample in read_shard(cfg.shards_dir / part.file, masks=True, max_pixels=10**6):
            if key not in (None, sample.key):
                continue
            stored = cams[sample.key]
            full = upsample_cam(stored.cam if name == "refined" else stored.plain, stored.size)
            labels = predict_labels(full, stored.classes, threshold)
            counted = sample.mask != 255
            np.add.at(confusion, (sample.mask[counted], labels[counted]), 1)
    return confusion


def result(cfg: Config, split: str) -> dict:
    return read_json(cfg.stage_dir("evaluate") / "cam" / f"{split}.json")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["refined", "plain"])
def test_every_threshold_matches_direct_evaluation(finished, split, name):
    record = result(finished, split)
    assert record["map"] == "refined"
    assert record["num_images"] == {"train": 5, "val": 3}[split]
    part = record if name == "refined" else record["plain"]
    assert part["thresholds"] == [0.0, 0.1, 0.2, 0.26, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    direct = [miou_of(direct_confusion(finished, split, name, t)) for t in part["thresholds"]]
    np.testing.assert_allclose(part["miou"], direct, rtol=1e-12)
    assert part["best"]["miou"] == max(part["miou"])
    assert part["best"]["threshold"] == part["thresholds"][int(np.argmax(direct))]


def test_class_scores_match_direct_evaluation(finished):
    best = result(finished, "val")["best"]
    confusion = direct_confusion(finished, "val", "refined", best["threshold"])
    hits = np.diag(confusion)
    with np.errstate(invalid="ignore"):
        expected = {
            "iou": hits / (confusion.sum(0) + confusion.sum(1) - hits),
            "precision": hits / confusion.sum(0),
            "recall": hits / confusion.sum(1),
        }
    for name, values in expected.items():
        got = [math.nan if value is None else value for value in best[name]]
        np.testing.assert_allclose(got, values, rtol=1e-12)


def test_the_chosen_threshold_comes_from_the_other_split(finished):
    train, val = result(finished, "train"), result(finished, "val")
    assert train["best"]["threshold"] != val["best"]["threshold"], "the fixture must distinguish the two"
    for name in ("refined", "plain"):
        source, target = (record if name == "refined" else record["plain"] for record in (train, val))
        assert source["chosen"] is None
        threshold = source["best"]["threshold"]
        index = target["thresholds"].index(threshold)
        assert target["chosen"]["threshold"] == threshold
        assert target["chosen"]["from"] == "train"
        assert target["chosen"]["miou"] == target["miou"][index] < target["best"]["miou"]


def test_the_default_threshold_is_evaluated_exactly(finished):
    default = result(finished, "val")["default"]
    assert default["threshold"] == 0.26
    assert default["miou"] == pytest.approx(miou_of(direct_confusion(finished, "val", "refined", 0.26)), rel=1e-12)


def test_masks_of_the_evaluated_split_do_not_move_its_chosen_threshold(root, finished):
    cfg = make_config(root)
    for part in load_manifest(cfg.shards_dir).split("val").shards:
        change_shard(cfg, part.file, lambda sample: with_mask(sample, lambda mask: np.where(mask == 1, 0, mask)))
    evaluate(cfg)
    before, after = result(finished, "val"), result(cfg, "val")
    assert after["best"] != before["best"]
    assert after["chosen"]["threshold"] == before["chosen"]["threshold"]


def test_csv_rows_repeat_the_curve(finished):
    classes = list(load_manifest(finished.shards_dir).classes)
    with open(finished.stage_dir("evaluate") / "cam" / "val.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    record = result(finished, "val")
    assert list(rows[0]) == ["map", "threshold", "miou", "background", *classes]
    curve = [(row["map"], float(row["threshold"]), float(row["miou"])) for row in rows]
    expected = [("refined", t, m) for t, m in zip(record["thresholds"], record["miou"], strict=True)]
    expected += [("plain", t, m) for t, m in zip(record["plain"]["thresholds"], record["plain"]["miou"], strict=True)]
    assert [row[:2] for row in curve] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2] for row in curve], [row[2] for row in expected], atol=1e-6)


def test_image_rows_hold_their_own_miou_at_the_best_threshold(finished):
    with open(finished.stage_dir("evaluate") / "cam" / "val-images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    record = result(finished, "val")
    assert len(rows) == 3
    for row in rows:
        for column, name, part in (("miou", "refined", record), ("miou_plain", "plain", record["plain"])):
            confusion = direct_confusion(finished, "val", name, part["best"]["threshold"], row["key"])
            assert float(row[column]) == pytest.approx(miou_of(confusion), abs=1e-6)


def test_a_run_without_pcm_has_plain_scores_first_hand(root):
    cfg = make_config(root)
    shutil.rmtree(cfg.stage_dir("infer_cam"))
    write_cams_from_masks(cfg, "plain")
    evaluate(cfg)
    record = result(cfg, "val")
    assert record["map"] == "plain"
    assert "plain" not in record
    with open(cfg.stage_dir("evaluate") / "cam" / "val-images.csv", newline="") as file:
        assert next(csv.reader(file)) == ["key", "miou"]


def test_the_choosing_split_is_evaluated_even_when_not_listed(root):
    cfg = make_config(root, evaluate={"splits": ["val"], "num_thresholds": 10})
    evaluate(cfg)
    assert result(cfg, "val")["chosen"]["from"] == "train"
    assert (cfg.stage_dir("evaluate") / "cam" / "train.json").is_file()


def test_without_masks_to_choose_by_there_is_no_chosen_threshold(root, capsys):
    change_manifest(make_config(root), lambda splits: splits["train"].update(has_masks=False))
    cfg = make_config(root, evaluate={"splits": ["val"], "num_thresholds": 10})
    evaluate(cfg)
    assert result(cfg, "val")["chosen"] is None
    assert "no threshold is chosen, since split 'train' has no masks" in capsys.readouterr().out


def change_manifest(cfg: Config, change) -> None:
    record = read_json(cfg.shards_dir / "manifest.json")
    change(record["splits"])
    write_json(cfg.shards_dir / "manifest.json", record)


def change_shard(cfg: Config, name: str, change) -> None:
    """Pass the samples of one shard through `change` and correct its size in the manifest."""
    path = cfg.shards_dir / name
    samples = [change(sample) for sample in read_raw(path)]
    with open(path, "wb") as file:
        write_shard(file, samples)

    def correct(splits):
        for split in splits.values():
            for part in split["shards"]:
                if part["file"] == name:
                    part["num_bytes"] = path.stat().st_size

    change_manifest(cfg, correct)


def with_mask(sample: RawSample, change) -> RawSample:
    mask = cv2.imdecode(np.frombuffer(sample.members["png"], np.uint8), cv2.IMREAD_UNCHANGED)
    return RawSample(sample.key, {**sample.members, "png": cv2.imencode(".png", change(mask))[1].tobytes()})


def drop_cam(cfg: Config, name: str) -> str:
    path = cfg.stage_dir("infer_cam") / "cams" / name
    cams = list(read_cams(path))
    write_cams(path, cams[1:])
    return cams[0].key


def test_an_undecodable_image_without_a_cam_is_left_out(root):
    cfg = make_config(root)
    key = drop_cam(cfg, "val-00000.tar")

    def spoil(sample):
        cut = {**sample.members, "jpg": sample.members["jpg"][:40]}
        return RawSample(sample.key, cut) if sample.key == key else sample

    change_shard(cfg, "val-00000.tar", spoil)
    evaluate(cfg)
    assert result(cfg, "val")["num_images"] == 2


def test_a_good_image_without_a_cam_is_an_error(root):
    cfg = make_config(root)
    key = drop_cam(cfg, "val-00000.tar")
    with pytest.raises(StageError, match=f"val-00000.tar: image {key} has no CAM: run `--only infer_cam` again"):
        evaluate(cfg)


def test_a_mask_of_another_size_is_an_error(root):
    cfg = make_config(root)
    change_shard(cfg, "val-00000.tar", lambda sample: with_mask(sample, lambda mask: mask[1:]))
    with pytest.raises(StageError, match=r"val-00000.tar: the mask of .* pixels, its CAM is for"):
        evaluate(cfg)


def test_a_damaged_mask_is_an_error(root):
    cfg = make_config(root)
    change_shard(cfg, "val-00000.tar", lambda s: RawSample(s.key, {**s.members, "png": s.members["png"][:30]}))
    with pytest.raises(StageError, match=r"val-00000.tar: the mask of .* cannot be read"):
        evaluate(cfg)


def test_a_cut_tar_of_cams_is_an_error(root):
    cfg = make_config(root)
    path = cfg.stage_dir("infer_cam") / "cams" / "val-00000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"val-00000.tar is not a whole tar of CAMs .*: remove it and run"):
        evaluate(cfg)


def test_masks_without_any_class_are_an_error(root):
    cfg = make_config(root)
    for part in load_manifest(cfg.shards_dir).split("val").shards:
        change_shard(cfg, part.file, lambda sample: with_mask(sample, lambda mask: np.full_like(mask, 255)))
    with pytest.raises(StageError, match="split 'val' has no pixel with a class"):
        evaluate(cfg)


def test_a_split_without_cams_is_refused(root):
    cfg = make_config(root)
    (cfg.stage_dir("infer_cam") / "cams" / "val-00001.tar").unlink()
    with pytest.raises(StageError, match=r"split 'val' has no CAMs in .*: run `--only infer_cam` again"):
        evaluate(cfg)


def test_a_split_that_infer_cam_leaves_out_has_no_scores_until_it_has_cams(root, capsys):
    cfg = make_config(root, infer_cam={"splits": ["train"]})
    folder = cfg.stage_dir("infer_cam") / "cams"
    away = [path.rename(path.with_suffix(".away")) for path in folder.glob("val-*.tar")]
    evaluate(cfg)
    assert (
        "evaluate: split 'val' is not one of infer_cam.splits, so it has no scores of CAMs" in capsys.readouterr().out
    )
    assert not (cfg.stage_dir("evaluate") / "cam" / "val.json").exists()
    for path in away:
        path.rename(path.with_suffix(".tar"))
    evaluate(make_config(root, infer_cam={"splits": ["train", "val"]}))
    assert result(cfg, "val")["num_images"] == 3


def test_a_threshold_split_that_is_not_in_the_shards_leaves_the_default(root, capsys):
    cfg = make_config(root, evaluate={"splits": ["val"], "threshold_split": "minival", "num_thresholds": 10})
    evaluate(cfg)
    assert "evaluate.threshold_split=minival is not in the shards, which have train, val" in capsys.readouterr().out
    assert result(cfg, "val")["chosen"] is None
    assert result(cfg, "val")["default"]["threshold"] == 0.26


def test_a_class_that_no_mask_holds_counts_as_zero_where_it_is_predicted(root, finished):
    cfg = make_config(root)
    for part in load_manifest(cfg.shards_dir).split("val").shards:
        change_shard(cfg, part.file, lambda sample: with_mask(sample, lambda mask: np.where(mask == 1, 0, mask)))
    evaluate(cfg)
    best = result(cfg, "val")["best"]
    assert best["iou"][1] == 0
    assert best["recall"][1] is None
    confusion = direct_confusion(cfg, "val", "refined", best["threshold"])
    assert confusion[:, 1].sum() > 0, "the class is predicted"
    hits, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    assert best["miou"] == pytest.approx(np.mean(hits / union), rel=1e-12)


def test_an_unknown_split_is_refused(root):
    with pytest.raises(ShardError, match="split 'test' is not in the shards, which have train, val"):
        evaluate(make_config(root, evaluate={"splits": ["test"]}))
