"""When a stage is skipped, resumed, rerun, or refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from kit import changed

from seam_dist.artifacts.outputs import OutputFolder
from seam_dist.artifacts.stage import StageError, StageRun, input_fingerprint, open_stage
from seam_dist.config.schema import Config, RunConfig, TrainSeamConfig


def config(folder: Path, *, lr: float = 0.01, overwrite: bool = False, log_every: int = 10) -> Config:
    return Config(
        run=RunConfig(dir=folder, overwrite=overwrite),
        train_seam=changed(TrainSeamConfig(), lr=lr, log_every=log_every),
    )


def start(cfg: Config, *, precious: bool = False, inputs: dict[str, str] | None = None) -> StageRun:
    return open_stage(
        cfg,
        "demo",
        settings=("train_seam",),
        ignore=("train_seam.schedule.log_every",),
        precious=precious,
        inputs=inputs,
    )


def finish(run: StageRun) -> Path:
    output = run.dir / "out.txt"
    output.write_text("result")
    run.finish([output], note="kept")
    return output


def test_finished_stage_is_done_until_its_settings_inputs_or_outputs_change(tmp_path: Path) -> None:
    run = start(config(tmp_path), inputs={"shards": "a"})
    assert not run.is_done()
    output = finish(run)
    assert start(config(tmp_path, log_every=3), inputs={"shards": "a"}).is_done()
    output.write_text("cut")
    assert not start(config(tmp_path), inputs={"shards": "a"}).is_done()


def test_changed_input_removes_derived_outputs(tmp_path: Path) -> None:
    output = finish(start(config(tmp_path), inputs={"shards": "a"}))
    run = start(config(tmp_path), inputs={"shards": "b"})
    assert not run.is_done()
    assert not output.exists()


def test_interrupted_stage_keeps_its_outputs(tmp_path: Path) -> None:
    run = start(config(tmp_path))
    (run.dir / "part").write_text("half of the work")
    again = start(config(tmp_path))
    assert not again.is_done()
    assert (again.dir / "part").exists()


def test_precious_outputs_of_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    output = finish(start(config(tmp_path), precious=True))
    with pytest.raises(StageError, match=r"train_seam.schedule.lr: 0.01 -> 0.02.*run.overwrite=true"):
        start(config(tmp_path, lr=0.02), precious=True)
    assert output.exists()
    start(config(tmp_path, lr=0.02, overwrite=True), precious=True)
    assert not output.exists()


def test_foreign_files_are_never_removed(tmp_path: Path) -> None:
    cfg = config(tmp_path, overwrite=True)
    cfg.stage_dir("demo").mkdir(parents=True)
    (cfg.stage_dir("demo") / "thesis.tex").write_text("years of work")
    with pytest.raises(StageError, match="did not make"):
        start(cfg)
    assert (cfg.stage_dir("demo") / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json", ".notes.tmp", "stage.json"])
def test_folder_with_a_file_of_the_users_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    cfg = config(tmp_path, overwrite=True)
    cfg.stage_dir("demo").mkdir(parents=True)
    (cfg.stage_dir("demo") / name).write_text('["mine"]')
    with pytest.raises(StageError, match=f"did not make, the first {name}"):
        start(cfg)
    assert (cfg.stage_dir("demo") / name).read_text() == '["mine"]'


def test_rerun_removes_what_the_stage_wrote_and_nothing_else(tmp_path: Path) -> None:
    run = start(config(tmp_path), precious=True)
    own = [
        *("metrics.jsonl", "final/model.safetensors", "final/model.json", "tensorboard/events.out.tfevents.1.host.2.0"),
        *("checkpoints/latest", "checkpoints/step-00000010/state.json", "checkpoints/.saving-step-00000020/state.json"),
        *("cams/train-00000.tar", "labels_crf/val-00001.tar", "bad/train-00000.json", "report.html", "val-images.csv"),
    ]
    users = ["notes.txt", "final/README", "cams/old.tar", "labels/mine-1.tar", "mine/train-00000.tar", ".hidden.tmp"]
    for name in (*own, *users):
        (run.dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run.dir / name).write_text(name)
    OutputFolder(run.dir / "files").write("a.png", b"labels")
    OutputFolder(run.dir / "files").write("b.png", b"labels")
    (run.dir / "files/b.png").write_bytes(b"better labels")
    run.finish([run.dir / "val-images.csv"])
    start(config(tmp_path, lr=0.5, overwrite=True), precious=True)
    left = sorted(p.relative_to(run.dir).as_posix() for p in run.dir.rglob("*") if not p.is_dir())
    assert left == sorted([*users, "config.yaml", "files/b.png", "stage.json"])
    assert not (run.dir / "checkpoints").exists()
    assert all((run.dir / name).read_text() == name for name in users)


def test_outputs_that_lie_elsewhere_through_a_link_are_removed_as_well(tmp_path: Path) -> None:
    run = start(config(tmp_path))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/train-00000.tar").write_text("cams")
    (run.dir / "cams").symlink_to(tmp_path / "scratch")
    start(config(tmp_path, lr=0.5))
    assert not list((tmp_path / "scratch").iterdir())


def test_missing_input_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="run `--only infer_cam` first"):
        input_fingerprint(tmp_path, "infer_cam")


def test_misspelled_setting_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="trian"):
        open_stage(dataclasses.replace(config(tmp_path)), "demo", settings=("trian",))


def test_what_killed_processes_left_is_cleared_and_stops_nobody(tmp_path: Path) -> None:
    cfg = Config(run=RunConfig(name="run", dir=tmp_path))
    folder = cfg.stage_dir("infer_cam")
    folder.mkdir(parents=True)
    # Killed while it wrote its first file, or between stage.json and config.yaml.
    (folder / ".stage.json.abcdefgh.tmp").write_text("{")
    for _ in range(2):
        open_stage(cfg, "infer_cam", settings=("infer_cam",))
        assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "stage.json"]
        (folder / "config.yaml").unlink()
    (folder / "cams").mkdir()
    (folder / "cams" / ".train-00000.tar.abcdefgh.tmp").write_text("half")
    (folder / "cams" / "train-00001.tar").write_text("whole")
    open_stage(cfg, "infer_cam", settings=("infer_cam",))
    assert [path.name for path in (folder / "cams").iterdir()] == ["train-00001.tar"]
