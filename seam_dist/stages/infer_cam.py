"""Stage infer_cam: the CAMs of whole splits from the trained network, at several scales and mirrored.

Every input shard gives one output shard of the same name in cams/, which appears by rename: one that is there is whole,
and a stage cut short goes on with those that are missing. Each rank takes every R-th of them. PARITY.md section 3.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from seam_dist.artifacts import StageError, StageRun, fingerprint, input_fingerprint, open_stage
from seam_dist.cam import (
    StoredCam,
    fold_mirrored,
    normalize_cam,
    store_cam,
    sum_scales,
    write_cams,
)
from seam_dist.config import Config, InferConfig
from seam_dist.data.manifest import Manifest, Shard, load_manifest, verify_shards
from seam_dist.data.shards import Sample, read_shard
from seam_dist.data.transforms import normalize_images
from seam_dist.distributed import all_gather_object, barrier, init_world, on_main
from seam_dist.files import atomic_file, read_json, sha256_file
from seam_dist.inference import PIXELS_AT_ONCE, by_size, one_ahead, scaled_images, wait_for
from seam_dist.models import SEAM, build_backbone, load_weights

_SETTINGS = ("infer.scales", "infer.flip", "infer.cam", "infer.cam_stride", "infer.interop")


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights, and what their network looks like where the file's model.json says it."""

    weights: Path
    architecture: Mapping[str, Any] | None


