"""Stage train_affinity on synthetic scenes, with affinity labels made from their masks."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import changed
from safetensors.torch import load_file

from seam_dist.artifacts.atomic import write_json
from seam_dist.artifacts.label_file import write_labels
from seam_dist.artifacts.stage import StageError
from seam_dist.cluster.distributed import init_world, shutdown
from seam_dist.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    TrainAffinityConfig,
)
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import read_shard
from seam_dist.models import build_affinity_net, load_weights
from seam_dist.stages import shard, train_affinity


def settings(folder: Path, shards: Path, name: str = "run", **affinity: Any) -> Config:
    values = {"global_batch_size": 4, "max_steps": 4, "log_every": 1, "lr": 1e-3, **affinity}
    return Config(
        run=RunConfig(name=name, dir=folder, threads=1, timeout_s=300),
        source=SourceConfig(kind="synthetic", num_images=(16, 2), num_classes=3, image_size=(96, 80)),
        data=DataConfig(streams=4, samples_per_shard=4, shards=shards),
        model=ModelConfig(width=1 / 16, freeze_stem=False),
        train_affinity=changed(TrainAffinityConfig(), crop_size=88, channels=(4, 6, 10), **values),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a few scenes, and a finished infer_cam beside them."""
    folder = tmp_path_factory.mktemp("data")
    cfg = settings(folder, folder / "shards")
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
def make(tmp_path: Path, data: Path) -> Callable[..., Config]:
    def config(name: str = "run", **affinity: Any) -> Config:
        cfg = settings(tmp_path, data / "shards", name, **affinity)
        if not cfg.run_dir.exists():
            shutil.copytree(data / "infer_cam", cfg.stage_dir("infer_cam"))
        return cfg

    return config


def curve(cfg: Config) -> list[dict[str, float]]:
    """The metrics without the times."""
    lines = (cfg.stage_dir("train_affinity") / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name in ("step", "lr") or name.startswith("loss/")}
        for line in lines
    ]


def final(cfg: Config) -> dict[str, torch.Tensor]:
    return load_file(cfg.stage_dir("train_affinity") / "final" / "model.safetensors")


def test_stopped_and_resumed_run_equals_an_uninterrupted_one(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make("whole")
    train_affinity.run(whole)
    assert [line["step"] for line in curve(whole)] == [1, 2, 3, 4]
    assert set(curve(whole)[0]) == {"step", "lr", "loss/total", "loss/bg", "loss/fg", "loss/neg"}
    original = train_affinity.make_label_map_loader

    def signalling(*arguments: Any, **options: Any) -> Any:
        loader = original(*arguments, **options)
        inner, count = type(loader).__next__, 0

        class Signalling(type(loader)):
            def __next__(self) -> Any:
                nonlocal count
                count += 1
                if count == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return inner(self)

        loader.__class__ = Signalling
        return loader

    parted = make("parted")
    monkeypatch.setattr(train_affinity, "make_label_map_loader", signalling)
    with pytest.raises(SystemExit) as stop:
        train_affinity.run(parted)
    assert stop.value.code == 128 + signal.SIGTERM
    folder = parted.stage_dir("train_affinity")
    assert (folder / "checkpoints" / "latest").read_text() == "step-00000002\n"
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    torch.manual_seed(99)
    train_affinity.run(parted)
    # float32 on one rank: bit for bit.
    assert curve(parted) == curve(whole)
    expected, found = final(whole), final(parted)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


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
    model, _ = build_affinity_net(cfg, pretrained=False)
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
    for other, message in (
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
            train_affinity.run(other)
    write_json(cfg.stage_dir("infer_cam") / "manifest.json", {"fingerprint": "others"})
    with pytest.raises(StageError, match="infer_cam: labels of the masks -> others"):
        train_affinity.run(cfg)


def test_missing_inputs_name_the_remedy(make: Callable[..., Config]) -> None:
    cfg = make()
    folder = cfg.stage_dir("infer_cam")
    (folder / "affinity" / "train-00001.tar").unlink()
    with pytest.raises(StageError, match=r"train-00001\.tar is missing.*add it to infer_cam\.splits"):
        train_affinity.run(cfg)
    shutil.rmtree(folder / "affinity")
    with pytest.raises(StageError, match=r"affinity is missing.*set infer_cam\.crf=true and run `--stage infer_cam`"):
        train_affinity.run(cfg)
    (folder / "manifest.json").unlink()
    with pytest.raises(StageError, match="stage infer_cam is not finished"):
        train_affinity.run(cfg)


@pytest.fixture(autouse=True, scope="module")
def _leave_the_world() -> Iterator[None]:
    yield
    shutdown(init_world(Config()))
