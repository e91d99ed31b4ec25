"""Stage shard: converts once, skips what is there, and notices what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seam_dist.config.schema import Config, DataConfig, RunConfig, SourceConfig
from seam_dist.data.manifest import ShardError, load_manifest
from seam_dist.data.shards import read_shard
from seam_dist.data.sources.base import SourceError
from seam_dist.stages.shard import run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A plain folder of five training images and one for validation, without masks."""
    root = tmp_path / "set"
    lines = ["image,split,classes"]
    for i in range(6):
        split = "val" if i == 5 else "train"
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), 40 * i, np.uint8)).save(root / "images" / split / f"{i}.jpg")
        lines.append(f"{i}.jpg,{split},{'cat' if i % 2 else 'dog'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def config(tmp_path: Path, root: Path, *, source: dict[str, Any] | None = None, **data: Any) -> Config:
    return Config(
        run=RunConfig(dir=tmp_path / "runs", name="r"),
        source=SourceConfig(**({"kind": "folder", "root": root} | (source or {}))),
        data=DataConfig(**({"streams": 2} | data)),
    )


@pytest.fixture
def cfg(tmp_path: Path, root: Path) -> Config:
    return config(tmp_path, root)


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


def test_converts_every_split_and_says_so_in_one_line_each(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run(cfg)
    manifest = load_manifest(cfg.shards_dir)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 5, "val": 1}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("train: 5 images without masks, 2 classes, 2 shards,")
    assert lines[1].startswith("val: 1 images without masks, 2 classes, 1 shards,")


def test_second_run_changes_nothing_even_without_the_data_set(
    cfg: Config, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(cfg)
    before = written(cfg.shards_dir)
    root.rename(tmp_path / "moved")
    capsys.readouterr()
    run(cfg)
    run(config(tmp_path, tmp_path / "moved"))
    assert written(cfg.shards_dir) == before
    assert all("there already" in line for line in capsys.readouterr().out.splitlines())


def test_changed_pixel_range_converts_again(tmp_path: Path, root: Path) -> None:
    (root / "images" / "train" / "1.jpg").unlink()
    Image.fromarray(np.full((20, 24), 1000, np.uint16)).save(root / "images" / "train" / "1.png")
    labels = root / "labels.csv"
    labels.write_text(labels.read_text().replace("1.jpg", "1.png"))
    for white, expected in ((4000.0, 64), (2000.0, 128)):
        cfg = config(tmp_path, root, source={"pixel_range": (0.0, white)})
        run(cfg)
        shards = load_manifest(cfg.shards_dir).split("train").shards
        samples = [s for shard in shards for s in read_shard(cfg.shards_dir / shard.file, masks=False, max_pixels=1000)]
        assert {sample.source_id: sample.image[0, 0].tolist() for sample in samples}["1.png"] == [expected] * 3


@pytest.mark.parametrize("change", [{"samples_per_shard": 2}, {"streams": 4}, {"splits": ("train",)}])
def test_changed_settings_convert_again(cfg: Config, tmp_path: Path, root: Path, change: dict[str, Any]) -> None:
    run(cfg)
    before = load_manifest(cfg.shards_dir)
    run(config(tmp_path, root, **change))
    after = load_manifest(cfg.shards_dir)
    assert after != before
    listed = {shard.file for split in after.splits.values() for shard in split.shards}
    assert {path.name for path in cfg.shards_dir.glob("*.tar")} == listed


def test_changed_labels_convert_again(cfg: Config, root: Path) -> None:
    run(cfg)
    before = load_manifest(cfg.shards_dir)
    labels = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(labels.replace("1.jpg,train,cat", "1.jpg,train,dog"))
    run(cfg)
    after = load_manifest(cfg.shards_dir)
    assert [s.sha256 for s in after.split("train").shards] != [s.sha256 for s in before.split("train").shards]
    assert after.split("val").shards == before.split("val").shards


def test_shards_of_other_settings_in_a_shared_folder_are_not_replaced(tmp_path: Path, root: Path) -> None:
    shared = tmp_path / "shared"
    run(config(tmp_path, root, shards=shared))
    before = written(shared)
    with pytest.raises(ValueError, match=r"was made with other settings .*samples_per_shard"):
        run(config(tmp_path, root, shards=shared, samples_per_shard=2))
    assert written(shared) == before
    assert load_manifest(shared).source["samples_per_shard"] == 256


def test_cut_shard_of_a_finished_conversion_is_named(cfg: Config) -> None:
    run(cfg)
    path = cfg.shards_dir / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(ShardError, match=r"train-00001\.tar has 1024 bytes"):
        run(cfg)


def test_conversion_resumes_after_a_bad_image_was_corrected(cfg: Config, root: Path) -> None:
    good = (root / "images" / "train" / "3.jpg").read_bytes()
    (root / "images" / "train" / "3.jpg").write_bytes(good[:-20])
    with pytest.raises(SourceError, match=r"image 3\.jpg: .* damaged"):
        run(cfg)
    assert not (cfg.shards_dir / "manifest.json").exists()
    kept = written(cfg.shards_dir)
    assert set(kept) == {"train-00000.tar", "val-00000.tar"}
    (root / "images" / "train" / "3.jpg").write_bytes(good)
    run(cfg)
    assert kept.items() <= written(cfg.shards_dir).items()
    assert load_manifest(cfg.shards_dir).split("train").num_samples == 5


def test_missing_data_set_is_refused_before_anything_is_written(tmp_path: Path, root: Path) -> None:
    cfg = config(tmp_path, root.with_name("sett"))
    with pytest.raises(SourceError, match=r"sett is not a folder \(there is 'set' beside it\)"):
        run(cfg)
    assert not cfg.shards_dir.exists()


def test_procedural_set_is_converted(tmp_path: Path, root: Path) -> None:
    source = {"kind": "synthetic", "root": None, "num_images": (3, 2), "num_classes": 2, "image_size": (64, 48)}
    cfg = config(tmp_path, root, source=source)
    run(cfg)
    manifest = load_manifest(cfg.shards_dir)
    assert (manifest.num_classes, manifest.split("val").has_masks) == (2, True)
    before = written(cfg.shards_dir)
    run(cfg)
    assert written(cfg.shards_dir) == before
    run(config(tmp_path, root, source=source | {"seed": 1}))
    assert written(cfg.shards_dir) != before
