"""The whole pipeline on data of exactly COCO 2014's layout, scored by an independent count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as pycoco

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.cli import main
from seam_dist.config.schema import SourceConfig
from seam_dist.data.manifest import load_manifest
from seam_dist.data.masks import decode_labels, decode_mask
from seam_dist.data.sources.synthetic import SyntheticSource

CATEGORIES = {1: "person", 17: "cat", 88: "teddy bear"}
COUNTS = {"train2014": 8, "val2014": 5}
FIELDS = {"license": 3, "coco_url": "", "flickr_url": "", "date_captured": "2013-11-14 17:02:52"}


def _annotations(mask: np.ndarray, image: int, first: int) -> list[dict[str, Any]]:
    found = []
    for index, category in enumerate(CATEGORIES, start=1):
        region = np.asfortranarray((mask == index).astype(np.uint8))
        if not region.any():
            continue
        rle = pycoco.encode(region)
        is_crowd = image % 3 == 0 and index == 1
        counts = rle["counts"].decode()
        found.append(
            {
                "id": first + len(found),
                "image_id": image,
                "category_id": category,
                "area": float(region.sum()),
                "bbox": pycoco.toBbox(rle).tolist(),
                "iscrowd": int(is_crowd),
                "segmentation": {"size": list(region.shape), "counts": counts},
            }
        )
    return found


@pytest.fixture
def coco(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder in COCO's layout, and the mask of each image; the last image of a split has no annotation."""
    masks: dict[str, np.ndarray] = {}
    source = SyntheticSource(
        SourceConfig(kind="synthetic", num_images=tuple(COUNTS.values()), num_classes=3, image_size=(80, 64)), [*COUNTS]
    )
    (tmp_path / "annotations").mkdir()
    for split, count in COUNTS.items():
        (tmp_path / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, record in enumerate(source.listing(split).records, start=9):
            name = f"COCO_{split}_{number:012d}"
            (tmp_path / split / f"{name}.jpg").write_bytes(record.image())
            assert record.mask is not None
            mask = decode_mask(record.mask(), max_pixels=10**6)
            images.append({"id": number, "file_name": f"{name}.jpg", "height": mask.shape[0], "width": mask.shape[1]})
            if number < 8 + count:
                annotations += _annotations(mask, number, first=len(annotations) + 1)
                masks[name] = mask
        value = {
            "info": {"year": 2014},
            "licenses": [],
            "images": [FIELDS | image for image in images],
            "annotations": annotations,
            "categories": [{"supercategory": "any", "id": id_, "name": name} for id_, name in CATEGORIES.items()],
        }
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(value))
    return tmp_path, masks


SETTINGS = [
    "model.width=0.05",
    "model.pcm_channels=[8,8]",
    "augment.crop_size=64",
    "augment.resize_long=[64,80]",
    "data.streams=2",
    "data.num_workers=0",
    "train_seam.schedule.max_steps=2",
    "train_seam.schedule.global_batch_size=2",
    "train_affinity.schedule.max_steps=2",
    "train_affinity.schedule.global_batch_size=2",
    "train_affinity.crop_size=64",
    "train_seg.schedule.max_steps=2",
    "train_seg.schedule.global_batch_size=2",
    "train_seg.crop_size=64",
    "infer_cam.scales=[1]",
    "infer_cam.flip=false",
    "infer_seg.scales=[1]",
    "infer_seg.flip=false",
    "random_walk.num_steps=4",
    "crf.num_workers=0",
    "crf.num_iters=1",
]


def test_the_whole_pipeline_runs_and_scores_are_right(
    coco: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, masks = coco
    run = [f"source.root={root}", f"run.dir={tmp_path / 'runs'}", "run.device=cpu", *SETTINGS]
    assert main(["--config", "coco14", *run]) == 0, capsys.readouterr().err
    folder = tmp_path / "runs" / "coco14"
    manifest = load_manifest(folder / "shard")
    assert manifest.classes == tuple(CATEGORIES.values())
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train2014": 7, "val2014": 4}
    confusion = np.zeros((4, 4), np.int64)
    for shard in manifest.split("val2014").shards:
        for key, data in read_label_shard(folder / "infer_seg" / "labels" / shard.file).items():
            labels = decode_labels(data, max_pixels=10**6)
            np.add.at(confusion, (masks[key], labels), 1)
    unions = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    present = confusion.sum(1) > 0
    miou = (confusion.diagonal()[present] / unions[present]).mean()
    scores = read_json(folder / "evaluate" / "seg" / "val2014.json")
    assert scores["miou"] == pytest.approx(miou)
    assert (folder / "report" / "report.html").is_file()
