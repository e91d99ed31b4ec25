"""Run stages in their order: on this rank of a job or on all devices of this machine."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from seam_dist.artifacts.lock import stage_lock
from seam_dist.cluster import distributed
from seam_dist.cluster.launcher import count_ranks, launch, mark_done
from seam_dist.config.deepspeed import check_deepspeed_config
from seam_dist.config.load import ConfigError
from seam_dist.config.schema import STAGES, Config

_MAKE_LABELS = ("infer_cam", "random_walk", "infer_seg")


def choose_stages(only: Sequence[str] | None, first: str | None, last: str | None) -> list[str]:
    """Return the stages that `--only`, or `--from` and `--until`, ask for, in their order.

    Raises ConfigError when both forms are used, or when `first` comes after `last`.
    """
    if only and (first or last):
        raise ConfigError("--only and --from or --until were both given: use one form")
    begin, end = STAGES.index(first or STAGES[0]), STAGES.index(last or STAGES[-1])
    if begin > end:
        raise ConfigError(f"--from {first} comes after --until {last}: the order is {' -> '.join(STAGES)}")
    return [stage for stage in STAGES[begin : end + 1] if not only or stage in only]


def with_evaluations(stages: Sequence[str]) -> list[str]:
    """Return the stages with evaluate after each one that makes labels, if evaluate is among them."""
    planned: list[str] = []
    for stage, following in zip(stages, [*stages[1:], ""], strict=True):
        planned.append(stage)
        if "evaluate" in stages and stage in _MAKE_LABELS and following != "evaluate":
            planned.append("evaluate")
    return planned


def run_stages(cfg: Config, stages: Sequence[str]) -> None:
    """Run stages one after the other on this rank; every rank of the job must call it with the same arguments."""
    check_deepspeed_config(cfg.deepspeed)
    world = distributed.init_world(cfg)
    try:
        for stage in with_evaluations(stages):
            module: Any = importlib.import_module(f"seam_dist.stages.{stage}")
            with ExitStack() as stack:
                distributed.on_main(partial(stack.enter_context, stage_lock(cfg.run_dir, stage)), world)
                module.run(cfg)
                distributed.barrier(world)
    finally:
        distributed.shutdown(world)
    if world.is_main:
        mark_done()


def run_on_ranks(cfg: Config, ranks: str, command_line: Sequence[str]) -> int:
    """Run `seam-dist COMMAND_LINE`, less its --ranks, on `ranks` processes of this machine; return the exit code."""
    check_deepspeed_config(cfg.deepspeed)
    return launch(count_ranks(ranks, cfg.run.device), without_ranks(command_line))


def without_ranks(command_line: Sequence[str]) -> list[str]:
    """Return the command line as each rank gets it: without --ranks and its value."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ranks")
    return parser.parse_known_args(command_line)[1]
