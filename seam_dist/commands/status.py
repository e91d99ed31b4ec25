"""What each stage of a run is: done, running, interrupted, outdated, damaged or not started; read from the disk alone.

A stage is outdated when what it was made from, or a setting that it depends on, is not what its `stage.json` says.
Evaluate has a record for each thing that it scores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.authors_files import CAM_FILES, CRF_FILES, crf_folders, files_fingerprint
from seam_dist.artifacts.cam_file import FORMAT
from seam_dist.artifacts.layout import read_run_config, stage_folder
from seam_dist.artifacts.lock import lock_holder
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.artifacts.stage import MANIFEST, RECORD, StageError, damaged_outputs, differences, input_fingerprint
from seam_dist.config.findings import error_text
from seam_dist.config.load import flatten
from seam_dist.config.paths import user_path
from seam_dist.config.schema import STAGES, Config
from seam_dist.evaluation.score_folders import folders_by_name, title_of
from seam_dist.evaluation.text_table import aligned
from seam_dist.stages.shard import changes_of_source

# Inputs that a record names after what they are, not after the stage that makes them.
_INPUT_STAGES = {"shards": "shard", "weights": "train_seam"}

# What the command does when it comes to a stage in each state.
_ACTIONS = {
    "done": "skip",
    "running": "refuse, since it is running",
    "interrupted": "resume",
    "outdated": "rerun",
    "damaged": "resume",
    "not started": "run",
}


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run: its state, a key of `_ACTIONS`, and what there is to say about it."""

    stage: str
    state: str
    detail: str = ""

    @property
    def action(self) -> str:
        """What the command does when it comes to this stage."""
        return _ACTIONS[self.state]


def stage_status(cfg: Config, stage: str, *, outdated_inputs: Sequence[str] = ()) -> StageStatus:
    """Return the status of one stage under the settings `cfg`.

    `outdated_inputs` are stages that will be rerun before it, for a dry run.
    """
    folder = stage_folder(cfg, stage)
    if (holder := lock_holder(cfg.run_dir, stage)) is not None:
        since = _minute(holder.get("since", time.time()))
        process = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {since}"
        return StageStatus(stage, "running", ", ".join(filter(None, (process, _progress(folder)))))
    # Evaluate keeps its records beside the scores that they belong to.
    parts = folders_by_name(cfg) if stage == "evaluate" else {"": folder}
    records = [_read_object(part / RECORD) for part in parts.values() if (part / RECORD).is_file()]
    if not records:
        # A data set may have been converted elsewhere; then only its manifest came along.
        if stage == "shard" and (folder / MANIFEST).is_file():
            return _finished_shards(cfg, f"in {folder}")
        return StageStatus(stage, "not started")
    changes = dict.fromkeys(change for record in records for change in _changes(cfg, stage, record, outdated_inputs))
    if changes:
        return StageStatus(stage, "outdated", "; ".join(list(changes)[:3]) + ("; ..." if len(changes) > 3 else ""))
    if unscored := [title_of(name) for name, part in parts.items() if name and not (part / MANIFEST).is_file()]:
        return StageStatus(stage, "interrupted", f"no scores yet: {', '.join(unscored)}")
    if not (folder / MANIFEST).is_file():
        return StageStatus(stage, "interrupted", _progress(folder))
    manifest = _read_object(folder / MANIFEST)
    if damaged := damaged_outputs(folder, manifest):
        detail = f"{damaged[0]} is missing or has another size ({len(damaged)} files in all)"
        return StageStatus(stage, "damaged", detail)
    took = manifest.get("time_s")
    finished = _minute((folder / MANIFEST).stat().st_mtime)
    if stage == "shard":
        return _finished_shards(cfg, finished)
    return StageStatus(stage, "done", f"{took:.0f} s, {finished}" if isinstance(took, int | float) else "")


def _finished_shards(cfg: Config, detail: str) -> StageStatus:
    """Return the status of shards that a conversion finished: outdated if the data set has changed since."""
    changes, note = changes_of_source(cfg)
    if changes:
        return StageStatus("shard", "outdated", changes)
    return StageStatus("shard", "done", "; ".join(filter(None, (detail, note))))


def run_status(cfg: Config, stages: Sequence[str] = STAGES) -> list[StageStatus]:
    """Return the status of each stage, in order; a stage whose input is about to be rerun counts as outdated."""
    statuses: list[StageStatus] = []
    for stage in stages:
        rerun = [status.stage for status in statuses if status.state not in ("done", "running")]
        statuses.append(stage_status(cfg, stage, outdated_inputs=rerun))
    return statuses


