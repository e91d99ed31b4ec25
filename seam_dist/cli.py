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
from pathlib import Path
from typing import Any

from seam_dist import __version__
from seam_dist.config import STAGES, Config
from seam_dist.launcher import count_ranks, launch, mark_done
from seam_dist.settings import ConfigError, Resolved, format_config, load_config, section_docs, settings

_DESCRIPTION = """\
Train a segmentation network from image-level labels by SEAM.

Stages, in order: shard -> train_seam -> infer_cam -> evaluate -> report. Without --stage all of them run; a stage
that is done is skipped, one that was cut short goes on where it stopped.
"""
_EPILOG = """\
examples:
  seam-dist --config configs/demo.yaml --ranks auto
  seam-dist --config configs/voc12.yaml source.root=/data/VOC2012 --stage shard
  seam-dist --config configs/voc12.yaml --preset paper --print-config
  deepspeed --hostfile hosts --module seam_dist.cli --config configs/voc12.yaml --stage train_seam

Outputs go to <run.dir>/<run.name>/<stage>. `--help-config` explains every setting.
"""


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
        "--stage", action="append", choices=STAGES, help="run this stage only; may be given several times"
    )
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


def run_stages(cfg: Config, stages: Sequence[str]) -> None:
    """Run stages one after the other on this rank; every rank of the job must call it with the same arguments."""
    from seam_dist import distributed

    world = distributed.init_world(cfg)
    try:
        for stage in stages:
            module: Any = importlib.import_module(f"seam_dist.stages.{stage}")
            module.run(cfg)
            distributed.barrier(world)
    finally:
        distributed.shutdown(world)


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
    parser = build_parser()
    # Settings may stand between options, in any order.
    arguments = parser.parse_intermixed_args(argv)
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
        from seam_dist.distributed import check_deepspeed_config

        check_deepspeed_config(resolved.config.deepspeed)
        if arguments.ranks is not None:
            return launch(count_ranks(arguments.ranks), _without_ranks(argv if argv is not None else sys.argv[1:]))
        stages = [stage for stage in STAGES if stage in (arguments.stage or STAGES)]
        run_stages(resolved.config, stages)
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
