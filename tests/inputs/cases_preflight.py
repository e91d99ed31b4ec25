"""Settings, splits and data sets that a run cannot do with: all are found before its first stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import kit
from case import Outcome
from preflight_kit import LATER, found, refused, schedule, shards, warned, works

from seam_dist.config.load import load_config

PETS = {"source": {"kind": "folder", "root": "pets"}}
ONE_SPLIT = {"source": {"num_images": [5]}, "data": {"splits": ["train"]}}


def pets(folder: Path, *, masks: Sequence[str] = ("train", "val"), name: str = "image_{}") -> None:
    """A plain folder with two images in each of train and val."""
    root = folder / "pets"
    rows = ["image,split,classes"]
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        for index in range(2):
            stem = name.format(f"{split}{index}")
            rows.append(f"{stem}.jpg,{split},cat;dog")
            (root / "images" / split / f"{stem}.jpg").write_bytes(kit.encode(kit.pixels(index, 6, 8)))
            if split in masks:
                (root / "masks" / split).mkdir(parents=True, exist_ok=True)
                (root / "masks" / split / f"{stem}.png").write_bytes(kit.index_mask(index, 6, 8))
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("cat\ndog\nhorse\n")


def voc_with_unlabeled_test(folder: Path) -> None:
    """PASCAL VOC with a split train that has annotations and a split test that has none."""
    root = folder / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    for split, stem in (("train", "one"), ("test", "two")):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text(f"{stem}\n")
        (root / "JPEGImages" / f"{stem}.jpg").write_bytes(kit.encode(kit.pixels(0, 6, 8)))
    (root / "Annotations/one.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    (root / "SegmentationClass/one.png").write_bytes(kit.index_mask(0, 6, 8))


def cut_shard(folder: Path) -> None:
    path = next(shards(folder).glob("train-*.tar"))
    path.write_bytes(path.read_bytes()[:-512])


def loaded(*settings: str) -> Callable[[Path], Outcome]:
    return lambda folder: Outcome(load_config("demo", settings).config.run.name)


CASES = [
    works("a good run", found()),
    works("one split alone", found(**ONE_SPLIT)),
    works("splits without val", found(data={"splits": ["train", "holdout"]})),
    # Settings against each other and against the ranks.
    refused(
        "batch of the last training on three ranks",
        found("train_seg", "shard", ranks=3, done=LATER[:-4], train_seg=schedule(global_batch_size=8)),
        r"train_seg\.schedule\.global_batch_size=8 is not a multiple of the 3 ranks",
    ),
    refused(
        "micro batch times ranks",
        found("shard", "train_seam", ranks=2, train_seam=schedule(global_batch_size=6, micro_batch_size=2)),
        r"global_batch_size=6 is not a multiple of train_seam\.schedule\.micro_batch_size=2 times 2 ranks",
    ),
    refused(
        "streams against ranks and workers",
        found("shard", "train_seam", ranks=2, data={"streams": 2, "num_workers": 2}),
        r"data\.streams=2 is not a multiple of 2 ranks x 2 workers",
    ),
    refused("another number of ranks", found("shard", ranks=2, run={"world_size": 4}), r"run\.world_size=4 but 2 rank"),
    refused(
        "fewer images than the batch",
        found("shard", "train_seam", train_seam={"schedule": {"global_batch_size": 8, "max_steps": None}}),
        r"has 5 samples, fewer than train_seam\.schedule\.global_batch_size=8",
    ),
    refused(
        "fewer images than streams",
        found("shard", "train_seam", data={"streams": 8}),
        r"split 'train': num_shards=5 is fewer than data\.streams=8",
    ),
    refused(
        "unknown key of DeepSpeed",
        found("shard", "train_seam", deepspeed={"zero_optimizaton": {"stage": 2}}),
        r"deepspeed\.zero_optimizaton is unknown: did you mean zero_optimization",
    ),
    refused("scales with NaN", loaded("infer_cam.scales=[nan]"), r"infer_cam\.scales=\['nan'\].*a finite number"),
    refused("negative scale", loaded("infer_seg.scales=[0.5, -1]"), r"infer_seg\.scales=\[0\.5, -1\.0\].*above 0"),
    refused("infinite scale", loaded("infer_seg.scales=[.inf]"), r"infer_seg\.scales=\[inf\].*a finite number"),
    refused("no scale", loaded("infer_cam.scales=[]"), r"infer_cam\.scales=\[\]: expected at least one number"),
    refused(
        "a compared run that is not there",
        found("report", report={"compare": ["runs/nope"]}),
        r"report\.compare: run folder runs/nope does not exist",
    ),
    refused(
        "Triton on a CPU", found("shard", "train_seam", model={"pcm_impl": "triton"}), r"pcm_impl=triton needs a GPU"
    ),
    refused(
        "a source stride of the lattice",
        found(
            "shard", "infer_seg", done=LATER[:-3], crf={"impl": "lattice", "source_stride": 2}, infer_seg={"crf": True}
        ),
        r"crf\.source_stride=2 has no effect",
    ),
    # Splits.
    warned(
        "a threshold split that is not there",
        found(evaluate={"threshold_split": "minival"}),
        r"evaluate\.threshold_split=minival is not in the data set, which has train, val",
    ),
    refused("a split of the report that is not there", found(report={"split": "test"}), r"report\.split: split 'test'"),
    refused(
        "a split of a late stage that is not there",
        found(infer_seg={"splits": ["val", "test"]}),
        r"infer_seg\.splits: split 'test' is not in the data set, which has train, val",
    ),
    refused(
        "a training split that is not there", found(data={"train_split": "trn"}), r"data\.train_split: split 'trn'"
    ),
    refused(
        "a random walk without CAMs",
        found(infer_cam={"splits": ["train"]}, random_walk={"splits": ["train", "val"]}),
        r"random_walk\.splits: split 'val' gets no CAMs: add it to infer_cam\.splits",
    ),
    refused(
        "labels that the random walk leaves out",
        found(random_walk={"crf": False}, train_seg={"labels": "walk_crf"}),
        r"train_seg\.labels=walk_crf: random_walk\.crf=false leaves these labels out",
    ),
    refused(
        "labels of other splits",
        found(random_walk={"splits": ["val"]}),
        r"train_seg\.labels=walk: split 'train' gets no labels of random walk: add it to random_walk\.splits",
    ),
    refused(
        "AffinityNet without CAM + CRF",
        found(infer_cam={"crf": False}),
        r"infer_cam\.crf=false: train_affinity learns from CAM \+ CRF",
    ),
    refused(
        "a VOC server split that is not predicted",
        found(infer_seg={"splits": ["train"], "voc_server": "val"}),
        r"infer_seg\.voc_server=val is not one of infer_seg\.splits",
    ),
    refused(
        "names that the VOC server cannot know",
        found(prepare=lambda folder: pets(folder, name="my {}"), infer_seg={"voc_server": "val"}, **PETS),
        r"is called 'my val0\.jpg' in its data set, no name of PASCAL VOC.*\(2 such cases\)",
    ),
    refused(
        "a split without labels in infer_cam",
        found(
            prepare=voc_with_unlabeled_test,
            source={"kind": "voc", "root": "voc"},
            data={"splits": ["train", "test"]},
            train_seam=schedule(global_batch_size=1),
        ),
        r"split 'test' has no image-level labels, which infer_cam needs.*infer_cam\.splits=\[train\]",
    ),
    warned(
        "masks for one split alone",
        found(prepare=lambda folder: pets(folder, masks=["train"]), **PETS),
        r"evaluate leaves out val of data\.splits: no masks",
    ),
    warned(
        "no masks at all",
        found(prepare=lambda folder: pets(folder, masks=[]), **PETS),
        r"evaluate is skipped: no split of data\.splits=\[train,val\] has masks",
    ),
    refused(
        "training on masks that are not there",
        found(prepare=lambda folder: pets(folder, masks=[]), train_seg={"labels": "masks"}, **PETS),
        r"train_seg\.labels=masks: split 'train' has no masks",
    ),
    # The data set.
    refused("no folder of the data set", found("shard", source={"kind": "folder"}), r"source\.root is not set"),
    refused("another folder", found("shard", **PETS), r"data set .*pets is not a folder.*set source\.root"),
    refused("stages without shards", found("train_seam"), r"manifest\.json is missing: run `--only shard`"),
    refused(
        "a shard that is cut", found(prepare=cut_shard, done=["shard"]), r"train-0000\d\.tar has \d+ bytes, expected"
    ),
    works("shards instead of the data set", found(*LATER, prepare=shards, source={"kind": "folder"})),
    refused(
        "a split that the shards lack",
        found("train_seam", prepare=shards, data={"train_split": "trn", "splits": ["trn", "val"]}),
        r"data\.train_split: split 'trn' is not in the data set, which has train, val",
    ),
]
