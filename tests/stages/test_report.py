"""Stage report: what the page shows of finished, unfinished and damaged runs, and what the console says."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from kit import run_config
from stage_kit import WRONG_PIXELS, write_cams_from_masks, write_labels_from_masks

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.artifacts.stage import StageError, open_stage
from seam_dist.config.schema import Config
from seam_dist.data.shards import RawSample, read_raw, write_shard
from seam_dist.stages import evaluate, report, shard

SETTINGS = {
    "source": {"num_images": [10, 9]},
    "data": {"samples_per_shard": 4},
    "evaluate": {"num_thresholds": 20},
    "report": {"num_images": 2},
}


def make_config(root: Path, name: str, **sections: dict[str, object]) -> Config:
    """Settings of the run `cam` (CAM only) or `seam`."""
    return run_config(root, name, SETTINGS, loss={"ablation": "cam" if name == "cam" else "full"}, **sections)


def make_compared(root: Path) -> Config:
    return make_config(root, "seam", report={"compare": [str(root / "runs" / "cam")]})


def write_training(cfg: Config) -> None:
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and two finished runs, `cam` and `seam`."""
    root = tmp_path_factory.mktemp("report")
    for name in ("cam", "seam"):
        cfg = make_config(root, name)
        shard.run(cfg)
        write_training(cfg)
        write_cams_from_masks(cfg, "plain" if name == "cam" else "refined")
        evaluate.run(cfg)
    return root


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


class Outline(HTMLParser):
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


def parse(html: str) -> Outline:
    outline = Outline()
    outline.feed(html)
    outline.close()
    assert outline.open == []
    return outline


def make_report(cfg: Config) -> str:
    """The page, its elements closed in order."""
    report.run(cfg)
    html = (cfg.stage_dir("report") / "report.html").read_text()
    parse(html)
    return html


def test_report_is_one_file_that_asks_for_nothing_else(runs: Path) -> None:
    html = make_report(make_compared(runs))
    outline = parse(html)
    assert {"script", "link", "iframe", "object"}.isdisjoint(outline.tags)
    assert all(reference.startswith(("data:image/", "#")) for reference in outline.references)
    assert {reference[1:] for reference in outline.references if reference.startswith("#")} <= set(outline.ids)
    assert "url(" not in html
    assert "http" not in re.sub(r"http-equiv", "", re.sub(r"data:image[^\"]*", "", html))


def test_report_shows_every_part_of_two_finished_runs(runs: Path) -> None:
    html = make_report(make_compared(runs))
    outline = parse(html)
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
    cfg = make_compared(runs)
    report.run(cfg)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"report: {(cfg.stage_dir('report') / 'report.html').resolve()}"
    assert lines[0].split() == ["method", "run", "train", "mIoU", "val", "mIoU", "at", "train's", "threshold"]
    rows = {tuple(line.split("  ")[0].split(", ")): line.split() for line in lines[2:5]}
    assert list(rows) == [("CAM only", "CAM"), ("SEAM", "CAM"), ("SEAM", "refined CAM")]
    evaluation = json.loads((runs / "runs" / "seam" / "evaluate" / "cam" / "val.json").read_text())
    row = rows["SEAM", "refined CAM"]
    assert float(row[-2]) == pytest.approx(100 * evaluation["best"]["miou"], abs=0.006)
    assert float(row[-1]) == pytest.approx(100 * evaluation["chosen"]["miou"], abs=0.006)
    baseline = json.loads((runs / "runs" / "cam" / "evaluate" / "cam" / "val.json").read_text())
    gain = 100 * (evaluation["best"]["miou"] - baseline["best"]["miou"])
    shown = f"{gain:+.1f}".replace("-", "\N{MINUS SIGN}")
    assert f"val: SEAM (seam) {shown} points against CAM only (cam)" in lines


def test_a_run_without_pcm_has_no_refined_column(runs: Path) -> None:
    html = make_report(make_config(runs, "cam"))
    outline = parse(html)
    assert "refined CAM" not in html
    assert outline.tags.count("img") == 6 * 4 + 1


def test_a_split_without_masks_shows_its_first_images_without_truth(runs: Path) -> None:
    cfg = make_config(runs, "seam")
    for path in (cfg.stage_dir("evaluate") / "cam" / "val.json", cfg.stage_dir("evaluate") / "cam" / "val-images.csv"):
        path.unlink()
    manifest_path = cfg.shards_dir / "manifest.json"
    manifest = read_json(manifest_path)
    manifest["splits"]["val"]["has_masks"] = False
    for part in manifest["splits"]["val"]["shards"]:
        path = cfg.shards_dir / part["file"]
        samples = list(read_raw(path))
        with open(path, "wb") as file:
            write_shard(file, [RawSample(s.key, {n: d for n, d in s.members.items() if n != "png"}) for s in samples])
        part["num_bytes"] = path.stat().st_size
    write_json(manifest_path, manifest)
    html = make_report(cfg)
    outline = parse(html)
    assert "Split val has no masks" in html
    assert "<figcaption>truth" not in html
    assert outline.tags.count("img") == 6 * 4 + 1
    assert "Split val has no masks to compare with, so there are no class scores" in html


