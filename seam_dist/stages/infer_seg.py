"""Stage infer_seg: labels of whole splits from the final network, at several scales and mirrored, without and with CRF.

No image-level label is used, unlike by CAMs and the random walk: what this stage predicts for a split is a fair test of
it. Every input shard gives one output shard of the same name in labels/ and, with infer_seg.crf, in labels_crf/
(seam_dist.inference.run_shards). PARITY.md section 7.

infer_seg.oracle adds labels_oracle/ for splits that have image-level labels: the network's choice among background and
the classes of the label. It is no test result, it is there to be compared with labels that were made with the label.

infer_seg.voc_server packs one split's labels for the evaluation server of PASCAL VOC in voc_server.tar.gz.
"""

from __future__ import annotations

from collections.abc import Iterator

from seam_dist.artifacts.outputs import OutputFolder
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.artifacts.stage import StageRun, input_fingerprint, open_stage
from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config
from seam_dist.data.manifest import Manifest, load_manifest, verify_shards
from seam_dist.inference.crf_pool import CrfPool
from seam_dist.inference.run_shards import ShardOutput, ShardProcess, Work, read_images, run_shards
from seam_dist.inference.segmentation import add_prediction, predict_samples
from seam_dist.inference.voc_server import VOC_SERVER, check_server_split, pack_for_server
from seam_dist.models import Trained, load_deeplab, trained_for

_SETTINGS = ("infer_seg.scales", "infer_seg.flip", "infer_seg.crf", "infer_seg.oracle")
_CRF_SETTINGS = ("infer_seg.crf_num_iters", "infer_seg.crf_bilateral_sxy", "crf")
_IGNORED = ("crf.num_workers", "crf.num_iters", "crf.bilateral_sxy")


def run(cfg: Config) -> None:
    """Write the labels of cfg.infer_seg.splits; finished shards of the same weights and settings are kept.

    Raises ValueError (StageError, ShardError) when the training is not finished, its weights do not fit the data set's
    classes, or more than data.max_bad_fraction of the images cannot be used.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    trained = trained_for(cfg, "train_seg", manifest.classes, cfg.infer_seg.checkpoint)

    def start(stage: StageRun, pool: CrfPool | None) -> ShardProcess:
        model = load_deeplab(trained).to(world.device)

        def process(work: Work, output: ShardOutput) -> Iterator[None]:
            samples = read_images(cfg, manifest, work.shard, output)
            oracle = "labels_oracle" in work.folders
            for prediction in predict_samples(
                model, samples, cfg.infer_seg, align=trained.align, crf=pool, oracle=oracle
            ):
                add_prediction(output, prediction)
                yield

        return process

    run_shards(
        cfg,
        world,
        "infer_seg",
        open_stage=lambda: _open(cfg, manifest, trained),
        start=start,
        crf=cfg.infer_seg.crf,
        metadata={"checkpoint": str(trained.weights)},
        complete=lambda stage: pack_for_server(cfg, manifest, stage),
    )


def _open(cfg: Config, manifest: Manifest, trained: Trained) -> tuple[StageRun, list[Work]]:
    check_server_split(cfg)
    works: list[Work] = []
    for name in cfg.splits_of("infer_seg"):
        verify_shards(cfg.shards_dir, manifest, name, cfg.data.verify)
        split = manifest.split(name)
        folders = ["labels_crf"] if cfg.infer_seg.crf else []
        if cfg.infer_seg.oracle and split.has_labels:
            folders.append("labels_oracle")
        elif cfg.infer_seg.oracle:
            print(f"infer_seg: split {name!r} has no image-level labels, so it gets no labels_oracle", flush=True)
        works += [Work(shard, (*folders, "labels")) for shard in split.shards]
    inputs = {"shards": input_fingerprint(cfg.shards_dir, "shard"), "network": sha256_file(trained.weights)}
    if cfg.infer_seg.checkpoint is None:
        inputs["train_seg"] = input_fingerprint(cfg.stage_dir("train_seg"), "train_seg")
    settings = (*_SETTINGS, *_CRF_SETTINGS) if cfg.infer_seg.crf else _SETTINGS
    stage = open_stage(cfg, "infer_seg", settings=settings, ignore=_IGNORED, inputs=inputs)
    if cfg.infer_seg.voc_server is not None:
        OutputFolder(stage.dir).check([VOC_SERVER])
    return stage, works
