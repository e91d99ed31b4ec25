"""Stage random_walk: pseudo-labels, from the CAMs walked over the affinities of AffinityNet.

PARITY.md section 6. The image is padded with zeros after normalization to a multiple of the stride and goes through the
network at its own size; the walk starts from the stored CAM at image size with the background (1 - max)^alpha, padded
with zeros and averaged over each cell. Images of different sizes walk together (random_walk.batch_size).

Every input shard gives one output shard of the same name in labels_crf/ (random_walk.crf) and labels/, which appears by
rename, labels/ last: one that is there is whole, and a stage cut short goes on with those that are missing. Each rank
takes every R-th of them. random_walk.files writes the labels of labels/ to files/<key>.png, too.

The CRF (random_walk.crf) works on the walked scores as they are, unnormalized, at image size. The published code hands it the
padded image and all classes; here the padding is cut off and absent classes, whose scores are below its clip of 1e-5,
are left out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from seam_kernels import random_walk_packed
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad
from tqdm import tqdm

from seam_dist.artifacts.atomic import atomic_write, read_json
from seam_dist.artifacts.cam_file import StoredCam, read_cams, upsample_cam
from seam_dist.artifacts.label_file import encode_labels, write_labels
from seam_dist.artifacts.stage import StageError, StageRun, input_fingerprint, open_stage
from seam_dist.cluster.distributed import all_gather_object, barrier, init_world, on_main
from seam_dist.config.schema import Config
from seam_dist.data.augment.normalize import normalize_images
from seam_dist.data.manifest import Manifest, Shard, load_manifest, verify_shards
from seam_dist.data.shards import BadSampleError, Sample, read_shard
from seam_dist.inference.batching import PIXELS_AT_ONCE, by_size, one_ahead, wait_for
from seam_dist.inference.crf_pool import CrfPool, check_crf, crf_device, crf_workers
from seam_dist.models import AffinityNet, affinity_facts, affinity_stride, build_affinity_net, load_weights

Pixels = NDArray[np.uint8]

_SETTINGS = (
    *(
        "random_walk.alpha",
        "random_walk.beta",
        "random_walk.num_steps",
        "random_walk.method",
        "random_walk.crf",
        "random_walk.files",
    ),
    *("train_affinity.border", "train_affinity.radius"),
)
_CRF_SETTINGS = ("random_walk.crf_num_iters", "crf")
_CRF_IGNORED = ("crf.num_workers", "crf.num_iters")


@dataclass(frozen=True)
class Walker:
    """One image before its walk: scores (K + 1, h, w) on the grid, background first, and affinities (planes, h, w)."""

    index: int
    sample: Sample
    scores: Tensor
    affinity: Tensor
    radius: int


def run(cfg: Config) -> None:
    """Write the pseudo-labels of cfg.random_walk.splits; finished shards of the same inputs and settings are kept.

    Raises ValueError (StageError, ShardError) when infer_cam or train_affinity is not finished or does not fit the
    shards, a split or an image has no CAM, or the CRF is not installed.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    stage, shards, todo = on_main(lambda: _open(cfg, manifest), world)
    if not todo:
        if world.is_main:
            print(f"random_walk: done already, see {stage.dir}", flush=True)
        return
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    net = load_network(cfg, manifest).to(world.device).eval()
    own = todo[world.rank :: world.size]
    start = time.perf_counter()
    unwritten: deque[_ShardOutput] = deque()
    with ExitStack() as stack:
        pool = None
        if cfg.random_walk.crf:
            pool = stack.enter_context(CrfPool(cfg.crf, crf_workers(cfg), device=crf_device(cfg)))
        num_own = sum(shard.num_samples for shard in own)
        bar = stack.enter_context(tqdm(total=num_own, unit="image", desc="random_walk", disable=not world.is_main))
        for shard in own:
            output = _ShardOutput(cfg, stage.dir, shard.file, pool)
            cams = {cam.key: cam for cam in read_cams(cfg.stage_dir("infer_cam") / "cams" / shard.file)}
            for walker, scores in walk_samples(net, read_samples(cfg, shard, cams), cams, cfg):
                output.use(walker, scores)
                bar.update(1)
            unwritten.append(output)
            # Its last CRFs are computed while the next shard walks.
            if len(unwritten) > 1:
                unwritten.popleft().write()
        while unwritten:
            unwritten.popleft().write()
        wait_for(stage.dir / "labels", [shard.file for shard in todo])
        took = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(world.device) / 2**30 if world.device.type == "cuda" else None
    peaks = all_gather_object(peak, world)
    if world.is_main:
        num_images = sum(shard.num_samples for shard in todo)
        stage.finish(
            (path for name in _folders(cfg) for path in (stage.dir / name).glob("[!.]*")),
            num_images=sum(shard.num_samples for shard in shards),
            images_per_s=round(num_images / took, 3),
            device_peak_gib=None if peak is None else round(max(p or 0 for p in peaks), 3),
        )
        print(f"random_walk: {num_images} images, {num_images / took:.2f} a second, in {stage.dir}", flush=True)
    barrier(world)