def run(cfg: Config) -> None:
    """Write the CAMs of cfg.infer.splits; finished shards of the same weights and settings are kept.

    Raises ValueError (StageError, ShardError) when the training is not finished, the checkpoint does not fit the data
    set's classes, a split has no labels, or more than data.max_bad_fraction of the images cannot be used.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    checkpoint = find_checkpoint(cfg)
    stage, todo = on_main(lambda: _open(cfg, manifest, checkpoint), world)
    if not todo:
        if world.is_main:
            print(f"infer_cam: done already, see {stage.dir}", flush=True)
        return
    model = load_model(cfg, manifest, checkpoint).to(world.device).eval()
    aligned = cfg.model.align_grid if checkpoint.architecture is None else checkpoint.architecture["align_grid"]
    align = model.backbone.output_stride if aligned else None
    bad: list[str] = []
    own = todo[world.rank :: world.size]
    start = time.perf_counter()
    with tqdm(
        total=sum(shard.num_samples for shard in own), unit="image", desc="infer_cam", disable=not world.is_main
    ) as bar:
        for shard in own:
            samples = read_shard(
                cfg.shards_dir / shard.file,
                masks=False,
                max_pixels=cfg.data.max_pixels,
                on_bad=lambda _, error: bad.append(str(error)),
            )
            interop = stage.dir / "interop" if cfg.infer.interop else None
            cams = infer_samples(model, samples, cfg.infer, align=align, interop=interop, advance=bar.update)
            write_cams(stage.dir / "cams" / shard.file, cams)
    wait_for(stage.dir / "cams", [shard.file for shard in todo])
    took = time.perf_counter() - start
    bad = [message for part in all_gather_object(bad, world) for message in part]
    num_images = sum(shard.num_samples for shard in todo)
    if len(bad) > cfg.data.max_bad_fraction * num_images:
        raise ValueError(
            f"{len(bad)} of {num_images} images cannot be used, more than data.max_bad_fraction="
            f"{cfg.data.max_bad_fraction:g}; the first: {bad[0]}"
        )
    if world.is_main:
        files = [path for folder in ("cams", "interop") for path in (stage.dir / folder).glob("*.*")]
        stage.finish(
            files, checkpoint=str(checkpoint.weights), cam="refined" if model.pcm else "plain", bad_samples=bad
        )
        note = f", {len(bad)} bad ones left out" if bad else ""
        print(f"infer_cam: {num_images} images{note}, {num_images / took:.2f} a second, in {stage.dir}", flush=True)
    barrier(world)


def find_checkpoint(cfg: Config) -> Checkpoint:
    """Return the weights that cfg.infer.checkpoint names, or those of this run's finished training.

    It names a weight file (.pth, .pt, .safetensors), or a folder: of a run, of its train_seam stage, or of its final
    weights. Raises StageError when there are none.
    """
    if cfg.infer.checkpoint is None:
        input_fingerprint(cfg.stage_dir("train_seam"), "train_seam")
        folder = cfg.stage_dir("train_seam") / "final"
    elif cfg.infer.checkpoint.is_file():
        weights = cfg.infer.checkpoint
        return Checkpoint(weights, _architecture(weights) if weights.suffix == ".safetensors" else None)
    else:
        root = cfg.infer.checkpoint
        folders = [root / "train_seam" / "final", root / "final", root]
        folder = next((f for f in folders if (f / "model.safetensors").is_file()), root)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise StageError(
            f"{weights} is missing: run `--stage train_seam` to the end, or set infer.checkpoint to a weight file or "
            "to the folder of a finished run"
        )
    return Checkpoint(weights, _architecture(weights))


def _architecture(weights: Path) -> Mapping[str, Any] | None:
    path = weights.with_name("model.json")
    if not path.is_file():
        return None
    facts = read_json(path).get("architecture")
    if not isinstance(facts, Mapping):
        raise StageError(f"{path} has no architecture: write it again with `--stage train_seam`")
    return facts


def load_model(cfg: Config, manifest: Manifest, checkpoint: Checkpoint) -> SEAM:
    """Return the trained network, with PCM where its map is asked for; what model.json says goes before cfg.model.

    Raises ValueError when the weights are of other classes or another architecture.
    """
    model_config, pcm = cfg.model, cfg.loss.ablation not in ("cam", "er")
    facts = checkpoint.architecture
    if facts is not None:
        if list(facts["classes"]) != list(manifest.classes):
            raise StageError(
                f"{checkpoint.weights} was trained for {len(facts['classes'])} classes {_shown(facts['classes'])}, the "
                f"shards in {cfg.shards_dir} have {manifest.num_classes} {_shown(manifest.classes)}: use the data set "
                "that it was trained on"
            )
        names = ("backbone", "width", "output_stride", "pcm_center", "pcm_grid", "align_grid")
        model_config = replace(
            model_config,
            **{name: facts[name] for name in names},
            pcm_channels=tuple(facts["pcm_channels"]),
        )
        pcm = bool(facts["pcm"])
    model = SEAM(
        build_backbone(model_config),
        manifest.num_classes,
        pcm=pcm,
        pcm_channels=model_config.pcm_channels,
        pcm_center=model_config.pcm_center,
        pcm_grid=model_config.pcm_grid,
        pcm_impl=model_config.pcm_impl,
    )
    load_weights(model, checkpoint.weights, require_heads=True)
    model.pcm = pcm and cfg.infer.cam == "refined"
    if model_config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _shown(names: Sequence[str]) -> str:
    return f"({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def _open(cfg: Config, manifest: Manifest, checkpoint: Checkpoint) -> tuple[StageRun, list[Shard]]:
    """Open the stage and return it with the shards whose CAMs are not there yet."""
    shards: list[Shard] = []
    for name in dict.fromkeys(cfg.infer.splits):
        split = manifest.split(name)
        if not split.has_labels:
            raise StageError(
                f"split {name!r} has no image-level labels, and a CAM is made for the classes of an image's label: "
                "leave it out of infer.splits"
            )
        verify_shards(cfg.shards_dir, manifest, name, cfg.data.verify)
        shards += split.shards
    inputs = {
        "shards": input_fingerprint(cfg.shards_dir, "shard"),
        "weights": sha256_file(checkpoint.weights),
        "network": fingerprint(dict(checkpoint.architecture or vars(cfg.model) | {"ablation": cfg.loss.ablation})),
    }
    stage = open_stage(cfg, "infer_cam", settings=_SETTINGS, inputs=inputs)
    (stage.dir / "cams").mkdir(exist_ok=True)
    todo = [shard for shard in shards if not (stage.dir / "cams" / shard.file).is_file()]
    if not todo and not stage.is_done():
        # Cut between the last shard and the manifest: make the last one again rather than a second way to finish.
        todo = shards[-1:]
    return stage, todo


def infer_samples(
    model: SEAM,
    samples: Iterable[Sample],
    cfg: InferConfig,
    *,
    align: int | None = None,
    interop: Path | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> list[StoredCam]:
    """Return the stored maps of samples, in their order; `advance` is told how many are finished.

    Images of one size go through the network together, at sizes that fit grids of stride `align` (model.align_grid).
    The authors' files go to the folder `interop`, if given.
    """
    found: dict[int, StoredCam] = {}
    prepared = (
        (batch, scaled_images([s.image for _, s in batch], cfg.scales, align=align))
        for batch in by_size(samples, cfg.batch_size)
    )
    for batch, images in one_ahead(prepared):
        size = batch[0][1].image.shape[:2]
        maps = infer_batch(model, images, [sample.classes for _, sample in batch], (size[0], size[1]), flip=cfg.flip)
        for (index, sample), (primary, plain) in zip(batch, maps, strict=True):
            found[index] = StoredCam(
                key=sample.key,
                classes=sample.classes,
                size=(size[0], size[1]),
                cam=store_cam(primary, cfg.cam_stride),
                plain=None if plain is None else store_cam(plain, cfg.cam_stride),
            )
            if interop is not None:
                write_interop(interop / f"{sample.key}.npy", sample.classes, primary)
        advance(len(batch))
    return [found[index] for index in sorted(found)]


@torch.inference_mode()
def infer_batch(
    model: SEAM, images: Sequence[Tensor], classes: Sequence[Sequence[int]], size: tuple[int, int], *, flip: bool
) -> list[tuple[Tensor, Tensor | None]]:
    """Return (map, the classifier's map where the first is PCM's) of each image: normalised, (K, H, W) at `size`.

    images: uint8 (B, 3, h, w) at each scale; classes: the present ids from 1 of each image.
    """
    primary: list[list[tuple[Tensor, tuple[int, int]]]] = [[] for _ in classes]
    plain: list[list[tuple[Tensor, tuple[int, int]]]] = [[] for _ in classes]
    for scaled in images:
        at_size = (scaled.shape[2], scaled.shape[3])
        cam, refined = grid_maps(model, scaled, flip=flip)
        for index, ids in enumerate(classes):
            plain[index].append((cam[index, list(ids)], at_size))
            if refined is not None:
                primary[index].append((refined[index, list(ids)], at_size))
    full_plain = [normalize_cam(sum_scales(grids, size)) for grids in plain]
    if not model.pcm:
        return [(cam, None) for cam in full_plain]
    return [(normalize_cam(sum_scales(g, size)), cam) for g, cam in zip(primary, full_plain, strict=True)]


def grid_maps(model: SEAM, images: Tensor, *, flip: bool) -> tuple[Tensor, Tensor | None]:
    """Return both maps (B, C + 1, h, w) of uint8 images at the feature grid, those of the mirrored images added."""
    device = next(model.parameters()).device
    mean, std = torch.tensor(model.backbone.mean), torch.tensor(model.backbone.std)
    height, width = images.shape[2:]
    channels_last = model.fc8.weight.is_contiguous(memory_format=torch.channels_last)
    cams: list[Tensor] = []
    refined: list[Tensor] = []
    for part in torch.split(images, max(1, PIXELS_AT_ONCE[device.type] // (height * width))):
        valid = torch.tensor([[0, 0, height, width]], dtype=torch.int32).expand(len(part), 4)
        pixels = normalize_images(part.to(device), valid, None, mean, std, channels_last=channels_last)
        outputs = model.forward_grid(pixels)
        mirrored = model.forward_grid(pixels.flip(-1)) if flip else None
        for maps, own, other in zip((cams, refined), outputs, mirrored or (None, None), strict=True):
            if own is not None:
                maps.append(own if other is None else fold_mirrored(own, other))
    return torch.cat(cams), torch.cat(refined) if refined else None


def write_interop(path: Path, classes: Sequence[int], cam: Tensor) -> None:
    """Write the authors' file: a .npy of the dict {class id from 0: float32 map at full size}."""
    maps = {index - 1: full for index, full in zip(classes, cam.float().cpu().numpy(), strict=True)}
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        # A pickled dict is their format; this project never reads one.
        np.save(file, np.array(maps, dtype=object), allow_pickle=True)
