"""`seam-dist status` and --dry-run: what they say about a run's stages, from the disk alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from seam_dist import cli
from seam_dist.artifacts.atomic import write_json
from seam_dist.artifacts.cam_file import FORMAT
from seam_dist.artifacts.lock import stage_lock
from seam_dist.artifacts.stage import input_fingerprint, open_stage
from seam_dist.commands import status
from seam_dist.config.load import from_tree
from seam_dist.config.schema import Config


def make_config(root: Path, **sections: dict[str, object]) -> Config:
    return from_tree({"run": {"name": "run", "dir": str(root / "runs")}, **sections})


def finish(cfg: Config, stage: str, settings: tuple[str, ...], *inputs: str) -> None:
    found = {name: input_fingerprint(cfg.stage_dir(name), name) for name in inputs}
    if "shard" in found:
        found["shards"] = found.pop("shard")
    opened = open_stage(cfg, stage, settings=settings, inputs=found)
    output = opened.dir / "output.tar"
    output.write_text("whole")
    opened.finish([output])


def states(cfg: Config) -> dict[str, str]:
    return {entry.stage: entry.state for entry in status.run_status(cfg)}


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    cfg = make_config(tmp_path)
    finish(cfg, "shard", ("source",))
    finish(cfg, "train_seam", ("train_seam", "loss"), "shard")
    finish(cfg, "infer_cam", ("infer_cam.scales", "infer_cam.crf"), "shard")
    finish(cfg, "train_affinity", ("train_affinity",), "shard", "infer_cam")
    return cfg


def test_finished_stages_are_done_and_the_others_not_begun(cfg: Config) -> None:
    found = states(cfg)
    assert [found[stage] for stage in ("shard", "train_seam", "infer_cam", "train_affinity")] == ["done"] * 4
    assert found["random_walk"] == "not begun"


def test_a_changed_setting_makes_its_stage_and_all_that_follow_from_it_stale(cfg: Config, tmp_path: Path) -> None:
    changed = make_config(tmp_path, infer_cam={"scales": [1.0]})
    found = {entry.stage: entry for entry in status.run_status(changed)}
    assert found["train_seam"].state == "done"
    assert found["infer_cam"].state == "stale"
    assert "infer_cam.scales" in found["infer_cam"].detail
    assert found["train_affinity"].state == "stale"
    assert "infer_cam is made again" in found["train_affinity"].detail


def test_an_input_that_was_made_again_makes_a_stage_stale(cfg: Config, tmp_path: Path) -> None:
    changed = make_config(tmp_path, infer_cam={"scales": [1.0]})
    finish(changed, "infer_cam", ("infer_cam.scales", "infer_cam.crf"), "shard")
    found = {entry.stage: entry for entry in status.run_status(changed)}
    assert found["infer_cam"].state == "done"
    assert (found["train_affinity"].state, found["train_affinity"].detail) == ("stale", "infer_cam changed")


def test_maps_of_another_form_are_stale(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_stage(cfg, "infer_cam", settings=("infer_cam.scales", "infer_cam.crf"), inputs={"format": FORMAT})
    opened.finish([])
    assert status.stage_status(cfg, "infer_cam").state == "done"
    monkeypatch.setattr(status, "FORMAT", "another")
    found = status.stage_status(cfg, "infer_cam")
    assert (found.state, found.detail) == ("stale", "this version stores its maps in another form")


def test_a_stage_without_manifest_was_cut_short_and_one_with_lost_outputs_is_damaged(cfg: Config) -> None:
    (cfg.stage_dir("train_seam") / "manifest.json").unlink()
    (cfg.stage_dir("train_seam") / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"st')
    (cfg.stage_dir("train_affinity") / "output.tar").write_text("ha")
    found = {entry.stage: entry for entry in status.run_status(cfg)}
    assert (found["train_seam"].state, found["train_seam"].detail) == ("cut short", "step 20")
    assert status.stage_status(cfg, "train_affinity").state == "damaged"
    assert "output.tar" in status.stage_status(cfg, "train_affinity").detail


def test_a_setting_that_is_recorded_only_when_on_counts_as_off_before(cfg: Config, tmp_path: Path) -> None:
    record = json.loads((cfg.stage_dir("infer_cam") / "stage.json").read_text())
    del record["settings"]["infer_cam.crf"]
    write_json(cfg.stage_dir("infer_cam") / "stage.json", record)
    assert status.stage_status(cfg, "infer_cam").state == "stale"
    assert status.stage_status(make_config(tmp_path, infer_cam={"crf": False}), "infer_cam").state == "done"


def test_a_locked_stage_is_running(cfg: Config) -> None:
    with stage_lock(cfg.run_dir, "random_walk"):
        found = status.stage_status(cfg, "random_walk")
        assert found.state == "running"
        assert f"process {os.getpid()} on" in found.detail
    assert status.stage_status(cfg, "random_walk").state == "not begun"


def test_status_of_a_folder_reads_its_newest_settings(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(cfg.run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["train_seam", "done"]
    assert lines[4] == "random_walk     not begun"


def test_status_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "holds no stage of a run" in capsys.readouterr().err


def test_dry_run_says_what_each_stage_would_do_and_does_nothing(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in cfg.run_dir.rglob("*"))
    words = [
        f"run.dir={tmp_path / 'runs'}",
        "run.name=run",
        "infer_cam.scales=[1.0]",
        "--dry-run",
        "--until",
        "random_walk",
    ]
    assert cli.main(words) == 0
    lines = [line.split("  ")[0:2] for line in capsys.readouterr().out.splitlines()]
    assert [line[0].strip() for line in lines] == ["shard", "train_seam", "infer_cam", "train_affinity", "random_walk"]
    assert sorted(path.name for path in cfg.run_dir.rglob("*")) == before
