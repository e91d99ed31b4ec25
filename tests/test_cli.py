"""The command line: what it prints, what it refuses, and with which exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from seam_dist import cli
from seam_dist.cluster.launcher import count_ranks
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
    assert "--config configs/demo.yaml" in text
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
    ("words", "message"),
    [
        (["train_seam.schedule.lrr=1"], "unknown key train_seam.schedule.lrr (did you mean train_seam.schedule.lr?)"),
        (["deepspeed.zero_optimizaton.stage=2"], "zero_optimization"),
        (["deepspeed.train_batch_size=2"], "train_seam.schedule.global_batch_size"),
        (["--ranks", "many"], "--ranks=many is not a number of ranks"),
        (["--ranks", "0"], "--ranks=0 is not a number of ranks"),
    ],
)
def test_wrong_settings_stop_with_one_line_and_code_2(
    config: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--config", config, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("seam-dist: error: ")
    assert error.count("\n") == 1


def test_settings_may_stand_anywhere_between_the_options(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "train_seam.schedule.epochs=3",
        "--config",
        config,
        "train_seam.schedule.momentum=0.5",
        "--stage",
        "shard",
        "run.seed=4",
        "--print-config",
    ]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in ("epochs: 3.0", "momentum: 0.5", "seed: 4"))


def test_no_configuration_at_all_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "no --config was given" in capsys.readouterr().err


def test_missing_data_set_stops_before_any_output(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--config",
        config,
        f"run.dir={tmp_path / 'runs'}",
        f"source.root={tmp_path / 'nowhere'}",
        "--stage",
        "shard",
    ]
    assert cli.main(words) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.tar"))


def test_stage_without_its_input_names_the_stage_to_run(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--config", config, f"run.dir={tmp_path / 'runs'}", "--stage", "infer_cam"]) == 2
    assert "--stage" in capsys.readouterr().err


def test_ranks_words_do_not_reach_the_ranks() -> None:
    words = ["--ranks", "2", "--config", "a.yaml", "--ranks=3", "train_seam.schedule.lr=1"]
    assert cli._without_ranks(words) == ["--config", "a.yaml", "train_seam.schedule.lr=1"]


def test_number_of_ranks_is_read_or_found() -> None:
    assert count_ranks("3") == 3
    assert count_ranks("auto") >= 1


def test_from_until_and_only_choose_stages_in_their_order() -> None:
    assert cli.choose_stages(None, None, None) == list(STAGES)
    assert cli.choose_stages(None, "train_affinity", "train_seg") == ["train_affinity", "random_walk", "train_seg"]
    assert cli.choose_stages(["evaluate", "shard"], None, None) == ["shard", "evaluate"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "evaluate", "--until", "shard"], "--from evaluate comes after --until shard"),
        (["--only", "shard", "--from", "shard"], "were both given"),
    ],
)
def test_stages_that_contradict_each_other_are_refused(
    config: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--config", config, *words]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_follows_each_stage_that_makes_labels_once() -> None:
    planned = cli.with_evaluations(STAGES)
    assert [planned[i - 1] for i, stage in enumerate(planned) if stage == "evaluate"] == [
        "infer_cam",
        "random_walk",
        "infer_seg",
    ]
    assert [stage for stage in planned if stage != "evaluate"] == [stage for stage in STAGES if stage != "evaluate"]
    assert cli.with_evaluations(["infer_cam", "random_walk"]) == ["infer_cam", "random_walk"]
