"""What each stage of a run is: done, running, cut short, stale or not begun; told from the disk, changing nothing.

A stage is stale when what it was made from, or a setting that it depends on, is no longer what its `stage.json` says.
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

import yaml

from seam_dist.artifacts.atomic import read_json, sha256_file
from seam_dist.artifacts.authors_files import CAM_FILES, CRF_FILES, crf_folders
from seam_dist.artifacts.cam_file import FORMAT
from seam_dist.artifacts.lock import lock_holder
from seam_dist.artifacts.stage import StageError, differences, files_fingerprint, fingerprint
from seam_dist.config.load import flatten, from_tree
from seam_dist.config.schema import STAGES, Config
from seam_dist.evaluation.label_scores import unscored_kinds

# Settings that a stage records only when they are in use, and what they are when it does not.
_RECORDED_WHEN_ON = {"infer_cam": {"infer_cam.crf": False}}


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run: its state, what there is to say about it, and what `seam-dist` would do with it."""

    stage: str
    state: str
    """done, running, cut short, stale, damaged or not begun."""
    detail: str = ""

    @property
    def action(self) -> str:
        """What the command does when it comes to this stage."""
        return {
            "done": "skip",
            "running": "refuse, since it is running",
            "cut short": "go on",
            "stale": "make again",
            "damaged": "go on",
            "not begun": "run",
        }[self.state]


def stage_status(cfg: Config, stage: str, *, stale_inputs: Sequence[str] = ()) -> StageStatus:
    """Return the status of one stage under the settings `cfg`.

    `stale_inputs` are stages that will be made again before it, for a dry run.
    """
    folder = cfg.shards_dir if stage == "shard" else cfg.stage_dir(stage)
    if (holder := lock_holder(cfg.run_dir, stage)) is not None:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(holder.get("since", time.time())))
        where = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {since}"
        return StageStatus(stage, "running", ", ".join(filter(None, (where, _progress(folder, stage)))))
    if not (folder / "stage.json").is_file():
        # A data set may have been converted elsewhere; then only its manifest came along.
        if stage == "shard" and (folder / "manifest.json").is_file():
            return StageStatus(stage, "done", f"in {folder}")
        return StageStatus(stage, "not begun")
    record = read_json(folder / "stage.json")
    changed = _changed_settings(cfg, stage, record) + _changed_inputs(cfg, stage, record)
    changed += [f"{name} is made again" for name in stale_inputs if name in _input_stages(record)]
    if changed:
        return StageStatus(stage, "stale", "; ".join(changed[:3]) + ("; ..." if len(changed) > 3 else ""))
    if stage == "evaluate" and (kinds := unscored_kinds(cfg)):
        return StageStatus(stage, "cut short", f"no scores yet: {', '.join(kind.words for kind in kinds)}")
    if not (folder / "manifest.json").is_file():
        return StageStatus(stage, "cut short", _progress(folder, stage))
    manifest = read_json(folder / "manifest.json")
    if "outputs" in manifest:
        lost = [name for name, size in manifest["outputs"].items() if _size(folder / name) != size]
        if lost:
            return StageStatus(stage, "damaged", f"{lost[0]} is missing or has another size ({len(lost)} files in all)")
    took = manifest.get("time_s")
    return StageStatus(stage, "done", "" if took is None else f"{took:.0f} s, {_day(folder / 'manifest.json')}")


def run_status(cfg: Config, stages: Sequence[str] = STAGES) -> list[StageStatus]:
    """Return the status of each stage, in order; a stage whose input is about to be made again counts as stale."""
    found: list[StageStatus] = []
    for stage in stages:
        again = [status.stage for status in found if status.state in ("stale", "cut short", "damaged", "not begun")]
        found.append(stage_status(cfg, stage, stale_inputs=again))
    return found


def _changed_settings(cfg: Config, stage: str, record: Mapping[str, Any]) -> list[str]:
    now = flatten(cfg)
    before = dict(record.get("settings", {}))
    before.update({key: value for key, value in _RECORDED_WHEN_ON.get(stage, {}).items() if key not in before})
    return differences({"settings": before}, {"settings": {key: now.get(key) for key in before}})


