"""`seam-dist check`: all that can be known to be wrong with a run before it starts, and a survey of its data set.

A run makes the same check by itself before its first stage, without opening the images.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from seam_dist.artifacts.outputs import OutputFolder
from seam_dist.cluster.launcher import count_ranks
from seam_dist.cluster.place import read_place
from seam_dist.cluster.progress import progress_bar
from seam_dist.commands.options import add_run_options, choose_stages, resolve_config
from seam_dist.commands.status import run_status, stage_status
from seam_dist.config.findings import Findings
from seam_dist.config.paths import user_path
from seam_dist.config.schema import Config
from seam_dist.data.sources import open_source
from seam_dist.preflight.check import check_run

_EPILOG = """\
examples:
  seam-dist check --config folder source.root=/data/pets --ranks auto
  seam-dist check --config voc12 source.root=/data/VOC2012 --from train_affinity --quick

Exit codes: 0 nothing stands in the way of the run, 2 there are errors.
"""


def check_stages(cfg: Config, stages: Sequence[str], world_size: int) -> Findings:
    """Return the findings on those of `stages` that are not done, on a job of `world_size` ranks."""
    try:
        statuses = run_status(cfg, stages)
        changed = changed_stages(cfg, [status.stage for status in statuses if status.state == "outdated"])
    except OSError:  # the check says which folder cannot be read
        statuses, changed = [], {}
    done = {status.stage for status in statuses if status.state == "done"} - {"report"}
    return check_run(cfg, stages, world_size, done=done, changed=changed)


def changed_stages(cfg: Config, stages: Sequence[str]) -> Mapping[str, str]:
    """Return those of outdated stages whose outputs cannot be what is asked for now, with what differs.

    An input that is only resumed comes out the same, so it changes nothing.
    """
    changed: dict[str, str] = {}
    for stage in stages:
        status = stage_status(cfg, stage, outdated_inputs=list(changed))
        if status.state == "outdated":
            changed[stage] = status.detail
    return changed


def num_ranks(cfg: Config, ranks: str | None) -> int:
    """Return the ranks that a run would have: those of --ranks, of the launcher, or of run.world_size; else 1."""
    if ranks is not None:
        return count_ranks(ranks, cfg.run.device)
    place = read_place(os.environ)
    return place.size if place.launched else cfg.run.world_size or 1


def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        prog="seam-dist check",
        description="Check the settings, weights, packages, disks and the data set of a run before it starts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_run_options(parser)
    parser.add_argument("--quick", action="store_true", help="do not open the images: no survey and no page")
    parser.add_argument(
        "--page", type=user_path, metavar="FILE", help="where the survey goes (default: <run>/check/dataset.html)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `seam-dist check ...`; return 0, or 2 when there are errors. Raises ValueError and OSError."""
    arguments = build_parser().parse_intermixed_args(argv)
    started = time.monotonic()
    cfg, stages = resolve_config(arguments).config, choose_stages(arguments)
    findings = check_stages(cfg, stages, num_ranks(cfg, arguments.ranks))
    surveyed = not arguments.quick and cfg.source.root is not None and cfg.source.kind != "synthetic"
    if arguments.page is not None and not surveyed:
        reason = "with --quick" if arguments.quick else "without images on disk"
        raise ValueError(f"--page={arguments.page} was given, but {reason} there is no page: leave it out")
    if surveyed:
        page = arguments.page or cfg.run_dir / "check" / "dataset.html"
        OutputFolder(page.parent).check([page.name], remedy="give another --page")
        add_new(findings, survey(cfg, page))
    for finding in findings:
        print(finding.line)
    outcome = findings.summary() if len(findings) else f"everything needed is there: {', '.join(stages)}"
    print(f"{outcome} ({time.monotonic() - started:.1f} s)")
    return 2 if findings.errors else 0


def add_new(findings: Findings, others: Findings) -> None:
    """Add findings on topics that are not there yet: the survey lists the data set once more."""
    known = {(finding.severity, finding.topic) for finding in findings}
    findings.merge(finding for finding in others if (finding.severity, finding.topic) not in known)


def survey(cfg: Config, page: Path) -> Findings:
    """Open all images of the data set, print its statistics, write its page and return what was found in it."""
    splits = cfg.splits_of("shard")
    # Here: a run imports this file for its check alone.
    from seam_dist.data.survey import survey_dataset
    from seam_dist.report.dataset_page import format_survey, write_dataset_page

    try:
        with progress_bar("survey", None, "image") as bar:
            result = survey_dataset(
                open_source(cfg.source, splits),
                splits,
                max_pixels=cfg.data.max_pixels,
                pixel_range=cfg.source.pixel_range,
                train_split=cfg.data.train_split,
                refuse_masks=cfg.source.check_masks == "refuse",
                num_processes=len(os.sched_getaffinity(0)),
                progress=bar.update,
            )
    except ValueError as error:  # there is nothing to list, as the check has found as well
        findings = Findings()
        findings.error("source", str(error))
        return findings
    print(format_survey(result))
    write_dataset_page(result, page)
    print(f"page: {page.resolve()}\n")
    return result.findings
