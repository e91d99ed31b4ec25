"""The command `seam-dist`: parse the command line and call the command in seam_dist/commands.

Exit codes: 0 done; 1 unforeseen, with a traceback; 2 a setting, an input or a stage's precondition is wrong, a line for
each says what; 128 + n ended by signal n, a training after its checkpoint; 141 when the reader of the output is gone.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence

from seam_dist import __version__
from seam_dist.cluster.place import is_first
from seam_dist.commands.options import add_run_options, choose_stages, resolve_config
from seam_dist.config.describe import format_config, format_settings
from seam_dist.config.findings import error_text
from seam_dist.config.load import ConfigError

_DESCRIPTION = """\
Train a segmentation network from image-level labels with SEAM.

Stages, in order: shard -> train_seam -> infer_cam -> train_affinity -> random_walk -> train_seg -> infer_seg ->
evaluate -> report. Without --from, --until or --only all of them run; evaluate also runs after each stage that makes
labels. A finished stage is skipped, an interrupted one resumes.

Before the first stage all of them are checked: settings, weights, packages, disks, the data set.

Other commands (each has its own --help):
  seam-dist check         only check, and survey the data set
  seam-dist status RUN    show how far a run is
  seam-dist predict       segment images with a trained network
"""
_EPILOG = """\
examples:
  seam-dist --config demo --ranks auto
  seam-dist --config voc12 source.root=/data/VOC2012 --only shard
  seam-dist --config voc12 --from train_affinity --dry-run
  seam-dist --config voc12 --preset paper --print-config
  seam-dist --config my/pets.yaml --ranks 2
  deepspeed --hostfile hosts --module seam_dist.cli --config voc12 --only train_seam
  seam-dist status runs/voc12
  seam-dist predict --weights runs/voc12 --images photos --out masks

Configs and presets are installed with the package and given by name. A value with a separator or ending in .yaml is
the path of your own file. A preset NAME is presets/NAME.yaml beside the config file, if that exists, else the installed
one. Outputs go to <run.dir>/<run.name>/<stage>. --help-config explains every setting.
"""
_COMMANDS = ("check", "status", "predict")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line of a run."""
    parser = argparse.ArgumentParser(
        prog="seam-dist",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Short forms of --ranks would pass without_ranks and start ranks on every rank.
        allow_abbrev=False,
    )
    add_run_options(parser)
    add = parser.add_argument
    add("--dry-run", action="store_true", help="print what would be done with each stage and exit")
    add("--print-config", action="store_true", help="print all settings and where each value comes from, and exit")
    add("--help-config", action="store_true", help="print the meaning of every setting and exit")
    add("--version", action="version", version=f"seam-dist {__version__}")
    # The DeepSpeed launcher appends it to every rank's command line; the rank itself is read from the environment.
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    command_line = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the command
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may have what the terminal's encoding lacks
    try:
        try:
            if command_line and command_line[0] in _COMMANDS:
                return int(importlib.import_module(f"seam_dist.commands.{command_line[0]}").main(command_line[1:]))
            return _run(command_line)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        if is_first(os.environ):
            print("\nseam-dist: interrupted: what is finished is kept, the same command resumes", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        _discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _discard_output()
        print(f"seam-dist: error: {error.strerror or error}: {error.filename or 'standard output'}", file=sys.stderr)
        return 2
    except ValueError as error:
        if os.environ.get("SEAM_DIST_TRACEBACK"):
            traceback.print_exc()
        # Every rank meets the same bad setting; one line of it is enough.
        if is_first(os.environ) or not isinstance(error, ConfigError):
            print(f"seam-dist: error: {error}", file=sys.stderr)
        return 2


def _run(command_line: Sequence[str]) -> int:
    # Settings may stand between options, in any order.
    arguments = build_parser().parse_intermixed_args(command_line)
    if arguments.help_config:
        print(format_settings(), end="")
        return 0
    try:
        resolved = resolve_config(arguments)
        if arguments.print_config:
            print(format_config(resolved), end="")
            return 0
        cfg, stages = resolved.config, choose_stages(arguments)
        # They import torch, which --help and --print-config need not wait for.
        from seam_dist.commands import check, run, status

        if arguments.dry_run:
            print(status.format_status(status.run_status(cfg, stages), action=True))
            findings = check.check_stages(cfg, stages, check.num_ranks(cfg, arguments.ranks))
            if len(findings):
                print("", *(finding.line for finding in findings), sep="\n")
            return 2 if findings.errors else 0
        if arguments.ranks is not None:
            return run.run_on_ranks(cfg, stages, arguments.ranks, command_line)
        return run.run_stages(cfg, stages)
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"seam-dist: error: {error_text(error)}", file=sys.stderr)
        return 2


def _discard_output() -> None:
    """Let what is still buffered go nowhere, so that flushing it at exit raises nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_is_gone() -> bool:
    """Say whether stdout is a pipe that nobody reads any more, such as that of `seam-dist ... | head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
