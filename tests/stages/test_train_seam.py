"""Stage train_seam on synthetic scenes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kit import changed, run_config
from stage_kit import assert_same_training, before_batch, metrics_of, prepared_training, stop_training, trained_weights

from seam_dist.artifacts.stage import StageError
from seam_dist.config.schema import Config
from seam_dist.models import build_seam
from seam_dist.stages import train_seam
from seam_dist.training.checkpoint import CheckpointError

pytestmark = pytest.mark.usefixtures("own_world")
BASE: dict[str, dict[str, Any]] = {
    "source": {"num_images": [16, 2]},
    "data": {"streams": 4, "samples_per_shard": 4},
    "augment": {"resize_long": [32, 48], "crop_size": 32},
    "model": {"width": 1 / 16, "freeze_stem": False},
    "loss": {"second_view_scale": 0.5},
    "train_seam": {"schedule": {"global_batch_size": 4, "max_steps": 5, "log_every": 1, "lr": 1e-3}},
}
curve = partial(metrics_of, stage="train_seam")
final = partial(trained_weights, stage="train_seam")


prepared, make = prepared_training("train_seam", BASE)


def test_stopped_and_resumed_run_equals_an_uninterrupted_one(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make("whole", checkpoint_every=2)
    train_seam.run(whole)
    assert [line["step"] for line in curve(whole)] == [1, 2, 3, 4, 5]
    parted = make("parted", checkpoint_every=2)
    stop_training(monkeypatch, train_seam, parted, 3)
    train_seam.run(parted)
    assert_same_training(whole, parted, "train_seam")


def test_run_that_fails_after_its_checkpoint_repeats_the_lost_steps(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make(checkpoint_every=2, max_steps=4)

    def fail() -> None:
        raise OSError("the disk went away")

    before_batch(monkeypatch, train_seam, 4, fail)
    with pytest.raises(OSError, match="went away"):
        train_seam.run(cfg)
    before = curve(cfg)
    assert [line["step"] for line in before] == [1, 2, 3]
    monkeypatch.undo()
    train_seam.run(cfg)
    assert curve(cfg)[:3] == before
    assert [line["step"] for line in curve(cfg)] == [1, 2, 3, 4]


def test_finished_stage_leaves_what_the_next_ones_need_and_is_skipped(
    make: Callable[..., Config], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make(max_steps=2)
    train_seam.run(cfg)
    folder = cfg.stage_dir("train_seam")
    assert "random weights: no file was asked for" in capsys.readouterr().out
    description = json.loads((folder / "final" / "model.json").read_text())
    assert description["classes"] == description["architecture"]["classes"]
    assert len(description["classes"]) == 3
    assert description["config"]["model.width"] == 1 / 16
    assert description["step"] == 2
    model, _ = build_seam(cfg, 3)
    model.load_state_dict(final(cfg), strict=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["outputs"]) == {"final/model.safetensors", "final/model.json", "metrics.jsonl"}
    assert list((folder / "tensorboard").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("seam_dist.training.run.start_training", None)
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


def test_never_starts_from_step_0(make: Callable[..., Config]) -> None:
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
        train_seam.run(run_config(tmp_path, base=BASE))


def test_stage_that_another_process_trains_is_refused(make: Callable[..., Config]) -> None:
    """Run directly, without the command line around it that holds the stage, too."""
    cfg = make(max_steps=1)
    code = "import sys; from pathlib import Path; from seam_dist.artifacts.lock import stage_lock\n"
    code += "with stage_lock(Path(sys.argv[1]), 'train_seam'):\n    print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(cfg.run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StageError, match=rf"stage train_seam of .* is running already \(process {holder.pid} on"):
            train_seam.run(cfg)
        assert not cfg.stage_dir("train_seam").exists()
        holder.communicate()
    train_seam.run(cfg)
    assert len(curve(cfg)) == 1
