"""Places that outputs go to, and the estimate of their bytes against what a stage really writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit import run_config
from stage_kit import cam_config, finish_seam

from seam_dist.artifacts.outputs import existing_parent
from seam_dist.cluster.distributed import init_world
from seam_dist.config.schema import Config, Stage
from seam_dist.data.sources.base import Record
from seam_dist.preflight.check import check_run
from seam_dist.preflight.data_set import read_data_set
from seam_dist.preflight.disk import check_disk, estimate
from seam_dist.preflight.networks import build_networks
from seam_dist.preflight.plan import DataSet, RunPlan, SplitOutline
from seam_dist.stages import infer_cam, shard
from seam_dist.training.checkpoint import CheckpointStore, TrainState


def plan_for(cfg: Config, *stages: Stage) -> RunPlan:
    return RunPlan(cfg, stages, 1, read_data_set(cfg, stages)[0])


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.tar"))


def test_shards_and_cams_take_about_what_was_estimated(tmp_path: Path) -> None:
    source = {"image_size": [256, 192], "num_images": [12, 6]}
    cfg = cam_config(tmp_path, source=source, data={"samples_per_shard": 12})
    of_shards = estimate(plan_for(cfg, "shard"), {})["shard"]
    shard.run(cfg)
    assert 0.6 < of_shards / bytes_in(cfg.shards_dir) < 1.8
    finish_seam(cfg)
    of_cams = estimate(plan_for(cfg, "infer_cam"), {})["infer_cam"]
    infer_cam.run(cfg)
    assert 0.6 < of_cams / bytes_in(cfg.stage_dir("infer_cam")) < 3


def test_checkpoints_take_what_was_estimated(tmp_path: Path) -> None:
    cfg = cam_config(tmp_path, train_seam={"schedule": {"keep_checkpoints": 1}})
    plan = RunPlan(cfg, ("train_seam",), 1, DataSet(("cat", "dog", "horse"), {}))
    networks, _ = build_networks(plan)
    network = networks["train_seam"]
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state = TrainState(1, 1, 0, weights, {name: weights[name].clone() for name in trained})
    store = CheckpointStore(tmp_path / "out", init_world(cfg), "train_seam", {}, {}, keep=1)
    written = sum(path.stat().st_size for path in store.save(state).iterdir())
    final = 4 * sum(value.numel() for value in weights.values())
    assert abs(estimate(plan, networks)["train_seam"] - (2 * written + final)) < 0.1 * written


def test_outputs_do_not_go_among_the_images(tmp_path: Path) -> None:
    images = tmp_path / "data" / "images" / "train"
    images.mkdir(parents=True)
    (images / "a.jpg").write_bytes(b"")
    record = Record("a", "a.jpg", (1,), bytes, files=(images / "a.jpg",))
    data = DataSet(("cat",), {"train": SplitOutline("train", 1, 1, False, True, (record,))})
    cfg = run_config(tmp_path, run={"dir": str(images / "runs")}, data={"shards": None})
    (finding,) = check_disk(RunPlan(cfg, ("shard",), 1, data), {})
    assert finding.severity == "error"
    assert f"is inside {images}, a folder of the data set's images" in finding.text
    beside = run_config(tmp_path, run={"dir": str(tmp_path / "data" / "runs")}, data={"shards": None})
    assert not len(check_disk(RunPlan(beside, ("shard",), 1, data), {}))


def test_what_is_written_already_needs_no_space_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = run_config(tmp_path)
    shard.run(cfg)
    needed = int(estimate(plan_for(cfg, "shard"), {})["shard"])
    usage = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert not check_disk(plan_for(cfg, "shard"), {}).errors
    other = run_config(tmp_path, data={"shards": str(tmp_path / "elsewhere")})
    assert check_disk(plan_for(other, "shard"), {}).errors


def test_the_nearest_existing_folder_is_asked(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    (tmp_path / "file").touch()
    assert existing_parent(tmp_path / "file" / "b") == tmp_path / "file"
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert existing_parent(tmp_path / "link" / "b") == tmp_path / "link"


def test_a_folder_that_nobody_may_look_into_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may look anywhere, so the refusal of the system is played."""

    def refuse(run_dir: Path, stage: str) -> None:
        raise PermissionError(13, "Permission denied", str(run_dir))

    monkeypatch.setattr("seam_dist.preflight.inputs.check_unlocked", refuse)
    findings = check_run(run_config(tmp_path), ["shard"])
    assert [str(finding) for finding in findings] == [f"{tmp_path / 'runs' / 'run'}: Permission denied"]
