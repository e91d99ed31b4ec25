"""Stage train_seg on synthetic scenes, from masks and from pseudo-labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from kit import changed
from stage_kit import (
    assert_same_training,
    finish_training,
    metrics_of,
    prepared_training,
    stop_training,
    trained_weights,
)

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.label_file import write_labels
from seam_dist.artifacts.stage import StageError, open_stage
from seam_dist.config.schema import Config, RandomWalkConfig
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import read_shard
from seam_dist.models import build_seam, find_trained, load_deeplab, seam_architecture
from seam_dist.stages import train_seg

pytestmark = pytest.mark.usefixtures("own_world")
SCHEDULE = {"global_batch_size": 4, "max_steps": 4, "log_every": 1, "lr": 1e-3}
BASE: dict[str, dict[str, Any]] = {
    "source": {"num_images": [12, 2], "image_size": [48, 36]},
    "data": {"streams": 2, "samples_per_shard": 6},
    "model": {"width": 1 / 16, "output_stride": 16},
    "train_seg": {"width": 8, "crop_size": 32, "labels": "masks", "schedule": SCHEDULE},
}
curve = partial(metrics_of, stage="train_seg")
final = partial(trained_weights, stage="train_seg")


prepared, make = prepared_training("train_seg", BASE)


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
    stop_training(monkeypatch, train_seg, parted, 2)
    train_seg.run(parted)
    assert_same_training(whole, parted, "train_seg")


def test_finished_stage_describes_its_network_and_is_skipped(
    make: Callable[..., Config], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make(max_steps=1, network="deeplabv3plus")
    train_seg.run(cfg)
    folder = cfg.stage_dir("train_seg")
    description = read_json(folder / "final" / "model.json")
    assert description["architecture"]["network"] == "deeplabv3plus"
    model = load_deeplab(find_trained(folder, "train_seg"))
    assert model(torch.zeros(1, 3, 33, 33)).shape == (1, 4, 33, 33)
    assert set(read_json(folder / "manifest.json")["outputs"]) == {
        "final/model.safetensors",
        "final/model.json",
        "metrics.jsonl",
    }
    monkeypatch.setattr("seam_dist.training.run.start_training", None)
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
    with pytest.raises(StageError, match=r"labels_crf/train-00000.tar is missing: change .* random_walk.crf=true"):
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
    finish_training(cfg, "train_seam", seam, seam_architecture(cfg, "abc"))
    train_seg.run(cfg)
    torch.testing.assert_close(
        final(cfg)["backbone.b5.conv_branch2a.weight"], seam.backbone.b5.conv_branch2a.weight.detach()
    )
    assert set(read_json(cfg.stage_dir("train_seg") / "stage.json")["inputs"]) == {"shards", "train_seam"}
    assert "in the file, not used: f8_3.weight, f8_4.weight, f9.weight, fc8.weight" in capsys.readouterr().out
