"""What tests of stages build: a run up to a stage, what a stage leaves without running it, what a stage wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from kit import changed, hide_package, run_config
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.cam_file import StoredCam, read_cams, store_cam, write_cams
from seam_dist.artifacts.label_file import read_label_shard, write_labels
from seam_dist.artifacts.layout import LABEL_TYPES
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.artifacts.stage import open_stage
from seam_dist.config.load import flatten
from seam_dist.config.schema import Config, Stage
from seam_dist.data.manifest import load_manifest
from seam_dist.data.masks import decode_labels
from seam_dist.data.shards import RawSample, Sample, read_raw, read_shard, write_shard
from seam_dist.models import build_seam, seam_architecture
from seam_dist.stages import infer_cam, shard


def prepared_run(config: Callable[[Path], Config], *steps: Callable[[Config], Any]) -> tuple[Any, Any]:
    """Two fixtures, to be called `prepared` and `root`: a run that `steps` prepared once for the module, and its copy.

    Tests that only read use the first, tests that write the second. `config` makes the settings for a folder.
    """

    @pytest.fixture(scope="module")
    def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("prepared")
        for step in steps:
            step(config(folder))
        return folder

    @pytest.fixture
    def root(prepared: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(prepared, tmp_path / "root"))

    return prepared, root


def finished_copy(
    prepared: Path, config: Callable[..., Config], run: Callable[[Config], Any], **sections: Any
) -> Config:
    """Run a stage in a copy of `prepared` beside it, for tests of a module that only read."""
    cfg = config(Path(shutil.copytree(prepared, prepared.with_name(f"{prepared.name}-finished"))), **sections)
    run(cfg)
    return cfg


def prepared_training(stage: Stage, base: Mapping[str, Mapping[str, Any]]) -> tuple[Any, Any]:
    """Two fixtures, to be called `prepared` and `make`: a folder with shards, and make(name, **values).

    That gives settings of a run on these shards in the test's own folder; `values` are those of the stage's section.
    """
    prepared, _ = prepared_run(partial(run_config, base=base), shard.run)

    @pytest.fixture
    def make(prepared: Path, tmp_path: Path) -> Callable[..., Config]:
        def config(name: str = "run", **values: Any) -> Config:
            cfg = run_config(prepared, name, base, run={"dir": str(tmp_path)})
            return replace(cfg, **{stage: changed(getattr(cfg, stage), **values)})

        return config

    return prepared, make


# Settings of infer_cam on a network of seconds, without the CRF.
cam_config = partial(
    run_config,
    base={
        "model": {"backbone": "resnet38d", "width": 0.05, "pcm_channels": [8, 8]},
        "infer_cam": {"scales": [0.5, 1.0], "batch_size": 2, "crf": False},
    },
)


def prepared_cams() -> tuple[Any, Any, Any]:
    """Three fixtures: `prepared` and `root`, with a trained SEAM, and `finished`, with CAMs and interop files."""
    prepared, root = prepared_run(cam_config, shard.run, finish_seam)

    @pytest.fixture(scope="module")
    def finished(prepared: Path) -> Config:
        return finished_copy(prepared, cam_config, infer_cam.run, infer_cam={"interop": True})

    return prepared, root, finished


def samples_of(cfg: Config, split: str, *, masks: bool = False) -> list[Sample]:
    """All samples of a split, in the order of its shards."""
    return [
        sample
        for part in load_manifest(cfg.shards_dir).split(split).shards
        for sample in read_shard(cfg.shards_dir / part.file, masks=masks, max_pixels=10**6)
    ]


def rewrite_shard(cfg: Config, name: str, change: Callable[[RawSample], RawSample]) -> None:
    """Pass the samples of one shard through `change` and correct the manifest."""
    path = cfg.shards_dir / name
    samples = [change(sample) for sample in read_raw(path)]
    with open(path, "wb") as file:
        write_shard(file, samples)
    record = read_json(cfg.shards_dir / "manifest.json")
    for split in record["splits"].values():
        for part in split["shards"]:
            if part["file"] == name:
                part.update(num_bytes=path.stat().st_size, sha256=sha256_file(path))
    write_json(cfg.shards_dir / "manifest.json", record)


def cut_jpeg(sample: RawSample) -> RawSample:
    """A sample whose image cannot be decoded."""
    return RawSample(sample.key, {**sample.members, "jpg": sample.members["jpg"][:40]})


def finish_training(cfg: Config, stage: Stage, model: nn.Module, architecture: Mapping[str, Any]) -> None:
    """Leave what a training stage leaves: final/model.safetensors and model.json of `model`."""
    opened = open_stage(cfg, stage, settings=(stage,))
    final = opened.dir / "final"
    final.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, final / "model.safetensors")
    write_json(final / "model.json", {"architecture": dict(architecture), "config": flatten(cfg)})
    opened.finish(final.iterdir())


def finish_seam(cfg: Config, seed: int = 0) -> None:
    """Leave what train_seam leaves, with random weights that give CAMs of all values."""
    classes = load_manifest(cfg.shards_dir).classes
    torch.manual_seed(seed)
    model, _ = build_seam(cfg, len(classes))
    nn.init.normal_(model.fc8.weight, std=5)
    finish_training(cfg, "train_seam", model, seam_architecture(cfg, classes))


def write_cams_from_masks(cfg: Config, primary: str = "refined") -> None:
    """What infer_cam leaves: maps that know the masks, with noise; the plain one has more of it.

    Those of val are weaker, so that their best threshold is lower. `primary` is infer_cam.cam.
    """
    rng = np.random.default_rng(0)
    stage = open_stage(cfg, "infer_cam", settings=("infer_cam",))
    for name, split in load_manifest(cfg.shards_dir).splits.items():
        for part in split.shards:
            cams = []
            for sample in read_shard(cfg.shards_dir / part.file, masks=True, max_pixels=10**6):
                inside = np.stack([sample.mask == index for index in sample.classes]).astype(np.float32)
                scale = 0.9 if name == "train" else 0.5
                maps = [scale * inside + 0.4 * strength * rng.random(inside.shape, np.float32) for strength in (0.7, 1)]
                refined, plain = (store_cam(torch.from_numpy(m), 4) for m in maps)
                size = (inside.shape[1], inside.shape[2])
                cams.append(
                    StoredCam(sample.key, sample.classes, size, refined, plain)
                    if primary == "refined"
                    else StoredCam(sample.key, sample.classes, size, plain)
                )
            write_cams(stage.dir / "cams" / part.file, cams)
    stage.finish((stage.dir / "cams").iterdir(), cam=primary)


WRONG_PIXELS = {"walk": 0.5, "walk_crf": 0.4, "seg": 0.3, "seg_crf": 0.2, "seg_oracle": 0.1}


def write_labels_from_masks(cfg: Config, wrong: Mapping[str, float] = WRONG_PIXELS) -> None:
    """What random_walk and infer_seg leave: the masks with a share of wrong pixels by label type, for all splits."""
    rng = np.random.default_rng(7)
    for name in dict.fromkeys(LABEL_TYPES[name].stage for name in wrong):
        stage = open_stage(cfg, name, settings=("run.seed",))
        outputs = []
        for label_type in (LABEL_TYPES[name] for name in wrong):
            if label_type.stage != name:
                continue
            for split in load_manifest(cfg.shards_dir).splits.values():
                for part in split.shards:
                    items = []
                    for sample in read_shard(cfg.shards_dir / part.file, masks=True, max_pixels=10**6):
                        assert sample.mask is not None
                        noise = rng.random(sample.mask.shape) < wrong[label_type.name]
                        values = np.where(sample.mask == 255, 0, sample.mask)
                        items.append((sample.key, np.where(noise, 0, values).astype(np.uint8)))
                    outputs.append(stage.dir / label_type.folder / part.file)
                    write_labels(outputs[-1], items)
        stage.finish(outputs)


def stored_cams(cfg: Config, split: str) -> dict[str, StoredCam]:
    """The CAMs of a split by key, in the order of its shards."""
    parts = load_manifest(cfg.shards_dir).split(split).shards
    return {cam.key: cam for part in parts for cam in read_cams(cfg.stage_dir("infer_cam") / "cams" / part.file)}


def stored_labels(cfg: Config, stage: Stage, folder: str, split: str) -> dict[str, NDArray[np.uint8]]:
    """The labels of a split in one folder of a stage by key, in the order of its shards."""
    return {
        key: decode_labels(data, max_pixels=10**6, num_classes=3)
        for part in load_manifest(cfg.shards_dir).split(split).shards
        for key, data in read_label_shard(cfg.stage_dir(stage) / folder / part.file).items()
    }


def miou_of(confusion: NDArray[np.int64]) -> float:
    """Mean IoU of a confusion matrix over the classes that have one."""
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return float(np.mean(hits[union > 0] / union[union > 0]))


def metrics_of(cfg: Config, stage: Stage) -> list[dict[str, float]]:
    """The lines of a stage's metrics.jsonl without times and memory."""
    lines = (cfg.stage_dir(stage) / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name in ("step", "lr") or name.startswith("loss/")}
        for line in lines
    ]


