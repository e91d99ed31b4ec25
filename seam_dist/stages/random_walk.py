"""Stage random_walk: pseudo-labels, from the CAMs walked over the affinities of AffinityNet.

PARITY.md section 6. Every input shard gives one output shard of the same name in labels_crf/ (random_walk.crf) and
labels/ (seam_dist.inference.run_shards). random_walk.files writes the labels of labels/ to files/<key>.png, too.

The CRF (random_walk.crf) works on the walked scores as they are, unnormalized, at image size. The published code hands
it the padded image and all classes; here the padding is cut off and absent classes, whose scores are below its clip of
1e-5, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from seam_dist.artifacts.cam_file import read_cams
from seam_dist.artifacts.layout import cam_folder
from seam_dist.artifacts.stage import StageError, StageRun, input_fingerprint, open_stage
from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.manifest import Manifest, load_manifest, verify_shards
from seam_dist.inference.crf_pool import CrfPool, check_crf
from seam_dist.inference.random_walk import add_walked, read_samples_with_cams, walk_samples
from seam_dist.inference.run_shards import ShardOutput, ShardProcess, Work, check_has_labels, run_shards
from seam_dist.models import AffinityNet, affinity_architecture, load_affinity_net, trained_for

_WALK = ("alpha", "beta", "num_steps", "method", "crf", "files")
_SETTINGS = (*(f"random_walk.{name}" for name in _WALK), "train_affinity.border", "train_affinity.radius")
_CRF_SETTINGS = ("random_walk.crf_num_iters", "crf")
_IGNORED = ("crf.num_workers", "crf.num_iters")


def run(cfg: Config) -> None:
    """Write the pseudo-labels of cfg.random_walk.splits; finished shards of the same inputs and settings are kept.

    Raises ValueError (StageError, ShardError) when infer_cam or train_affinity is not finished or does not fit the
    shards, a split or an image has no CAM, or the CRF is not installed.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)

    def start(stage: StageRun, pool: CrfPool | None) -> ShardProcess:
        net = load_network(cfg, manifest).to(world.device)

        def process(work: Work, output: ShardOutput) -> Iterator[None]:
            cams = {cam.key: cam for cam in read_cams(cam_folder(cfg) / work.shard.file)}
            samples = read_samples_with_cams(cfg, manifest, work.shard, cams, output)
            for walker, scores in walk_samples(net, samples, cams, cfg):
                add_walked(output, walker, scores, cfg, stage.dir, pool)
                yield

        return process

    crf = cfg.random_walk.crf
    run_shards(cfg, world, "random_walk", open_stage=lambda: _open(cfg, manifest), start=start, crf=crf)


def load_network(cfg: Config, manifest: Manifest) -> AffinityNet:
    """Return the trained AffinityNet; StageError when its weights are missing or of another network or data set."""
    trained, wanted = trained_for(cfg, "train_affinity", manifest.classes), affinity_architecture(cfg, manifest.classes)
    given = trained.architecture
    differs = [f"{name}: {given.get(name)} -> {wanted[name]}" for name in wanted if given.get(name) != wanted[name]]
    if differs:
        raise StageError(
            f"{trained.weights} is of another network than the settings say ({'; '.join(differs)}): change the "
            "settings back, or run `--only train_affinity` again"
        )
    return load_affinity_net(trained, cfg.model, radius=cfg.train_affinity.radius)


def _open(cfg: Config, manifest: Manifest) -> tuple[StageRun, list[Work]]:
    if cfg.random_walk.crf:
        check_crf(cfg.crf)
    cams = cam_folder(cfg)
    inputs = {"shards": input_fingerprint(cfg.shards_dir, "shard")}
    inputs |= {stage: input_fingerprint(cfg.stage_dir(stage), stage) for stage in ("infer_cam", "train_affinity")}
    folders = ("labels_crf", "labels") if cfg.random_walk.crf else ("labels",)
    works: list[Work] = []
    for name in cfg.splits_of("random_walk"):
        split = manifest.split(name)
        check_has_labels(cfg, split, "random_walk")
        missing = next((shard.file for shard in split.shards if not (cams / shard.file).is_file()), None)
        if missing is not None:
            raise StageError(
                f"{cams / missing} is missing, so split {name!r} has no CAMs: add it to infer_cam.splits and run "
                "`--only infer_cam`, or leave it out of random_walk.splits"
            )
        verify_shards(cfg.shards_dir, manifest, name, cfg.data.verify)
        works += [Work(shard, folders) for shard in split.shards]
    settings = (*_SETTINGS, *_CRF_SETTINGS) if cfg.random_walk.crf else _SETTINGS
    return open_stage(cfg, "random_walk", settings=settings, ignore=_IGNORED, inputs=inputs), works
