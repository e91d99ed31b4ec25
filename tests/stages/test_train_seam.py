from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import changed
from safetensors.torch import load_file

from seam_dist.artifacts.stage import StageError
from seam_dist.cluster.distributed import init_world, shutdown
from seam_dist.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    TrainSeamConfig,
)
from seam_dist.models import build_seam
from seam_dist.stages import shard, train_seam
from seam_dist.training.checkpoint import CheckpointError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a few synthetic scenes, made once."""
    folder = tmp_path_factory.mktemp("data")
    shard.run(settings(folder, folder / "shards"))
    return folder / "shards"


def settings(folder: Path, shards: Path, name: str = "run", **train: Any) -> Config:
    return Config(
        run=RunConfig(name=name, dir=folder, threads=1, timeout_s=300),
        source=SourceConfig(kind="synthetic", num_images=(16, 2), num_classes=3, image_size=(64, 48)),
        data=DataConfig(streams=4, samples_per_shard=4, shards=shards),
        augment=AugmentConfig(resize_long=(32, 48), crop_size=32),
        model=ModelConfig(width=1 / 16, freeze_stem=False),
        loss=LossConfig(second_view_scale=0.5),
        train_seam=changed(
            TrainSeamConfig(), **{"global_batch_size": 4, "max_steps": 5, "log_every": 1, "lr": 1e-3, **train}
        ),
    )


@pytest.fixture
def make(tmp_path: Path, shards: Path) -> Callable[..., Config]:
    return lambda name="run", **train: settings(tmp_path, shards, name, **train)


def curve(cfg: Config) -> list[dict[str, float]]:
    """The metrics without the times."""
    lines = (cfg.stage_dir("train_seam") / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name in ("step", "lr") or name.startswith("loss/")}
        for line in lines
    ]


def final(cfg: Config) -> dict[str, torch.Tensor]:
    return load_file(cfg.stage_dir("train_seam") / "final" / "model.safetensors")


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Yield arm(number, batch): the process gets a signal while the loader makes that batch."""
    original = train_seam.make_classification_loader

    def arm(number: int, batch: int) -> None:
        def loader(*arguments: Any) -> Any:
            inner = original(*arguments)

            class Signalling:
                count = 0

                def __iter__(self) -> Any:
                    return self

                def __next__(self) -> Any:
                    self.count += 1
                    if self.count == batch:
                        os.kill(os.getpid(), number)
                    return next(inner)

                def close(self) -> None:
                    inner.close()

            return Signalling()

        monkeypatch.setattr(train_seam, "make_classification_loader", loader)

    yield arm
    monkeypatch.setattr(train_seam, "make_classification_loader", original)


def test_stopped_and_resumed_run_equals_an_uninterrupted_one(
    make: Callable[..., Config], signal_at: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make("whole", checkpoint_every=2)
    train_seam.run(whole)
    assert [line["step"] for line in curve(whole)] == [1, 2, 3, 4, 5]
    parted = make("parted", checkpoint_every=2)
    signal_at(signal.SIGTERM, 3)
    with pytest.raises(SystemExit) as stop:
        train_seam.run(parted)
    assert stop.value.code == 128 + signal.SIGTERM
    folder = parted.stage_dir("train_seam")
    assert (folder / "checkpoints" / "latest").read_text() == "step-00000003\n"
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    torch.manual_seed(99)
    train_seam.run(parted)
    # float32 on one rank: bit for bit.
    assert curve(parted) == curve(whole)
    expected, found = final(whole), final(parted)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_run_cut_after_its_checkpoint_repeats_the_lost_steps(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make(checkpoint_every=2, max_steps=4)
    original = train_seam.make_classification_loader

    def failing(*arguments: Any) -> Any:
        inner = original(*arguments)

        def batches() -> Iterator[Any]:
            for count, batch in enumerate(inner):
                if count == 3:
                    raise OSError("the disk went away")
                yield batch

        found: Any = Closable(batches())
        return found

    class Closable:
        def __init__(self, inner: Iterator[Any]) -> None:
            self.inner = inner

        def __next__(self) -> Any:
            return next(self.inner)

        def close(self) -> None:
            pass

    monkeypatch.setattr(train_seam, "make_classification_loader", failing)
    with pytest.raises(OSError, match="went away"):
        train_seam.run(cfg)
    before = curve(cfg)
    assert [line["step"] for line in before] == [1, 2, 3]
    monkeypatch.setattr(train_seam, "make_classification_loader", original)
    train_seam.run(cfg)
    assert curve(cfg)[:3] == before
    assert [line["step"] for line in curve(cfg)] == [1, 2, 3, 4]


def test_finished_stage_leaves_what_the_next_ones_need_and_is_skipped(
    make: Callable[..., Config], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make(max_steps=2)
    train_seam.run(cfg)
    folder = cfg.stage_dir("train_seam")
    assert "weights from nothing" in capsys.readouterr().out
    description = json.loads((folder / "final" / "model.json").read_text())
    assert description["classes"] == description["architecture"]["classes"]
    assert len(description["classes"]) == 3
    assert description["config"]["model.width"] == 1 / 16
    assert description["step"] == 2
    model, _ = build_seam(cfg, 3, pretrained=False)
    model.load_state_dict(final(cfg), strict=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["outputs"]) == {"final/model.safetensors", "final/model.json", "metrics.jsonl"}
    assert list((folder / "tensorboard").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(train_seam, "build_seam", None)
        train_seam.run(cfg)
    assert "done already" in capsys.readouterr().out
    # What changes no result asks for no new training.
    train_seam.run(
        replace(cfg, train_seam=changed(cfg.train_seam, log_every=7), deepspeed={"zero_optimization": {"stage": 1}})
    )
    assert "done already" in capsys.readouterr().out
    with pytest.raises(StageError, match=r"train_seam\.schedule\.lr: 0\.001 -> 0\.002"):
        train_seam.run(replace(cfg, train_seam=changed(cfg.train_seam, lr=0.002)))
    assert (folder / "final" / "model.safetensors").exists()


def test_never_starts_anew(make: Callable[..., Config]) -> None:
    cfg = make(max_steps=2)
    train_seam.run(cfg)
    before = curve(cfg)
    train_seam.run(replace(cfg, train_seam=changed(cfg.train_seam, resume="never")))
    assert curve(cfg) == before


def test_checkpoint_of_another_run_is_taken_or_refused(make: Callable[..., Config]) -> None:
    first = make("first", max_steps=3, checkpoint_every=1, keep_checkpoints=5)
    train_seam.run(first)
    saved = first.stage_dir("train_seam") / "checkpoints" / "step-00000002"
    train_seam.run(make("second", max_steps=3, resume=str(saved)))
    assert curve(make("second")) == curve(first)[2:]
    other = make("third", max_steps=3, resume=str(saved))
    with pytest.raises(CheckpointError, match="of another architecture: pcm_center is False there and True here"):
        train_seam.run(replace(other, model=replace(other.model, pcm_center=True)))


def test_missing_shards_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard"):
        train_seam.run(settings(tmp_path, tmp_path / "nowhere"))


@pytest.fixture(autouse=True, scope="module")
def _leave_the_world() -> Iterator[None]:
    yield
    shutdown(init_world(Config()))
