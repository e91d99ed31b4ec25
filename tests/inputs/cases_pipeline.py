"""Images without objects, splits without labels or masks, and tiny images, as the stages meet them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case import Case, Outcome
from kit import Bytes, convert, encode, index_mask, pixels, run_config

from seam_dist.api import _class_ids
from seam_dist.artifacts.authors_files import write_cam_dict
from seam_dist.artifacts.cam_file import decode_cam, encode_cam, store_cam, upsample_cam
from seam_dist.config.load import from_tree
from seam_dist.config.schema import Config, CrfConfig
from seam_dist.data.loader import make_classification_loader
from seam_dist.data.manifest import Manifest, Split, load_manifest
from seam_dist.data.shards import RawSample, Sample, read_raw, write_shard
from seam_dist.data.sources.base import Record
from seam_dist.evaluation.splits import remarks, splits_of_cams, splits_with_masks
from seam_dist.evaluation.text_table import aligned
from seam_dist.inference.cam import read_authors_cams
from seam_dist.inference.crf_pool import refine_cam
from seam_dist.inference.pseudo_labels import predict_labels
from seam_dist.inference.run_shards import ShardOutput, check_has_labels, read_images
from seam_dist.inference.segmentation import label_image
from seam_dist.report.examples import rank_keys
from seam_dist.report.overlay import draw_overlay

CLASSES = ("cat", "dog", "cow")
Run = Callable[[Path], Outcome]


def split(name: str, *, masks: bool = True, labels: bool = True) -> Split:
    return Split(name, 4, masks, labels, ())


TRAIN, VAL, TEST = split("train"), split("val"), split("test", masks=False, labels=False)


def manifest(*splits: Split) -> Manifest:
    return Manifest(CLASSES, {one.name: one for one in splits}, {}, "")


def settings(**sections: Any) -> Config:
    return from_tree({"source": {"kind": "folder"}, **sections})


def report_split(**sections: Any) -> Run:
    return lambda _: Outcome(settings(**sections).report_split)


def scored(what: Callable[[Config, Manifest], Any], *splits: Split, **sections: Any) -> Run:
    def run(_: Path) -> Outcome:
        sections.setdefault("data", {"splits": [one.name for one in splits]})
        chosen = what(settings(**sections), manifest(*splits))
        return Outcome(chosen.splits, chosen.lines)

    return run


def recalls(*recall: float | None) -> Run:
    record = {"split": "val", "num_images": 4, "recall": list(recall)}
    return lambda _: Outcome(None, remarks([record], manifest(VAL)))


def without_labels(stage: Any) -> Run:
    def run(_: Path) -> Outcome:
        return Outcome(check_has_labels(settings(data={"splits": ["train", "val", "test"]}), TEST, stage))

    return run


def authors_dict(classes: Sequence[int], stored: Sequence[int] | None) -> Run:
    """An image of 2 x 3 pixels with `classes`; the authors' dict has maps of the classes `stored`, None: no file."""

    def run(folder: Path) -> Outcome:
        sample = Sample("im", np.zeros((2, 3, 3), np.uint8), tuple(classes), None, "im")
        if stored is not None:
            write_cam_dict(folder / "im.npy", stored, np.full((len(stored), 2, 3), 0.5, np.float32))
        ((_, _, maps),) = read_authors_cams([sample], folder)
        return Outcome(tuple(maps.cam.shape))

    return run


def shards(folder: Path, change: Callable[[RawSample], RawSample] = lambda sample: sample) -> Config:
    """One shard of an image with a cat, one without objects and one with all classes; `change` alters the first."""
    labels = ((1,), (), (1, 2, 3))
    records = [
        Record(f"im-{n}", f"{n}", ids, Bytes(encode(pixels(n), "PNG")), Bytes(index_mask(n)))
        for n, ids in enumerate(labels)
    ]
    cfg = run_config(folder, data={"splits": ["train"], "streams": 1}, source={"num_images": [1]})
    options = {"settings": {}, "samples_per_shard": 3, "streams": 1, "max_pixels": 10**6}
    convert(CLASSES, {"train": records}, cfg.shards_dir, **options)  # type: ignore[arg-type]
    path = cfg.shards_dir / "train-00000.tar"
    first, *others = read_raw(path)
    with open(path, "wb") as file:
        write_shard(file, [change(first), *others])
    return cfg


def labels_in_training(folder: Path) -> Outcome:
    cfg = shards(folder)
    loader = make_classification_loader(cfg, load_manifest(cfg.shards_dir), 0, 1, 0, 3)
    batch = next(loader)
    return Outcome(dict(zip(batch["key"], batch["label"].tolist(), strict=True)))


