"""Stage infer_cam: the CAMs of whole splits, their CRF labels, and the affinity labels of the split that trains.

Every input shard gives one output shard of the same name in each of crf/, affinity/ and cams/, in this order
(seam_dist.inference.run_shards). The maps come from the trained network at several scales and mirrored, or from the
authors' files (infer_cam.from_interop). PARITY.md section 3.

CRF (infer_cam.crf): the full-size map gets two backgrounds, (1 - max)^alpha for both infer_cam.crf_alphas, and a CRF
each. crf/ holds the labels of the first at full size. An image without classes is background everywhere.

Affinity labels (PARITY.md section 5): the published code keeps both CRF results in float at full size (6 MB an image),
crops and flips them, takes the mean score of each block of s x s pixels, then the argmax of each CRF, then the rule. A
crop whose offset is a multiple of s cuts no block, a flip of a crop whose side is a multiple of s moves whole blocks,
and what a crop adds outside the image has score 0: so means, argmax and rule are those of the image's own blocks, of
which the last ones count the missing pixels as 0. They are computed once and stored as one 8-bit label a block. For
such crops, and outside the image with 255, this is the published result exactly; training crops at such offsets only, 1
of s * s positions.
"""

from __future__ import annotations

from collections.abc import Iterator

from seam_dist.artifacts.authors_files import CAM_FILES, CRF_FILES, crf_folders, files_fingerprint
from seam_dist.artifacts.cam_file import FORMAT
from seam_dist.artifacts.provenance import fingerprint, sha256_file
from seam_dist.artifacts.stage import StageRun, input_fingerprint, open_stage
from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.manifest import Manifest, load_manifest, verify_shards
from seam_dist.inference.cam import add_cams, infer_samples, read_authors_cams
from seam_dist.inference.crf_pool import CrfPool, check_crf
from seam_dist.inference.run_shards import (
    CAMS,
    ShardOutput,
    ShardProcess,
    Work,
    check_has_labels,
    read_images,
    run_shards,
)
from seam_dist.models import Trained, affinity_stride, load_seam, seam_architecture, trained_for

_SETTINGS = ("infer_cam.cam_stride", "infer_cam.interop", "infer_cam.crf")
_NETWORK_SETTINGS = ("infer_cam.scales", "infer_cam.flip", "infer_cam.cam")
_CRF_SETTINGS = ("infer_cam.crf_alphas", "crf", "train_affinity.output_stride", "model.output_stride")


def run(cfg: Config) -> None:
    """Write the CAMs of cfg.infer_cam.splits; finished shards of the same weights and settings are kept.

    Raises ValueError (StageError, ShardError) when the training is not finished, the checkpoint does not fit the data
    set's classes, a split has no labels, the CRF is not installed, one of the authors' files is missing or does not fit
    its image, or more than data.max_bad_fraction of the images cannot be used.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    trained = None
    if cfg.infer_cam.from_interop is None:
        architecture = seam_architecture(cfg, manifest.classes)
        trained = trained_for(cfg, "train_seam", manifest.classes, cfg.infer_cam.checkpoint, default=architecture)

    def start(stage: StageRun, pool: CrfPool | None) -> ShardProcess:
        model = None
        if trained is not None:
            model = load_seam(trained, cfg.model).to(world.device)
            model.pcm = model.pcm and cfg.infer_cam.cam == "refined"

        def process(work: Work, output: ShardOutput) -> Iterator[None]:
            samples = read_images(cfg, manifest, work.shard, output)
            if model is None or trained is None:
                assert cfg.infer_cam.from_interop is not None
                cams = read_authors_cams(samples, cfg.infer_cam.from_interop)
            else:
                cams = infer_samples(model, samples, cfg.infer_cam, align=trained.align)
            stride = affinity_stride(cfg) if "affinity" in work.folders else None
            for index, sample, maps in cams:
                add_cams(output, index, sample, maps, cfg, stage.dir, pool, stride)
                yield

        return process

    refined = trained is not None and trained.architecture["pcm"] and cfg.infer_cam.cam == "refined"
    weights = cfg.infer_cam.from_interop if trained is None else trained.weights
    run_shards(
        cfg,
        world,
        "infer_cam",
        open_stage=lambda: _open(cfg, manifest, trained),
        start=start,
        crf=cfg.infer_cam.crf,
        metadata={"checkpoint": str(weights), "cam": "refined" if refined else "plain"},
    )


def _open(cfg: Config, manifest: Manifest, trained: Trained | None) -> tuple[StageRun, list[Work]]:
    if cfg.infer_cam.crf and cfg.infer_cam.crf_from_interop is None:
        check_crf(cfg.crf)
    works: list[Work] = []
    for name in cfg.splits_of("infer_cam"):
        split = manifest.split(name)
        check_has_labels(cfg, split, "infer_cam")
        verify_shards(cfg.shards_dir, manifest, name, cfg.data.verify)
        affinity = ("affinity",) if name == cfg.data.train_split else ()
        folders = ("crf", *affinity, CAMS) if cfg.infer_cam.crf else (CAMS,)
        works += [Work(shard, folders) for shard in split.shards]
    inputs, settings = {"shards": input_fingerprint(cfg.shards_dir, "shard"), "format": FORMAT}, [*_SETTINGS]
    if cfg.infer_cam.from_interop is not None:
        inputs[CAM_FILES] = files_fingerprint(cfg.infer_cam.from_interop, "infer_cam.from_interop")
    if trained is not None:
        inputs |= {"weights": sha256_file(trained.weights), "network": fingerprint(dict(trained.architecture))}
        settings += _NETWORK_SETTINGS
    if (folders_of_crf := crf_folders(cfg.infer_cam)) is not None:
        for name, files in zip(CRF_FILES, folders_of_crf, strict=True):
            inputs[name] = files_fingerprint(files, "infer_cam.crf_from_interop")
        settings += [name for name in _CRF_SETTINGS if name != "crf"]
    elif cfg.infer_cam.crf:
        settings += _CRF_SETTINGS
    return open_stage(cfg, "infer_cam", settings=settings, ignore=("crf.num_workers",), inputs=inputs), works
