from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import tarfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.cam_file import StoredCam, upsample_cam, write_cams
from seam_dist.artifacts.label_file import read_label_shard, write_labels
from seam_dist.artifacts.stage import StageError, open_stage
from seam_dist.cluster.distributed import init_world
from seam_dist.config.load import from_tree
from seam_dist.config.schema import Config
from seam_dist.data.images import decode_labels
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import read_shard
from seam_dist.evaluation.label_scores import LABEL_KINDS, unscored_kinds
from seam_dist.evaluation.metrics import ThresholdHistogram, threshold_grid
from seam_dist.stages import evaluate, report, shard

THRESHOLDS = threshold_grid(20, 0.26)


def _config(root: Path, name: str, ablation: str, **sections: dict[str, object]) -> Config:
    tree: dict[str, dict[str, object]] = {
        "run": {"name": name, "dir": str(root / "runs"), "device": "cpu"},
        "source": {"kind": "synthetic", "num_images": [10, 9], "num_classes": 3, "image_size": [64, 48]},
        "data": {"shards": str(root / "shards"), "samples_per_shard": 4, "streams": 1},
        "loss": {"ablation": ablation},
        "report": {"num_images": 2},
    }
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    return from_tree(tree)


def _write_training(cfg: Config) -> None:
    stage = open_stage(cfg, "train_seam", settings=("train_seam", "loss", "model"))
    lines = []
    for step in range(10, 210, 10):
        decay = 0.7 * math.exp(-step / 80)
        line = {"step": step, "time_s": step * 0.8, "images_per_s": 9.5, "lr": 0.01 * (1 - step / 200) ** 0.9}
        line |= {"loss/total": decay + 0.1, "loss/cls": decay}
        if cfg.loss.ablation == "full":
            line |= {"loss/er": 0.02 + decay / 20, "loss/ecr": 0.4 + decay}
        lines.append(json.dumps(line))
    (stage.dir / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 2')
    stage.finish([stage.dir / "metrics.jsonl"], device="CPU", world_size=2)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _scores(histogram: ThresholdHistogram, index: int) -> dict[str, object]:
    scores = histogram.scores()
    point: dict[str, object] = {"threshold": THRESHOLDS[index], "miou": float(scores.miou[index])}
    for key in ("iou", "precision", "recall"):
        point[key] = [None if math.isnan(value) else value for value in getattr(scores, key)[index].tolist()]
    return point


def _maps(
    mask: np.ndarray, classes: tuple[int, ...], kinds: list[str], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    height, width = mask.shape
    maps: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    for index in classes:
        inside = (mask == index).astype(np.float32)
        part = inside.copy()
        part[int(np.median(np.nonzero(inside)[0])) :] *= 0.2
        noise = 0.2 * rng.random((height // 4, width // 4))
        for kind in kinds:
            source = cv2.GaussianBlur(inside if kind == "refined" else part, (0, 0), 2)
            small = cv2.resize(source, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
            maps[kind].append(np.clip(0.8 * small + noise, 0, 1))
    return {kind: np.stack(values).astype(np.float16) for kind, values in maps.items()}


def _write_cams_and_evaluation(cfg: Config, splits: tuple[str, ...] = ("train", "val")) -> None:
    """Maps made from the masks: the plain one shows the upper part of each object, the refined one all of it."""
    rng = np.random.default_rng(3)
    manifest = load_manifest(cfg.shards_dir)
    infer = open_stage(cfg, "infer_cam", settings=("infer_cam",))
    evaluate = open_stage(cfg, "evaluate", settings=("evaluate",))
    kinds = ["refined", "plain"] if cfg.loss.ablation == "full" else ["plain"]
    chosen: dict[str, float] = {}
    outputs: dict[str, list[Path]] = {"infer": [], "evaluate": []}
    for split in splits:
        histograms = {kind: ThresholdHistogram(manifest.num_classes, THRESHOLDS) for kind in kinds}
        rows = []
        for part in manifest.split(split).shards:
            path = infer.dir / "cams" / part.file
            stored = []
            for sample in read_shard(cfg.shards_dir / part.file, masks=True, max_pixels=10**6):
                assert sample.mask is not None
                maps = _maps(sample.mask, sample.classes, kinds, rng)
                size = (sample.mask.shape[0], sample.mask.shape[1])
                stored.append(StoredCam(sample.key, sample.classes, size, maps[kinds[0]], maps.get("plain")))
                if len(kinds) == 1:
                    stored[-1] = replace(stored[-1], plain=None)
                for kind in kinds:
                    cam = upsample_cam(maps[kind], size)
                    miou = histograms[kind].update(cam, sample.classes, sample.mask)
                    if kind == kinds[0]:
                        rows.append((sample.key, float(miou[8])))
            write_cams(path, stored)
            outputs["infer"].append(path)
        values: dict[str, dict[str, object]] = {}
        for kind, histogram in histograms.items():
            miou = histogram.scores().miou
            best = int(miou.argmax())
            chosen.setdefault(kind, best)
            values[kind] = {
                "thresholds": THRESHOLDS,
                "miou": miou.tolist(),
                "best": _scores(histogram, best),
                "chosen": None if split == "train" else {**_scores(histogram, int(chosen[kind])), "from": "train"},
                "default": _scores(histogram, THRESHOLDS.index(0.26)),
            }
        record: dict[str, object] = {"split": split, "map": kinds[0], "num_images": len(rows)}
        record |= values[kinds[0]]
        if len(kinds) == 2:
            record["plain"] = values["plain"]
        write_json(evaluate.dir / f"{split}.json", record)
        with open(evaluate.dir / f"{split}-images.csv", "w", newline="") as file:
            csv.writer(file).writerows([("key", "miou"), *rows])
        outputs["evaluate"] += [evaluate.dir / f"{split}.json", evaluate.dir / f"{split}-images.csv"]
    infer.finish(outputs["infer"], cam=kinds[0])
    evaluate.finish(outputs["evaluate"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and two finished runs, `cam` and `seam`."""
    root = tmp_path_factory.mktemp("report")
    for name, ablation in (("cam", "cam"), ("seam", "full")):
        cfg = _config(root, name, ablation)
        shard.run(cfg)
        _write_training(cfg)
        _write_cams_and_evaluation(cfg)
    return root


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


class _Outline(HTMLParser):
    """Collects what a page links to and whether its elements are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.references += [
            values[name] or "" for name in ("src", "href", "action", "data", "srcset") if name in values
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag, tag


def _parse(html: str) -> _Outline:
    outline = _Outline()
    outline.feed(html)
    outline.close()
    assert outline.open == []
    return outline


def _make(cfg: Config) -> str:
    report.run(cfg)
    return (cfg.stage_dir("report") / "report.html").read_text()


def _compared(root: Path, **sections: dict[str, object]) -> Config:
    return _config(
        root, "seam", "full", **{"report": {"compare": [str(root / "runs" / "cam")], "num_images": 2}} | sections
    )


def test_report_is_one_file_that_asks_for_nothing_else(runs: Path) -> None:
    html = _make(_compared(runs))
    outline = _parse(html)
    assert {"script", "link", "iframe", "object"}.isdisjoint(outline.tags)
    assert all(reference.startswith(("data:image/", "#")) for reference in outline.references)
    assert {reference[1:] for reference in outline.references if reference.startswith("#")} <= set(outline.ids)
    assert "url(" not in html
    assert "http" not in re.sub(r"http-equiv", "", re.sub(r"data:image[^\"]*", "", html))


def test_report_shows_every_part_of_two_finished_runs(runs: Path) -> None:
    html = _make(_compared(runs))
    outline = _parse(html)
    assert outline.ids == ["results", "images", "thresholds", "classes", "training", "setup"]
    assert 'class="missing"' not in html
    assert outline.tags.count("img") == 6 * 5 + 1  # six images in five views, and the color scale
    for heading in ("Best", "Around the median", "Worst", "refined CAM", "labels of the CAM", "truth"):
        assert heading in html
    for name in ("background", "rings", "stripes", "checker", "Precision", "Recall"):
        assert name in html
    for chart in ("Total loss", "ECR loss", "Learning rate", "mIoU on train", "mIoU on val"):
        assert f"<title>{chart} by" in html
    assert "<code>loss.ablation</code>" in html
    assert "world_size 2" in html


def test_console_ends_with_the_comparison_and_the_path(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = _compared(runs)
    report.run(cfg)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"report: {(cfg.stage_dir('report') / 'report.html').resolve()}"
    assert lines[0].split() == ["method", "run", "train", "mIoU", "val", "mIoU", "at", "train's", "threshold"]
    found = {tuple(line.split("  ")[0].split(", ")): line.split() for line in lines[2:5]}
    assert list(found) == [("CAM only", "CAM"), ("SEAM", "CAM"), ("SEAM", "refined CAM")]
    evaluation = json.loads((runs / "runs" / "seam" / "evaluate" / "val.json").read_text())
    row = found["SEAM", "refined CAM"]
    assert float(row[-2]) == pytest.approx(100 * evaluation["best"]["miou"], abs=0.006)
    assert float(row[-1]) == pytest.approx(100 * evaluation["chosen"]["miou"], abs=0.006)
    baseline = json.loads((runs / "runs" / "cam" / "evaluate" / "val.json").read_text())
    gain = 100 * (evaluation["best"]["miou"] - baseline["best"]["miou"])
    assert f"val: SEAM (seam) {gain:+.1f} points against CAM only (cam)" in lines


def test_a_run_without_pcm_has_no_refined_column(runs: Path) -> None:
    html = _make(_config(runs, "cam", "cam"))
    outline = _parse(html)
    assert "refined CAM" not in html
    assert outline.tags.count("img") == 6 * 4 + 1


def test_a_split_without_masks_shows_its_first_images_without_truth(runs: Path) -> None:
    cfg = _config(runs, "seam", "full")
    for path in (cfg.stage_dir("evaluate") / "val.json", cfg.stage_dir("evaluate") / "val-images.csv"):
        path.unlink()
    manifest_path = cfg.shards_dir / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    manifest["splits"]["val"]["has_masks"] = False
    for part in manifest["splits"]["val"]["shards"]:
        path = cfg.shards_dir / part["file"]
        with tarfile.open(path) as tar:
            kept = [(m.name, tar.extractfile(m).read()) for m in tar if not m.name.endswith(".png")]  # type: ignore[union-attr]
        with tarfile.open(path, "w") as tar:
            for name, data in kept:
                _add(tar, name, data)
        part["num_bytes"] = path.stat().st_size
    write_json(manifest_path, manifest)
    html = _make(cfg)
    outline = _parse(html)
    assert "Split val has no masks" in html
    assert "<figcaption>truth" not in html
    assert outline.tags.count("img") == 6 * 4 + 1
    assert "There is no evaluation of val" in html


@pytest.mark.parametrize("stage", ["train_seam", "infer_cam", "evaluate"])
def test_a_missing_stage_is_named_with_the_command_that_makes_it(runs: Path, stage: str) -> None:
    cfg = _config(runs, "seam", "full")
    shutil.rmtree(cfg.stage_dir(stage))
    html = _make(cfg)
    _parse(html)
    assert f"not complete: {stage} is not finished" in html
    assert re.search(rf"seam-dist --config \S+/runs/seam/\w+/config.yaml --stage {stage}", html)


def test_an_empty_run_still_has_a_report(tmp_path: Path) -> None:
    cfg = _config(tmp_path, "new", "full")
    cfg.run_dir.mkdir(parents=True)
    html = _make(cfg)
    _parse(html)
    assert "seam-dist --config CONFIG.yaml run.name=new --stage train_seam --stage infer_cam --stage evaluate" in html
    assert "manifest.json is missing" in html


def test_damaged_files_are_listed_and_the_rest_is_shown(runs: Path) -> None:
    cfg = _config(runs, "seam", "full")
    (cfg.stage_dir("evaluate") / "val.json").write_text("{")
    metrics = cfg.stage_dir("train_seam") / "metrics.jsonl"
    metrics.write_text("no metrics\n" + metrics.read_text())
    html = _make(cfg)
    _parse(html)
    assert "val.json is not valid JSON" in html
    assert "metrics.jsonl:1 is not a line of metrics" in html
    assert "mIoU on train by threshold" in html


def test_cams_that_cannot_be_read_cost_the_pictures_only(runs: Path) -> None:
    cfg = _config(runs, "seam", "full")
    for path in (cfg.stage_dir("infer_cam") / "cams").glob("val-*.tar"):
        path.write_bytes(path.read_bytes()[:700])
    html = _make(cfg)
    _parse(html)
    assert "The images cannot be shown" in html
    assert "is not a whole tar of CAMs" in html
    assert "mIoU on val by threshold" in html


def test_text_from_outside_is_escaped(runs: Path) -> None:
    cfg = _config(runs, "seam", "full", deepspeed={"comment": "<script>alert(1)</script>"})
    manifest_path = cfg.shards_dir / "manifest.json"
    manifest_path.write_text(manifest_path.read_text().replace('"rings"', '"<b onload=x>&"'))
    shutil.rmtree(cfg.stage_dir("evaluate"))
    _write_cams_and_evaluation(cfg)
    html = _make(cfg)
    outline = _parse(html)
    assert "script" not in outline.tags
    assert "&lt;b onload=x&gt;&amp;" in html
    assert "<b onload" not in html


def test_a_compared_run_that_does_not_exist_is_refused(runs: Path) -> None:
    cfg = _config(runs, "seam", "full", report={"compare": [str(runs / "runs" / "typo")]})
    with pytest.raises(StageError, match=r"typo does not exist: correct report\.compare"):
        report.run(cfg)


def test_the_report_is_made_anew_from_what_is_there_now(runs: Path) -> None:
    cfg = _config(runs, "seam", "full")
    first = _make(cfg)
    path = cfg.stage_dir("evaluate") / "val.json"
    value = json.loads(path.read_text())
    value["best"]["miou"] = 0.987
    write_json(path, value)
    second = _make(cfg)
    assert "<b>98.7 %</b>" not in first
    assert "<b>98.7 %</b>" in second


def _write_labels(cfg: Config, wrong: dict[str, float]) -> None:
    """Label images of every kind: the masks with a share of wrong pixels, which falls from stage to stage."""
    rng = np.random.default_rng(7)
    manifest = load_manifest(cfg.shards_dir)
    for name in ("random_walk", "infer_seg"):
        stage = open_stage(cfg, name, settings=("run.seed",))
        outputs = []
        for kind in (kind for kind in LABEL_KINDS if kind.stage == name):
            for split in ("train", "val"):
                for part in manifest.split(split).shards:
                    labels = []
                    for sample in read_shard(cfg.shards_dir / part.file, masks=True, max_pixels=10**6):
                        assert sample.mask is not None
                        noise = rng.random(sample.mask.shape) < wrong[kind.name]
                        values = np.where(sample.mask == 255, 0, sample.mask)
                        labels.append((sample.key, np.where(noise, 0, values).astype(np.uint8)))
                    outputs.append(stage.dir / kind.folder / part.file)
                    outputs[-1].parent.mkdir(parents=True, exist_ok=True)
                    write_labels(outputs[-1], labels)
        stage.finish(outputs)


WRONG = {"walk": 0.5, "walk_crf": 0.4, "seg": 0.3, "seg_crf": 0.2, "seg_oracle": 0.1}


def test_report_shows_the_road_from_cam_to_final_mask(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = _compared(runs)
    _write_labels(cfg, WRONG)
    stage_record = read_json(cfg.stage_dir("infer_cam") / "manifest.json")
    records = evaluate.evaluate_labels(cfg, load_manifest(cfg.shards_dir), init_world(cfg))
    assert len(records) == 2 * len(WRONG)
    assert evaluate.evaluate_labels(cfg, load_manifest(cfg.shards_dir), init_world(cfg)) == []
    assert read_json(cfg.stage_dir("infer_cam") / "manifest.json") == stage_record
    capsys.readouterr()
    html = _make(cfg)
    outline = _parse(html)
    assert outline.ids == ["results", "road", "images", "thresholds", "classes", "training", "setup"]
    assert outline.tags.count("img") == 6 * (5 + len(WRONG)) + 1
    assert "mIoU of the final network + CRF" in html
    final = next(record for record in records if record["labels"] == "seg_crf" and record["split"] == "val")
    assert f"<b>{100 * final['miou']:.1f} %</b><span>mIoU on val, final network + CRF</span>" in html
    printed = capsys.readouterr().out
    found = [record["miou"] for record in records if record["split"] == "val"]
    assert found == sorted(found)  # fewer wrong pixels, higher scores
    for record, words in zip(records, [k.words for k in LABEL_KINDS if k.name in WRONG for _ in range(2)], strict=True):
        line = next(line for line in printed.splitlines() if line.startswith(f"{words}  "))
        column = {"train": -2, "val": -1}[record["split"]]
        assert float(line.split()[column]) == pytest.approx(100 * record["miou"], abs=0.006)


def test_label_scores_are_those_of_a_direct_confusion_matrix(runs: Path) -> None:
    cfg = _config(runs, "seam", "full")
    _write_labels(cfg, WRONG)
    evaluate.evaluate_labels(cfg, load_manifest(cfg.shards_dir), init_world(cfg))
    kind = next(kind for kind in LABEL_KINDS if kind.name == "seg")
    confusion = np.zeros((4, 4), np.int64)
    for part in load_manifest(cfg.shards_dir).split("val").shards:
        stored = read_label_shard(cfg.stage_dir("infer_seg") / "labels" / part.file)
        for sample in read_shard(cfg.shards_dir / part.file, masks=True, max_pixels=10**6):
            assert sample.mask is not None
            labels = decode_labels(stored[sample.key], max_pixels=10**6)
            for true, predicted in zip(sample.mask.ravel(), labels.ravel(), strict=True):
                if true != 255:
                    confusion[true, predicted] += 1
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    record = read_json(cfg.stage_dir("evaluate") / kind.name / "val.json")
    assert record["miou"] == pytest.approx(float(np.mean(confusion.diagonal() / union)), abs=1e-12)
    assert record["pixel_accuracy"] == pytest.approx(confusion.trace() / confusion.sum(), abs=1e-12)


def test_labels_made_again_lose_their_scores_only(runs: Path) -> None:
    cfg = _config(runs, "seam", "full")
    _write_labels(cfg, WRONG)
    world, manifest = init_world(cfg), load_manifest(cfg.shards_dir)
    evaluate.evaluate_labels(cfg, manifest, world)
    shutil.rmtree(cfg.stage_dir("infer_seg"))
    _write_labels(_config(runs, "seam", "full", run={"name": "seam", "dir": str(runs / "runs"), "seed": 1}), WRONG)
    assert {kind.name for kind in unscored_kinds(cfg)} == set(WRONG)
    shutil.rmtree(cfg.stage_dir("random_walk"))
    final = {"seg", "seg_crf", "seg_oracle"}
    assert {kind.name for kind in unscored_kinds(cfg)} == final
    assert {record["labels"] for record in evaluate.evaluate_labels(cfg, manifest, world)} == final


def test_labels_that_do_not_fit_their_mask_are_refused_by_name(runs: Path) -> None:
    cfg = _config(runs, "seam", "full")
    _write_labels(cfg, WRONG)
    path = sorted((cfg.stage_dir("infer_seg") / "labels").glob("val-*.tar"))[0]
    key = next(iter(read_label_shard(path)))
    write_labels(path, [(key, np.zeros((3, 5), np.uint8))])
    with pytest.raises(StageError, match=rf"{path.name}: {key} cannot be scored \(the labels have \(3, 5\) pixels"):
        evaluate.evaluate_labels(cfg, load_manifest(cfg.shards_dir), init_world(cfg))