def read_by_inference(change: Callable[[RawSample], RawSample]) -> Run:
    def run(folder: Path) -> Outcome:
        cfg, output = shards(folder, change), ShardOutput()
        known = load_manifest(cfg.shards_dir)
        keys = [sample.key for sample in read_images(cfg, known, known.split("train").shards[0], output)]
        return Outcome(keys, output.bad)

    return run


def with_info(**values: Any) -> Callable[[RawSample], RawSample]:
    def change(sample: RawSample) -> RawSample:
        info = {**json.loads(sample.members["json"]), **values}
        return RawSample(sample.key, {**sample.members, "json": json.dumps(info).encode()})

    return change


def cut(sample: RawSample) -> RawSample:
    return RawSample(sample.key, {**sample.members, "image.png": sample.members["image.png"][:70]})


def stored_map(height: int, width: int) -> Run:
    def run(_: Path) -> Outcome:
        cam = torch.full((1, height, width), 0.25)
        back = upsample_cam(decode_cam(encode_cam(store_cam(cam, 8))), (height, width))
        return Outcome((tuple(back.shape), bool((back - cam).abs().max() < 1e-3)))

    return run


def crf_labels(height: int, width: int) -> Run:
    """Labels and affinity labels of an image without objects."""

    def run(_: Path) -> Outcome:
        image, cam = pixels(0, height, width), np.empty((0, height, width), np.float32)
        made = refine_cam(CrfConfig(impl="torch"), torch.device("cpu"), image, cam, (), (4.0, 24.0), 8)
        assert made.affinity is not None
        return Outcome((made.labels.shape, made.labels.any(), made.affinity.tolist()))

    return run


def ranked(rows: str) -> Run:
    def run(folder: Path) -> Outcome:
        (folder / "val-images.csv").write_text(f"key,miou\n{rows}")
        return Outcome([(rank, key) for rank, key, _ in rank_keys(folder / "val-images.csv", 1, {"empty"})])

    return run


def overlay_shape(name: str) -> Run:
    def run(_: Path) -> Outcome:
        drawn = draw_overlay(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), np.uint8), [name])
        return Outcome((drawn.dtype, drawn.shape[1], drawn.shape[0] > 1))

    return run


def oracle(_: Path) -> Outcome:
    logits = torch.tensor([-5.0, 3.0, 2.0, 1.0]).view(4, 1, 1).expand(4, 2, 2)
    return Outcome(label_image([logits], [(9, 9)], (9, 9), ()).any())


def cam_without_classes(_: Path) -> Outcome:
    return Outcome(predict_labels(torch.zeros(0, 2, 3), (), 0.3).tolist())


def table(_: Path) -> Outcome:
    return Outcome(aligned([["\N{CJK UNIFIED IDEOGRAPH-732B}", "1"], ["cat", "2"]]).splitlines())


