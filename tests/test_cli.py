"""The command line: what it prints, what it refuses, and with which exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from seam_dist import cli
from seam_dist.config.schema import STAGES

CONFIG = "run: {name: tiny}\ntrain_seam: {schedule: {lr: 0.125}}\n"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_help_names_the_stages_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert " -> ".join(STAGES) in " ".join(text.split())
    assert "--config demo" in text
    assert "local_rank" not in text


def test_help_config_explains_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help-config"]) == 0
    text = capsys.readouterr().out
    assert "train_seam.schedule.lr  (float, default 0.001)" in text
    assert "Learning rate of pretrained weights at step 0." in text
    for section in ("run:", "source:", "data:", "augment:", "model:", "loss:", "infer_cam:", "evaluate:", "report:"):
        assert f"\n{section}" in f"\n{text}"


def test_print_config_shows_values_with_their_origin(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", config, "--print-config", "train_seam.schedule.momentum=0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("lr: 0.125" in line and line.endswith("tiny.yaml:2") for line in lines)
    assert any("momentum: 0.5" in line and line.endswith("command line") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_seam.schedule.lrr=1"], "unknown key train_seam.schedule.lrr (did you mean train_seam.schedule.lr?)"),
        (["deepspeed.zero_optimizaton.stage=2"], "zero_optimization"),
        (["deepspeed.train_batch_size=2"], "train_seam.schedule.global_batch_size"),
        (["--ranks", "many"], "--ranks=many is not a number of ranks"),
        (["--ranks", "0"], "--ranks=0 is not a number of ranks"),
    ],
)
def test_wrong_settings_stop_with_one_line_and_code_2(
    config: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line = ["--config", config, "source.kind=synthetic", f"run.dir={tmp_path}", *arguments]
    assert cli.main(command_line) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("seam-dist: error: ")
    assert error.count("\n") == 1


def test_settings_may_stand_anywhere_between_the_options(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    command_line = [
        "train_seam.schedule.epochs=3",
        "--config",
        config,
        "train_seam.schedule.momentum=0.5",
        "--only",
        "shard",
        "run.seed=4",
        "--print-config",
    ]
    assert cli.main(command_line) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in ("epochs: 3.0", "momentum: 0.5", "seed: 4"))


def test_no_configuration_at_all_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "no --config was given" in capsys.readouterr().err


def test_missing_data_set_stops_before_any_output(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line = [
        "--config",
        config,
        f"run.dir={tmp_path / 'runs'}",
        f"source.root={tmp_path / 'nowhere'}",
        "--only",
        "shard",
    ]
    assert cli.main(command_line) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.tar"))


def test_stage_without_its_input_names_the_stage_to_run(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--config", config, f"run.dir={tmp_path / 'runs'}", "--only", "infer_cam"]) == 2
    assert "--only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "evaluate", "--until", "shard"], "--from evaluate comes after --until shard"),
        (["--only", "shard", "--from", "shard"], "were both given"),
    ],
)
def test_stages_that_contradict_each_other_are_refused(
    config: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--config", config, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_installed_config_is_found_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--config", "demo", "--preset", "paper", "--print-config"]) == 0
    text = capsys.readouterr().out
    assert "name: demo-seam" in text
    assert "presets/paper.yaml:" in text


def test_short_forms_of_options_are_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--rank 2` would be taken for --ranks, reach every rank, and start ranks there."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["--config", config, "--rank", "2", "--print-config"])
    assert stop.value.code == 2
    assert "--rank" in capsys.readouterr().err


def test_ctrl_c_is_one_line(config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(resolved: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "format_config", interrupted)
    assert cli.main(["--config", config, "--print-config"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "\nseam-dist: interrupted: what is finished is kept, the same command resumes\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--quick"], "with --quick"), (["source.root=null", "source.kind=synthetic"], "without images on disk")],
)
def test_a_page_that_is_not_written_is_refused(
    config: str, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", "--config", config, "--page", "p.html", *arguments]) == 2
    assert f"--page=p.html was given, but {reason} there is no page" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help-config"], ["--help"]])
def test_a_reader_that_stops_early_ends_the_command_quietly(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output:
        command = [sys.executable, "-m", "seam_dist.cli", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_broken_pipe_that_is_not_the_output_is_an_error(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(resolved: object) -> str:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "format_config", fail)
    monkeypatch.setattr(cli, "_reader_is_gone", lambda: False)
    with pytest.raises(BrokenPipeError):
        cli.main(["--config", config, "--print-config"])


@pytest.mark.parametrize(
    ("arguments", "redirection", "code", "message"),
    [
        ("--help-config", ">&-", 0, ""),
        ("--help-config", ">/dev/full", 2, "seam-dist: error: No space left on device: standard output\n"),
        ("status /nowhere", ">&-", 2, "seam-dist: error: /nowhere is not there: give a folder runs/<name>\n"),
        ("status /nowhere", ">&- 2>&-", 2, ""),
    ],
)
def test_an_output_that_takes_nothing_is_no_traceback(
    arguments: str, redirection: str, code: int, message: str
) -> None:
    command = f"{sys.executable} -m seam_dist.cli {arguments} {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, message)


def test_a_dry_run_shows_the_problems_under_its_table(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line = ["--config", config, "source.kind=synthetic", f"run.dir={tmp_path}", "--dry-run"]
    assert cli.main([*command_line, "train_seg.pretrained=/nope.pth", "infer_seg.splits=[test]"]) == 2
    table, problems = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == list(STAGES)
    assert [line.split(":")[:2] for line in problems.splitlines()] == [
        ["error", " infer_seg.splits"],
        ["error", " train_seg.pretrained"],
    ]
    assert cli.main(command_line) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(STAGES)


def test_all_errors_of_a_run_come_at_once_each_with_its_prefix(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["source.kind=synthetic", f"run.dir={tmp_path / 'runs'}", "model.pretrained=/no", "report.compare=[/no]"]
    assert cli.main(["--config", config, *settings]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[:2] for line in lines] == [["seam-dist", " error"]] * 2
    assert not (tmp_path / "runs").exists()
