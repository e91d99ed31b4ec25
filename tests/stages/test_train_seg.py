from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import changed
from safetensors.torch import load_file, save_file

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.label_file import write_labels
from seam_dist.artifacts.stage import StageError, open_stage
from seam_dist.cluster.distributed import init_world, shutdown
from seam_dist.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    RandomWalkConfig,
    RunConfig,
    SourceConfig,
    TrainSegConfig,
)
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import read_shard
from seam_dist.models import build_seam, load_deeplab
from seam_dist.stages import shard, train_seg


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shard.run(settings(folder, folder / "shards"))
    return folder / "shards"


def settings(folder: Path, shards: Path, name: str = "run", **seg: Any) -> Config:
    schedule = {"global_batch_size": 4, "max_steps": 4, "log_every": 1, "lr": 1e-3}
    return Config(
        run=RunConfig(name=name, dir=folder, threads=1, timeout_s=300),
        source=SourceConfig(kind="synthetic", num_images=(12, 2), num_classes=3, image_size=(48, 36)),
        data=DataConfig(streams=2, samples_per_shard=6, shards=shards),
        model=ModelConfig(width=1 / 16, output_stride=16),
        train_seg=changed(TrainSegConfig(), **{"width": 8, "crop_size": 32, "labels": "masks", **schedule, **seg}),
    )


@pytest.fixture
def make(tmp_path: Path, shards: Path) -> Callable[..., Config]:
    return lambda name="run", **seg: settings(tmp_path, shards, name, **seg)


def curve(cfg: Config) -> list[dict[str, float]]:
    lines = (cfg.stage_dir("train_seg") / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name in ("step", "lr") or name.startswith("loss/")}
        for line in lines
    ]


def final(cfg: Config) -> dict[str, torch.Tensor]:
    return load_file(cfg.stage_dir("train_seg") / "final" / "model.safetensors")


def write_walk(cfg: Config, folder: str, *, constant: int | None = None) -> None:
    """Leave what random_walk leaves: the true masks, or one class everywhere."""
    stage = open_stage(cfg, "random_walk", settings=("random_walk",))
    for part in load_manifest(cfg.shards_dir).split("train").shards:
        samples = read_shard(cfg.shards_dir / part.file, masks=True, max_pixels=10**6)
        items = ((s.key, s.mask if constant is None else np.full_like(s.mask, constant)) for s in samples)
        write_labels(stage.dir / folder / part.file, items)  # type: ignore[arg-type]
    stage.finish((stage.dir / folder).glob("*.tar"))


