"""Where a run's trained network lies, and that it is built again as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import authors_state_dict, run_config
from stage_kit import finish_training
from torch import nn

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.stage import StageError
from seam_dist.config.load import flatten
from seam_dist.config.schema import Config, Stage
from seam_dist.models import (
    Trained,
    affinity_architecture,
    build_affinity_net,
    build_deeplab,
    build_seam,
    deeplab_architecture,
    find_trained,
    load_affinity_net,
    load_deeplab,
    load_seam,
    seam_architecture,
    trained_for,
)

CLASSES = ("cat", "dog", "hen")
BUILDERS: dict[Stage, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "train_seam": (lambda cfg: build_seam(cfg, 3), seam_architecture, load_seam),
    "train_affinity": (build_affinity_net, affinity_architecture, load_affinity_net),
    "train_seg": (lambda cfg: build_deeplab(cfg, 3), deeplab_architecture, load_deeplab),
}


def trained_run(root: Path, stage: Stage) -> tuple[Config, nn.Module]:
    """A run with a finished training of a network with settings of its own."""
    cfg = run_config(
        root,
        model={"width": 0.0625, "output_stride": 16, "pcm_channels": [4, 6], "pcm_center": True, "align_grid": True},
        augment={"crop_size": 97},
        loss={"second_view_scale": 0.5},
        train_affinity={"channels": [4, 6, 8], "radius": 4},
        train_seg={"network": "deeplabv3plus", "width": 8},
    )
    torch.manual_seed(0)
    build, architecture, _ = BUILDERS[stage]
    model: nn.Module = build(cfg)[0].eval()
    finish_training(cfg, stage, model, architecture(cfg, CLASSES))
    return cfg, model


@pytest.mark.parametrize("stage", list(BUILDERS))
def test_network_is_found_in_a_run_a_stage_a_folder_and_a_file(tmp_path: Path, stage: Stage) -> None:
    cfg, model = trained_run(tmp_path, stage)
    final = cfg.stage_dir(stage) / "final"
    for source in (cfg.run_dir, cfg.stage_dir(stage), final, final / "model.safetensors"):
        trained = find_trained(source, stage)
        assert trained.weights == final / "model.safetensors"
        assert trained.classes == CLASSES
        assert trained.align == (None if stage == "train_affinity" else 16)
    assert trained_for(cfg, stage, CLASSES) == trained
    network = BUILDERS[stage][2](trained)
    assert not network.training
    image = torch.randn(1, 3, 49, 65)
    with torch.no_grad():
        expected, again = (net.forward_grid(image) for net in (model, network))
    torch.testing.assert_close(again, expected)


def test_settings_of_the_training_come_along(tmp_path: Path) -> None:
    cfg, _ = trained_run(tmp_path, "train_seg")
    path = cfg.stage_dir("train_seg") / "final" / "model.json"
    assert find_trained(cfg.run_dir, "train_seg").settings == flatten(cfg)
    write_json(path, {"architecture": read_json(path)["architecture"]})
    assert find_trained(cfg.run_dir, "train_seg").settings == {}


def test_a_wrong_setting_of_the_training_is_named(tmp_path: Path) -> None:
    trained = Trained(tmp_path / "model.safetensors", {}, {"infer_seg.scales": [1.0, "x"], "infer_seg.flip": True})
    assert trained.recorded("infer_seg", ("flip",)) == {"flip": True}
    with pytest.raises(
        ValueError, match=r"model.json holds .*: infer_seg.scales=\[1.0, 'x'\]: entry 2 \('x'\): expected a n"
    ):
        trained.recorded("infer_seg", ("scales", "flip"))


def test_missing_weights_and_foreign_ones_name_the_remedy(tmp_path: Path) -> None:
    cfg, _ = trained_run(tmp_path, "train_seam")
    with pytest.raises(StageError, match=r"model.safetensors is missing: run `--only train_seg` to the end, or give"):
        find_trained(cfg.run_dir, "train_seg")
    final = cfg.stage_dir("train_seam") / "final"
    with pytest.raises(StageError, match="describes no network of train_seg: give the weights of train_seg"):
        find_trained(final, "train_seg")
    (final / "model.json").write_text("[1]")
    with pytest.raises(StageError, match="describes no network of train_seam"):
        find_trained(final, "train_seam")
    (final / "model.json").unlink()
    with pytest.raises(StageError, match=r"model\.json is missing, which describes .* copy both together"):
        find_trained(final, "train_seam")


def test_weights_without_description_are_of_the_given_architecture(tmp_path: Path) -> None:
    cfg, model = trained_run(tmp_path, "train_seam")
    torch.save(authors_state_dict(model), cfg.stage_dir("train_seam") / "final" / "authors.pth")
    source = cfg.stage_dir("train_seam") / "final" / "authors.pth"
    # model.json beside it is of model.safetensors.
    architecture = seam_architecture(cfg, CLASSES) | {"align_grid": False}
    trained = find_trained(source, "train_seam", default=architecture)
    assert (trained.weights, trained.architecture, trained.align) == (source, architecture, None)
    assert torch.equal(load_seam(trained).fc8.weight, model.fc8.weight)


def test_training_must_be_finished_and_of_the_same_classes(tmp_path: Path) -> None:
    cfg, _ = trained_run(tmp_path, "train_seg")
    with pytest.raises(StageError, match=r"for 3 classes \(cat, dog, hen\), .* have 5 \(a, b, c, d, e\)"):
        trained_for(cfg, "train_seg", "abcde")
    unfinished = replace(cfg, run=replace(cfg.run, name="unfinished"))
    with pytest.raises(StageError, match="stage train_seg is not finished there"):
        trained_for(unfinished, "train_seg", CLASSES)
    assert trained_for(unfinished, "train_seg", CLASSES, cfg.run_dir).classes == CLASSES
