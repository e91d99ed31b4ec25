"""Stage infer_cam: the CAMs of whole splits, their CRF labels, and the affinity labels of the split that trains.

Every input shard gives one output shard of the same name in each of cams/, crf/ and affinity/, which appears by rename,
cams/ last: one that is there is whole, and a stage cut short goes on with those that are missing. Each rank takes every
R-th of them. The maps come from the trained network at several scales and mirrored, or from the authors' files
(infer_cam.from_interop). PARITY.md section 3.

CRF (infer_cam.crf): the full-size map of infer_cam.cam gets two backgrounds, (1 - max)^alpha for both infer_cam.crf_alphas, and a
CRF each, in processes beside the network (`seam_dist.inference.crf_pool`). crf/ holds the labels of the first at full size. An image
without classes is background everywhere.

Affinity labels (PARITY.md section 5): the published code keeps both CRF results in float at full size (6 MB an image),
crops and flips them, takes the mean score of each block of s x s pixels, then the argmax of each CRF, then the rule. A
crop whose offset is a multiple of s cuts no block, a flip of a crop whose side is a multiple of s moves whole blocks,
and what a crop adds outside the image has score 0: so means, argmax and rule are those of the image's own blocks, of
which the last ones count the missing pixels as 0. They are made once and stored as one 8-bit label a block. For such
crops, and outside the image with 255, this is the published result exactly; training crops at such offsets only, 1 of
s * s positions.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from seam_dist.artifacts.authors_files import (
    CAM_FILES,
    CRF_FILES,
    crf_folder,
    crf_folders,
    files_fingerprint,
    find_dict,
    write_cam_dict,
)
from seam_dist.artifacts.cam_file import FORMAT, StoredCam, write_cams
from seam_dist.artifacts.label_file import write_labels
from seam_dist.artifacts.provenance import fingerprint, sha256_file
from seam_dist.artifacts.stage import StageError, StageRun, input_fingerprint, open_stage
from seam_dist.cluster.distributed import barrier, init_world, on_main
from seam_dist.config.schema import Config
from seam_dist.data.manifest import Manifest, load_manifest, verify_shards
from seam_dist.data.shards import Sample, read_shard
from seam_dist.inference.batching import Work, read_bad, wait_for, write_bad
from seam_dist.inference.cam import Checkpoint, find_checkpoint, infer_samples, load_model, read_samples
from seam_dist.inference.crf_pool import CamLabels, CrfPool, check_crf, crf_device, crf_workers
from seam_dist.models import affinity_stride

_SETTINGS = ("infer_cam.scales", "infer_cam.flip", "infer_cam.cam", "infer_cam.cam_stride", "infer_cam.interop")
_INTEROP_SETTINGS = ("infer_cam.cam_stride", "infer_cam.interop")
_CRF_SETTINGS = ("infer_cam.crf", "infer_cam.crf_alphas", "crf", "train_affinity.output_stride", "model.output_stride")


def run(cfg: Config) -> None:
    """Write the CAMs of cfg.infer_cam.splits; finished shards of the same weights and settings are kept.

    Raises ValueError (StageError, ShardError) when the training is not finished, the checkpoint does not fit the data
    set's classes, a split has no labels, the CRF is not installed, one of the authors' files is missing or does not fit
    its image, or more than data.max_bad_fraction of the images cannot be used.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    checkpoint = None if cfg.infer_cam.from_interop is not None else find_checkpoint(cfg)
    stage, works, todo = on_main(lambda: _open(cfg, manifest, checkpoint), world)
    if not todo:
        if world.is_main:
            print(f"infer_cam: done already, see {stage.dir}", flush=True)
        return
    model, align = None, None
    if checkpoint is not None:
        model = load_model(cfg, manifest, checkpoint).to(world.device).eval()
        aligned = cfg.model.align_grid if checkpoint.architecture is None else checkpoint.architecture["align_grid"]
        align = model.backbone.output_stride if aligned else None
    own = todo[world.rank :: world.size]
    start = time.perf_counter()
    unwritten: deque[_ShardOutput] = deque()
    with ExitStack() as stack:
        pool = None
        if cfg.infer_cam.crf:
            pool = stack.enter_context(CrfPool(cfg.crf, crf_workers(cfg), device=crf_device(cfg)))
        num_own = sum(work.shard.num_samples for work in own)
        bar = stack.enter_context(tqdm(total=num_own, unit="image", desc="infer_cam", disable=not world.is_main))
        for work in own:
            output = _ShardOutput(cfg, stage.dir, work, pool)
            samples = read_shard(
                cfg.shards_dir / work.shard.file,
                masks=False,
                max_pixels=cfg.data.max_pixels,
                on_bad=lambda _, error, bad=output.bad: bad.append(str(error)),  # type: ignore[misc]
            )
            if model is not None:
                output.cams = infer_samples(
                    model, samples, cfg.infer_cam, align=align, use=output.use, advance=bar.update
                )
            else:
                assert cfg.infer_cam.from_interop is not None
                output.cams = read_samples(
                    samples, cfg.infer_cam.from_interop, cfg.infer_cam.cam_stride, use=output.use, advance=bar.update
                )
            unwritten.append(output)
            # Its last CRFs are computed while the next shard is in the network.
            if len(unwritten) > 1:
                unwritten.popleft().write()
        while unwritten:
            unwritten.popleft().write()
    wait_for(stage.dir / "cams", [work.shard.file for work in todo])
    took = time.perf_counter() - start
    num_images = sum(work.shard.num_samples for work in todo)
    shards = [work.shard for work in works]
    bad = on_main(lambda: read_bad(stage.dir, shards, cfg.data.max_bad_fraction), world)
    if world.is_main:
        source = checkpoint.weights if checkpoint is not None else cfg.infer_cam.from_interop
        refined = model is not None and model.pcm
        files = [p for p in stage.dir.rglob("*") if p.is_file() and p.parent != stage.dir and p.name[0] != "."]
        stage.finish(files, checkpoint=str(source), cam="refined" if refined else "plain", bad_samples=bad)
        note = f", {len(bad)} bad ones left out" if bad else ""
        print(f"infer_cam: {num_images} images{note}, {num_images / took:.2f} a second, in {stage.dir}", flush=True)
    barrier(world)


