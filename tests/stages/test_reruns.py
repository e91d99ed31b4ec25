"""What stages leave is all removed when they are rerun with other settings, and what the user put there stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit import run_config
from stage_kit import finish_training

from seam_dist.artifacts.leftovers import remove_stage_files
from seam_dist.artifacts.outputs import OutputError
from seam_dist.artifacts.stage import MANIFEST
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.models import affinity_architecture, build_affinity_net, build_deeplab, deeplab_architecture
from seam_dist.stages import evaluate, infer_cam, infer_seg, random_walk, report, shard, train_seam

pytestmark = pytest.mark.usefixtures("own_world")
BASE: dict[str, dict[str, Any]] = {
    "source": {"num_images": [6, 3], "image_size": [48, 36]},
    "augment": {"resize_long": [64, 80], "crop_size": 64},
    "model": {"width": 1 / 16, "output_stride": 16, "freeze_stem": False},
    "loss": {"second_view_scale": 0.5},
    "crf": {"impl": "torch", "num_workers": 0, "num_iters": 1, "source_stride": 4},
    "train_seam": {"schedule": {"global_batch_size": 2, "max_steps": 2, "checkpoint_every": 1, "lr": 1e-3}},
    "infer_cam": {"scales": [1.0], "interop": True},
    "train_affinity": {"channels": [4, 6, 8]},
    "random_walk": {"files": True, "num_steps": 4},
    "train_seg": {"width": 8},
    "infer_seg": {"scales": [1.0], "flip": False, "oracle": True, "voc_server": "val"},
}


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    """A finished run of all stages, on small images; two trainings are replaced by random weights."""
    cfg = run_config(tmp_path, base=BASE)
    shard.run(cfg)
    train_seam.run(cfg)
    infer_cam.run(cfg)
    torch.manual_seed(0)
    classes = load_manifest(cfg.shards_dir).classes
    finish_training(cfg, "train_affinity", build_affinity_net(cfg)[0], affinity_architecture(cfg, classes))
    random_walk.run(cfg)
    finish_training(cfg, "train_seg", build_deeplab(cfg, len(classes))[0], deeplab_architecture(cfg, classes))
    infer_seg.run(cfg)
    evaluate.run(cfg)
    report.run(cfg)
    return cfg


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_rerun_leaves_nothing_of_the_old_outputs_and_all_of_the_users(cfg: Config) -> None:
    scores = [path for path in cfg.stage_dir("evaluate").iterdir() if path.is_dir()]
    stages = [path for path in cfg.run_dir.iterdir() if path.name not in (".running", "evaluate")]
    assert len(scores) == 7
    assert len(stages) == 7
    for folder in [cfg.shards_dir, *stages, *scores]:
        users = {"notes.txt", ".notes", "mine/train-00000.tar"}
        users |= {f"{path.name}/notes.txt" for path in folder.iterdir() if path.is_dir()}
        assert len(files(folder)) > 3
        for name in users:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("mine")
        remove_stage_files(folder, MANIFEST)
        assert files(folder) == users | {"stage.json", "config.yaml"}
        assert all((folder / name).read_text() == "mine" for name in users)


def test_files_of_the_users_stop_the_stage_that_would_replace_them(cfg: Config) -> None:
    archive = cfg.stage_dir("infer_seg") / "voc_server.tar.gz"
    picture = sorted((cfg.stage_dir("random_walk") / "files").glob("*.png"))[0]
    maps = sorted((cfg.stage_dir("infer_cam") / "interop").glob("*.npy"))[0]
    for path, stage, changed in (
        (archive, infer_seg, {"infer_seg": {**BASE["infer_seg"], "scales": [0.5]}}),
        (picture, random_walk, {"random_walk": {**BASE["random_walk"], "beta": 4}}),
        (maps, infer_cam, {"infer_cam": {**BASE["infer_cam"], "flip": False}}),
    ):
        path.write_text("mine")
        with pytest.raises(OutputError, match=rf"{path.name} \(not written by seam-dist\): move it away"):
            stage.run(run_config(cfg.run.dir.parent, base={**BASE, **changed}))
        assert path.read_text() == "mine"
        path.unlink()
        stage.run(run_config(cfg.run.dir.parent, base={**BASE, **changed}))
        assert path.is_file()
