"""The whole pipeline on images of odd sizes, classes with odd names, a split of one image and one without labels."""

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from pipeline_kit import pipeline_config, record, run_pipeline, without_masks
from stage_kit import run_on_two_ranks, samples_of

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.cam_file import read_cams
from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.artifacts.layout import LABEL_TYPES, label_folder
from seam_dist.artifacts.stage import StageError
from seam_dist.commands.status import run_status
from seam_dist.config.load import dump_yaml
from seam_dist.config.schema import Config
from seam_dist.data.manifest import ShardError, load_manifest
from seam_dist.data.masks import decode_labels
from seam_dist.stages import evaluate, infer_cam, random_walk, report, train_seam

pytestmark = pytest.mark.usefixtures("own_world")
CLASSES = ("a cat", "dog/wolf", "<b onload=x>\"x\" & 'y'", "\N{CJK UNIFIED IDEOGRAPH-732B} été", "L" * 300)
TRAIN = {
    # (height, width): classes
    (1, 1): (1,),
    (1, 40): (2,),
    (50, 1): (),
    (30, 40): (1, 2),
    (90, 20): (3,),
    (7, 5): (4,),
    (40, 60): (),
    (64, 64): (1, 5),
    (33, 47): (1,),
}


def odd_config(root: Path, **sections: dict[str, object]) -> Config:
    """Nine training images, one of them gray; one image in val; two without labels and masks in test."""
    splits = {
        "train": [record(n, size, ids, gray=size == (7, 5)) for n, (size, ids) in enumerate(TRAIN.items())],
        "val": [record(20, (20, 90), (1,))],
        "test": without_masks([record(30, (30, 40), None), record(31, (1, 1), None)]),
    }
    more: dict[str, dict[str, object]] = {
        "infer_cam": {"splits": ["train", "val"]},
        "infer_seg": {"oracle": True},
    }
    return pipeline_config(root, CLASSES, splits, **more | sections)


class Finished(NamedTuple):
    cfg: Config
    printed: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, own_world: None) -> Finished:
    cfg, out = odd_config(tmp_path_factory.mktemp("odd")), io.StringIO()
    with redirect_stdout(out):
        run_pipeline(cfg)
    return Finished(cfg, out.getvalue())


def test_every_image_gets_labels_of_its_size(finished: Finished) -> None:
    cfg = finished.cfg
    made = {"train": set(LABEL_TYPES), "val": set(LABEL_TYPES), "test": {"seg", "seg_crf"}}
    for split, of_split in load_manifest(cfg.shards_dir).splits.items():
        sizes = {sample.key: sample.image.shape[:2] for sample in samples_of(cfg, split)}
        found = set()
        for name, label_type in LABEL_TYPES.items():
            tars = [label_folder(cfg, label_type) / shard.file for shard in of_split.shards]
            if not any(tar.exists() for tar in tars):
                continue
            found.add(name)
            stored = {key: data for tar in tars for key, data in read_label_shard(tar).items()}
            shapes = {key: decode_labels(data, max_pixels=10**6, num_classes=5).shape for key, data in stored.items()}
            assert shapes == sizes, (split, name)
        assert found == made[split]


def test_splits_are_scored_as_far_as_they_have_masks(finished: Finished) -> None:
    folder = finished.cfg.stage_dir("evaluate")
    assert sorted(path.stem for path in (folder / "seg").glob("*.json") if "t" in path.stem[:2]) == ["stage", "train"]
    assert [read_json(folder / "cam" / f"{split}.json")["num_images"] for split in ("train", "val")] == [9, 1]
    assert not list(folder.glob("*/test.json"))
    assert "evaluate: split 'test' has no masks, so it has no scores\n" in finished.printed
    assert "infer_seg: split 'test' has no image-level labels, so it gets no labels_oracle\n" in finished.printed
    assert "evaluate: no mask of val holds dog/wolf, <b onload" in finished.printed
    assert "L" * 41 not in finished.printed


def test_every_stage_is_done(finished: Finished) -> None:
    assert {status.stage: status.state for status in run_status(finished.cfg)}.items() >= {
        (stage, "done")
        for stage in ("train_seam", "infer_cam", "train_affinity", "random_walk", "train_seg", "infer_seg", "evaluate")
    }


