"""Full-size CAMs of images: from a trained network at several scales and mirrored, or from the authors' files.

PARITY.md section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.authors_files import find_dict, read_cam_dict, stack_maps
from seam_dist.artifacts.cam_file import StoredCam, store_cam
from seam_dist.artifacts.stage import StageError, input_fingerprint
from seam_dist.config.schema import Config, InferCamConfig
from seam_dist.data.augment.normalize import normalize_images
from seam_dist.data.manifest import Manifest
from seam_dist.data.shards import Sample
from seam_dist.inference.batching import PIXELS_AT_ONCE, by_size, one_ahead, scaled_images
from seam_dist.models import SEAM, build_backbone, load_weights

EPS = 1e-5


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights, and what their network looks like where the file's model.json says it."""

    weights: Path
    architecture: Mapping[str, Any] | None


def find_checkpoint(cfg: Config) -> Checkpoint:
    """Return the weights that cfg.infer_cam.checkpoint names, or those of this run's finished training.

    It names a weight file (.pth, .pt, .safetensors), or a folder: of a run, of its train_seam stage, or of its final
    weights. Raises StageError when there are none.
    """
    if cfg.infer_cam.checkpoint is None:
        input_fingerprint(cfg.stage_dir("train_seam"), "train_seam")
        folder = cfg.stage_dir("train_seam") / "final"
    elif cfg.infer_cam.checkpoint.is_file():
        weights = cfg.infer_cam.checkpoint
        return Checkpoint(weights, _architecture(weights) if weights.suffix == ".safetensors" else None)
    else:
        root = cfg.infer_cam.checkpoint
        folders = [root / "train_seam" / "final", root / "final", root]
        folder = next((f for f in folders if (f / "model.safetensors").is_file()), root)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise StageError(
            f"{weights} is missing: run `--stage train_seam` to the end, or set infer_cam.checkpoint to a weight file or "
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
    model.pcm = pcm and cfg.infer_cam.cam == "refined"
    if model_config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _shown(names: Sequence[str]) -> str:
    return f"({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def fold_mirrored(cam: Tensor, mirrored: Tensor) -> Tensor:
    """Return the sum of a map and of the map of the mirrored image, turned back."""
    return cam + mirrored.flip(-1)


def sum_scales(grids: Sequence[tuple[Tensor, tuple[int, int]]], size: tuple[int, int]) -> Tensor:
    """Return the sum at `size` (height, width) of maps given as (grid map (K, h, w), size of the scaled image)."""
    total: Tensor | None = None
    for grid, scaled in grids:
        if len(grid) == 0:  # an image without classes; interpolate refuses it
            return grid.new_zeros((0, *size))
        at_scale = interpolate(grid[None], scaled, mode="bilinear", align_corners=True)
        full = interpolate(at_scale, size, mode="bilinear", align_corners=False)[0]
        total = full if total is None else total.add_(full)
    if total is None:
        raise ValueError("grids is empty, expected a map for at least one scale: set infer_cam.scales")
    return total


def normalize_cam(cam: Tensor) -> Tensor:
    """Return summed scores (K, H, W) scaled within each class to below 1; zeroed pixels end slightly below 0.

    Negatives to 0, values < min + 1e-5 to 0, then (x - min - 1e-5) / (max - min + 1e-5) (PARITY.md section 3). A
    constant map comes out far below 0, as published: everywhere background.
    """
    cam = cam.relu()
    low = cam.amin(dim=(1, 2), keepdim=True)
    high = cam.amax(dim=(1, 2), keepdim=True)
    cam = torch.where(cam < low + EPS, 0, cam)
    return (cam - low - EPS) / (high - low + EPS)


def infer_samples(
    model: SEAM,
    samples: Iterable[Sample],
    cfg: InferCamConfig,
    *,
    align: int | None = None,
    use: Callable[[Sample, Tensor], object] = lambda sample, cam: None,
    advance: Callable[[int], object] = lambda count: None,
) -> list[StoredCam]:
    """Return the stored maps of samples, in their order; `advance` is told how many are finished.

    Images of one size go through the network together, at sizes that fit grids of stride `align` (model.align_grid).
    `use` is given each sample with its full-size map of infer_cam.cam, (K, H, W).
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
            use(sample, primary)
        advance(len(batch))
    return [found[index] for index in sorted(found)]


def read_samples(
    samples: Iterable[Sample],
    folder: Path,
    stride: int,
    *,
    use: Callable[[Sample, Tensor], object] = lambda sample, cam: None,
    advance: Callable[[int], object] = lambda count: None,
) -> list[StoredCam]:
    """Return the maps of samples, from the authors' CAM dicts in a folder, stored at `stride`; as `infer_samples`.

    Raises ValueError when an image has no file, or one of another size or of other classes than its label.
    """
    found = []
    for sample in samples:
        size = (sample.image.shape[0], sample.image.shape[1])
        path = find_dict(folder, sample.key, sample.source_id, "infer_cam.from_interop")
        maps = read_cam_dict(path)
        cam = torch.from_numpy(stack_maps(path, maps, [index - 1 for index in sample.classes], size))
        use(sample, cam)
        found.append(StoredCam(key=sample.key, classes=sample.classes, size=size, cam=store_cam(cam, stride)))
        advance(1)
    return found


@torch.inference_mode()
def infer_batch(
    model: SEAM, images: Sequence[Tensor], classes: Sequence[Sequence[int]], size: tuple[int, int], *, flip: bool
) -> list[tuple[Tensor, Tensor | None]]:
    """Return (map, the classifier's map where the first is PCM's) of each image: normalized, (K, H, W) at `size`.

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