def _changed_inputs(cfg: Config, stage: str, record: Mapping[str, Any]) -> list[str]:
    """Return what is different in those inputs of a stage that can be looked up without computing anything."""
    found = []
    inputs = record.get("inputs", {})
    theirs = dict(zip(CRF_FILES, crf_folders(cfg.infer_cam) or (None, None), strict=True))
    theirs[CAM_FILES] = cfg.infer_cam.from_interop
    if stage == "infer_cam":
        new = [folder for name, folder in theirs.items() if folder is not None and name not in inputs]
        found += [f"it was made without the authors' files in {folder}" for folder in new]
    for name, before in inputs.items():
        if name in theirs:
            if not _are_files(theirs[name], before):
                found.append(f"the authors' files ({theirs[name] or 'not asked for now'}) changed")
            continue
        if name == "format":
            if before != FORMAT:
                found.append("this version stores its maps in another form")
            continue
        if name == "weights":
            weights = cfg.stage_dir("train_seam") / "final" / "model.safetensors"
            if cfg.infer_cam.checkpoint is None and weights.is_file() and sha256_file(weights) != before:
                found.append("the weights of train_seam changed")
            continue
        folder = cfg.shards_dir if name == "shards" else cfg.stage_dir(name)
        path = folder / "manifest.json"
        if (name == "shards" or name in STAGES) and path.is_file():
            manifest = read_json(path)
            if str(manifest.get("fingerprint") or fingerprint(manifest)) != before:
                found.append(f"{name} changed")
    return found


def _are_files(folder: Path | None, before: str) -> bool:
    """Tell whether a folder holds the authors' files whose fingerprint was `before`."""
    if folder is None:
        return False
    try:
        return files_fingerprint(folder, "") == before
    except StageError:
        return False


def _input_stages(record: Mapping[str, Any]) -> set[str]:
    names = {"shards": "shard", "weights": "train_seam"}
    return {names.get(name, name) for name in record.get("inputs", {})}


def _progress(folder: Path, stage: str) -> str:
    """Return how far an unfinished stage is: steps of a training, finished shards of the others."""
    metrics = folder / "metrics.jsonl"
    if metrics.is_file():
        steps = []
        for line in metrics.read_text(errors="replace").splitlines()[-2:]:
            try:
                steps.append(int(json.loads(line)["step"]))
            except (ValueError, KeyError, TypeError):
                continue  # cut by a kill
        return f"step {max(steps)}" if steps else ""
    shards = [path for path in folder.rglob("*.tar") if not path.name.startswith(".")]
    return f"{len(shards)} tars" if shards else ""


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _day(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def format_status(statuses: Sequence[StageStatus], *, action: bool = False) -> str:
    """Return the table; with `action`, what the command would do with each stage."""
    rows = [(s.stage, s.action if action else s.state, s.state if action else "", s.detail) for s in statuses]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for stage, first, second, detail in rows:
        middle = f"{second.ljust(widths[2])}  " if action else ""
        lines.append(f"{stage.ljust(widths[0])}  {first.ljust(widths[1])}  {middle}{detail}".rstrip())
    return "\n".join(lines)


def read_run_config(folder: Path) -> Config:
    """Return the settings of the stage of a run that began last; StageError when there is none."""
    found = sorted(folder.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise StageError(f"{folder} holds no stage of a run (no */config.yaml): give a folder runs/<name>")
    tree = yaml.safe_load(found[-1].read_text())
    tree.setdefault("run", {}).update(dir=str(folder.resolve().parent), name=folder.resolve().name)
    return from_tree(tree)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `seam-dist status RUN ...`; return 0, or 2 when a folder is no run."""
    parser = argparse.ArgumentParser(
        prog="seam-dist status", description="Tell which stages of a run are done, running, cut short or stale."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, for example runs/voc12")
    arguments = parser.parse_args(argv)
    code = 0
    for number, folder in enumerate(arguments.runs):
        try:
            text = format_status(run_status(read_run_config(folder)))
        except ValueError as error:
            print(f"seam-dist: error: {error}", file=sys.stderr)
            code = 2
            continue
        if len(arguments.runs) > 1:
            print(f"{'' if number == 0 else chr(10)}{folder}")
        print(text)
    return code