@pytest.mark.parametrize("stage", ["train_seam", "infer_cam", "evaluate"])
def test_a_missing_stage_is_named_with_the_command_that_makes_it(runs: Path, stage: str) -> None:
    cfg = make_config(runs, "seam")
    shutil.rmtree(cfg.stage_dir(stage))
    html = make_report(cfg)
    assert f"not complete: {stage} is not finished" in html
    assert re.search(rf"seam-dist --config \S+/runs/seam/\w+/config.yaml --only {stage}", html)


def test_an_empty_run_still_has_a_report(tmp_path: Path) -> None:
    cfg = make_config(tmp_path, "new")
    cfg.run_dir.mkdir(parents=True)
    html = make_report(cfg)
    assert "seam-dist --config CONFIG.yaml run.name=new --only train_seam --only infer_cam --only evaluate" in html
    assert "manifest.json is missing" in html


def test_damaged_files_are_listed_and_the_rest_is_shown(runs: Path) -> None:
    cfg = make_config(runs, "seam")
    (cfg.stage_dir("evaluate") / "cam" / "val.json").write_text("{")
    metrics = cfg.stage_dir("train_seam") / "metrics.jsonl"
    metrics.write_text("no metrics\n" + metrics.read_text())
    html = make_report(cfg)
    assert "val.json is not valid JSON" in html
    assert "metrics.jsonl:1 is not a line of metrics" in html
    assert "mIoU on train by threshold" in html


def test_cams_that_cannot_be_read_cost_the_pictures_only(runs: Path) -> None:
    cfg = make_config(runs, "seam")
    for path in (cfg.stage_dir("infer_cam") / "cams").glob("val-*.tar"):
        path.write_bytes(path.read_bytes()[:700])
    html = make_report(cfg)
    assert "The images cannot be shown" in html
    assert "is not a whole tar of CAMs" in html
    assert "mIoU on val by threshold" in html


def test_text_from_outside_is_escaped(runs: Path) -> None:
    cfg = make_config(runs, "seam", deepspeed={"comment": "<script>alert(1)</script>"})
    manifest_path = cfg.shards_dir / "manifest.json"
    manifest_path.write_text(manifest_path.read_text().replace('"rings"', '"<b onload=x>&"'))
    shutil.rmtree(cfg.stage_dir("evaluate"))
    evaluate.run(cfg)
    html = make_report(cfg)
    outline = parse(html)
    assert "script" not in outline.tags
    assert "&lt;b onload=x&gt;&amp;" in html
    assert "<b onload" not in html


def test_a_compared_run_that_does_not_exist_is_refused(runs: Path) -> None:
    cfg = make_config(runs, "seam", report={"compare": [str(runs / "runs" / "typo")]})
    with pytest.raises(StageError, match=r"typo does not exist: correct report\.compare"):
        report.run(cfg)


def test_the_report_is_written_again_from_what_is_there_now(runs: Path) -> None:
    cfg = make_config(runs, "seam")
    first = make_report(cfg)
    path = cfg.stage_dir("evaluate") / "cam" / "val.json"
    value = json.loads(path.read_text())
    value["best"]["miou"] = 0.987
    write_json(path, value)
    second = make_report(cfg)
    assert "<b>98.7 %</b>" not in first
    assert "<b>98.7 %</b>" in second


def test_report_shows_the_results_from_cam_to_final_mask(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = make_compared(runs)
    write_labels_from_masks(cfg)
    evaluate.run(cfg)
    capsys.readouterr()
    html = make_report(cfg)
    outline = parse(html)
    assert outline.ids == ["results", "pipeline", "images", "thresholds", "classes", "training", "setup"]
    assert outline.tags.count("img") == 6 * (5 + len(WRONG_PIXELS)) + 1
    assert "mIoU of the final network + CRF" in html
    printed = capsys.readouterr().out.splitlines()
    for name in WRONG_PIXELS:
        title = LABEL_TYPES[name].title
        line = next(line for line in printed if line.startswith(f"{title}  "))
        miou = [read_json(cfg.stage_dir("evaluate") / name / f"{split}.json")["miou"] for split in ("train", "val")]
        assert [float(value) for value in line.split()[-2:]] == pytest.approx([100 * m for m in miou], abs=0.006)
        if name == "seg_crf":
            assert f"<b>{100 * miou[1]:.1f} %</b><span>mIoU on val, {title}</span>" in html


def test_what_each_stage_cost_is_shown(runs: Path) -> None:
    cfg = make_config(runs, "seam")
    write_labels_from_masks(cfg)
    evaluate.run(cfg)
    path = cfg.stage_dir("train_seam") / "manifest.json"
    write_json(path, {**read_json(path), "time_s": 100.0, "world_size": 3, "host_peak_gib": 1.5, "device": "H100"})
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", make_report(cfg).split("What it cost")[1])
    assert cells[:7] == ["train_seam", "1 min 40 s", "3", "5 min 00 s", "1.50", "\N{EN DASH}", "H100"]