class Page(HTMLParser):
    """The tags and the alternative texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["alt"] or "")


def report_page(cfg: Config) -> str:
    report.run(cfg)
    return (cfg.stage_dir("report") / "report.html").read_text(encoding="utf-8")


def test_the_report_escapes_names_and_shows_val(finished: Finished) -> None:
    html = report_page(finished.cfg)
    assert "Images of val" in html
    assert "&lt;b onload=x&gt;&#34;x&#34; &amp; &#39;y&#39;" in html
    assert "<b onload" not in html
    assert "\N{CJK UNIFIED IDEOGRAPH-732B}" in html
    assert "Without a true pixel in the masks of val" in html


def test_a_split_that_was_only_predicted_shows_its_predictions(finished: Finished) -> None:
    cfg = replace(finished.cfg, report=replace(finished.cfg.report, split="test"))
    html = report_page(cfg)
    assert "Split test has no masks, so its images cannot be ranked" in html
    assert [text for text in Page(html).pictures if text.endswith("im-031")] == [
        f"{view} of im-031" for view in ("image", "final network", "final network + CRF")
    ]
    assert "labels of the CAM use" not in html
    assert "Split test has no masks to compare with, so there are no class scores" in html


def test_a_split_without_labels_is_refused_where_labels_are_needed(finished: Finished, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished.cfg.run.dir.parent, tmp_path / "root"))

    def changed(section: str, **values: object) -> Config:
        cfg = replace(finished.cfg, run=replace(finished.cfg.run, dir=root / "runs"))
        return replace(cfg, **{section: replace(getattr(cfg, section), **values)})

    with pytest.raises(StageError, match=r"split 'test' has no image-level labels, .*\(infer_cam\.splits=\[train,val"):
        infer_cam.run(changed("infer_cam", splits=None))
    with pytest.raises(StageError, match=r"'test' has no image-level labels, .*\(random_walk\.splits=\[train\]\)"):
        random_walk.run(changed("random_walk", splits=("train", "test")))
    shutil.rmtree(root / "runs")
    with pytest.raises(ShardError, match=r"split 'test' has no image-level labels, .*: set data\.train_split"):
        train_seam.run(changed("data", train_split="test"))


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "no masks"])
def test_one_split_of_one_class_with_fewer_images_than_a_batch(
    tmp_path: Path, masks: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [record(number, (30, 40), (1,)) for number in range(3)]
    cfg = pipeline_config(tmp_path, ("cat",), {"train": images if masks else without_masks(images)})
    run_pipeline(cfg)
    assert {status.state for status in run_status(cfg) if status.stage not in ("shard", "report")} == {"done"}
    out = capsys.readouterr().out
    html = (cfg.stage_dir("report") / "report.html").read_text()
    assert "Images of train" in html
    scores = sorted(str(path.relative_to(cfg.run_dir)) for path in cfg.run_dir.glob("evaluate/*/train.json"))
    if masks:
        assert len(scores) == 6
        assert "evaluate: no" not in out
        return
    assert scores == []
    assert out.count("evaluate: no split has masks, so there is nothing to score\n") == 1
    assert "no threshold is chosen" not in out
    assert out.splitlines()[-2] == "report: No split of run run has masks to compare with, so there are no scores."
    assert html.count("No split of run run has masks to compare with, so there are no scores.") == 1
    assert "--only evaluate" not in html
    before = read_json(cfg.stage_dir("evaluate") / "manifest.json")
    assert before["outputs"] == {}
    evaluate.run(cfg)
    assert read_json(cfg.stage_dir("evaluate") / "manifest.json") == before


@pytest.mark.slow
def test_two_ranks_share_a_split_of_one_shard(finished: Finished, tmp_path: Path) -> None:
    root = Path(shutil.copytree(finished.cfg.run.dir.parent, tmp_path / "root"))
    stages = ("infer_cam", "random_walk", "infer_seg", "evaluate")
    one = replace(finished.cfg, data=replace(finished.cfg.data, shards=root / "shards"))
    one = replace(one, run=replace(one.run, dir=root / "runs"))
    for stage in stages:
        shutil.rmtree(one.stage_dir(stage))
    (tmp_path / "config.yaml").write_text(dump_yaml(one), encoding="utf-8")
    run_on_two_ranks(",".join(stages), tmp_path / "config.yaml")
    paths = [path for stage in stages for path in finished.cfg.stage_dir(stage).glob("*/*") if path.suffix == ".tar"]
    paths += list(finished.cfg.stage_dir("evaluate").glob("*/[tv]*"))
    assert len(paths) > 30
    for path in paths:
        other = one.run_dir / path.relative_to(finished.cfg.run_dir)
        assert other.read_bytes() == path.read_bytes(), path.name
    assert all(np.isfinite(cam.cam).all() for cam in read_cams(one.stage_dir("infer_cam") / "cams" / "val-00000.tar"))
