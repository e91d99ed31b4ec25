"""Paths as people write them: the home folder, variables, URLs, Windows, spaces; in settings and in arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from seam_dist.commands import status
from seam_dist.config.describe import format_settings
from seam_dist.config.load import ConfigError, dump_yaml, from_tree, load_config
from seam_dist.config.paths import PathError, user_path

SETTINGS = (
    "run.dir",
    "source.root",
    "data.shards",
    "infer_cam.checkpoint",
    "infer_cam.from_interop",
    "infer_cam.crf_from_interop",
    "infer_seg.checkpoint",
    "report.compare",
    "model.pretrained",
    "train_seg.pretrained",
    "source.image_list",
    "source.masks",
    "train_seam.schedule.resume",
    "train_seg.schedule.resume",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def value_of(cfg: object, key: str) -> str:
    for part in key.split("."):
        cfg = getattr(cfg, part)
    return str(cfg[0] if isinstance(cfg, tuple) else cfg)


def written(key: str, value: str) -> str:
    return f"{key}=[{value}]" if key == "report.compare" else f"{key}={value}"


@pytest.mark.parametrize("key", SETTINGS)
def test_home_folder_is_expanded_in_every_path_setting(key: str, home: Path) -> None:
    cfg = load_config(None, [written(key, "~/a/b")]).config
    assert value_of(cfg, key) == str(home / "a/b")
    # The run's own config.yaml keeps the expanded path, so that another user's `status` means the same folder.
    assert str(home / "a/b") in dump_yaml(cfg)
    assert from_tree(yaml.safe_load(dump_yaml(cfg))) == cfg
    assert not Path("~").exists()


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize("path", ["$SCRATCH/a", "${SCRATCH}/a", "s3://b/x", "C:/voc"])
def test_what_is_no_path_is_refused_in_every_path_setting(key: str, path: str, home: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}=.*\(command line\): path ") as refusal:
        load_config(None, [written(key, f'"{path}"')])
    assert path in str(refusal.value)


def test_every_path_setting_is_in_the_list() -> None:
    lines = format_settings().splitlines()
    typed = [line.split()[0] for line in lines if "(path" in line or "(tuple[path" in line or "(name or path" in line]
    others = {"train_affinity.schedule.resume"}
    assert set(typed) == set(SETTINGS) | others


def test_files_presets_and_their_paths_expand_the_home_folder(home: Path) -> None:
    (home / "configs").mkdir(parents=True)
    (home / "configs" / "mine.yaml").write_text("preset: ~/shared.yaml\nsource: {root: ~/data}\n")
    (home / "shared.yaml").write_text("model: {width: 0.5}\n")
    cfg = load_config("~/configs/mine.yaml").config
    assert (cfg.source.root, cfg.model.width) == (home / "data", 0.5)
    assert load_config("demo", [], "~/shared.yaml").config.model.width == 0.5
    with pytest.raises(ConfigError, match=r"--config=~/configs/mina.yaml does not exist \(did you mean mine.yaml\?\)"):
        load_config("~/configs/mina.yaml")


def test_arguments_of_status_expand_the_home_folder(home: Path) -> None:
    assert status.build_parser().parse_args(["~/runs/a", "b"]).runs == [home / "runs/a", Path("b")]


@pytest.mark.parametrize("text", ["", "s3://b/x", "$SCRATCH/a"])
def test_argparse_shows_the_message(text: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=user_path)
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", text])
    assert f"argument --out: path {text!r} " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: give a path"),
        ("  ", "is empty: give a path"),
        ("$SCRATCH/a", r"holds \$SCRATCH, which is not expanded"),
        ("/data/${USER}/a", r"holds \$\{USER\}, which is not expanded"),
        ("~someone9/a", "names a home folder \\(~someone9\\) that this system does not know"),
        ("s3://bucket/x", "is remote, and remote files are not supported yet"),
        ("s3:/bucket/x", "is remote"),  # what pathlib makes of it
        ("gs://bucket", "is remote"),
        ("https://host/x.pth", "is remote"),
        ("host:/data", "is remote"),
        ("file:///data/x", "is a URL: write the path alone, without file://"),
        ("C:\\data\\voc", "is a path of Windows: write it with /"),
        ("D:/data/voc", "is a path of Windows"),
        ("data\\voc", "is a path of Windows"),
        ("\\\\server\\share", "is a path of Windows"),
        ("data ", "begins or ends with a space"),
        (" data", "begins or ends with a space"),
        ("data\n", "begins or ends with a space"),
        ("da\nta", "holds a line break or a tab"),
        ("da\0ta", "holds a NUL character"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str, home: Path) -> None:
    with pytest.raises(PathError, match=message) as refusal:
        user_path(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["$SCRATCH/new", "a$b", "C:\\voc", "x ", "s3:/new", "~someone9", "data\\voc/new", "host:/data", "a$b/$c"]
)
def test_odd_names_that_exist_are_taken(text: str, home: Path) -> None:
    Path(text.removesuffix("/new")).mkdir(parents=True)
    assert user_path(text) == Path(text)


@pytest.mark.parametrize(
    "text", ["a b/c", "price$", "a$", "ü/Straße", "a:b", "12:30/x", "./~", "a~b", "x" * 300, "-", "."]
)
def test_usual_names_are_taken_as_they_are(text: str, home: Path) -> None:
    assert user_path(text) == Path(text)


def test_a_relative_path_of_a_file_is_relative_to_the_working_directory(home: Path) -> None:
    Path("configs").mkdir()
    Path("configs/a.yaml").write_text("source: {root: data}\n")
    assert load_config("configs/a.yaml").config.source.root == Path("data")


def test_an_unset_variable_of_the_shell_does_not_choose_the_default(home: Path) -> None:
    """`data.shards=$SHARDS` arrives as `data.shards=`."""
    with pytest.raises(ConfigError, match=r"data.shards= has no value: give one, or null to unset it"):
        load_config(None, ["data.shards="])
    assert load_config(None, ["data.shards=null"]).config.data.shards is None
    assert load_config(None, ["source.root=~"]).config.source.root == home
