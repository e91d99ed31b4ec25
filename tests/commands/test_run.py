"""Which stages a command line runs, and what each rank gets of it."""

from __future__ import annotations

from seam_dist.cluster.launcher import count_ranks
from seam_dist.commands.run import choose_stages, with_evaluations, without_ranks
from seam_dist.config.schema import STAGES


def test_from_until_and_only_choose_stages_in_their_order() -> None:
    assert choose_stages(None, None, None) == list(STAGES)
    assert choose_stages(None, "train_affinity", "train_seg") == ["train_affinity", "random_walk", "train_seg"]
    assert choose_stages(["evaluate", "shard"], None, None) == ["shard", "evaluate"]


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