def test_stopped_and_resumed_run_equals_an_uninterrupted_one(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dropout and live BatchNorm are on.
    whole = make("whole", checkpoint_every=2)
    train_seg.run(whole)
    assert [line["step"] for line in curve(whole)] == [1, 2, 3, 4]
    assert {"loss/total", "loss/accuracy"} <= curve(whole)[0].keys()
    parted = make("parted", checkpoint_every=2)
    original = train_seg.make_label_map_loader

    class Signalling:
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            self.inner, self.count = original(*arguments, **settings), 0

        def __next__(self) -> Any:
            self.count += 1
            if self.count == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return next(self.inner)

        def close(self) -> None:
            self.inner.close()

    with monkeypatch.context() as patch:
        patch.setattr(train_seg, "make_label_map_loader", Signalling)
        with pytest.raises(SystemExit) as stop:
            train_seg.run(parted)
    assert stop.value.code == 128 + signal.SIGTERM
    torch.manual_seed(99)
    train_seg.run(parted)
    assert curve(parted) == curve(whole)
    expected, found = final(whole), final(parted)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_finished_stage_describes_its_network_and_is_skipped(
    make: Callable[..., Config], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make(max_steps=1, network="deeplabv3plus")
    train_seg.run(cfg)
    folder = cfg.stage_dir("train_seg")
    description = read_json(folder / "final" / "model.json")
    assert description["architecture"]["network"] == "deeplabv3plus"
    model = load_deeplab(folder / "final" / "model.safetensors", description["architecture"])
    assert model(torch.zeros(1, 3, 33, 33)).shape == (1, 4, 33, 33)
    assert set(read_json(folder / "manifest.json")["outputs"]) == {
        "final/model.safetensors",
        "final/model.json",
        "metrics.jsonl",
    }
    monkeypatch.setattr(train_seg, "build_deeplab", None)
    capsys.readouterr()
    # What changes no result asks for no new training.
    train_seg.run(
        replace(cfg, train_seg=changed(cfg.train_seg, log_every=9), model=replace(cfg.model, pcm_center=True))
    )
    assert "done already" in capsys.readouterr().out
    with pytest.raises(StageError, match=r"train_seg\.schedule\.lr: 0\.001 -> 0\.002"):
        train_seg.run(replace(cfg, train_seg=changed(cfg.train_seg, lr=0.002)))


def test_pseudo_labels_train_like_the_masks_that_they_equal(make: Callable[..., Config]) -> None:
    masks = make("masks", max_steps=2)
    train_seg.run(masks)
    walk = make("walk", max_steps=2, labels="walk")
    write_walk(walk, "labels")
    train_seg.run(walk)
    assert curve(walk) == curve(masks)
    inputs = read_json(walk.stage_dir("train_seg") / "stage.json")["inputs"]
    assert set(inputs) == {"shards", "random_walk"}
    other = make("other", max_steps=2, labels="walk_crf")
    write_walk(other, "labels_crf", constant=2)
    train_seg.run(other)
    assert curve(other)[1]["loss/total"] != curve(masks)[1]["loss/total"]


def test_labels_that_are_not_made_name_the_remedy(make: Callable[..., Config]) -> None:
    cfg = make(labels="walk")
    with pytest.raises(StageError, match="stage random_walk is not finished"):
        train_seg.run(cfg)
    write_walk(cfg, "labels")
    with pytest.raises(
        StageError, match=r"labels_crf/train-00000.tar, which stage random_walk did not write.*random_walk.crf"
    ):
        train_seg.run(replace(cfg, train_seg=changed(cfg.train_seg, labels="walk_crf")))
    with pytest.raises(StageError, match="stage infer_cam is not finished"):
        train_seg.run(replace(cfg, train_seg=changed(cfg.train_seg, labels="cam_crf")))
    # Other pseudo-labels are another training.
    train_seg.run(replace(cfg, train_seg=changed(cfg.train_seg, max_steps=1)))
    again = replace(cfg, train_seg=changed(cfg.train_seg, max_steps=1), random_walk=RandomWalkConfig(beta=2.0))
    write_walk(again, "labels", constant=1)
    with pytest.raises(StageError, match="random_walk: "):
        train_seg.run(again)


def test_backbone_of_this_runs_seam_is_a_start(make: Callable[..., Config], capsys: pytest.CaptureFixture[str]) -> None:
    cfg = make(max_steps=1, pretrained="train_seam", lr=1e-9)
    with pytest.raises(StageError, match="stage train_seam is not finished"):
        train_seg.run(cfg)
    torch.manual_seed(7)
    seam, _ = build_seam(cfg, 3)
    stage = open_stage(cfg, "train_seam", settings=("model",))
    (stage.dir / "final").mkdir()
    save_file({k: v.contiguous() for k, v in seam.state_dict().items()}, stage.dir / "final" / "model.safetensors")
    stage.finish((stage.dir / "final").iterdir())
    train_seg.run(cfg)
    torch.testing.assert_close(
        final(cfg)["backbone.b5.conv_branch2a.weight"], seam.backbone.b5.conv_branch2a.weight.detach()
    )
    assert set(read_json(cfg.stage_dir("train_seg") / "stage.json")["inputs"]) == {"shards", "train_seam"}
    assert "in the file, not used: f8_3.weight, f8_4.weight, f9.weight, fc8.weight" in capsys.readouterr().out


@pytest.fixture(autouse=True, scope="module")
def _leave_the_world() -> Iterator[None]:
    yield
    shutdown(init_world(Config()))