CASES = [
    Case("report.split", "train and val", report_split(), works="val"),
    Case("report.split", "train alone", report_split(data={"splits": ["train"]}), works="train"),
    Case("report.split", "no val", report_split(data={"splits": ["a", "b"]}), works="b"),
    Case("report.split", "set", report_split(report={"split": "test"}), works="test"),
    Case("report.split", "no splits", report_split(data={"splits": []}), refused=r"data\.splits"),
    Case("masks", "in all splits", scored(splits_with_masks, TRAIN, VAL), works=("train", "val")),
    Case(
        "masks",
        "in train alone",
        scored(splits_with_masks, TRAIN, split("val", masks=False)),
        works=("train",),
        warns=r"^split 'val' has no masks, so it has no scores$",
    ),
    Case(
        "masks",
        "in no split",
        scored(splits_with_masks, split("train", masks=False)),
        works=(),
        warns="split 'train' has no masks",
    ),
    Case(
        "masks",
        "of a split that is not there",
        scored(splits_with_masks, TRAIN, evaluate={"splits": ["vall"]}),
        refused="split 'vall' is not in the shards, which have train",
    ),
    Case("threshold", "chosen on train", scored(splits_of_cams, VAL, TRAIN), works=("train", "val")),
    Case(
        "threshold",
        "chosen on a split that is not there",
        scored(splits_of_cams, VAL),
        works=("val",),
        warns=r"no threshold is chosen, since evaluate\.threshold_split=train is not in the shards, which have val; ",
    ),
    Case(
        "threshold",
        "chosen on a split without masks",
        scored(splits_of_cams, split("train", masks=False), VAL),
        works=("val",),
        warns="no threshold is chosen, since split 'train' has no masks",
    ),
    Case("masks", "hold every class", recalls(1.0, 0.0, 0.5, 1.0)),
    Case(
        "masks",
        "lack a class",
        recalls(1.0, 0.0, None, 1.0),
        warns="^no mask of val holds dog: its IoU is 0 where it is predicted",
    ),
    Case(
        "infer_cam.splits",
        "a split without labels",
        without_labels("infer_cam"),
        refused=r"split 'test' has no image-level labels, which infer_cam needs: .*\(infer_cam\.splits=\[train,val\]\)",
    ),
    Case(
        "random_walk.splits",
        "a split without labels",
        without_labels("random_walk"),
        refused=r"leave it out of random_walk\.splits .* predict it \(infer_seg\.splits\)",
    ),
    Case("authors' CAM dict", "of an image with two classes", authors_dict((1, 3), (1, 3)), works=(2, 2, 3)),
    Case("authors' CAM dict", "without an entry", authors_dict((), ()), works=(0, 2, 3)),
    Case("authors' CAM dict", "missing, no objects", authors_dict((), None), works=(0, 2, 3)),
    Case(
        "authors' CAM dict",
        "missing, an object",
        authors_dict((1,), None),
        refused=r"image im has no dict im\.npy in .* \(infer_cam\.from_interop\)",
    ),
    Case(
        "authors' CAM dict",
        "with a map, no objects",
        authors_dict((), (2,)),
        refused=r"im\.npy has maps of the ids \[1\], the label of its image says \[\]",
    ),
    Case(
        "training label",
        "no objects",
        labels_in_training,
        works={"im-0": [1, 0, 0], "im-1": [0, 0, 0], "im-2": [1, 1, 1]},
    ),
    Case(
        "shard in inference",
        "an image that is cut",
        read_by_inference(cut),
        works=["im-1", "im-2"],
        warns=r"^sample im-0 in .*train-00000\.tar: ",
    ),
    Case(
        "shard in inference",
        "a class that the data set lacks",
        read_by_inference(with_info(classes=[4])),
        works=["im-1", "im-2"],
        warns="sample im-0 in .* expected classes 1 to 3",
    ),
    Case(
        "shard in inference",
        "another size in the .json",
        read_by_inference(with_info(size=[3, 4])),
        works=["im-1", "im-2"],
        warns=r"its image has \(30, 40\) pixels \(height, width\), its \.json says \(3, 4\)",
    ),
    Case("shard in inference", "no objects", read_by_inference(with_info(classes=[])), works=["im-0", "im-1", "im-2"]),
    Case("stored CAM", "1 x 1 pixel", stored_map(1, 1), works=((1, 1, 1), True)),
    Case("stored CAM", "1 x 40 pixels", stored_map(1, 40), works=((1, 1, 40), True)),
    Case("stored CAM", "9 x 7 pixels", stored_map(9, 7), works=((1, 9, 7), True)),
    Case("CRF", "1 x 9 pixels, no objects", crf_labels(1, 9), works=((1, 9), False, [[0, 0]])),
    Case(
        "affinity crop",
        "too small for a pair",
        lambda _: Outcome(settings(train_affinity={"crop_size": 32})),
        refused=r"train_affinity\.crop_size=32 is 4 cells of 8 pixels, .*: set it to at least 40",
    ),
    Case(
        "ranked images",
        "a third without objects",
        ranked("empty,1\na,0.9\nb,0.5\n"),
        works=[("best", "a"), ("median", "empty"), ("worst", "b")],
    ),
    Case("ranked images", "all pixels ignored", ranked("a,nan\nb,0.5\n"), works=[("best", "b")]),
    Case("legend", "a long name on 1 x 1 pixel", overlay_shape("L" * 300), works=(np.uint8, 1, True)),
    Case(
        "legend",
        "markup and Unicode",
        overlay_shape('<b> "\N{CJK UNIFIED IDEOGRAPH-732B}" \N{DOG FACE}'),
        works=(np.uint8, 1, True),
    ),
    Case("oracle", "no objects", oracle, works=False),
    Case("labels of a CAM", "no objects", cam_without_classes, works=[[0, 0, 0], [0, 0, 0]]),
    Case("cam(image, classes)", "no classes", lambda _: Outcome(_class_ids([], CLASSES)), works=[]),
    Case("text table", "wide characters", table, works=["\N{CJK UNIFIED IDEOGRAPH-732B}   1", "cat  2"]),
]