def _changes(cfg: Config, stage: str, record: Mapping[str, Any], outdated_inputs: Sequence[str]) -> list[str]:
    """Return what is no longer as the record of a stage, or of a part of it, says."""
    now = flatten(cfg)
    before = record.get("settings", {})
    changes = differences({"settings": before}, {"settings": {key: now.get(key) for key in before}})
    changes += _changed_inputs(cfg, stage, record)
    inputs = {_INPUT_STAGES.get(name, name) for name in record.get("inputs", {})}
    return changes + [f"{name} is rerun" for name in outdated_inputs if name in inputs]


def _changed_inputs(cfg: Config, stage: str, record: Mapping[str, Any]) -> list[str]:
    """Return what is different in those inputs of a stage that can be looked up without computing anything."""
    changes = []
    inputs = record.get("inputs", {})
    authors = dict(zip(CRF_FILES, crf_folders(cfg.infer_cam) or (None, None), strict=True))
    authors[CAM_FILES] = cfg.infer_cam.from_interop
    if stage == "infer_cam":
        new = [folder for name, folder in authors.items() if folder is not None and name not in inputs]
        changes += [f"it was made without the authors' files in {folder}" for folder in new]
    for name, before in inputs.items():
        if name in authors:
            if not _are_files(authors[name], before):
                changes.append(f"the authors' files ({authors[name] or 'not asked for now'}) changed")
        elif name == "format":
            if before != FORMAT:
                changes.append("this version stores its maps in another form")
        elif name == "weights":
            weights = cfg.stage_dir("train_seam") / "final" / "model.safetensors"
            if cfg.infer_cam.checkpoint is None and weights.is_file() and sha256_file(weights) != before:
                changes.append("the weights of train_seam changed")
        elif name == "shards" or name in STAGES:
            folder = stage_folder(cfg, _INPUT_STAGES.get(name, name))
            if (folder / MANIFEST).is_file() and input_fingerprint(folder, name) != before:
                changes.append(f"{name} changed")
    return changes


def _are_files(folder: Path | None, before: str) -> bool:
    """Return whether a folder holds the authors' files whose fingerprint was `before`."""
    if folder is None:
        return False
    try:
        return files_fingerprint(folder, "") == before
    except StageError:
        return False


def _progress(folder: Path) -> str:
    """Return how far an unfinished stage is: steps of a training, finished shards of the others."""
    metrics = folder / "metrics.jsonl"
    if metrics.is_file():
        steps = []
        for line in metrics.read_text(errors="replace").splitlines()[-2:]:
            try:
                steps.append(int(json.loads(line)["step"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the line was being written when the process was killed
        return f"step {max(steps)}" if steps else ""
    shards = [path for path in folder.rglob("*.tar") if not path.name.startswith(".")]
    return f"{len(shards)} tars" if shards else ""


def _read_object(path: Path) -> dict[str, Any]:
    """Return what a stage left in stage.json or manifest.json; ValueError when it is something else."""
    value = read_json(path)
    parts = ("settings", "inputs", "outputs")
    if not isinstance(value, dict) or not all(isinstance(value.get(part, {}), dict) for part in parts):
        raise ValueError(f"{path} is not what a stage writes: remove it and run the stage again")
    return value


def _minute(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def format_status(statuses: Sequence[StageStatus], *, action: bool = False) -> str:
    """Return the table; with `action`, what the command would do with each stage."""
    return aligned([(s.stage, *([s.action] if action else []), s.state, s.detail) for s in statuses])


def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        prog="seam-dist status",
        description="Show which stages of a run are done, running, interrupted, outdated or not started.",
    )
    parser.add_argument(
        "runs", nargs="+", type=user_path, metavar="RUN", help="folder of a run, for example runs/voc12"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `seam-dist status RUN ...`; return 0, or 2 when a folder is no run."""
    folders: list[Path] = build_parser().parse_args(argv).runs
    code = 0
    for number, folder in enumerate(folders):
        try:
            text = format_status(run_status(read_run_config(folder)))
        except (OSError, ValueError) as error:
            print(f"seam-dist: error: {error_text(error)}", file=sys.stderr)
            code = 2
            continue
        if len(folders) > 1:
            print(f"{'' if number == 0 else chr(10)}{folder}")
        print(text)
    return code
