"""Stage random_walk on a small procedural set with untrained networks, against N x N matrices and loops."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seam_dist.artifacts import open_stage
from seam_dist.cam import StoredCam, read_cams, upsample_cam, write_cams
from seam_dist.config import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import Sample, read_shard
from seam_dist.files import write_json
from seam_dist.labels import decode_labels, read_label_shard
from seam_dist.models import affinity_facts, build_affinity_net
from seam_dist.settings import from_tree
from seam_dist.stages import random_walk, shard


def make_config(root: Path, name: str = "run", **sections: dict[str, object]) -> Config:
    tree: dict[str, dict[str, object]] = {
        "run": {"name": name, "dir": str(root / "runs"), "device": "cpu"},
        "source": {"kind": "procedural", "num_images": [5, 3], "num_classes": 3, "image_size": [108, 92]},
        "data": {"shards": str(root / "shards"), "samples_per_shard": 2, "streams": 1},
        "model": {"backbone": "resnet38d", "width": 0.05},
        "affinity": {"channels": [4, 6, 8]},
        "walk": {"crf": False, "batch_size": 2},
    }
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    return from_tree(tree)


def finish_cams(cfg: Config) -> None:
    """Leave what infer_cam leaves, with a random bump for each class."""
    manifest = load_manifest(cfg.shards_dir)
    stage = open_stage(cfg, "infer_cam", settings=("infer",))
    rng = np.random.default_rng(0)
    for split in manifest.splits.values():
        for part in split.shards:
            cams = []
            for sample in read_shard(cfg.shards_dir / part.file, masks=False, max_pixels=10**6):
                height, width = sample.image.shape[:2]
                rows, columns = np.mgrid[: -(-height // 8), : -(-width // 8)]
                places = rng.random((len(sample.classes), 2, 1, 1)) * [[[rows.max() + 1]], [[columns.max() + 1]]]
                far = (rows - places[:, 0]) ** 2 + (columns - places[:, 1]) ** 2
                cam = np.exp(-far / 8).astype(np.float16)
                cams.append(StoredCam(sample.key, sample.classes, (height, width), cam))
            write_cams(stage.dir / "cams" / part.file, cams)
    stage.finish((stage.dir / "cams").iterdir())


def finish_affinity(cfg: Config) -> None:
    """Leave what train_affinity leaves, with random weights."""
    manifest = load_manifest(cfg.shards_dir)
    torch.manual_seed(0)
    model, _ = build_affinity_net(cfg)
    with torch.no_grad():
        model.f9.weight.mul_(6)  # features far enough apart for affinities from 0 to 1
    stage = open_stage(cfg, "train_affinity", settings=("model", "affinity"))
    final = stage.dir / "final"
    final.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, final / "model.safetensors")
    write_json(final / "model.json", {"architecture": affinity_facts(cfg, manifest.classes)})
    stage.finish(final.iterdir())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("walk")
    cfg = make_config(root)
    shard.run(cfg)
    finish_cams(cfg)
    finish_affinity(cfg)
    return root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A copy of shards, CAMs and weights, for tests that write."""
    shutil.copytree(prepared, tmp_path / "root")
    return tmp_path / "root"


def samples_of(cfg: Config, split: str) -> list[Sample]:
    return [
        sample
        for part in load_manifest(cfg.shards_dir).split(split).shards
        for sample in read_shard(cfg.shards_dir / part.file, masks=False, max_pixels=10**6)
    ]


def cams_of(cfg: Config, split: str) -> dict[str, StoredCam]:
    parts = load_manifest(cfg.shards_dir).split(split).shards
    return {cam.key: cam for part in parts for cam in read_cams(cfg.stage_dir("infer_cam") / "cams" / part.file)}


def labels_of(cfg: Config, split: str, folder: str = "labels") -> dict[str, np.ndarray]:
    return {
        key: decode_labels(data, max_pixels=10**6)
        for part in load_manifest(cfg.shards_dir).split(split).shards
        for key, data in read_label_shard(cfg.stage_dir("random_walk") / folder / part.file).items()
    }


def published_labels(
    dense_reading: ModuleType, cfg: Config, sample: Sample, cam: np.ndarray, log_steps: int
) -> np.ndarray:
    net = random_walk.load_network(cfg, load_manifest(cfg.shards_dir)).eval()
    backbone = net.backbone.double()
    net.double()

    def network(image: torch.Tensor) -> torch.Tensor:
        return net.forward_grid(image)

    return dense_reading.random_walk(
        network,
        sample.image,
        cam,
        sample.classes,
        3,
        backbone.mean,
        backbone.std,
        stride=8,
        radius=cfg.affinity.radius,
        border=cfg.affinity.border,
        alpha=cfg.walk.alpha,
        beta=cfg.walk.beta,
        log_steps=log_steps,
    )


@pytest.mark.parametrize(
    ("border", "walk", "log_steps"),
    [
        ("full", {"num_steps": 64}, 6),
        ("paper", {"num_steps": 64}, 6),
        ("full", {"num_steps": 256, "method": "chebyshev", "alpha": 16.0}, 8),
    ],
)
def test_labels_equal_the_dense_reading(root, dense_reading, border, walk, log_steps):
    cfg = make_config(
        root,
        affinity={"channels": [4, 6, 8], "border": border},
        walk={"crf": False, "batch_size": 2, "splits": ["val"], **walk},
    )
    random_walk.run(cfg)
    found, cams = labels_of(cfg, "val"), cams_of(cfg, "val")
    same = total = several = 0
    for sample in samples_of(cfg, "val"):
        height, width = sample.image.shape[:2]
        assert (height % 8, width % 8) != (0, 0)
        cam = upsample_cam(cams[sample.key].cam, (height, width)).numpy()
        expected = published_labels(dense_reading, cfg, sample, cam, log_steps)
        same += int((found[sample.key] == expected).sum())
        total += expected.size
        several += len(np.unique(expected)) > 1
    assert several == 3
    assert same >= 0.999 * total
