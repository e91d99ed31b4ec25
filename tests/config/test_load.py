"""Where values come from, and what is refused before any work starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from seam_dist.config import load
from seam_dist.config.describe import format_config, settings
from seam_dist.config.load import ConfigError, dump_yaml, flatten, from_tree, installed_configs, load_config
from seam_dist.config.schema import STAGES, Config


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_later_sources_win_and_origins_name_file_and_line(tmp_path: Path) -> None:
    write(
        tmp_path / "presets" / "slow.yaml", "train_seam:\n  schedule:\n    lr: 0.5\n    momentum: 0.1\n    epochs: 3\n"
    )
    path = write(tmp_path / "a.yaml", "preset: slow\ntrain_seam:\n  schedule:\n    momentum: 0.2\n    epochs: 4\n")
    resolved = load_config(path, ["train_seam.schedule.epochs=5"])
    schedule = resolved.config.train_seam.schedule
    assert (schedule.lr, schedule.momentum, schedule.epochs, schedule.weight_decay) == (0.5, 0.2, 5.0, 5e-4)
    text = format_config(resolved).split("\ntrain_seam:\n")[1].split("\ninfer_cam:\n")[0]
    lines = {line.split(":")[0].strip(): line.split("#")[-1].strip() for line in text.splitlines() if "#" in line}
    assert lines["lr"] == f"{tmp_path / 'presets' / 'slow.yaml'}:3"
    assert lines["momentum"] == f"{path}:4"
    assert lines["epochs"] == "command line"
    assert lines["weight_decay"] == "default"


def test_preset_of_the_command_line_replaces_the_one_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "presets" / "a.yaml", "train_seam: {schedule: {lr: 1.0}}\n")
    write(tmp_path / "presets" / "b.yaml", "train_seam: {schedule: {lr: 2.0}}\n")
    path = write(tmp_path / "c.yaml", "preset: a\n")
    assert load_config(path).config.train_seam.schedule.lr == 1.0
    assert load_config(path, preset="b").config.train_seam.schedule.lr == 2.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian_seam.lr=1", r"unknown section trian_seam \(did you mean train_seam\?\)"),
        ("train_seam.schedule.learning_rate=1", r"unknown key train_seam.schedule.learning_rate"),
        ("train_seam.schedule.weight_deacy=1", r"did you mean train_seam.schedule.weight_decay\?"),
        ("train_seam.lr=1", r"unknown key train_seam.lr \(did you mean train_seam.schedule.lr\?\)"),
        ("model.lr=1", r"unknown key model.lr"),
        (
            "train_seam.schedule.lr=fast",
            r"train_seam.schedule.lr='fast' \(command line\): expected a number",
        ),
        ("train_seam.schedule.momentum=1.5", r"train_seam.schedule.momentum='1.5' .*less than 1"),
        ("model.output_stride=4", r"model.output_stride='4'"),
        ("augment.resize_long=[300]", r"augment.resize_long"),
        ("augment.resize_long=[300,200]", r"augment.resize_long=\[300, 200\] is not a range"),
        (
            "train_seam.schedule.micro_batch_size=3",
            r"train_seam.schedule.global_batch_size=8 is not a multiple of train_seam.schedule.micro_batch_size=3",
        ),
        (
            "train_seg.schedule.micro_batch_size=4",
            r"train_seg.schedule.global_batch_size=10 is not a multiple of train_seg.schedule.micro_batch_size=4",
        ),
        ("loss.second_view_scale=0.02", r"leaves a grid of 1.1 cells"),
        ("source.pixel_range=[4095,0]", r"source.pixel_range=\[4095.0, 0.0\] is not \[black, white\].*\[0, 4095\]"),
        ("model.align_grid=true", r"augment.crop_size=448 is not k \* model.output_stride \+ 1.*set it to 449"),
        (
            "train_affinity.crop_size=100",
            r"train_affinity.crop_size=100 is not a multiple of the stride 8 .* set it to 96",
        ),
        ("train_seg.scale=[2,1]", r"train_seg.scale=\[2.0, 1.0\] is not a range"),
        ("run.name=../elsewhere", r"run.name"),
        ("train_seam.schedule.lr=.inf", r"train_seam.schedule.lr='.inf'"),
        ("lr=1", r"not of the form section.key=value"),
        ("train_seam.schedule.lr", r"not of the form section.key=value"),
        ("train=1", r"not of the form section.key=value"),
        ("model.backbone=vgg", r"model.backbone='vgg'"),
    ],
)
def test_wrong_overrides_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_strides_are_read_from_overrides() -> None:
    config = load_config(None, ["model.output_stride=16", "train_affinity.output_stride=8"]).config
    assert (config.model.output_stride, config.train_affinity.output_stride, config.train_seg.output_stride) == (
        16,
        8,
        None,
    )
    with pytest.raises(ConfigError, match=r"model.output_stride='4'"):
        load_config(None, ["model.output_stride=4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train_seam:\n  schedule:\n    lr: 1\n    lr: 2\n",
            r"a.yaml:4 gives train_seam.schedule.lr again \(first at line 3\)",
        ),
        (
            "train_seam:\n  schedule: {lrr: 1}\n",
            r"a.yaml:2: unknown key train_seam.schedule.lrr \(did you mean train_seam.schedule.lr\?\)",
        ),
        ("train_seam:\n  schedule: 3\n", r"a.yaml:2: train_seam.schedule=3 is a section"),
        ("train:\n  lr: 1\n", r"a.yaml:2: unknown section train"),
        ("train_seam: 3\n", r"train_seam=3 is a section"),
        ("- 1\n", r"holds a list"),
        ("a: [1\n", r"not valid YAML"),
        ("preset: nope\n", r"preset=nope"),
    ],
)
def test_wrong_files_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "a.yaml", text))


def test_a_preset_beside_the_config_file_comes_before_the_installed_one(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "preset: small\n")
    assert load_config(path).config.model.backbone == "lite0"
    write(tmp_path / "presets" / "small.yaml", "model: {width: 0.5}\n")
    model = load_config(path).config.model
    assert (model.backbone, model.width) == ("resnet38d", 0.5)


def test_a_preset_may_be_a_path_relative_to_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "shared.yaml", "model: {width: 0.5}\n")
    path = write(tmp_path / "runs" / "mine.yaml", "preset: ../shared.yaml\n")
    assert load_config(path).config.model.width == 0.5
    monkeypatch.chdir(tmp_path)
    assert load_config("demo", preset="shared.yaml").config.model.width == 0.5
    with pytest.raises(ConfigError, match=r"preset=nope.yaml does not exist"):
        load_config("demo", preset="nope.yaml")


@pytest.mark.parametrize("folder", [".", "elsewhere"])
def test_unknown_names_list_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / folder)
    with pytest.raises(
        ConfigError, match=r"--config=voc21 .*did you mean voc12\?.*one of coco14, demo, folder, voc12, or the path"
    ):
        load_config("voc21")
    with pytest.raises(
        ConfigError, match=r"preset=papper .*did you mean paper\?.*one of default, paper, small, or the path"
    ):
        load_config(None, preset="papper")
    write(tmp_path / folder / "presets" / "own.yaml", "{}\n")
    with pytest.raises(ConfigError, match=r"expected one of default, own, paper, small"):
        load_config(write(tmp_path / folder / "a.yaml", "preset: papper\n"))


def test_name_without_any_installed_config_asks_for_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "installed_configs", lambda: tmp_path / "none")
    with pytest.raises(
        ConfigError, match=r"--config=demo is not known: nothing is in .*/none, so give the path of a file"
    ):
        load_config("demo")
    path = write(tmp_path / "elsewhere" / "a.yaml", "preset: small\n")
    message = (
        r"elsewhere/a\.yaml:1: preset=small is not known: nothing is in .*/elsewhere/presets nor in .*/none/presets, so"
    )
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "voc12.yaml", "{}\n")
    with pytest.raises(ConfigError, match=r"does not exist \(did you mean voc12.yaml\?\)"):
        load_config(tmp_path / "voc21.yaml")


def test_overrides_read_lists_nulls_numbers_and_names() -> None:
    cfg = load_config(
        None, ["infer_cam.scales=[0.5, 1]", "model.pretrained=null", "train_seam.schedule.lr=1e-3", "run.name=007"]
    ).config
    assert cfg.infer_cam.scales == (0.5, 1.0)
    assert cfg.model.pretrained is None
    assert cfg.train_seam.schedule.lr == 1e-3
    assert cfg.run.name == "007"


def test_deepspeed_overrides_keep_their_types() -> None:
    cfg = load_config(None, ["deepspeed.zero_optimization.stage=2"]).config
    assert cfg.deepspeed == {"zero_optimization": {"stage": 2}}


def test_stored_configuration_reads_back_equal() -> None:
    cfg = load_config(
        None, ["train_seam.schedule.lr=0.3", "data.shards=/tmp/x", "deepspeed.zero_optimization.stage=1"]
    ).config
    assert from_tree(yaml.safe_load(dump_yaml(cfg))) == cfg


def test_every_setting_has_a_description_and_a_flat_key() -> None:
    flat = flatten(Config())
    for setting in settings():
        assert setting.doc.endswith("."), setting.key
        assert setting.key in flat


def shipped() -> list[tuple[Path, str | None]]:
    presets = sorted(p.stem for p in (installed_configs() / "presets").glob("*.yaml"))
    return [(path, preset) for path in sorted(installed_configs().glob("*.yaml")) for preset in (None, *presets)]


@pytest.mark.parametrize(("path", "preset"), shipped(), ids=lambda v: getattr(v, "stem", str(v)))
def test_shipped_configurations_are_valid_with_every_preset(path: Path, preset: str | None) -> None:
    assert load_config(path, preset=preset).config.run.name


def test_stages_have_a_module_each() -> None:
    folder = Path(__file__).parents[2] / "seam_dist" / "stages"
    assert {p.stem for p in folder.glob("*.py")} - {"__init__"} == set(STAGES)


def test_partial_schedule_keeps_the_defaults_of_its_stage() -> None:
    schedule = load_config(None, ["train_seg.schedule.lr=0.5"]).config.train_seg.schedule
    assert (schedule.lr, schedule.global_batch_size, schedule.max_steps) == (0.5, 10, 20_000)


def test_printed_configuration_is_the_same_configuration(tmp_path: Path) -> None:
    resolved = load_config(None, ["train_seg.schedule.lr=0.5", "data.splits=[a, b]", "source.kind=voc"])
    assert load_config(write(tmp_path / "printed.yaml", format_config(resolved))).config == resolved.config