class _ShardOutput:
    """What becomes of one input shard: its maps, the labels that are still being made, its bad samples."""

    def __init__(self, cfg: Config, folder: Path, work: Work, pool: CrfPool | None) -> None:
        self.cams: list[StoredCam] = []
        self.bad: list[str] = []
        self._cfg, self._folder, self._work, self._pool = cfg, folder, work, pool
        self._labels: dict[str, Future[CamLabels]] = {}

    def use(self, sample: Sample, cam: Tensor) -> None:
        """Take the full-size map (K, H, W) of one image: to the authors' file, to the CRFs."""
        full = cam.float().cpu().numpy()
        interop = self._cfg.infer_cam.interop
        if interop:
            write_cam_dict(self._folder / "interop" / f"{sample.key}.npy", sample.classes, full)
        if self._pool is None:
            return
        stride = affinity_stride(self._cfg) if "affinity" in self._work.folders else None
        if (theirs := crf_folders(self._cfg.infer_cam)) is not None:
            low, high = (
                find_dict(folder, sample.key, sample.source_id, "infer_cam.crf_from_interop") for folder in theirs
            )
            size = (full.shape[1], full.shape[2])
            self._labels[sample.key] = self._pool.submit_dicts((low, high), size, sample.classes, stride=stride)
            return
        low, high = (
            self._folder / crf_folder("interop_crf", alpha) / f"{sample.key}.npy"
            for alpha in self._cfg.infer_cam.crf_alphas
        )
        self._labels[sample.key] = self._pool.submit_cam(
            sample.image,
            full,
            sample.classes,
            self._cfg.infer_cam.crf_alphas,
            stride=stride,
            dicts=(low, high) if interop else None,
        )

    def write(self) -> None:
        """Write everything, the maps last: they tell that the shard is done."""
        name = self._work.shard.file
        write_bad(self._folder, name, self.bad)
        made = {cam.key: self._labels[cam.key].result() for cam in self.cams if cam.key in self._labels}
        if "crf" in self._work.folders:
            write_labels(self._folder / "crf" / name, ((key, labels.labels) for key, labels in made.items()))
        if "affinity" in self._work.folders:
            blocks = ((key, labels.affinity) for key, labels in made.items() if labels.affinity is not None)
            write_labels(self._folder / "affinity" / name, blocks)
        write_cams(self._folder / "cams" / name, self.cams)


def _open(cfg: Config, manifest: Manifest, checkpoint: Checkpoint | None) -> tuple[StageRun, list[Work], list[Work]]:
    """Open the stage and return it with all its shards and with those whose outputs are not there yet."""
    if cfg.infer_cam.crf and cfg.infer_cam.crf_from_interop is None:
        check_crf(cfg.crf)
    works: list[Work] = []
    for name in cfg.splits_of("infer_cam"):
        split = manifest.split(name)
        if not split.has_labels:
            raise StageError(
                f"split {name!r} has no image-level labels, and a CAM is made for the classes of an image's label: "
                "leave it out of infer_cam.splits"
            )
        verify_shards(cfg.shards_dir, manifest, name, cfg.data.verify)
        folders = ["cams"]
        if cfg.infer_cam.crf:
            folders += ["crf", "affinity"] if name == cfg.data.train_split else ["crf"]
        works += [Work(shard, tuple(folders)) for shard in split.shards]
    inputs = {"shards": input_fingerprint(cfg.shards_dir, "shard"), "format": FORMAT}
    if checkpoint is None:
        assert cfg.infer_cam.from_interop is not None
        inputs[CAM_FILES] = files_fingerprint(cfg.infer_cam.from_interop, "infer_cam.from_interop")
        settings = [*_INTEROP_SETTINGS]
    else:
        inputs["weights"] = sha256_file(checkpoint.weights)
        network = checkpoint.architecture or vars(cfg.model) | {"ablation": cfg.loss.ablation}
        inputs["network"] = fingerprint(dict(network))
        settings = [*_SETTINGS]
    # Without CRF the record is what it was before there were any, so that older CAMs stay valid.
    if (theirs := crf_folders(cfg.infer_cam)) is not None:
        for name, files in zip(CRF_FILES, theirs, strict=True):
            inputs[name] = files_fingerprint(files, "infer_cam.crf_from_interop")
        settings += [name for name in _CRF_SETTINGS if name != "crf"]
    elif cfg.infer_cam.crf:
        settings += _CRF_SETTINGS
    ignore = ("crf.num_workers",) if "crf" in settings else ()
    stage = open_stage(cfg, "infer_cam", settings=settings, ignore=ignore, inputs=inputs)
    for folder in {folder for work in works for folder in work.folders}:
        (stage.dir / folder).mkdir(exist_ok=True)
    todo = [work for work in works if not all((stage.dir / f / work.shard.file).is_file() for f in work.folders)]
    if not todo and not stage.is_done():
        # Cut between the last shard and the manifest: make the last one again rather than a second way to finish.
        todo = works[-1:]
    for work in todo:
        # The ranks wait for cams/ to tell that a shard is done; it must not be there from before.
        (stage.dir / "cams" / work.shard.file).unlink(missing_ok=True)
    return stage, works, todo