def load_network(cfg: Config, manifest: Manifest) -> AffinityNet:
    """Return the trained AffinityNet; StageError when its weights are missing or of another network or data set."""
    folder = cfg.stage_dir("train_affinity") / "final"
    weights, description = folder / "model.safetensors", folder / "model.json"
    for path in (weights, description):
        if not path.is_file():
            raise StageError(f"{path} is missing: run `--stage train_affinity` to the end")
    facts, wanted = read_json(description).get("architecture"), affinity_facts(cfg, manifest.classes)
    if facts != wanted:
        found = facts if isinstance(facts, Mapping) else {}
        differs = [f"{name}: {found.get(name)} -> {wanted[name]}" for name in wanted if found.get(name) != wanted[name]]
        raise StageError(
            f"{weights} is of another network than the settings say ({'; '.join(differs)}): change the settings back, "
            "or run `--stage train_affinity` again"
        )
    net, _ = build_affinity_net(cfg, pretrained=False)
    load_weights(net, weights, require_heads=True)
    return net


def read_samples(cfg: Config, shard: Shard, cams: Mapping[str, StoredCam]) -> Iterator[Sample]:
    """Yield the images of a shard that have a CAM; StageError for one that fits no CAM.

    An image that cannot be decoded was left out by infer_cam and is left out here.
    """

    def on_bad(key: str, error: BadSampleError) -> None:
        if key in cams:
            raise StageError(f"{error}, but it has a CAM: run `--stage infer_cam` again with these shards")

    path = cfg.shards_dir / shard.file
    for sample in read_shard(path, masks=False, max_pixels=cfg.data.max_pixels, on_bad=on_bad):
        stored = cams.get(sample.key)
        if stored is None:
            raise StageError(f"{path}: image {sample.key} has no CAM: run `--stage infer_cam` again")
        if stored.size != sample.image.shape[:2]:
            raise StageError(
                f"{path}: image {sample.key} has {sample.image.shape[:2]} pixels, its CAM is for {stored.size}: run "
                "`--stage infer_cam` again on these shards"
            )
        yield sample


