"""The random walk: CAMs walked over the affinities of AffinityNet.

PARITY.md section 6. The image is padded with zeros after normalization to a multiple of the stride and goes through the
network at its own size; the walk starts from the stored CAM at image size with the background (1 - max)^alpha, padded
with zeros and averaged over each cell. Images of different sizes walk together (random_walk.batch_size).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from seam_kernels import random_walk_packed
from torch import Tensor
from torch.nn.functional import interpolate

from seam_dist.artifacts.cam_file import StoredCam, upsample_cam
from seam_dist.artifacts.label_file import encode_labels
from seam_dist.artifacts.outputs import output_folder
from seam_dist.artifacts.stage import StageError
from seam_dist.config.schema import Config
from seam_dist.data.images import BadSampleError
from seam_dist.data.manifest import Manifest, Shard
from seam_dist.data.shards import Sample, read_shard
from seam_dist.inference.batching import Pixels, by_size, network_maps, one_ahead
from seam_dist.inference.crf_pool import CrfPool, refine_labels
from seam_dist.inference.pseudo_labels import background_score, block_means, choose_classes
from seam_dist.inference.run_shards import ShardOutput
from seam_dist.models import AffinityNet, affinity_stride


@dataclass(frozen=True)
class Walker:
    """One image before its walk: scores (K + 1, h, w) on the grid, background first, and affinities (planes, h, w)."""

    index: int
    sample: Sample
    scores: Tensor
    affinity: Tensor
    radius: int


def read_samples_with_cams(
    cfg: Config, manifest: Manifest, shard: Shard, cams: Mapping[str, StoredCam], output: ShardOutput
) -> Iterator[Sample]:
    """Yield the images of a shard that have a CAM; StageError for one that fits no CAM.

    An image that cannot be decoded was left out by infer_cam and is left out here: it becomes `output.bad`.
    """

    def on_bad(key: str, error: BadSampleError) -> None:
        if key in cams:
            raise StageError(f"{error}, but it has a CAM: run `--only infer_cam` again with these shards")
        output.bad.append(str(error))

    path, num_classes = cfg.shards_dir / shard.file, manifest.num_classes
    for sample in read_shard(path, masks=False, max_pixels=cfg.data.max_pixels, on_bad=on_bad, num_classes=num_classes):
        stored, size = cams.get(sample.key), sample.image.shape[:2]
        if stored is None or stored.size != size:
            cam = "no CAM" if stored is None else f"a CAM for {stored.size} and not {size} pixels"
            raise StageError(f"{path}: image {sample.key} has {cam}: run `--only infer_cam` again on these shards")
        yield sample


@torch.inference_mode()
def walk_samples(
    net: AffinityNet, samples: Iterable[Sample], cams: Mapping[str, StoredCam], cfg: Config
) -> Iterator[tuple[Walker, Tensor]]:
    """Yield every image with its walked scores (K + 1, H, W), background first, as they are finished.

    Images of one size go through the network together, images of any size walk together.
    """
    stride = affinity_stride(cfg)
    waiting: list[Walker] = []
    for batch in one_ahead(by_size(samples, cfg.random_walk.batch_size)):
        images = np.stack([sample.image for _, sample in batch])
        for (index, sample), affinity in zip(batch, affinities(net, images, cfg), strict=True):
            scores = start_scores(cams[sample.key], stride, cfg.random_walk.alpha, affinity.device)
            radius = net.pair_radius(affinity.shape[1], affinity.shape[2])
            waiting.append(Walker(index, sample, scores, affinity, radius))
        if len(waiting) >= cfg.random_walk.batch_size:
            yield from _walk(waiting, cfg, stride)
            waiting = []
    yield from _walk(waiting, cfg, stride)


def affinities(net: AffinityNet, images: Pixels, cfg: Config) -> Tensor:
    """Return the affinities (B, planes, h, w) of images (B, H, W, 3) of one size, padded to whole cells."""
    stride = affinity_stride(cfg)
    grid = -(-images.shape[1] // stride), -(-images.shape[2] // stride)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    (affinity,) = network_maps(net, pixels, lambda part: [net(part, cfg.train_affinity.border)], stride=stride)
    if affinity.shape[2:] != grid:
        raise StageError(
            f"{net.backbone.name} gives a grid of {tuple(affinity.shape[2:])} for images of {images.shape[1:3]}, "
            f"expected {grid} at stride {stride}: use another backbone or train_affinity.output_stride"
        )
    return affinity


def start_scores(stored: StoredCam, stride: int, alpha: float, device: torch.device) -> Tensor:
    """Return what walks: (K + 1, h, w), background first, means over cells of stride x stride pixels.

    The background comes before the padding: outside the image all scores are 0, its own too. Absent classes are left
    out, which is exact: their maps are 0, which changes no maximum of maps that are at least 0; each class walks alone,
    so absent ones stay 0 and touch no present one; and a score of 0 never wins, since the background comes first in a
    tie.
    """
    cam = upsample_cam(torch.from_numpy(stored.cam).to(device), stored.size)
    strongest = cam.amax(dim=0, keepdim=True) if len(cam) else cam.new_zeros((1, *stored.size))
    return block_means(torch.cat([background_score(strongest, alpha), cam]), stride)


def add_walked(
    output: ShardOutput, walker: Walker, scores: Tensor, cfg: Config, folder: Path, pool: CrfPool | None
) -> None:
    """Label an image by its walked scores, in labels/ and files/ (random_walk.files); with a pool, start its CRF."""
    index, key, classes = walker.index, walker.sample.key, walker.sample.classes
    labels = choose_classes(scores, classes)
    output.add("labels", index, key, lambda: labels)
    if cfg.random_walk.files:
        output_folder(folder / "files").write(f"{key}.png", encode_labels(labels))
    if pool is not None:
        settings = cfg.random_walk.crf_num_iters, cfg.crf.bilateral_sxy
        refined = pool.submit(refine_labels, walker.sample.image, scores.cpu().numpy(), classes, *settings)
        output.add("labels_crf", index, key, refined.result)


def _walk(walkers: Sequence[Walker], cfg: Config, stride: int) -> Iterator[tuple[Walker, Tensor]]:
    """Walk images together, those of one radius at a time, and bring their scores to image size."""
    for radius in sorted({walker.radius for walker in walkers}):
        members = [walker for walker in walkers if walker.radius == radius]
        walked = random_walk_packed(
            [walker.scores for walker in members],
            [walker.affinity for walker in members],
            radius=radius,
            beta=cfg.random_walk.beta,
            num_steps=cfg.random_walk.num_steps,
            method=cfg.random_walk.method,
            impl=cfg.random_walk.impl,
        )
        for walker, scores in zip(members, walked, strict=True):
            grid = scores.shape[1] * stride, scores.shape[2] * stride
            full = interpolate(scores[None], grid, mode="bilinear", align_corners=False)[0]
            height, width = walker.sample.image.shape[:2]
            yield walker, full[:, :height, :width]
