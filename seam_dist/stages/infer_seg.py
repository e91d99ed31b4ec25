"""Stage infer_seg: labels of whole splits from the final network, at several scales and mirrored, without and with CRF.

No image-level label is used, unlike by CAMs and the random walk: what this stage predicts for a split is a fair test of
it. Every input shard gives one output shard of the same name in labels/ and, with infer_seg.crf, in labels_crf/, which
appear by rename: one that is there is whole, and a stage cut short goes on with those that are missing. Each rank takes
every R-th of them. PARITY.md section 7.

infer_seg.oracle adds labels_oracle/ for splits that have image-level labels: the network's choice among background and
the classes of the label. It is no test result, it is there to be compared with labels that were made with the label.

infer_seg.voc_server packs one split's labels for the evaluation server of PASCAL VOC in voc_server.tar.gz.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from seam_dist.artifacts.atomic import atomic_file, read_json, write_json
from seam_dist.artifacts.label_file import read_label_shard, write_labels
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.artifacts.stage import StageError, StageRun, input_fingerprint, open_stage
from seam_dist.cluster.distributed import barrier, init_world, on_main
from seam_dist.config.schema import Config
from seam_dist.data.manifest import Manifest, load_manifest, verify_shards
from seam_dist.data.shards import parse_info, read_raw, read_shard
from seam_dist.inference.batching import Work, read_bad, wait_for, write_bad
from seam_dist.inference.crf_pool import CrfPool, crf_device, crf_workers
from seam_dist.inference.segmentation import (
    Prediction,
    SegWeights,
    alignment,
    find_seg_weights,
    load_network,
    predict_samples,
)

VOC_SERVER = "voc_server.tar.gz"

_FOLDERS = ("labels", "labels_crf", "labels_oracle")
_SETTINGS = ("infer_seg.scales", "infer_seg.flip", "infer_seg.crf", "infer_seg.oracle")
_CRF_SETTINGS = ("infer_seg.crf_num_iters", "infer_seg.crf_bilateral_sxy", "crf")
_IGNORED = ("crf.num_workers", "crf.num_iters", "crf.bilateral_sxy")
_SERVER_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
_SERVER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def run(cfg: Config) -> None:
    """Write the labels of cfg.infer_seg.splits; finished shards of the same weights and settings are kept.

    Raises ValueError (StageError, ShardError) when the training is not finished, its weights do not fit the data set's
    classes, or more than data.max_bad_fraction of the images cannot be used.
    """
    world = init_world(cfg)
    manifest = load_manifest(cfg.shards_dir)
    found = find_weights(cfg, manifest)
    stage, todo = on_main(lambda: _open(cfg, manifest, found), world)
    if not todo:
        on_main(lambda: pack_for_server(cfg, manifest, stage), world)
        if world.is_main:
            print(f"infer_seg: done already, see {stage.dir}", flush=True)
        return
    own = todo[world.rank :: world.size]
    with ExitStack() as stack:
        crf = None
        if cfg.infer_seg.crf:
            crf = stack.enter_context(CrfPool(cfg.crf, crf_workers(cfg), device=crf_device(cfg)))
        model = load_network(found, world.device)
        start = time.perf_counter()
        num_own = sum(shard.num_samples for shard, _ in own)
        bar = stack.enter_context(tqdm(total=num_own, unit="image", desc="infer_seg", disable=not world.is_main))
        for shard, folders in own:
            bad: list[str] = []
            samples = read_shard(
                cfg.shards_dir / shard.file,
                masks=False,
                max_pixels=cfg.data.max_pixels,
                on_bad=lambda _, error, bad=bad: bad.append(str(error)),  # type: ignore[misc]
            )
            predictions = predict_samples(
                model,
                samples,
                cfg.infer_seg,
                align=alignment(found, model),
                crf=crf,
                oracle="labels_oracle" in folders,
            )
            write_shard(stage.dir, shard.file, _counted(predictions, bar), folders, bad=bad)
        for folder in {folder for work in todo for folder in work.folders}:
            wait_for(stage.dir / folder, [work.shard.file for work in todo if folder in work.folders])
        took = time.perf_counter() - start
    num_images = sum(shard.num_samples for shard, _ in todo)
    shards = [shard for shard, _ in _work(cfg, manifest)]
    all_bad = on_main(lambda: read_bad(stage.dir, shards, cfg.data.max_bad_fraction), world)

    def finish() -> None:
        stage.finish(
            (path for folder in _FOLDERS for path in (stage.dir / folder).glob("*.tar")),
            checkpoint=str(found.weights),
            num_images=num_images,
            images_per_s=round(num_images / took, 3),
            bad_samples=all_bad,
        )
        pack_for_server(cfg, manifest, stage)
        note = f", {len(all_bad)} bad ones left out" if all_bad else ""
        print(f"infer_seg: {num_images} images{note}, {num_images / took:.2f} a second, in {stage.dir}", flush=True)

    on_main(finish, world)
    barrier(world)


def find_weights(cfg: Config, manifest: Manifest) -> SegWeights:
    """Return the weights of cfg.infer_seg.checkpoint, or those of this run's finished train_seg.

    Raises StageError when there are none or when they are for other classes than the shards.
    """
    if cfg.infer_seg.checkpoint is None:
        input_fingerprint(cfg.stage_dir("train_seg"), "train_seg")
    found = find_seg_weights(cfg.infer_seg.checkpoint or cfg.stage_dir("train_seg"))
    if found.classes != manifest.classes:
        ours, theirs = (
            f"({', '.join(n[:4])}{', ...' if len(n) > 4 else ''})" for n in (manifest.classes, found.classes)
        )
        raise StageError(
            f"{found.weights} was trained for {len(found.classes)} classes {theirs}, the shards in {cfg.shards_dir} "
            f"have {manifest.num_classes} {ours}: use the data set that it was trained on"
        )
    return found


def write_shard(
    folder: Path, name: str, predictions: Iterable[Prediction], kinds: Sequence[str], *, bad: Sequence[str] = ()
) -> None:
    """Write one shard's labels, in the order of its samples, to each folder of `kinds`: labels, labels_crf, ...

    `bad` gets what is said of bad samples while the predictions are made; it is kept beside the labels.
    """
    # The images themselves are let go of.
    parts = sorted(((p.index, p.sample.key, (p.labels, p.refined, p.oracle)) for p in predictions), key=lambda p: p[0])
    write_bad(folder, name, bad)
    for kind in kinds:
        place = _FOLDERS.index(kind)
        found = ((key, maps[place]) for _, key, maps in parts)
        write_labels(folder / kind / name, ((key, labels) for key, labels in found if labels is not None))


def pack_for_server(cfg: Config, manifest: Manifest, stage: StageRun) -> None:
    """Write the labels of split cfg.infer_seg.voc_server as the archive that the server takes, if it is not there.

    Members are results/VOC2012/Segmentation/comp6_test_cls/<name of the image>.png. Equal labels give equal bytes.
    Raises StageError when an image of the split has no labels or no name that the server could know.
    """
    split = cfg.infer_seg.voc_server
    path = stage.dir / "manifest.json"
    record = read_json(path)
    target = stage.dir / VOC_SERVER
    if split is None or (record.get("voc_server") == split and target.is_file()):
        return
    folder = stage.dir / ("labels_crf" if cfg.infer_seg.crf else "labels")
    with (
        atomic_file(target) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for shard in manifest.split(split).shards:
            labels = read_label_shard(folder / shard.file)
            for sample in read_raw(cfg.shards_dir / shard.file):
                name = parse_info(sample.members["json"]).source_id
                if not _SERVER_NAME.fullmatch(name):
                    raise StageError(
                        f"image {sample.key} of split {split!r} is called {name!r} in its data set, which is no name "
                        "of PASCAL VOC: unset infer_seg.voc_server"
                    )
                if sample.key not in labels:
                    raise StageError(
                        f"image {name} of split {split!r} could not be read and has no labels, and the server wants "
                        "all images: put the image right and convert the data set again"
                    )
                member = tarfile.TarInfo(f"{_SERVER_FOLDER}/{name}.png")
                member.size = len(labels[sample.key])
                tar.addfile(member, io.BytesIO(labels[sample.key]))
    record["outputs"][VOC_SERVER] = target.stat().st_size
    write_json(path, record | {"voc_server": split})
    print(f"infer_seg: {target} is what the PASCAL VOC server takes", flush=True)


def _open(cfg: Config, manifest: Manifest, found: SegWeights) -> tuple[StageRun, list[Work]]:
    """Open the stage and return it with the shards whose labels are not there yet."""
    server, splits = cfg.infer_seg.voc_server, list(cfg.splits_of("infer_seg"))
    if server is not None and server not in splits:
        raise StageError(f"infer_seg.voc_server={server} is not one of infer_seg.splits={splits}: add it there")
    for name in cfg.splits_of("infer_seg"):
        verify_shards(cfg.shards_dir, manifest, name, cfg.data.verify)
    works = _work(cfg, manifest)
    inputs = {"shards": input_fingerprint(cfg.shards_dir, "shard"), "network": sha256_file(found.weights)}
    if cfg.infer_seg.checkpoint is None:
        inputs["train_seg"] = input_fingerprint(cfg.stage_dir("train_seg"), "train_seg")
    settings = (*_SETTINGS, *_CRF_SETTINGS) if cfg.infer_seg.crf else _SETTINGS
    stage = open_stage(cfg, "infer_seg", settings=settings, ignore=_IGNORED, inputs=inputs)
    for folder in {folder for work in works for folder in work.folders}:
        (stage.dir / folder).mkdir(exist_ok=True)
    todo = [work for work in works if not all((stage.dir / f / work.shard.file).is_file() for f in work.folders)]
    if not todo and not stage.is_done():
        # Cut between the last shard and the manifest: make the last one again rather than a second way to finish.
        todo = works[-1:]
    return stage, todo


def _work(cfg: Config, manifest: Manifest) -> list[Work]:
    """Return every shard of the splits to predict, with the folders that it fills."""
    works = []
    for split in map(manifest.split, cfg.splits_of("infer_seg")):
        made = {
            "labels": True,
            "labels_crf": cfg.infer_seg.crf,
            "labels_oracle": cfg.infer_seg.oracle and split.has_labels,
        }
        folders = tuple(folder for folder in _FOLDERS if made[folder])
        works += [Work(shard, folders) for shard in split.shards]
    return works


def _counted(predictions: Iterable[Prediction], bar: tqdm[None]) -> Iterator[Prediction]:
    for prediction in predictions:
        bar.update(1)
        yield prediction
