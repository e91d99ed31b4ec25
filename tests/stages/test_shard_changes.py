"""Stage shard after the data set changed: what changed is converted again, everything else stays as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import kit
import pytest
from changing_set import (
    NAMES,
    config,
    data_of,
    edit_labels,
    image,
    mask,
    rewritten,
    state,
    swap_images,
    write,
)

from seam_dist.artifacts.stage import input_fingerprint, open_stage
from seam_dist.commands.status import run_status
from seam_dist.config.schema import Config
from seam_dist.data import shard_notes
from seam_dist.data.manifest import load_manifest, verify_shards
from seam_dist.data.shards import parse_info, read_raw
from seam_dist.stages import shard
from seam_dist.stages.shard import run

pytestmark = pytest.mark.usefixtures("one_process")


def add_image(root: Path) -> None:
    write(root, "train", "f", 7, value=1)
    edit_labels(root, "e.bmp,train,cat\n", "e.bmp,train,cat\nf.bmp,train,cat\n")


def remove_image(root: Path) -> None:
    for path in (root / "images/train/e.bmp", root / "masks/train/e.png"):
        path.unlink()
    edit_labels(root, "e.bmp,train,cat\n", "")


CHANGES: dict[str, tuple[Callable[[Path], object], str, set[str]]] = {
    "image": (
        lambda root: (root / "images/train/a.bmp").write_bytes(image(8)),
        "train: 5 images with masks, 2 classes, 2 shards, 0.0 MiB, 1 of 2 shards written again "
        "(1 image changed: a.bmp) in",
        {"train-00000.tar"},
    ),
    "image in another format": (
        lambda root: (root / "images/train/b.bmp").write_bytes(kit.encode(kit.pixels(1, 20, 24), "PNG")),
        "1 of 2 shards written again (1 image changed: b.bmp)",
        {"train-00001.tar"},
    ),
    "two images swapped": (
        swap_images,
        "2 of 2 shards written again (2 images changed: a.bmp, b.bmp)",
        {"train-00000.tar", "train-00001.tar"},
    ),
    "mask": (
        lambda root: (root / "masks/train/d.png").write_bytes(mask(1)),
        "1 of 2 shards written again (1 mask changed: d.bmp)",
        {"train-00001.tar"},
    ),
    "label": (
        lambda root: edit_labels(root, "a.bmp,train,cat", "a.bmp,train,cat;dog"),
        "1 of 2 shards written again (1 label changed: a.bmp)",
        {"train-00000.tar"},
    ),
    "label of the other split": (
        lambda root: edit_labels(root, "v.bmp,val,dog", "v.bmp,val,cat"),
        "val: 1 images without masks, 2 classes, 1 shards, 0.0 MiB, 1 of 1 shards written again "
        "(1 label changed: v.bmp) in",
        {"val-00000.tar"},
    ),
    "masks added": (
        lambda root: write(root, "val", "v", 9, value=2),
        "1 of 1 shards written again (1 mask added: v.bmp)",
        {"val-00000.tar"},
    ),
    "masks removed": (
        lambda root: shutil.rmtree(root / "masks"),
        "2 of 2 shards written again (5 masks removed: a.bmp, b.bmp, c.bmp, ...)",
        {"train-00000.tar", "train-00001.tar"},
    ),
    "image added at the end": (
        add_image,
        "train: 6 images with masks, 2 classes, 2 shards, 0.0 MiB, 1 of 2 shards written again (1 image added: f.bmp)",
        {"train-00001.tar"},
    ),
    "image removed at the end": (
        remove_image,
        "1 of 2 shards written again (1 image removed: e.bmp)",
        {"train-00000.tar"},
    ),
    "class renamed": (
        lambda root: (
            (root / "classes.txt").write_text("lion\ndog\n"),
            (root / "labels.csv").write_text((root / "labels.csv").read_text().replace(",cat", ",lion")),
        ),
        "there already",
        set(),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_of_the_data_set_converts_its_shard_again(
    cfg: Config, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, line, shards = CHANGES[name]
    run(cfg)
    before = state(cfg.shards_dir)
    change(root)
    outdated = {status.stage: status for status in run_status(cfg)}["shard"]
    assert outdated.state == "outdated"
    capsys.readouterr()
    run(cfg)
    out = capsys.readouterr().out
    assert line in out
    after = state(cfg.shards_dir)
    assert rewritten(before, after) == shards
    assert before["manifest.json"] != after["manifest.json"]
    for split in ("train", "val"):
        verify_shards(cfg.shards_dir, load_manifest(cfg.shards_dir), split, "checksum")
    # The outcome is that of a conversion from scratch.
    new = config(tmp_path, root, name="new")
    run(new)
    assert data_of(new.shards_dir) == data_of(cfg.shards_dir)
    capsys.readouterr()
    run(cfg)
    assert state(cfg.shards_dir) == after
    assert all("there already" in text for text in capsys.readouterr().out.splitlines())
    assert {status.stage: status for status in run_status(cfg)}["shard"].state == "done"


def test_corrected_label_is_in_the_shard(cfg: Config, root: Path) -> None:
    run(cfg)
    edit_labels(root, "c.bmp,train,cat", "c.bmp,train,dog")
    run(cfg)
    stored = [raw for raw in read_raw(cfg.shards_dir / "train-00000.tar") if raw.key == "c"]
    assert parse_info(stored[0].members["json"]).classes == (2,)


def test_edit_of_the_same_size_is_seen_by_its_time_and_content(cfg: Config, root: Path) -> None:
    run(cfg)
    path = root / "masks/train/a.png"
    size = path.stat().st_size
    path.write_bytes(mask(2))
    assert path.stat().st_size == size
    before = state(cfg.shards_dir)
    run(cfg)
    assert rewritten(before, state(cfg.shards_dir)) == {"train-00000.tar"}


@pytest.mark.parametrize("how", ["touched", "copied", "copied with its times"])
def test_touched_or_copied_data_set_converts_nothing_and_is_read_once(
    tmp_path: Path, root: Path, cfg: Config, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cfg)
    before = state(cfg.shards_dir)
    if how == "touched":
        for path in root.rglob("*.*"):
            os.utime(path)
    else:
        copied = shutil.copytree(
            root, tmp_path / "copy", copy_function=shutil.copy2 if how.endswith("times") else shutil.copyfile
        )
        shutil.rmtree(root)
        cfg = config(tmp_path, copied)
    run(cfg)
    assert state(cfg.shards_dir) == before
    assert {status.stage: status for status in run_status(cfg)}["shard"].state == "done"


def test_touched_files_are_read_once_and_only_as_far_as_status_may(
    cfg: Config, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cfg)
    before = state(cfg.shards_dir)
    for path in (root / "images" / "train").iterdir():
        os.utime(path)
    read = kit.record_paths(monkeypatch, shard_notes, "sha256_file")
    monkeypatch.setattr(shard, "_STATUS_BYTES", 0)
    status = run_status(cfg, ["shard"])[0]
    assert (status.state, read) == ("done", [])
    assert status.detail.endswith("files of 5 images have another date, the stage compares their content")
    run(cfg)
    assert sorted(read) == [f"{name}.bmp" for name in NAMES]
    assert "another date" not in run_status(cfg, ["shard"])[0].detail
    run(cfg)
    assert len(read) == 5
    assert state(cfg.shards_dir) == before


def test_status_names_what_changed(cfg: Config, root: Path) -> None:
    run(cfg)
    (root / "images/train/a.bmp").write_bytes(image(8))
    edit_labels(root, "v.bmp,val,dog", "v.bmp,val,cat")
    (status,) = run_status(cfg, ["shard"])
    assert (status.state, status.action) == ("outdated", "rerun")
    assert status.detail == "train: 1 image changed: a.bmp; val: 1 label changed: v.bmp"


def test_later_stages_are_outdated_by_the_changed_shards_alone(cfg: Config, root: Path) -> None:
    def trained() -> str:
        return {status.stage: status for status in run_status(cfg)}["train_seam"].state

    run(cfg)
    shards = input_fingerprint(cfg.shards_dir, "shard")
    open_stage(cfg, "train_seam", settings=("train_seam",), inputs={"shards": shards}).finish([])
    assert trained() == "done"
    os.utime(root / "images/train/a.bmp")
    run(cfg)
    assert trained() == "done"
    (root / "images/train/a.bmp").write_bytes(image(8))
    assert trained() == "outdated"
    run(cfg)
    assert run_status(cfg, ["shard"])[0].state == "done"
    assert trained() == "outdated"
