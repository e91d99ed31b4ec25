"""The options that choose settings, stages and ranks, shared by a run and by `seam-dist check`; light to import."""

from __future__ import annotations

import argparse

from seam_dist.config.load import ConfigError, Resolved, load_config
from seam_dist.config.schema import STAGES, Stage


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    add = parser.add_argument
    add("settings", nargs="*", metavar="section.key=value", help="overrides of single settings")
    add("--config", metavar="NAME|FILE", help="settings of the run, for example demo or my/pets.yaml")
    add("--preset", metavar="NAME|FILE", help="settings that the config builds on, instead of the preset it names")
    add("--only", action="append", choices=STAGES, metavar="STAGE", help="run only this stage; can be repeated")
    add("--from", dest="first", choices=STAGES, metavar="STAGE", help="start with this stage")
    add("--until", dest="last", choices=STAGES, metavar="STAGE", help="stop after this stage")
    add("--ranks", metavar="N", help="start N ranks on this machine; auto: one per GPU, or two on a CPU")


def resolve_config(arguments: argparse.Namespace) -> Resolved:
    """Return the configuration that the arguments name; raise ConfigError."""
    if arguments.config is None and not arguments.settings and arguments.preset is None:
        raise ConfigError("no --config was given: give a name or a YAML file, for example --config demo")
    return load_config(arguments.config, arguments.settings, arguments.preset)


def choose_stages(arguments: argparse.Namespace) -> list[Stage]:
    """Return the stages that `--only`, or `--from` and `--until`, ask for, in their order.

    Raises ConfigError when both forms are used, or when the first stage comes after the last.
    """
    only, first, last = arguments.only, arguments.first, arguments.last
    if only and (first or last):
        raise ConfigError("--only and --from or --until were both given: use one form")
    begin, end = STAGES.index(first or STAGES[0]), STAGES.index(last or STAGES[-1])
    if begin > end:
        raise ConfigError(f"--from {first} comes after --until {last}: the order is {' -> '.join(STAGES)}")
    return [stage for stage in STAGES[begin : end + 1] if not only or stage in only]
