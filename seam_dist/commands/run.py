"""Run stages in their order: on this rank of a job or on all devices of this machine, after a check of all of them."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from seam_dist.artifacts.layout import LABEL_STAGES
from seam_dist.artifacts.lock import stage_lock
from seam_dist.cluster import distributed
from seam_dist.cluster.launcher import DONE_FILE_VARIABLE, count_ranks, launch, mark_done
from seam_dist.commands.check import check_stages
from seam_dist.config.findings import Findings
from seam_dist.config.schema import Config
from seam_dist.preflight.machine import check_port


def with_evaluations(stages: Sequence[str]) -> list[str]:
    """Return the stages with evaluate after each one that makes labels, if evaluate is among them."""
    planned: list[str] = []
    for stage, following in zip(stages, [*stages[1:], ""], strict=True):
        planned.append(stage)
        if "evaluate" in stages and stage in LABEL_STAGES and following != "evaluate":
            planned.append("evaluate")
    return planned


def run_stages(cfg: Config, stages: Sequence[str]) -> int:
    """Run stages one after the other on this rank; every rank of the job must call it with the same arguments.

    Before the first one the main rank checks all of them, unless the process that started the ranks has done it.
    Returns 0, or 2 on every rank when the check has found errors, which the main rank prints, with its warnings.
    """
    check_port(os.environ)
    world = distributed.init_world(cfg)
    try:
        if DONE_FILE_VARIABLE not in os.environ:
            check = partial(check_stages, cfg, stages, world.size)
            if report_findings(distributed.on_main(check, world), show=world.is_main):
                return 2
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
    return 0


def run_on_ranks(cfg: Config, stages: Sequence[str], ranks: str, command_line: Sequence[str]) -> int:
    """Run `seam-dist COMMAND_LINE`, less its --ranks, on `ranks` processes of this machine; return the exit code.

    No process is started, and the exit code is 2, when the check of `stages` finds errors.
    """
    count = count_ranks(ranks, cfg.run.device)
    if report_findings(check_stages(cfg, stages, count)):
        return 2
    return launch(count, without_ranks(command_line))


def report_findings(findings: Findings, *, show: bool = True) -> bool:
    """Print all findings to stderr, a line each, and return whether there are errors; no finding, no line."""
    for finding in findings if show else ():
        print(f"seam-dist: {finding.line}", file=sys.stderr, flush=True)
    return bool(findings.errors)


def without_ranks(command_line: Sequence[str]) -> list[str]:
    """Return the command line as each rank gets it: without --ranks and its value."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ranks")
    return parser.parse_known_args(command_line)[1]