def trained_weights(cfg: Config, stage: Stage) -> dict[str, Tensor]:
    """The final weights of a training stage."""
    return load_file(cfg.stage_dir(stage) / "final" / "model.safetensors")


def before_batch(monkeypatch: pytest.MonkeyPatch, stage: ModuleType, number: int, act: Callable[[], Any]) -> None:
    """Let the loader of a training stage call `act` before it makes batch `number`, counted from 1."""
    original = stage.run_training

    class Loader:
        def __init__(self, inner: Any) -> None:
            self.inner, self.count = inner, 0

        def __next__(self) -> Any:
            self.count += 1
            if self.count == number:
                act()
            return next(self.inner)

        def close(self) -> None:
            self.inner.close()

    def run(task: Any, world: Any) -> None:
        original(replace(task, loader=lambda *arguments: Loader(task.loader(*arguments))), world)

    monkeypatch.setattr(stage, "run_training", run)


def stage_folder(stage: ModuleType, cfg: Config) -> Path:
    """The folder of the stage that a module of seam_dist.stages runs."""
    return cfg.run_dir / stage.__name__.rpartition(".")[2]


def stop_training(monkeypatch: pytest.MonkeyPatch, stage: ModuleType, cfg: Config, number: int) -> None:
    """Run a training stage and stop it by SIGTERM at batch `number`, which it still trains and saves."""
    with monkeypatch.context() as patch:
        before_batch(patch, stage, number, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as stop:
            stage.run(cfg)
    assert stop.value.code == 128 + signal.SIGTERM
    folder = stage_folder(stage, cfg)
    assert (folder / "checkpoints" / "latest").read_text() == f"step-{number:08d}\n"
    assert not (folder / "manifest.json").exists()
    torch.manual_seed(99)  # a resumed training has its own random state


def assert_same_training(first: Config, second: Config, stage: Stage) -> None:
    """Two runs of a training stage have the same metrics and weights, bit for bit (float32 on one rank)."""
    assert metrics_of(first, stage) == metrics_of(second, stage)
    expected, actual = trained_weights(first, stage), trained_weights(second, stage)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(value, actual[name]) for name, value in expected.items())


def assert_lattice_is_missed(monkeypatch: pytest.MonkeyPatch, stage: ModuleType, cfg: Config, match: str) -> None:
    """Without pydensecrf2 a stage that needs it stops before it begins, with a message that names the remedy."""
    hide_package(monkeypatch, "pydensecrf")
    with pytest.raises(ValueError, match=match):
        stage.run(cfg)
    assert not stage_folder(stage, cfg).exists()


def run_on_two_ranks(stages: str, config: Path) -> None:
    """Run stages, joined by commas, of a configuration file on two ranks, each a process."""
    code = (
        "import sys; from importlib import import_module; from pathlib import Path;"
        "from seam_dist.cluster import distributed; from seam_dist.config.load import load_config;"
        "cfg = load_config(Path(sys.argv[2]), [], None).config; world = distributed.init_world(cfg);"
        "[(import_module('seam_dist.stages.' + stage).run(cfg), distributed.barrier(world))"
        " for stage in sys.argv[1].split(',')]; distributed.shutdown(world)"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, stages, str(config)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, f"exit code {rank.returncode}: {errors.decode()[-2000:]}"
