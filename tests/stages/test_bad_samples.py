"""Samples of a shard that cannot be used: every stage leaves out the same ones, counts them and names them once."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from pipeline_kit import PIPELINE, pipeline_config, record, run_pipeline
from stage_kit import rewrite_shard, stored_cams, stored_labels

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.label_file import read_label_shard, write_labels
from seam_dist.artifacts.layout import LABEL_TYPES, label_folder
from seam_dist.artifacts.stage import StageError
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.data.masks import decode_labels
from seam_dist.data.shards import RawSample, read_raw
from seam_dist.stages import evaluate

pytestmark = pytest.mark.usefixtures("own_world")
CUT, FOREIGN = "im-001", "im-021"  # a damaged image of train; an image of val with a class that the data set lacks
CLASSES = ("cat", "dog", "cow")


def spoil(sample: RawSample) -> RawSample:
    if sample.key == CUT:
        return RawSample(sample.key, {**sample.members, "image.png": sample.members["image.png"][:60]})
    if sample.key == FOREIGN:
        info = {**json.loads(sample.members["json"]), "classes": [1, 9]}
        return RawSample(sample.key, {**sample.members, "json": json.dumps(info).encode()})
    return sample


def spoiled_config(root: Path) -> Config:
    train = [record(number, (30, 40), (number % 3 + 1,)) for number in range(6)]
    val = [record(20 + number, (30, 40), (number + 1,)) for number in range(3)]
    cfg = pipeline_config(root, CLASSES, {"train": train, "val": val}, data={"streams": 2, "max_bad_fraction": 0.2})
    for split in load_manifest(cfg.shards_dir).splits.values():
        for shard in split.shards:
            rewrite_shard(cfg, shard.file, spoil)
    return cfg


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, own_world: None) -> tuple[Config, dict[str, str]]:
    """A finished run, and what each stage printed or logged."""
    cfg = spoiled_config(tmp_path_factory.mktemp("bad"))
    said: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        for stage in PIPELINE:
            lines: list[str] = []
            patch.setattr("builtins.print", lambda *texts, lines=lines, **_: lines.append(" ".join(map(str, texts))))
            handler = logging.Handler()
            handler.emit = lambda entry, lines=lines: lines.append(entry.getMessage())  # type: ignore[method-assign]
            logging.getLogger("seam_dist").addHandler(handler)
            run_pipeline(cfg, [stage])
            logging.getLogger("seam_dist").removeHandler(handler)
            said[stage] = "\n".join(lines)
    return cfg, said


@pytest.mark.parametrize("stage", ["infer_cam", "random_walk", "infer_seg"])
def test_inference_leaves_them_out_and_names_each_once(finished: tuple[Config, dict[str, str]], stage: str) -> None:
    cfg, said = finished
    messages = read_json(cfg.stage_dir(stage) / "manifest.json")["bad_samples"]
    assert [key for message in messages for key in (CUT, FOREIGN) if key in message] == [CUT, FOREIGN]
    assert "expected classes 1 to 3" in messages[1]
    assert f"{stage}: 9 images, 2 bad ones left out, " in said[stage]
    assert [said[stage].count(key) for key in (CUT, FOREIGN)] == [1, 1]
    keys = {
        key
        for split in ("train", "val")
        for key in (
            stored_cams(cfg, split) if stage == "infer_cam" else stored_labels(cfg, stage, "labels", split)  # type: ignore[arg-type]
        )
    }
    assert len(keys) == 7
    assert keys.isdisjoint({CUT, FOREIGN})


@pytest.mark.parametrize("stage", ["train_seam", "train_affinity", "train_seg"])
def test_training_replaces_them_and_names_each_once(finished: tuple[Config, dict[str, str]], stage: str) -> None:
    assert finished[1][stage].count(f"bad sample {CUT} in ") == 1


def test_evaluation_counts_the_others_and_names_each_once(finished: tuple[Config, dict[str, str]]) -> None:
    cfg, said = finished
    for name in ("cam", *LABEL_TYPES):
        for split, key, count in (("train", CUT, 5), ("val", FOREIGN, 2)):
            path = cfg.stage_dir("evaluate") / name / f"{split}.json"
            if name == "seg_oracle":
                assert not path.exists()
                continue
            scores = read_json(path)
            assert (scores["num_images"], scores["unreadable"]) == (count, [key])
    texts = [f"1 of {total} images of {split} could not be read by inference and are not scored: {key}"
             for total, split, key in ((6, "train", CUT), (3, "val", FOREIGN))]  # fmt: skip
    assert [said["evaluate"].count(text) for text in texts] == [1, 1]


def test_a_good_image_without_labels_is_an_error(finished: tuple[Config, dict[str, str]], tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished[0].run.dir.parent, tmp_path / "root"))
    cfg = finished[0]
    cfg = replace(cfg, run=replace(cfg.run, dir=root / "runs"), data=replace(cfg.data, shards=root / "shards"))
    shutil.rmtree(cfg.stage_dir("evaluate"))
    path = label_folder(cfg, LABEL_TYPES["walk"]) / "val-00000.tar"
    first = next(iter(read_raw(cfg.shards_dir / path.name))).key
    kept = {key: decode_labels(data, max_pixels=10**6) for key, data in read_label_shard(path).items() if key != first}
    write_labels(path, kept.items())
    with pytest.raises(StageError, match=rf"val-00000\.tar: image {first} has no labels"):
        evaluate.run(cfg)


def test_more_than_the_allowed_share_ends_each_stage(finished: tuple[Config, dict[str, str]], tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished[0].run.dir.parent, tmp_path / "root"))
    for stage in ("infer_cam", "random_walk", "infer_seg"):
        cfg = replace(finished[0], run=replace(finished[0].run, dir=root / "runs"))
        cfg = replace(cfg, data=replace(cfg.data, max_bad_fraction=0.1))  # 0.9 of 9 images, rounded up
        (cfg.stage_dir(stage) / "manifest.json").rename(root / "manifest.json")
        with pytest.raises(ValueError, match=r"2 of 9 images cannot be used, more than data\.max_bad_fraction=0\.1"):
            run_pipeline(cfg, [stage])
        (root / "manifest.json").rename(cfg.stage_dir(stage) / "manifest.json")
