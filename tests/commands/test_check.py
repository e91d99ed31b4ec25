"""`seam-dist check`: what it prints, its exit codes, and the survey of the data set."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import kit
import pytest

from seam_dist import cli
from seam_dist.artifacts.stage import input_fingerprint, open_stage
from seam_dist.commands.check import changed_stages, check_stages, num_ranks
from seam_dist.config.findings import Findings
from seam_dist.config.load import dump_yaml
from seam_dist.config.schema import STAGES, Config
from seam_dist.stages import shard

GOOD = {
    stage: {"schedule": {"global_batch_size": 2, "max_steps": 4}}
    for stage in ("train_seam", "train_affinity", "train_seg")
}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    def write(**sections: Any) -> str:
        path = tmp_path / "run.yaml"
        base = {**GOOD, "model": {"width": 0.05}, "crf": {"impl": "torch"}}
        path.write_text(dump_yaml(kit.run_config(tmp_path, base=base, **sections)))
        return str(path)

    return write


def test_a_good_run_is_one_line_and_writes_nothing(
    config: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config()
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["check", "--config", path]) == 0
    out = capsys.readouterr()
    assert re.fullmatch(rf"everything needed is there: {', '.join(STAGES)} \(\d+\.\d s\)\n", out.out)
    assert out.err == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_errors_come_before_warnings_a_line_each_and_are_counted(
    config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(
        evaluate={"threshold_split": "mini"}, train_seg={"pretrained": "/nope.pth"}, model={"pretrained": "/no"}
    )
    assert cli.main(["check", "--config", path]) == 2
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "error", "warning"]
    assert re.fullmatch(r"2 errors, 1 warning \(\d+\.\d s\)", last)


def test_the_stages_and_ranks_asked_for_are_checked(
    config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(train_seg={"pretrained": "/nope.pth"}, data={"streams": 2})
    assert cli.main(["check", "--config", path, "--until", "train_affinity", "--ranks", "2"]) == 0
    assert cli.main(["check", "--config", path, "--until", "train_affinity", "--ranks", "3"]) == 2
    assert "is not a multiple of 3 ranks x 1 workers" in capsys.readouterr().out
    assert cli.main(["check", "--config", path, "--ranks", "none"]) == 2
    assert "--ranks=none is not a number of ranks" in capsys.readouterr().err
    assert cli.main(["check", "--config", path, "--from", "report", "--until", "shard"]) == 2
    assert "comes after" in capsys.readouterr().err


def test_ranks_are_those_of_the_option_or_the_launcher_or_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = kit.run_config(tmp_path, run={"world_size": 4})
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (num_ranks(cfg, "2"), num_ranks(cfg, None), num_ranks(kit.run_config(tmp_path), None)) == (2, 4, 1)
    place = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert num_ranks(cfg, None) == 3


def fake_survey(monkeypatch: pytest.MonkeyPatch, survey: Callable[..., Any]) -> None:
    data, page = ModuleType("seam_dist.data.survey"), ModuleType("seam_dist.report.dataset_page")
    data.survey_dataset = survey  # type: ignore[attr-defined]
    page.format_survey = lambda survey: f"{survey.name}: 2 images"  # type: ignore[attr-defined]
    page.write_dataset_page = write_page  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, data.__name__, data)
    monkeypatch.setitem(sys.modules, page.__name__, page)


def write_page(survey: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<p>{survey.name}")


def folder_data_set(root: Path) -> None:
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        for index in range(2):
            (root / "images" / split / f"{index}.jpg").write_bytes(kit.encode(kit.pixels(index, 6, 8)))
    rows = [f"{index}.jpg,{split},cat" for split in ("train", "val") for index in range(2)]
    (root / "labels.csv").write_text("\n".join(["image,split,classes", *rows]) + "\n")
    (root / "classes.txt").write_text("cat\n")


def test_a_data_set_is_surveyed_and_its_findings_join_the_others(
    config: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Sequence[str], dict[str, Any]]] = []

    def survey(source: Any, splits: Sequence[str], **options: Any) -> Any:
        calls.append((splits, options))
        assert source.classes == ("cat",)
        findings = Findings()
        findings.error("bad-image", "image 0.jpg: it is cut", 2)
        findings.warning("no-masks", "known to the check already")
        return SimpleNamespace(name="pets", findings=findings)

    fake_survey(monkeypatch, survey)
    folder_data_set(tmp_path / "pets")
    path = config(source={"kind": "folder", "root": str(tmp_path / "pets")})
    assert cli.main(["check", "--config", path]) == 2
    out = capsys.readouterr().out
    page = tmp_path / "runs" / "run" / "check" / "dataset.html"
    assert out.startswith(
        f"pets: 2 images\npage: {page}\n\nerror: image 0.jpg: it is cut (2 such cases)\nwarning: evaluate"
    )
    assert "1 error, 1 warning" in out
    assert page.read_text() == "<p>pets"
    assert calls[0][0] == ("train", "val")
    assert calls[0][1]["max_pixels"] == 50_000_000
    assert cli.main(["check", "--config", path, "--page", str(tmp_path / "mine.html")]) == 2
    assert (tmp_path / "mine.html").is_file()
    assert cli.main(["check", "--config", path, "--quick"]) == 0
    assert len(calls) == 2


def test_a_data_set_that_cannot_be_listed_is_one_line(
    config: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def survey(source: Any, splits: Sequence[str], **options: Any) -> Any:
        return source.listing(splits[0])

    fake_survey(monkeypatch, survey)
    path = config(source={"kind": "folder", "root": str(tmp_path / "nowhere")})
    assert cli.main(["check", "--config", path, "--only", "shard"]) == 2
    out = capsys.readouterr().out
    assert out.count("nowhere is not a folder") == 1
    assert "1 error, 0 warnings" in out


def finish(cfg: Config, stage: str, *settings: str) -> None:
    inputs = {"shards": input_fingerprint(cfg.shards_dir, "shard")}
    opened = open_stage(cfg, stage, settings=settings, inputs=inputs)
    (opened.dir / "output").write_text("whole")
    opened.finish([opened.dir / "output"])


def test_a_training_of_other_settings_is_found_before_the_stages_ahead_of_it(tmp_path: Path) -> None:
    base = {**GOOD, "model": {"width": 0.05}, "crf": {"impl": "torch"}}
    cfg = kit.run_config(tmp_path, base=base)
    shard.run(cfg)
    finish(cfg, "train_seg", "train_seg")
    changed = kit.run_config(tmp_path, base=base, train_seg={"dropout": 0.2})
    assert dict(changed_stages(changed, STAGES)) == {"train_seg": "train_seg.dropout: 0.5 -> 0.2"}
    (finding,) = check_stages(changed, STAGES, 1)
    assert "train_seg was made with other settings or inputs (train_seg.dropout: 0.5 -> 0.2)" in finding.text
    overwrite = kit.run_config(tmp_path, base=base, train_seg={"dropout": 0.2}, run={"overwrite": True})
    assert not len(check_stages(overwrite, STAGES, 1))
    # An input that is resumed comes out as it was, so the training stays.
    assert not len(check_stages(cfg, STAGES, 1))
