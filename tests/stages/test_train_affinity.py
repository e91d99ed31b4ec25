"""Stage train_affinity on synthetic scenes, with affinity labels made from their masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import changed, run_config
from stage_kit import assert_same_training, metrics_of, stop_training, trained_weights

from seam_dist.artifacts.atomic import write_json
from seam_dist.artifacts.label_file import write_labels
from seam_dist.artifacts.stage import StageError
from seam_dist.config.schema import AugmentConfig, Config
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import read_shard
from seam_dist.models import build_affinity_net
from seam_dist.models.weights.load import load_weights
from seam_dist.stages import shard, train_affinity

pytestmark = pytest.mark.usefixtures("own_world")
SCHEDULE = {"global_batch_size": 4, "max_steps": 4, "log_every": 1, "lr": 1e-3}
BASE: dict[str, dict[str, Any]] = {
    "source": {"num_images": [16, 2], "image_size": [96, 80]},
    "data": {"streams": 4, "samples_per_shard": 4},
    "model": {"width": 1 / 16, "freeze_stem": False},
    "train_affinity": {"crop_size": 88, "channels": [4, 6, 10], "schedule": SCHEDULE},
}
curve = partial(metrics_of, stage="train_affinity")
final = partial(trained_weights, stage="train_affinity")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of a few scenes, and a finished infer_cam beside them."""
    folder = tmp_path_factory.mktemp("data")
    cfg = run_config(folder, base=BASE)
    shard.run(cfg)
    for entry in load_manifest(cfg.shards_dir).split("train").shards:
        items = []
        for sample in read_shard(cfg.shards_dir / entry.file, masks=True, max_pixels=10**6):
            assert sample.mask is not None
            items.append((sample.key, np.ascontiguousarray(sample.mask[::8, ::8])))
        write_labels(folder / "infer_cam" / "affinity" / entry.file, items)
    write_json(folder / "infer_cam" / "manifest.json", {"fingerprint": "labels of the masks"})
    return folder


@pytest.fixture
def make(root: Path, tmp_path: Path) -> Callable[..., Config]:
    """Return make(name, **affinity): settings of a run of this test, with its infer_cam."""

    def config(name: str = "run", **affinity: Any) -> Config:
        cfg = run_config(root, name, BASE, run={"dir": str(tmp_path)})
        if not cfg.run_dir.exists():
            shutil.copytree(root / "infer_cam", cfg.stage_dir("infer_cam"))
        return replace(cfg, train_affinity=changed(cfg.train_affinity, **affinity))

    return config


def test_stopped_and_resumed_run_equals_an_uninterrupted_one(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make("whole")
    train_affinity.run(whole)
    assert [line["step"] for line in curve(whole)] == [1, 2, 3, 4]
    assert set(curve(whole)[0]) == {"step", "lr", "loss/total", "loss/bg", "loss/fg", "loss/neg"}
    parted = make("parted")
    stop_training(monkeypatch, train_affinity, parted, 2)
    train_affinity.run(parted)
    assert_same_training(whole, parted, "train_affinity")


def test_training_lowers_the_loss_and_leaves_what_the_random_walk_needs(make: Callable[..., Config]) -> None:
    cfg = make(max_steps=12, jitter=False, hflip=0.0, lr=3e-3)
    train_affinity.run(cfg)
    losses = [line["loss/total"] for line in curve(cfg)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), losses
    folder = cfg.stage_dir("train_affinity")
    description = json.loads((folder / "final" / "model.json").read_text())
    assert description["architecture"] == {
        "network": "affinity",
        "backbone": "resnet38d",
        "width": 1 / 16,
        "output_stride": 8,
        "channels": [4, 6, 10],
        "classes": description["classes"],
    }
    assert len(description["classes"]) == 3
    model, _ = build_affinity_net(cfg)
    assert load_weights(model, folder / "final" / "model.safetensors", require_heads=True).new == ()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["outputs"]) == {"final/model.safetensors", "final/model.json", "metrics.jsonl"}
    assert list((folder / "tensorboard").iterdir())


def test_finished_stage_is_skipped_unless_what_it_depends_on_changes(
    make: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = make(max_steps=1)
    train_affinity.run(cfg)
    capsys.readouterr()
    for same in (
        replace(cfg, train_affinity=changed(cfg.train_affinity, log_every=7, micro_batch_size=2, checkpoint_every=3)),
        replace(cfg, train_seam=changed(cfg.train_seam, lr=7.0), loss=replace(cfg.loss, er_weight=3)),
        replace(cfg, augment=AugmentConfig(resize_long=(100, 200))),
    ):
        train_affinity.run(same)
        assert "train_affinity: done already" in capsys.readouterr().out
    for changes, message in (
        (
            replace(cfg, train_affinity=changed(cfg.train_affinity, lr=7.0)),
            r"train_affinity\.schedule\.lr: 0\.001 -> 7\.0",
        ),
        (
            replace(cfg, train_affinity=changed(cfg.train_affinity, border="paper")),
            r"train_affinity\.border: full -> paper",
        ),
        (replace(cfg, augment=AugmentConfig(hue=0.2)), r"augment\.hue: 0\.1 -> 0\.2"),
        (replace(cfg, run=replace(cfg.run, seed=5)), r"run\.seed: 0 -> 5"),
    ):
        with pytest.raises(StageError, match=message):
            train_affinity.run(changes)
    write_json(cfg.stage_dir("infer_cam") / "manifest.json", {"fingerprint": "others"})
    with pytest.raises(StageError, match="infer_cam: labels of the masks -> others"):
        train_affinity.run(cfg)


def test_missing_inputs_name_the_remedy(make: Callable[..., Config]) -> None:
    cfg = make()
    folder = cfg.stage_dir("infer_cam")
    (folder / "affinity" / "train-00001.tar").unlink()
    with pytest.raises(StageError, match=r"train-00001\.tar is missing: .*infer_cam\.splits that include 'train'"):
        train_affinity.run(cfg)
    shutil.rmtree(folder / "affinity")
    with pytest.raises(StageError, match=r"is missing: run `--only infer_cam` again with infer_cam\.crf=true"):
        train_affinity.run(cfg)
    (folder / "manifest.json").unlink()
    with pytest.raises(StageError, match="stage infer_cam is not finished"):
        train_affinity.run(cfg)
