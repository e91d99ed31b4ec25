"""Stage shard where a conversion was interrupted, the data set is not all there, or several runs share the shards."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stage_kit
from changing_set import (
    config,
    data_of,
    edit_labels,
    image,
    rewritten,
    state,
    swap_images,
)

from seam_dist.artifacts.stage import StageError
from seam_dist.commands.status import run_status
from seam_dist.config.load import dump_yaml
from seam_dist.config.schema import Config
from seam_dist.data import convert as conversion
from seam_dist.data.sources.base import Listing, SourceError
from seam_dist.data.sources.folder import FolderSource
from seam_dist.stages.shard import run

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("function", ["mark_unfinished", "write_shard", "sha256_file", "write_note", "write_json"])
@pytest.mark.parametrize("calls", [0, 1, 2])
def test_killed_reconversion_looks_unfinished_and_resumes(
    cfg: Config, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, calls: int
) -> None:
    run(cfg)
    swap_images(root)
    edit_labels(root, "v.bmp,val,dog", "v.bmp,val,cat")
    original, count = getattr(conversion, function), 0

    def killed(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, function, killed)
        with contextlib.suppress(KeyboardInterrupt):
            run(cfg)
    interrupted = count > calls
    state_now = run_status(cfg, ["shard"])[0].state
    if interrupted:
        assert state_now == ("outdated" if function == "mark_unfinished" else "interrupted")
    run(cfg)
    new = config(tmp_path, root, name="new")
    run(new)
    assert data_of(new.shards_dir) == {n: d for n, (_, d) in state(cfg.shards_dir).items()}
    assert not list(cfg.shards_dir.rglob(".*.tmp"))


def test_resumed_reconversion_leaves_what_it_had_finished(
    cfg: Config, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(cfg)
    swap_images(root)
    before = state(cfg.shards_dir)
    good = (root / "images/train/b.bmp").read_bytes()
    (root / "images/train/b.bmp").write_bytes(good[:50])
    with pytest.raises(SourceError, match=r"1 image cannot be converted .*\n  image b\.bmp"):
        run(cfg)
    assert not (cfg.shards_dir / "manifest.json").exists()
    kept = (cfg.shards_dir / "train-00000.tar").stat().st_mtime_ns
    assert kept != before["train-00000.tar"][0]
    (root / "images/train/b.bmp").write_bytes(good)
    capsys.readouterr()
    run(cfg)
    assert "train: 5 images" in (out := capsys.readouterr().out)
    assert "1 of 2 shards written again (1 image changed: b.bmp)" in out
    assert (cfg.shards_dir / "train-00000.tar").stat().st_mtime_ns == kept


@pytest.mark.parametrize("absent", ["moved away", "unset", "an empty mount point"])
def test_shards_without_their_data_set_are_taken_as_they_are(
    tmp_path: Path, root: Path, cfg: Config, absent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(cfg)
    before = state(cfg.shards_dir)
    shutil.rmtree(root)
    if absent == "unset":
        cfg = replace(cfg, source=replace(cfg.source, root=None))
    elif absent == "an empty mount point":
        root.mkdir()
    capsys.readouterr()
    run(cfg)
    assert state(cfg.shards_dir) == before
    assert capsys.readouterr().out.count("there already") == 2
    assert run_status(cfg, ["shard"])[0].state == "done"


def remove_one_mask(root: Path) -> None:
    (root / "masks/train/c.png").unlink()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda root: shutil.rmtree(root / "images" / "val"), r"images/val.* is not a folder"),
        (remove_one_mask, r"c\.png"),
        (lambda root: (root / "labels.csv").unlink(), r"labels\.csv is missing"),
    ],
)
def test_half_a_data_set_is_an_error_and_the_shards_stay(
    cfg: Config, root: Path, part: Callable[[Path], object], message: str
) -> None:
    run(cfg)
    before = state(cfg.shards_dir)
    part(root)
    with pytest.raises(SourceError, match=rf"(?s){message}.*are untouched, set source\.root=null"):
        run(cfg)
    assert state(cfg.shards_dir) == before
    (status,) = run_status(cfg, ["shard"])
    assert status.state == "done"
    assert "cannot be compared with the data set" in status.detail


def test_file_that_went_away_after_the_listing_is_named(
    cfg: Config, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cfg)
    before = state(cfg.shards_dir)
    listed = FolderSource(root).listing("val")
    (record,) = listed.records
    lost = replace(record, files=(root / "gone.bmp",))
    original = FolderSource.listing

    def listing(self: FolderSource, split: str) -> Listing:
        return Listing([lost]) if split == "val" else original(self, split)

    monkeypatch.setattr(FolderSource, "listing", listing)
    with pytest.raises(SourceError, match=r"1 source file cannot be read, first .*gone\.bmp: No such file.*untouched"):
        run(cfg)
    assert state(cfg.shards_dir) == before


def test_runs_that_share_a_folder_update_it_in_place(tmp_path: Path, root: Path) -> None:
    shared = tmp_path / "shared"
    first, second = (config(tmp_path, root, name=name, shards=str(shared)) for name in ("one", "two"))
    run(first)
    before = state(shared)
    edit_labels(root, "a.bmp,train,cat", "a.bmp,train,dog")
    run(second)
    assert rewritten(before, state(shared)) == {"train-00000.tar"}
    before = state(shared)
    run(first)
    assert state(shared) == before
    edit_labels(root, "a.bmp,train,dog", "a.bmp,train,cat")
    with pytest.raises(StageError, match=r"was made with other settings or inputs .*samples_per_shard"):
        run(config(tmp_path, root, shards=str(shared), samples_per_shard=3))
    assert state(shared) == before


def test_fewer_streams_take_the_shards_that_are_there(tmp_path: Path, root: Path) -> None:
    shared = tmp_path / "shared"
    run(config(tmp_path, root, shards=str(shared), streams=4))
    before = state(shared)
    run(config(tmp_path, root, shards=str(shared), streams=2))
    assert state(shared) == before


def test_shards_without_notes_are_taken_with_a_warning(
    cfg: Config, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(cfg)
    before = state(cfg.shards_dir)
    shutil.rmtree(cfg.shards_dir / "sources")
    (root / "images/train/a.bmp").write_bytes(image(8))
    run(cfg)
    assert "do not say what they were made from, so changes of the data set are not seen" in capsys.readouterr().err
    assert state(cfg.shards_dir) == before


def test_two_ranks_convert_what_changed(cfg: Config, tmp_path: Path, root: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(cfg))
    run(cfg)
    before = state(cfg.shards_dir)
    swap_images(root)
    stage_kit.run_on_two_ranks("shard", file)
    assert rewritten(before, state(cfg.shards_dir)) == {"train-00000.tar", "train-00001.tar"}
    new = config(tmp_path, root, name="new")
    run(new)
    assert data_of(new.shards_dir) == {n: d for n, (_, d) in state(cfg.shards_dir).items()}
