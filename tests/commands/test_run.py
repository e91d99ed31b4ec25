"""Which stages a command line runs, what is checked before the first, and what each rank gets of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from kit import run_config

from seam_dist import cli
from seam_dist.cluster.launcher import DONE_FILE_VARIABLE, count_ranks
from seam_dist.commands import run
from seam_dist.commands.options import choose_stages
from seam_dist.commands.run import run_on_ranks, run_stages, with_evaluations, without_ranks
from seam_dist.config.schema import STAGES


def chosen(*options: str) -> list[str]:
    return list(choose_stages(cli.build_parser().parse_args(options)))


def test_from_until_and_only_choose_stages_in_their_order() -> None:
    assert chosen() == list(STAGES)
    assert chosen("--from", "train_affinity", "--until", "train_seg") == ["train_affinity", "random_walk", "train_seg"]
    assert chosen("--only", "evaluate", "--only", "shard") == ["shard", "evaluate"]


def test_evaluate_follows_each_stage_that_makes_labels_once() -> None:
    planned = with_evaluations(STAGES)
    assert [planned[i - 1] for i, stage in enumerate(planned) if stage == "evaluate"] == [
        "infer_cam",
        "random_walk",
        "infer_seg",
    ]
    assert [stage for stage in planned if stage != "evaluate"] == [stage for stage in STAGES if stage != "evaluate"]
    assert with_evaluations(["infer_cam", "random_walk"]) == ["infer_cam", "random_walk"]


def test_option_ranks_does_not_reach_the_ranks() -> None:
    command_line = ["--ranks", "2", "--config", "a.yaml", "--ranks=3", "train_seam.schedule.lr=1"]
    assert without_ranks(command_line) == ["--config", "a.yaml", "train_seam.schedule.lr=1"]


def test_number_of_ranks_is_a_number_or_auto() -> None:
    assert count_ranks("3") == 3
    assert count_ranks("auto") >= 1


def test_a_run_that_cannot_reach_its_end_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = run_config(tmp_path, train_seg={"pretrained": "/nope.pth"}, infer_seg={"splits": ["test"]})
    assert run_stages(cfg, STAGES) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert all(line.startswith("seam-dist: error: ") for line in lines)
    assert any("train_seg.pretrained: /nope.pth is not a file" in line for line in lines)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "shards").exists()


def test_a_good_run_gets_no_line_and_an_odd_one_gets_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stages(run_config(tmp_path), ["shard"]) == 0
    assert "seam-dist" not in capsys.readouterr().err
    assert run_stages(run_config(tmp_path, run={"threads": 9999}, data={"shards": None}), ["shard"]) == 0
    assert capsys.readouterr().err.count("seam-dist: warning: run.threads=9999") == 1


def test_ranks_of_a_launch_that_was_checked_do_not_check_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DONE_FILE_VARIABLE, str(tmp_path / "done"))
    monkeypatch.setattr(run, "check_stages", lambda *arguments, **options: pytest.fail("it was checked again"))
    assert run_stages(run_config(tmp_path), ["shard"]) == 0
    assert (tmp_path / "done").is_file()


def test_no_rank_starts_where_the_check_finds_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[int, Sequence[str]]] = []
    monkeypatch.setattr(run, "launch", lambda ranks, arguments: started.append((ranks, arguments)) or 0)
    cfg = run_config(tmp_path, data={"streams": 2})
    assert run_on_ranks(cfg, ["shard", "train_seam"], "3", ["--ranks", "3"]) == 2
    assert "data.streams=2 is not a multiple of 3 ranks" in capsys.readouterr().err
    assert not started
    assert run_on_ranks(cfg, ["shard"], "2", ["--ranks", "2", "--config", "a.yaml"]) == 0
    assert started == [(2, ["--config", "a.yaml"])]
