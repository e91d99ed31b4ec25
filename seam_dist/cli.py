"""The command `seam-dist`: read the settings, then run stages in order, alone or as one rank of many.

Exit codes: 0 done; 2 a setting, an input or a stage's precondition is wrong (one line says what); 1 anything
unforeseen (with its traceback); 128 + n a training that signal n ended after its checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from seam_dist import __version__
from seam_dist.cluster.launcher import count_ranks, launch, mark_done
from seam_dist.config.load import ConfigError, Resolved, format_config, load_config, section_docs, settings
from seam_dist.config.schema import STAGES, Config

_DESCRIPTION = """\
Train a segmentation network from image-level labels by SEAM.

Stages, in order: shard -> train_seam -> infer_cam -> train_affinity -> random_walk -> train_seg -> infer_seg ->
evaluate -> report. Without --from, --until or --only all of them run, and evaluate also after each stage that makes
labels; a stage that is done is skipped, one that was cut short goes on where it stopped.

Other commands: `seam-dist status RUN` tells how far a run is, `seam-dist predict` segments a folder of images.
"""
_EPILOG = """\
examples:
  seam-dist --config configs/demo.yaml --ranks auto
  seam-dist --config configs/voc12.yaml source.root=/data/VOC2012 --only shard
  seam-dist --config configs/voc12.yaml --from train_affinity --dry-run
  seam-dist --config configs/voc12.yaml --preset paper --print-config
  deepspeed --hostfile hosts --module seam_dist.cli --config configs/voc12.yaml --only train_seam
  seam-dist status runs/voc12
  seam-dist predict --weights runs/voc12 --images photos --out masks

Outputs go to <run.dir>/<run.name>/<stage>. `--help-config` explains every setting.
"""


_COMMANDS = ("status", "predict")
_MAKE_LABELS = ("infer_cam", "random_walk", "infer_seg")


def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        prog="seam-dist", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings that override the files")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file of settings, for example configs/voc12.yaml"
    )
    parser.add_argument("--preset", metavar="NAME", help="settings of presets/NAME.yaml beside the config file")
    parser.add_argument(
        "--stage",
        "--only",
        action="append",
        choices=STAGES,
        metavar="STAGE",
        help="run this stage only; may be given several times",
    )
    parser.add_argument("--from", dest="first", choices=STAGES, metavar="STAGE", help="begin with this stage")
    parser.add_argument("--until", dest="last", choices=STAGES, metavar="STAGE", help="end with this stage")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be done with each stage, then stop")
    parser.add_argument(
        "--ranks",
        metavar="N",
        help="start N ranks on this machine through the DeepSpeed launcher; auto: all its devices",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings and where each came from, then stop"
    )
    parser.add_argument("--help-config", action="store_true", help="explain every setting, then stop")
    parser.add_argument("--version", action="version", version=f"seam-dist {__version__}")
    # The DeepSpeed launcher appends it to every rank's command line; the rank itself is read from the environment.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def format_settings_help() -> str:
    """Return every setting with its type, default and meaning, by section."""
    docs = section_docs()
    lines: list[str] = []
    current = ""
    for setting in settings():
        section = setting.key.partition(".")[0]
        if section != current:
            current = section
            lines += ["", f"{section}: {docs.get(section, '')}".rstrip(": ")]
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        lines += [f"  {setting.key}  ({setting.type_name}, default {default})", f"      {setting.doc}"]
    return "\n".join(lines[1:]) + "\n"


def choose_stages(only: Sequence[str] | None, first: str | None, last: str | None) -> list[str]:
    """Return the stages that were asked for, in their order; ConfigError when there is none between the two."""
    if only and (first or last):
        raise ConfigError("--only (or --stage) and --from or --until were both given: use one form")
    begin, end = STAGES.index(first or STAGES[0]), STAGES.index(last or STAGES[-1])
    if begin > end:
        raise ConfigError(f"--from {first} comes after --until {last}: the order is {' -> '.join(STAGES)}")
    return [stage for stage in STAGES[begin : end + 1] if not only or stage in only]


def with_evaluations(stages: Sequence[str]) -> list[str]:
    """Return the stages with evaluate after each that makes labels, where evaluate is asked for and others follow."""
    planned: list[str] = []
    for stage, following in zip(stages, [*stages[1:], ""], strict=True):
        planned.append(stage)
        if "evaluate" in stages and stage in _MAKE_LABELS and following != "evaluate":
            planned.append("evaluate")
    return planned


def run_stages(cfg: Config, stages: Sequence[str]) -> None:
    """Run stages one after the other on this rank; every rank of the job must call it with the same arguments."""
    from seam_dist.artifacts.lock import stage_lock
    from seam_dist.cluster import distributed

    world = distributed.init_world(cfg)
    try:
        for stage in stages:
            module: Any = importlib.import_module(f"seam_dist.stages.{stage}")
            with ExitStack() as stack:
                distributed.on_main(partial(_claim, stack, stage_lock(cfg.run_dir, stage)), world)
                module.run(cfg)
                distributed.barrier(world)
    finally:
        distributed.shutdown(world)


def _claim(stack: ExitStack, claim: AbstractContextManager[None]) -> None:
    stack.enter_context(claim)


def _without_ranks(words: Sequence[str]) -> list[str]:
    """Return the command line as each rank gets it: without --ranks and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith("--ranks="):
            skip = False
        elif word == "--ranks":
            skip = True
        else:
            kept.append(word)
    return kept


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in _COMMANDS:
        return int(importlib.import_module(f"seam_dist.commands.{words[0]}").main(words[1:]))
    parser = build_parser()
    # Settings may stand between options, in any order.
    arguments = parser.parse_intermixed_args(words)
    if arguments.help_config:
        print(format_settings_help(), end="")
        return 0
    is_main = int(os.environ.get("RANK", "0")) == 0
    try:
        if arguments.config is None and not arguments.settings and not arguments.preset:
            raise ConfigError("no --config was given: name a YAML file, for example --config configs/demo.yaml")
        resolved: Resolved = load_config(arguments.config, arguments.settings, arguments.preset)
        if arguments.print_config:
            print(format_config(resolved), end="")
            return 0
        stages = choose_stages(arguments.stage, arguments.first, arguments.last)
        if arguments.dry_run:
            from seam_dist.commands.status import format_status, run_status

            print(format_status(run_status(resolved.config, stages), action=True))
            return 0
        from seam_dist.config.deepspeed import check_deepspeed_config

        check_deepspeed_config(resolved.config.deepspeed)
        if arguments.ranks is not None:
            return launch(count_ranks(arguments.ranks), _without_ranks(words))
        run_stages(resolved.config, with_evaluations(stages))
        if is_main:
            mark_done()
    except ValueError as error:
        # Every rank meets the same bad setting; one line of it is enough.
        if os.environ.get("SEAM_DIST_TRACEBACK"):
            traceback.print_exc()
        if is_main or not isinstance(error, ConfigError):
            print(f"seam-dist: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"seam-dist: error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
