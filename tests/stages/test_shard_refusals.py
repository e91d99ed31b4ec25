"""Stage shard on data sets that it refuses, warns about or takes in part: masks, images without objects, places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
from changing_set import config, data_of, mask, state

from seam_dist.artifacts.stage import StageError
from seam_dist.config.findings import Findings
from seam_dist.config.load import load_config
from seam_dist.config.schema import Config
from seam_dist.data.manifest import ShardError, load_manifest
from seam_dist.data.sources.base import Listing, Record, SourceError
from seam_dist.stages import shard
from seam_dist.stages.shard import run

SetOf = Callable[..., None]


pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def set_of(monkeypatch: pytest.MonkeyPatch, root: Path) -> SetOf:
    """Let the stage read records made in memory instead of the folder."""

    def use(findings: Findings | None = None, **splits: Sequence[Record]) -> None:
        source = kit.MemorySource(**splits)
        source.listing = lambda split: Listing(splits[split], findings or Findings())  # type: ignore[method-assign]
        monkeypatch.setattr(shard, "open_source", lambda cfg, names: source)

    return use


def labeled(*labels: tuple[int, ...]) -> list[Record]:
    small = kit.Bytes(kit.encode(kit.pixels(0, 6, 6)))
    return [Record(f"i{i}", f"i{i}.jpg", classes, small) for i, classes in enumerate(labels)]


def masked(values: Sequence[int], labels: Sequence[tuple[int, ...]]) -> list[Record]:
    masks = [kit.Bytes(kit.encode(np.pad(np.full((4, 4), v, np.uint8), 1), "PNG")) for v in values]
    return [replace(record, mask=data) for record, data in zip(labeled(*labels), masks, strict=True)]


def train_only(tmp_path: Path, root: Path, **source: Any) -> Config:
    return config(tmp_path, root, source=source, splits=["train"])


def test_masks_of_0_and_255_are_refused_and_may_be_taken_with_a_warning(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (root / "masks/train").iterdir():
        path.write_bytes(mask(255))
    cfg = config(tmp_path, root)
    for _ in range(2):  # a rerun converts nothing again and says the same
        with pytest.raises(SourceError, match=r"in 5 of 5 labeled images: the masks hold only 0 and 255 \(5 of 5"):
            run(cfg)
        assert not (cfg.shards_dir / "manifest.json").exists()
    run(config(tmp_path, root, source={"check_masks": "warn"}))
    assert "seam-dist: warning: split 'train': masks contradict" in capsys.readouterr().err
    assert load_manifest(cfg.shards_dir).split("train").has_masks
    before = state(cfg.shards_dir)
    with pytest.raises(SourceError, match="the masks hold only 0 and 255"):
        run(cfg)
    assert state(cfg.shards_dir) == before


def test_refused_masks_are_taken_when_they_are_corrected(tmp_path: Path, set_of: SetOf, root: Path) -> None:
    cfg = train_only(tmp_path, root)
    labels = [(i % 3 + 1,) for i in range(9)]
    set_of(train=masked([i % 3 + 1 for i in range(1, 10)], labels))
    with pytest.raises(SourceError, match=r"the masks' value 2 lies in images labeled 'cat' \(1\) in 3 of 3 cases"):
        run(cfg)
    # A mask in memory has no file, so its content says that it changed.
    good = masked([i % 3 + 1 for i in range(9)], labels)
    set_of(train=[replace(record, content="new") for record in good])
    run(cfg)
    assert load_manifest(cfg.shards_dir).split("train").num_samples == 9


def test_warnings_of_lists_and_masks_are_printed_once(
    tmp_path: Path, set_of: SetOf, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = Findings()
    findings.warning("odd-name", "labels.csv, line 3: 'A.jpg' is taken for 'a.jpg'")
    findings.warning("odd-name", "labels.csv, line 4: 'B.jpg' is taken for 'b.jpg'")
    set_of(findings, train=masked([1, 1, 1, 2, 3], [(1,), (1,), (1, 2), (2,), (3,)]))
    cfg = train_only(tmp_path, root)
    run(cfg)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "seam-dist: warning: labels.csv, line 3: 'A.jpg' is taken for 'a.jpg' (2 such cases)"
    assert "'dog' (2) in 1 (i2.jpg)" in lines[1]
    assert len(lines) == 2


def test_images_without_objects_are_kept_or_left_out_of_the_training_split(
    tmp_path: Path, set_of: SetOf, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_of(train=labeled((1,), (), (2,), ()), val=labeled((), (1,)))
    cfg = config(tmp_path, root)
    run(cfg)
    assert {name: split.num_samples for name, split in load_manifest(cfg.shards_dir).splits.items()} == {
        "train": 4,
        "val": 2,
    }
    assert "left out" not in capsys.readouterr().out
    dropping = config(tmp_path, root, source={"empty_images": "drop"})
    run(dropping)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "train: 2 of 4 images without any object left out (source.empty_images=drop)"
    manifest = load_manifest(cfg.shards_dir)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 2, "val": 2}
    assert (cfg.source.empty_images, manifest.source["empty_images"]) == ("keep", "dropped")
    run(cfg)
    assert load_manifest(cfg.shards_dir).split("train").num_samples == 4


def test_split_of_images_without_objects_alone_cannot_be_left_out(tmp_path: Path, set_of: SetOf, root: Path) -> None:
    set_of(train=labeled((), ()))
    with pytest.raises(SourceError, match=r"'train' has images without any object alone.*source\.empty_images=drop"):
        run(train_only(tmp_path, root, empty_images="drop"))
    run(train_only(tmp_path, root))


def test_shared_shards_with_other_empty_images_are_not_replaced(tmp_path: Path, set_of: SetOf, root: Path) -> None:
    shared = str(tmp_path / "shared")
    keep, drop = (
        config(tmp_path, root, name=how, source={"empty_images": how}, splits=["train"], shards=shared)
        for how in ("keep", "drop")
    )
    set_of(train=labeled((1,), (2,)))
    run(keep)
    before = state(tmp_path / "shared")
    run(drop)  # no image without objects, no difference
    assert state(tmp_path / "shared") == before
    set_of(train=labeled((1,), (2,), ()))
    run(keep)
    before = state(tmp_path / "shared")
    with pytest.raises(StageError, match=r"made with another source\.empty_images .* were kept\).*run\.overwrite=true"):
        run(drop)
    assert state(tmp_path / "shared") == before
    run(replace(drop, run=replace(drop.run, overwrite=True)))
    assert load_manifest(tmp_path / "shared").split("train").num_samples == 2


def test_published_preset_leaves_images_without_objects_out() -> None:
    assert load_config(Path("configs/voc12.yaml"), [], "paper").config.source.empty_images == "drop"
    assert load_config(Path("configs/voc12.yaml"), [], None).config.source.empty_images == "keep"


@pytest.mark.parametrize("place", ["set", "set/images/train", "set/images/train/shards", "set/masks/train"])
def test_shards_among_the_files_of_the_data_set_are_refused(tmp_path: Path, root: Path, place: str) -> None:
    files = sorted(path for path in root.rglob("*"))
    with pytest.raises(SourceError, match=rf"data\.shards: .*{place} lies in the data set's own folder .*set"):
        run(config(tmp_path, root, shards=str(tmp_path / place)))
    assert sorted(path for path in root.rglob("*")) == files


def test_shards_around_the_data_set_are_refused(tmp_path: Path, root: Path) -> None:
    files = sorted(path for path in root.rglob("*"))
    with pytest.raises(StageError, match="holds files that stage shard did not make"):
        run(config(tmp_path, root, shards=str(tmp_path)))
    assert sorted(path for path in root.rglob("*")) == files


def test_shards_beside_the_images_are_fine(tmp_path: Path, root: Path) -> None:
    run(config(tmp_path, root, shards=str(root / "shards")))
    assert (root / "shards" / "manifest.json").is_file()


def test_user_s_files_in_the_folder_of_shards_survive_other_settings(tmp_path: Path, root: Path) -> None:
    cfg = config(tmp_path, root)
    run(cfg)
    for name in ("readme.txt", "train-00077.tar"):
        (cfg.shards_dir / name).write_text("mine")
    before = data_of(cfg.shards_dir)
    with pytest.raises(ShardError, match=r"holds readme\.txt \(2 such files\), which no conversion wrote"):
        run(config(tmp_path, root, samples_per_shard=1))
    assert data_of(cfg.shards_dir) == before
    for name in ("readme.txt", "train-00077.tar"):
        (cfg.shards_dir / name).unlink()
    run(config(tmp_path, root, samples_per_shard=1))
    assert len(list(cfg.shards_dir.glob("*.tar"))) == len(list((cfg.shards_dir / "sources").iterdir())) == 6


def test_user_s_tar_in_a_new_folder_is_refused_by_name(tmp_path: Path, root: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "val-00000.tar").write_text("mine")
    with pytest.raises(ShardError, match=r"val-00000\.tar has the name of a shard"):
        run(config(tmp_path, root, shards=str(shards)))
    assert [path.name for path in shards.iterdir()] == ["val-00000.tar"]
