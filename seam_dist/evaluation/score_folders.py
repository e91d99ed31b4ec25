"""The scores of a run on disk: evaluate/<name>/ for the CAM and for each type of labels, and one manifest over all.

Each folder has a stage record of its own, so a stage that is rerun invalidates the scores of what it made and no
others. evaluate/manifest.json is written last; it lists the scores that belong to what is there now.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.layout import CAM, LABEL_TYPES, finished_label_types, scores_folder
from seam_dist.artifacts.stage import MANIFEST, RECORD, StageRun, input_fingerprint, open_stage, select
from seam_dist.config.schema import Config


def scorable(cfg: Config) -> list[str]:
    """Return the names of what finished stages have made and can be scored: the CAM, then types of labels."""
    cams = [CAM] if (cfg.stage_dir("infer_cam") / MANIFEST).is_file() else []
    return cams + [label_type.name for label_type in finished_label_types(cfg)]


def folders_by_name(cfg: Config) -> dict[str, Path]:
    """Return the folders of the scores of all that can be scored now or was scored before, by name."""
    folders = {name: scores_folder(cfg.run_dir, name) for name in (CAM, *LABEL_TYPES)}
    now = scorable(cfg)
    return {name: folder for name, folder in folders.items() if name in now or (folder / RECORD).is_file()}


def title_of(name: str) -> str:
    """Return what the scored thing is called."""
    return "CAM" if name == CAM else LABEL_TYPES[name].title


def open_scores(cfg: Config, name: str, waiting: Sequence[str] = ()) -> StageRun:
    """Return the place of the scores of `name`; StageError when the stage that makes it is not finished.

    `waiting` are the splits without anything to score: once they have it, the scores are made again. Only the CAM's
    scores depend on thresholds. Until they are finished there is no manifest over all.
    """
    stage = "infer_cam" if name == CAM else LABEL_TYPES[name].stage
    scores = open_stage(
        cfg,
        "evaluate",
        settings=("evaluate" if name == CAM else "evaluate.splits", "data.splits"),
        inputs={
            stage: input_fingerprint(cfg.stage_dir(stage), stage),
            **({"waiting": ", ".join(waiting)} if waiting else {}),
        },
        directory=scores_folder(cfg.run_dir, name),
    )
    if not scores.is_done():
        (cfg.stage_dir("evaluate") / MANIFEST).unlink(missing_ok=True)
    return scores


def finish_evaluation(cfg: Config, names: Sequence[str]) -> None:
    """Write evaluate/manifest.json over the finished scores of `names`, unless it is there; for the main rank."""
    folders = {name: scores_folder(cfg.run_dir, name) for name in names}
    inputs = {name: input_fingerprint(folder, "evaluate") for name, folder in folders.items()}
    settings = select(cfg, ("evaluate", "data.splits"))
    run = StageRun("evaluate", cfg.stage_dir("evaluate"), {"settings": settings, "inputs": inputs})
    if run.is_done():
        return
    manifests = {name: read_json(folder / MANIFEST) for name, folder in folders.items()}
    run.begin(cfg)
    run.finish(
        [folders[name] / output for name, manifest in manifests.items() for output in manifest["outputs"]],
        time_s=round(sum(manifest["time_s"] for manifest in manifests.values()), 3),
        **{
            key: max((manifest[key] for manifest in manifests.values() if manifest[key] is not None), default=None)
            for key in ("host_peak_gib", "device_peak_gib")
        },
    )
