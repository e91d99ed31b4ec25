"""What rows of the preflight share: settings of a small run, and its check after something was put on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import kit
from case import Case, Outcome

from seam_dist.config.schema import STAGES, Config
from seam_dist.preflight.check import check_run
from seam_dist.stages import shard

Prepare = Callable[[Path], object]
READY = "ready"
LATER = tuple(stage for stage in STAGES if stage != "shard")
BATCHES: dict[str, Any] = {
    stage: {"schedule": {"global_batch_size": 2, "max_steps": 4}} for stage in ("train_seam", "train_affinity")
}
BASE = {
    **BATCHES,
    "train_seg": {"schedule": {"global_batch_size": 2, "max_steps": 4}, "width": 8},
    "model": {"width": 0.05, "pcm_channels": [4, 4]},
    "crf": {"impl": "torch"},
}


def config(folder: Path, **sections: Mapping[str, Any]) -> Config:
    """Settings of a small run; a section takes the place of BASE's keys, schedules as a whole."""
    if "root" in sections.get("source", {}):
        sections["source"] = {**sections["source"], "root": str(folder / sections["source"]["root"])}
    return kit.run_config(folder, base=BASE, **sections)


def found(
    *stages: str,
    prepare: Prepare = lambda folder: None,
    ranks: int = 1,
    done: Sequence[str] = (),
    changed: Mapping[str, str] | None = None,
    **sections: Mapping[str, Any],
) -> Callable[[Path], Outcome]:
    """Check the stages, all of them when none is named, with these settings, after `prepare` made what is on disk."""

    def run(folder: Path) -> Outcome:
        prepare(folder)
        cfg = config(folder, **{name: _in(folder, values) for name, values in sections.items()})
        findings = check_run(cfg, stages or STAGES, ranks, done=done, changed=changed)
        findings.raise_errors(ValueError)
        return Outcome(READY, [str(finding) for finding in findings.warnings])

    return run


def _in(folder: Path, value: Any) -> Any:
    """Put the folder of the test in place of `@`."""
    if isinstance(value, dict):
        return {key: _in(folder, entry) for key, entry in value.items()}
    return value.replace("@", str(folder)) if isinstance(value, str) else value


def schedule(**values: Any) -> dict[str, Any]:
    """A training section whose schedule has other values."""
    return {"schedule": {"global_batch_size": 2, "max_steps": 4, **values}}


def shards(folder: Path) -> Path:
    """Converted shards of the synthetic scenes, in the folder where `config` looks for them."""
    shard.run(config(folder))
    return folder / "shards"


def refused(fault: str, run: Callable[[Path], Outcome], pattern: str) -> Case:
    return Case(reader="preflight", fault=fault, run=run, refused=pattern)


def warned(fault: str, run: Callable[[Path], Outcome], pattern: str) -> Case:
    return Case(reader="preflight", fault=fault, run=run, works=READY, warns=pattern)


def works(fault: str, run: Callable[[Path], Outcome]) -> Case:
    return Case(reader="preflight", fault=fault, run=run, works=READY)
