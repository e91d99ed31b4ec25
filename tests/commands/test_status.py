"""`seam-dist status` and --dry-run: what they say about a run's stages, from the disk alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kit import run_config

from seam_dist import cli
from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.cam_file import FORMAT
from seam_dist.artifacts.layout import stage_folder
from seam_dist.artifacts.lock import stage_lock
from seam_dist.artifacts.stage import MANIFEST, input_fingerprint, open_stage
from seam_dist.commands import status
from seam_dist.config.schema import Config
from seam_dist.evaluation.score_folders import finish_evaluation, open_scores
from seam_dist.stages import report


def finish(cfg: Config, stage: str, settings: tuple[str, ...], *inputs: str) -> None:
    fingerprints = {
        "shards" if name == "shard" else name: input_fingerprint(stage_folder(cfg, name), name) for name in inputs
    }
    opened = open_stage(cfg, stage, settings=settings, inputs=fingerprints, directory=stage_folder(cfg, stage))
    output = opened.dir / "output.tar"
    output.write_text("whole")
    opened.finish([output])


def finish_scores(cfg: Config, name: str) -> None:
    opened = open_scores(cfg, name)
    (opened.dir / "val.json").write_text("{}")
    opened.finish([opened.dir / "val.json"])


def states(cfg: Config) -> dict[str, str]:
    return {entry.stage: entry.state for entry in status.run_status(cfg)}


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    cfg = run_config(tmp_path)
    finish(cfg, "shard", ("source",))
    finish(cfg, "train_seam", ("train_seam", "loss"), "shard")
    finish(cfg, "infer_cam", ("infer_cam.scales", "infer_cam.crf"), "shard")
    finish(cfg, "train_affinity", ("train_affinity",), "shard", "infer_cam")
    return cfg


def test_finished_stages_are_done_and_the_others_not_started(cfg: Config) -> None:
    state = states(cfg)
    assert [state[stage] for stage in ("shard", "train_seam", "infer_cam", "train_affinity")] == ["done"] * 4
    assert state["random_walk"] == "not started"


def test_a_report_on_shards_of_the_run_is_done(tmp_path: Path) -> None:
    cfg = run_config(tmp_path, data={"shards": None})
    finish(cfg, "shard", ("source",))
    path = stage_folder(cfg, "shard") / MANIFEST
    manifest = read_json(path)
    del manifest["fingerprint"]  # a conversion writes none
    write_json(path, manifest)
    report.run(cfg)
    assert states(cfg)["report"] == "done"


def test_a_changed_setting_makes_its_stage_and_all_that_follow_from_it_outdated(cfg: Config, tmp_path: Path) -> None:
    changed = run_config(tmp_path, infer_cam={"scales": [1.0]})
    by_stage = {entry.stage: entry for entry in status.run_status(changed)}
    assert by_stage["train_seam"].state == "done"
    assert by_stage["infer_cam"].state == "outdated"
    assert "infer_cam.scales" in by_stage["infer_cam"].detail
    assert by_stage["train_affinity"].state == "outdated"
    assert "infer_cam is rerun" in by_stage["train_affinity"].detail


def test_an_input_that_was_rerun_makes_a_stage_outdated(cfg: Config, tmp_path: Path) -> None:
    changed = run_config(tmp_path, infer_cam={"scales": [1.0]})
    finish(changed, "infer_cam", ("infer_cam.scales", "infer_cam.crf"), "shard")
    by_stage = {entry.stage: entry for entry in status.run_status(changed)}
    assert by_stage["infer_cam"].state == "done"
    assert (by_stage["train_affinity"].state, by_stage["train_affinity"].detail) == ("outdated", "infer_cam changed")


def test_maps_of_another_form_are_outdated(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_stage(cfg, "infer_cam", settings=("infer_cam.scales", "infer_cam.crf"), inputs={"format": FORMAT})
    opened.finish([])
    assert status.stage_status(cfg, "infer_cam").state == "done"
    monkeypatch.setattr(status, "FORMAT", "another")
    current = status.stage_status(cfg, "infer_cam")
    assert (current.state, current.detail) == ("outdated", "this version stores its maps in another form")


def test_a_stage_without_manifest_was_interrupted_and_one_with_lost_outputs_is_damaged(cfg: Config) -> None:
    (cfg.stage_dir("train_seam") / "manifest.json").unlink()
    (cfg.stage_dir("train_seam") / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"st')
    (cfg.stage_dir("train_affinity") / "output.tar").write_text("ha")
    by_stage = {entry.stage: entry for entry in status.run_status(cfg)}
    assert (by_stage["train_seam"].state, by_stage["train_seam"].detail) == ("interrupted", "step 20")
    assert status.stage_status(cfg, "train_affinity").state == "damaged"
    assert "output.tar" in status.stage_status(cfg, "train_affinity").detail


def test_a_locked_stage_is_running(cfg: Config) -> None:
    with stage_lock(cfg.run_dir, "random_walk"):
        current = status.stage_status(cfg, "random_walk")
        assert current.state == "running"
        assert f"process {os.getpid()} on" in current.detail
    assert status.stage_status(cfg, "random_walk").state == "not started"


def test_status_of_a_folder_reads_its_newest_settings(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(cfg.run_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["train_seam", "done"]
    assert lines[4] == "random_walk     not started"


def test_status_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "holds no stage of a run" in capsys.readouterr().err


BROKEN = [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe\x00", b"a: [1", b"[" * 10**5, b"1" * 5000, b"2001-99-99"]
BROKEN += [
    b'{"settings": null}',
    b'{"inputs": [1]}',
    b'{"outputs": 5}',
    b'{"time_s": "x"}',
    b"run: null",
    b"run: {seed: x}",
]


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("file", ["config.yaml", "stage.json", "manifest.json", "metrics.jsonl"])
def test_a_file_that_was_cut_off_is_one_clear_line(
    file: str, text: bytes, cfg: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_scores(cfg, "cam")
    finish_evaluation(cfg, ["cam"])
    if file == "metrics.jsonl":
        (cfg.stage_dir("train_seam") / "manifest.json").unlink()
    for stage in ("evaluate", "evaluate/cam", "train_seam"):
        path = cfg.run_dir / stage / file
        if not path.exists() and file != "metrics.jsonl":
            continue
        before = path.read_bytes() if path.exists() else b""
        path.write_bytes(text)
        if file == "config.yaml":
            os.utime(path, (2**31, 2**31))  # the newest
        code = cli.main(["status", str(cfg.run_dir)])
        error = capsys.readouterr().err
        assert code == (2 if error else 0)
        # The settings of evaluate/cam are not read: those of its stage are.
        assert error.count("\n") == (code == 2)
        assert code == 0 or str(path) in error
        if file == "config.yaml" and stage != "evaluate/cam":
            assert code == 2
        path.write_bytes(before)
        if file == "config.yaml":
            os.utime(path, (1, 1))


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["status", str(tmp_path / "file"), str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"seam-dist: error: {tmp_path / 'file'} is a file, not the folder of a run: give a folder runs/<name>",
        f"seam-dist: error: {tmp_path / 'nowhere'} is not there: give a folder runs/<name>",
    ]


def test_a_folder_that_may_not_be_read_is_named(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)  # the tests may run as root
    assert cli.main(["status", str(cfg.run_dir)]) == 2
    assert capsys.readouterr().err == f"seam-dist: error: {cfg.run_dir}: Permission denied\n"


def test_dry_run_says_what_each_stage_would_do_and_does_nothing(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in cfg.run_dir.rglob("*"))
    overrides = [
        f"run.dir={tmp_path / 'runs'}",
        "run.name=run",
        "infer_cam.scales=[1.0]",
        "--dry-run",
        "--until",
        "random_walk",
    ]
    assert cli.main(overrides) == 2  # train_affinity would have to be replaced
    table, problems = capsys.readouterr().out.split("\n\n")
    stages = [line.split()[0] for line in table.splitlines()]
    assert stages == ["shard", "train_seam", "infer_cam", "train_affinity", "random_walk"]
    assert "train_affinity was made with other settings or inputs" in problems
    assert sorted(path.name for path in cfg.run_dir.rglob("*")) == before


def test_evaluate_is_done_when_all_that_was_made_has_scores(cfg: Config, tmp_path: Path) -> None:
    assert status.stage_status(cfg, "evaluate").state == "not started"
    finish(cfg, "random_walk", ("random_walk",))
    labels = cfg.stage_dir("random_walk") / "labels" / "val-00000.tar"
    labels.parent.mkdir()
    labels.write_text("labels")
    finish_scores(cfg, "cam")
    half = status.stage_status(cfg, "evaluate")
    assert (half.state, half.detail, half.action) == ("interrupted", "no scores yet: random walk", "resume")
    finish_scores(cfg, "walk")
    assert status.stage_status(cfg, "evaluate").state == "interrupted"
    finish_evaluation(cfg, ["cam", "walk"])
    assert status.stage_status(cfg, "evaluate").state == "done"
    # Thresholds matter to CAMs, a rerun random walk to its own labels.
    assert status.stage_status(run_config(tmp_path, evaluate={"num_thresholds": 7}), "evaluate").state == "outdated"
    changed = run_config(tmp_path, random_walk={"beta": 3.0})
    finish(changed, "random_walk", ("random_walk",))
    labels.parent.mkdir()
    labels.write_text("labels")
    rerun = status.stage_status(changed, "evaluate")
    assert (rerun.state, rerun.detail, rerun.action) == ("outdated", "random_walk changed", "rerun")


def test_scores_of_a_stage_that_will_be_rerun_are_outdated(cfg: Config) -> None:
    finish_scores(cfg, "cam")
    finish_evaluation(cfg, ["cam"])
    (cfg.stage_dir("infer_cam") / "manifest.json").unlink()
    by_stage = {entry.stage: entry for entry in status.run_status(cfg)}
    assert by_stage["infer_cam"].state == "interrupted"
    assert (by_stage["evaluate"].state, by_stage["evaluate"].detail) == ("outdated", "infer_cam is rerun")


def test_lost_scores_are_damage(cfg: Config) -> None:
    finish_scores(cfg, "cam")
    finish_evaluation(cfg, ["cam"])
    (cfg.stage_dir("evaluate") / "cam" / "val.json").unlink()
    damaged = status.stage_status(cfg, "evaluate")
    assert (damaged.state, damaged.action) == ("damaged", "resume")
    assert damaged.detail.startswith("cam/val.json is missing")


def test_a_reader_that_has_seen_enough_is_no_error(cfg: Config) -> None:
    code = "import sys; from seam_dist import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "status", str(cfg.run_dir)]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, timeout=120)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
