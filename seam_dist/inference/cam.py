"""Full-size CAMs of images: from a trained network at several scales and mirrored, or from the authors' files.

PARITY.md section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from seam_dist.artifacts import authors_files
from seam_dist.artifacts.cam_file import StoredCam, store_cam
from seam_dist.config.schema import Config, InferCamConfig
from seam_dist.data.shards import Sample
from seam_dist.inference.batching import Pixels, by_size, network_maps, one_ahead, scaled_images
from seam_dist.inference.crf_pool import CrfPool, read_refined, refine_cam
from seam_dist.inference.run_shards import CAMS, ShardOutput
from seam_dist.models import SEAM

EPS = 1e-5


class CamMaps(NamedTuple):
    """Normalized maps (K, H, W) of an image's classes at its size.

    `cam` is PCM's where the network has it, and `plain` the classifier's then; else `cam` is the classifier's.
    """

    cam: Tensor
    plain: Tensor | None


def infer_cams(
    model: SEAM,
    images: Sequence[Pixels],
    classes: Sequence[Sequence[int]],
    *,
    scales: Sequence[float],
    flip: bool = True,
    align: int | None = None,
) -> list[CamMaps]:
    """Return the maps of images (H, W, 3) of one size, on the device of the network, which is in eval mode.

    classes: the present ids, from 1, of each image. Scaled images have sizes that fit grids of stride `align`
    (Trained.align). Raises ValueError without a scale.
    """
    size = (images[0].shape[0], images[0].shape[1])
    return _full_maps(model, scaled_images(images, scales, align=align), classes, size, flip=flip)


def infer_samples(
    model: SEAM, samples: Iterable[Sample], cfg: InferCamConfig, *, align: int | None = None
) -> Iterator[tuple[int, Sample, CamMaps]]:
    """Yield (place among the samples, sample, maps), as they are finished; images of one size go together."""
    prepared = (
        (batch, scaled_images([sample.image for _, sample in batch], cfg.scales, align=align))
        for batch in by_size(samples, cfg.batch_size)
    )
    for batch, images in one_ahead(prepared):
        height, width = batch[0][1].image.shape[:2]
        all_maps = _full_maps(model, images, [sample.classes for _, sample in batch], (height, width), flip=cfg.flip)
        for (index, sample), maps in zip(batch, all_maps, strict=True):
            yield index, sample, maps


def read_authors_cams(samples: Iterable[Sample], folder: Path) -> Iterator[tuple[int, Sample, CamMaps]]:
    """Yield (place among the samples, sample, maps) from the authors' CAM dicts in a folder.

    An image without classes needs no file. Raises ValueError when another one has none, or one of another size or of
    other classes than its label.
    """
    for index, sample in enumerate(samples):
        size = (sample.image.shape[0], sample.image.shape[1])
        cam = np.empty((0, *size), np.float32)
        for path in _authors_dicts([folder], sample, "infer_cam.from_interop"):
            ids = [index - 1 for index in sample.classes]
            cam = authors_files.stack_maps(path, authors_files.read_cam_dict(path), ids, size)
        yield index, sample, CamMaps(torch.from_numpy(cam), None)


def _authors_dicts(folders: Sequence[Path], sample: Sample, setting: str) -> list[Path]:
    """Return the sample's file in each folder; none for an image without classes that lacks one.

    The authors' code stops at such an image, so its files may leave it out.
    """
    try:
        return [authors_files.find_dict(folder, sample.key, sample.source_id, setting) for folder in folders]
    except ValueError:
        if sample.classes:
            raise
        return []


def add_cams(
    output: ShardOutput,
    index: int,
    sample: Sample,
    maps: CamMaps,
    cfg: Config,
    folder: Path,
    pool: CrfPool | None,
    stride: int | None,
) -> None:
    """Store the maps of a sample, write them to the authors' files below `folder` (infer_cam.interop), start its CRFs.

    With a pool, the sample gets labels in crf/ and, with a `stride`, in affinity/: from the authors' CRF dicts where
    infer_cam.crf_from_interop names them.
    """
    size = (sample.image.shape[0], sample.image.shape[1])
    plain = None if maps.plain is None else store_cam(maps.plain, cfg.infer_cam.cam_stride)
    stored = StoredCam(sample.key, sample.classes, size, store_cam(maps.cam, cfg.infer_cam.cam_stride), plain)
    output.add(CAMS, index, sample.key, lambda: stored)
    full = maps.cam.float().cpu().numpy()
    if cfg.infer_cam.interop:
        authors_files.write_cam_dict(folder / "interop" / f"{sample.key}.npy", sample.classes, full)
    if pool is None:
        return
    folders = authors_files.crf_folders(cfg.infer_cam)
    if folders and (files := _authors_dicts(folders, sample, "infer_cam.crf_from_interop")):
        low, high = files
        labels = pool.submit(read_refined, (low, high), size, sample.classes, stride)
    else:
        alphas = cfg.infer_cam.crf_alphas
        low, high = (folder / authors_files.crf_folder("interop_crf", alpha) / f"{sample.key}.npy" for alpha in alphas)
        dicts = (low, high) if cfg.infer_cam.interop and not folders else None
        labels = pool.submit(refine_cam, sample.image, full, sample.classes, alphas, stride, dicts)
    output.add("crf", index, sample.key, lambda: labels.result().labels)
    if stride is not None:
        output.add("affinity", index, sample.key, lambda: labels.result().affinity)


@torch.inference_mode()
def _full_maps(
    model: SEAM, images: Sequence[Tensor], classes: Sequence[Sequence[int]], size: tuple[int, int], *, flip: bool
) -> list[CamMaps]:
    """Return the maps at `size` of uint8 images (B, 3, h, w) at each scale."""

    def forward(pixels: Tensor) -> list[Tensor]:
        return [maps for maps in model.forward_grid(pixels) if maps is not None]

    # [scale][classifier, PCM]: maps (B, C + 1, h, w) of image and mirrored image.
    grids = [network_maps(model, scaled, forward, flip=flip) for scaled in images]
    sizes = [(scaled.shape[2], scaled.shape[3]) for scaled in images]
    by_map = list(zip(*grids, strict=True))
    result = []
    for index, ids in enumerate(classes):
        full = [normalize_cam(sum_scales([maps[index, list(ids)] for maps in same], sizes, size)) for same in by_map]
        result.append(CamMaps(full[-1], full[0] if len(full) > 1 else None))
    return result


def sum_scales(grids: Sequence[Tensor], scaled: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Return the sum at `size` (height, width) of grid maps (K, h, w) of an image that is `scaled` to these sizes."""
    total = grids[0].new_zeros((len(grids[0]), *size))
    if len(total) == 0:  # an image without classes; interpolate refuses it
        return total
    for grid, at in zip(grids, scaled, strict=True):
        at_scale = interpolate(grid[None], at, mode="bilinear", align_corners=True)
        total += interpolate(at_scale, size, mode="bilinear", align_corners=False)[0]
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
