from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_processes
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from training_kit import one_rank

from seam_dist.training import checkpoint
from seam_dist.training.checkpoint import CheckpointError, CheckpointStore, TrainState, find_newest, verify

ARCHITECTURE = {"backbone": "tiny", "classes": ["cat", "dog"]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False))


def store(folder: Path, *, keep: int = 2, **changes: Any) -> CheckpointStore:
    architecture = {**ARCHITECTURE, **changes}
    return CheckpointStore(
        folder, one_rank(), stage="train_seg", architecture=architecture, config={"run.seed": 0}, keep=keep
    )


def state_at(step: int, model: nn.Module | None = None) -> TrainState:
    """A state whose every number is its step, or half of it."""
    model = model or network()
    weights = {
        name: torch.full_like(value, step) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    momentum = {name: torch.full_like(value, step / 2) for name, value in model.named_parameters()}
    return TrainState(step=step, samples=8 * step, seed=0, weights=weights, momentum=momentum)


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    model = network()
    saved = state_at(3, model)
    store(tmp_path).save(saved)
    loaded = store(tmp_path).load("auto", model)
    assert loaded is not None
    assert (loaded.step, loaded.samples, loaded.seed) == (3, 24, 0)
    # The buffers of BatchNorm are state, too.
    assert "1.running_var" in loaded.weights
    assert "1.num_batches_tracked" in loaded.weights
    for before, after in ((saved.weights, loaded.weights), (saved.momentum, loaded.momentum)):
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert torch.equal(value, after[name])
            assert value.dtype == after[name].dtype


def test_without_a_checkpoint_there_is_no_state(tmp_path: Path) -> None:
    assert store(tmp_path / "none").load("auto", network()) is None


def test_never_removes_what_is_there(tmp_path: Path) -> None:
    store(tmp_path / "c").save(state_at(1))
    assert store(tmp_path / "c").load("never", network()) is None
    assert not (tmp_path / "c").exists()


def test_only_the_newest_are_kept_and_nothing_else_lies_around(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        store(tmp_path, keep=2).save(state_at(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000003", "step-00000004"]
    assert (tmp_path / "latest").read_text() == "step-00000004\n"


def test_steps_that_a_run_went_back_behind_do_not_come_back(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        store(tmp_path, keep=3).save(state_at(step))
    # Training went back to step 2, by hand, and resumed there.
    (tmp_path / "latest").write_text("step-00000002")
    assert find_newest(tmp_path) == tmp_path / "step-00000002"
    store(tmp_path, keep=3).save(state_at(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000002", "step-00000003"]


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    store(tmp_path).save(state_at(1))
    again = state_at(1)
    again.weights["0.bias"] = torch.full((4,), 7.0)
    store(tmp_path).save(again)
    loaded = store(tmp_path).load("auto", network())
    assert loaded is not None
    assert loaded.weights["0.bias"][0] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: flip_bit(path / "model.safetensors"), "checksum of model.safetensors differs"),
        (lambda path: flip_bit(path / "optimizer.safetensors"), "checksum of optimizer.safetensors differs"),
        (lambda path: os.truncate(path / "model.safetensors", 100), "model.safetensors has 100 bytes, not"),
        (lambda path: (path / "state.json").unlink(), "state.json is missing"),
        (lambda path: (path / "manifest.json").unlink(), "has no manifest.json"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text('{"schema": 1, "files": {}}'), "its manifest lists"),
        (lambda path: (path / "manifest.json").write_text('{"schema": 9, "files": {}}'), "has schema 9"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, reason: str
) -> None:
    for step in (1, 2):
        store(tmp_path).save(state_at(step))
    newest = tmp_path / "step-00000002"
    damage(newest)
    with pytest.raises(CheckpointError, match=reason):
        verify(newest)
    loaded = store(tmp_path).load("auto", network())
    assert loaded is not None
    assert loaded.step == 1
    assert reason in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=reason):
        store(tmp_path).load(str(newest), network())


def test_manifest_does_not_lead_outside_its_folder(tmp_path: Path) -> None:
    store(tmp_path).save(state_at(1))
    path = tmp_path / "step-00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../secret"] = manifest["files"]["state.json"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="its manifest lists"):
        verify(tmp_path / "step-00000001")


@pytest.mark.parametrize("content", [b"", b"step-00000099", b"../elsewhere", b"\xff\xfe"])
def test_damaged_latest_is_survived(tmp_path: Path, content: bytes) -> None:
    for step in (1, 2):
        store(tmp_path).save(state_at(step))
    (tmp_path / "latest").write_bytes(content)
    assert find_newest(tmp_path) == tmp_path / "step-00000002"
    (tmp_path / "latest").unlink()
    assert find_newest(tmp_path) == tmp_path / "step-00000002"


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    store(tmp_path).save(state_at(1))
    torch.manual_seed(0)
    wider = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1, bias=False))
    with pytest.raises(
        CheckpointError,
        match=r"another architecture: 0.bias is \(4,\) there and \(5,\) here.* more.*train_seg\.schedule\.resume=never",
    ):
        store(tmp_path).load("auto", wider)


def test_other_classes_are_refused_although_all_shapes_agree(tmp_path: Path) -> None:
    store(tmp_path).save(state_at(1))
    with pytest.raises(CheckpointError, match=r"classes is \['cat', 'dog'\] there and \['dog', 'cat'\] here"):
        store(tmp_path, classes=["dog", "cat"]).load("auto", network())


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        store(tmp_path).load(str(tmp_path / "typo"), network())


@pytest.mark.parametrize("part", ["weights", "momentum"])
def test_nan_never_replaces_a_good_checkpoint(tmp_path: Path, part: str) -> None:
    store(tmp_path, keep=1).save(state_at(1))
    bad = state_at(2)
    getattr(bad, part)["0.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"0\.weight holds NaN.*step-00000001, is intact"):
        store(tmp_path, keep=1).save(bad)
    assert find_newest(tmp_path) == tmp_path / "step-00000001"


def test_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, keep=1).save(state_at(1))
    writes: list[str] = []

    def refuse(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        writes.append(path.name)
        if path.name.startswith("optimizer"):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save_file(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(CheckpointError, match=r"No space left on device; the previous one, step-00000001, is intact"):
        store(tmp_path, keep=1).save(state_at(2))
    assert writes == ["model.safetensors", "optimizer.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    verify(tmp_path / "step-00000001")


def test_too_small_a_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs 0.0 MiB and the disk has 0.0 MiB free; there is no earlier one"):
        store(tmp_path).save(state_at(1))


def in_process(function: Callable[..., None], *arguments: Any) -> int:
    """Call a function of checkpoint_processes in a new process; return its exit code, or minus its signal's number."""
    context = multiprocessing.get_context("forkserver")
    # Forked from an interpreter that has run nothing: torch's threads do not survive a fork.
    context.set_forkserver_preload(["seam_dist.training.checkpoint"])
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def test_write_that_the_system_refuses_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    store(tmp_path).save(state_at(1))
    assert in_process(checkpoint_processes.save_with_little_room, store(tmp_path), state_at(2)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    verify(tmp_path / "step-00000001")


def test_latest_is_whole_wherever_the_process_is_killed(tmp_path: Path) -> None:
    for step in (1, 2):
        store(tmp_path / "before").save(state_at(step))
    operation = 0
    seen = set()
    while True:
        folder = tmp_path / str(operation)
        shutil.copytree(tmp_path / "before", folder)
        code = in_process(checkpoint_processes.save_and_die, store(folder), state_at(3), operation)
        named = folder / (folder / "latest").read_text().strip()
        verify(named)
        state = store(folder).load("auto", network())
        assert state is not None
        assert named.name == f"step-{state.step:08d}"
        assert bool((state.weights["0.bias"] == state.step).all())
        seen.add(state.step)
        # The next save clears up whatever the killed one left.
        store(folder).save(state_at(4))
        assert not list(folder.glob(".*"))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        operation += 1
    assert operation > 15
    assert seen == {2, 3}


def test_kill_inside_a_file_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    store(tmp_path).save(state_at(1))
    assert in_process(checkpoint_processes.save_half_and_die, store(tmp_path), state_at(2)) == -signal.SIGKILL
    assert find_newest(tmp_path) == tmp_path / "step-00000001"
