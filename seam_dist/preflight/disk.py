"""Places that the stages write to: permission, folders of the data set, and an estimate of the bytes against the disk.

The estimate counts what dominates: shards, CAMs, label images, and the checkpoints of the trainings. Bytes that an
interrupted stage has written already are taken off.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from seam_dist.artifacts.layout import LABEL_STAGES, LABEL_TYPES, stage_folder
from seam_dist.artifacts.outputs import existing_parent, why_not_writable
from seam_dist.config.findings import Finding, Findings
from seam_dist.config.schema import Config, Stage
from seam_dist.models.backbones.base import BackboneNetwork
from seam_dist.preflight.plan import RunPlan

# Bytes a pixel: the demo's scenes with their masks (measured: 0.49), and label images as PNG (0.019 to 0.030 on scenes
# and on the masks of photographs).
_SCENE_BYTES, _LABEL_BYTES = 0.5, 0.03
_MEMBER_BYTES = 1024  # header and padding of a member of a tar
_GIB = 2**30


def check_disk(plan: RunPlan, networks: Mapping[Stage, BackboneNetwork]) -> Findings:
    """Return places that cannot be written to and disks that are too small for what the stages write."""
    findings = Findings()
    cfg = plan.cfg
    places = {"run.dir": cfg.run_dir}
    if "shard" in plan.stages and cfg.data.shards is not None:
        places["data.shards"] = cfg.data.shards
    for setting, path in places.items():
        if (reason := why_not_writable(path)) is not None:
            remedy = f"set {setting} to a folder of your own"
            findings.error(setting, f"{setting}: {path} cannot be written to, {reason}: {remedy}")
    if not findings.errors:
        _check_images_folders(plan, places, findings)
        _check_space(plan, networks, findings)
    return findings


def _check_images_folders(plan: RunPlan, places: Mapping[str, Path], findings: Findings) -> None:
    """Refuse outputs among the images: a reader would list them as images the next time."""
    records = [record for split in plan.splits(list(plan.data.splits if plan.data else ())) for record in split.records]
    root = plan.cfg.source.root
    folders = {path.parent.resolve() for record in records for path in record.files} - {root and root.resolve()}
    for setting, path in places.items():
        inside = folders & {path.resolve(), *path.resolve().parents}
        if inside:
            findings.error(
                f"{setting}-in-images",
                f"{setting}: {path} is inside {inside.pop()}, a folder of the data set's images: set {setting} to a "
                "folder outside of it",
            )


def estimate(plan: RunPlan, networks: Mapping[Stage, BackboneNetwork]) -> dict[Stage, float]:
    """Return the bytes that each stage will write, 0 where nothing can be said."""
    cfg, data = plan.cfg, plan.data
    needed: dict[Stage, float] = dict.fromkeys(plan.stages, 0.0)
    for stage in plan.trainings:
        if stage in networks:
            needed[stage] = _training_bytes(cfg, stage, networks[stage])
    if data is None:
        return needed

    for stage in (stage for stage in plan.stages if stage in ("shard", *LABEL_STAGES)):
        samples = sum(split.num_samples for split in plan.splits(cfg.splits_of(stage)))
        pixels = samples * data.image_pixels
        if stage == "shard":
            drawn = pixels * _SCENE_BYTES if cfg.source.kind == "synthetic" else 0
            needed[stage] = data.num_bytes + drawn + samples * 3 * _MEMBER_BYTES
            continue
        types = [label for label in LABEL_TYPES.values() if label.stage == stage]
        num_types = sum(label.switch is None or getattr(getattr(cfg, stage), label.switch) for label in types)
        num_types += stage == "random_walk" and cfg.random_walk.files
        needed[stage] = num_types * (pixels * _LABEL_BYTES + samples * _MEMBER_BYTES)
        if stage == "infer_cam":
            needed[stage] += pixels * _cam_bytes(cfg, data.image_classes) + samples * 3 * _MEMBER_BYTES
    return needed


def _cam_bytes(cfg: Config, classes: float) -> float:
    """Return the bytes of an image's maps for each of its pixels."""
    num_maps = 1 if cfg.infer_cam.cam == "plain" or cfg.loss.ablation in ("cam", "er") else 2
    stored = 2 * num_maps * classes / cfg.infer_cam.cam_stride**2
    if not cfg.infer_cam.interop:
        return float(stored)
    own_crf = cfg.infer_cam.crf and cfg.infer_cam.crf_from_interop is None
    return float(stored) + 4 * classes + (2 * 4 * (classes + 1) if own_crf else 0)


def _training_bytes(cfg: Config, stage: Stage, network: BackboneNetwork) -> float:
    """Return the bytes of the checkpoints that are kept, of the one being written, and of the final weights."""
    weights: float = 4 * sum(value.numel() for value in network.state_dict().values())
    momentum: float = 4 * sum(value.numel() for value in network.parameters() if value.requires_grad)
    return (cfg.schedule_of(stage).keep_checkpoints + 1) * (weights + momentum) + weights


def _check_space(plan: RunPlan, networks: Mapping[Stage, BackboneNetwork], findings: Findings) -> None:
    by_disk: dict[int, list[tuple[Stage, float]]] = {}
    places: dict[int, Path] = {}
    for stage, num_bytes in estimate(plan, networks).items():
        folder = stage_folder(plan.cfg, stage)
        place = existing_parent(folder)
        disk = place.stat().st_dev
        places.setdefault(disk, place)
        by_disk.setdefault(disk, []).append((stage, max(0.0, num_bytes - _bytes_in(folder))))
    for disk, parts in by_disk.items():
        place = places[disk]
        needed, free = sum(num_bytes for _, num_bytes in parts), shutil.disk_usage(place).free
        if needed * 1.5 <= free:
            continue
        largest = sorted(parts, key=lambda part: -part[1])[:3]
        setting = "data.shards" if largest[0][0] == "shard" and plan.cfg.data.shards is not None else "run.dir"
        shares = ", ".join(f"{stage} {num_bytes / _GIB:.2f}" for stage, num_bytes in largest)
        text = (
            f"{setting}: the stages will write about {needed / _GIB:.2f} GiB ({shares}) and the disk of {place} has "
            f"{free / _GIB:.2f} GiB free: make room, or set {setting} to a larger disk"
        )
        findings.add(Finding("error" if free < needed else "warning", f"space-{disk}", text))


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