@torch.inference_mode()
def walk_samples(
    net: AffinityNet, samples: Iterable[Sample], cams: Mapping[str, StoredCam], cfg: Config
) -> Iterator[tuple[Walker, Tensor]]:
    """Yield every image with its walked scores (K + 1, H, W) at image size, background first, as they are finished.

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


def affinities(net: AffinityNet, images: Pixels, cfg: Config) -> Iterator[Tensor]:
    """Yield the affinities (planes, h, w) of images (B, H, W, 3) of one size, padded to whole cells."""
    stride = affinity_stride(cfg)
    height, width = images.shape[1:3]
    grid = -(-height // stride), -(-width // stride)
    device = next(net.parameters()).device
    mean, std = torch.tensor(net.backbone.mean), torch.tensor(net.backbone.std)
    padding = (0, grid[1] * stride - width, 0, grid[0] * stride - height)
    at_once = max(1, PIXELS_AT_ONCE[device.type] // (grid[0] * grid[1] * stride * stride))
    for part in torch.split(torch.from_numpy(images).permute(0, 3, 1, 2), at_once):
        valid = torch.tensor([[0, 0, height, width]], dtype=torch.int32).expand(len(part), 4)
        padded = pad(part.to(device), padding)
        pixels = normalize_images(padded, valid, None, mean, std, channels_last=cfg.model.channels_last)
        affinity = net(pixels, cfg.train_affinity.border)
        if affinity.shape[2:] != grid:
            raise StageError(
                f"{net.backbone.name} gives a grid of {tuple(affinity.shape[2:])} for images of "
                f"{tuple(pixels.shape[2:])}, expected {grid} at stride {stride}: use another backbone or "
                "train_affinity.output_stride"
            )
        yield from affinity


def start_scores(stored: StoredCam, stride: int, alpha: float, device: torch.device) -> Tensor:
    """Return what walks: (K + 1, h, w), background first, means over cells of stride x stride pixels.

    The background comes before the padding: outside the image all scores are 0, its own too. Absent classes are left
    out, which is exact: their maps are 0, which changes no maximum of maps that are at least 0; each class walks alone,
    so theirs stay 0 and touch no other; and a score of 0 never wins, since the background comes first in a tie.
    """
    height, width = stored.size
    cam = upsample_cam(torch.from_numpy(stored.cam).to(device), stored.size)
    strongest = cam.amax(dim=0, keepdim=True) if len(cam) else cam.new_zeros((1, height, width))
    scores = torch.cat([(1 - strongest).pow(alpha), cam])
    return avg_pool2d(pad(scores, (0, -width % stride, 0, -height % stride)), stride)


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


class _ShardOutput:
    """The labels of one input shard, those of the CRF still being made."""

    def __init__(self, cfg: Config, folder: Path, name: str, pool: CrfPool | None) -> None:
        self._cfg, self._folder, self._name, self._pool = cfg, folder, name, pool
        self._labels: dict[int, tuple[str, Pixels]] = {}
        self._refined: dict[int, tuple[str, Future[Pixels]]] = {}

    def use(self, walker: Walker, scores: Tensor) -> None:
        """Take the walked scores (K + 1, H, W) of one image."""
        key, classes = walker.sample.key, walker.sample.classes
        ids = np.array([0, *classes], np.uint8)
        labels = ids[scores.argmax(dim=0).cpu().numpy()]
        self._labels[walker.index] = key, labels
        if self._cfg.random_walk.files:
            atomic_write(self._folder / "files" / f"{key}.png", encode_labels(labels))
        if self._pool is not None:
            crf = self._cfg.random_walk.crf_num_iters, self._cfg.crf.bilateral_sxy
            future = self._pool.submit_labels(walker.sample.image, scores.cpu().numpy(), classes, *crf)
            self._refined[walker.index] = key, future

    def write(self) -> None:
        """Write the tars in the order of the shard, labels/ last: it tells that the shard is done."""
        if self._pool is not None:
            refined = (self._refined[index] for index in sorted(self._refined))
            write_labels(self._folder / "labels_crf" / self._name, ((key, future.result()) for key, future in refined))
        write_labels(self._folder / "labels" / self._name, (self._labels[index] for index in sorted(self._labels)))


def _folders(cfg: Config) -> list[str]:
    return ["labels", *(["labels_crf"] if cfg.random_walk.crf else []), *(["files"] if cfg.random_walk.files else [])]


def _open(cfg: Config, manifest: Manifest) -> tuple[StageRun, list[Shard], list[Shard]]:
    """Open the stage and return it with all its shards and with those whose labels are not there yet."""
    if cfg.random_walk.crf:
        check_crf(cfg.crf)
    cams = cfg.stage_dir("infer_cam") / "cams"
    inputs = {
        "shards": input_fingerprint(cfg.shards_dir, "shard"),
        "infer_cam": input_fingerprint(cfg.stage_dir("infer_cam"), "infer_cam"),
        "train_affinity": input_fingerprint(cfg.stage_dir("train_affinity"), "train_affinity"),
    }
    shards: list[Shard] = []
    for name in cfg.splits_of("random_walk"):
        split = manifest.split(name)
        missing = next((shard.file for shard in split.shards if not (cams / shard.file).is_file()), None)
        if missing is not None:
            raise StageError(
                f"{cams / missing} is missing, so split {name!r} has no CAMs: add it to infer_cam.splits and run "
                "`--stage infer_cam`, or leave it out of random_walk.splits"
            )
        verify_shards(cfg.shards_dir, manifest, name, cfg.data.verify)
        shards += split.shards
    settings = (*_SETTINGS, *_CRF_SETTINGS) if cfg.random_walk.crf else _SETTINGS
    stage = open_stage(
        cfg, "random_walk", settings=settings, ignore=_CRF_IGNORED if cfg.random_walk.crf else (), inputs=inputs
    )
    for folder in _folders(cfg):
        (stage.dir / folder).mkdir(exist_ok=True)
    tars = [folder for folder in _folders(cfg) if folder != "files"]
    todo = [shard for shard in shards if not all((stage.dir / folder / shard.file).is_file() for folder in tars)]
    if not todo and not stage.is_done():
        # Cut between the last shard and the manifest: make the last one again rather than a second way to finish.
        todo = shards[-1:]
    for shard in todo:
        # The ranks wait for labels/ to tell that a shard is done; it must not be there from before.
        (stage.dir / "labels" / shard.file).unlink(missing_ok=True)
    return stage, shards, todo
