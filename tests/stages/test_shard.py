"""Stage shard: converts once, skips what is there, and notices what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changing_set import config, edit_labels, state
from PIL import Image

from seam_dist.config.schema import Config
from seam_dist.data.manifest import ShardError, load_manifest
from seam_dist.data.shards import read_shard
from seam_dist.data.sources.base import SourceError
from seam_dist.stages.shard import run


def test_converts_every_split_and_says_so_in_one_line_each(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run(cfg)
    manifest = load_manifest(cfg.shards_dir)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 5, "val": 1}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("train: 5 images with masks, 2 classes, 2 shards,")
    assert lines[1].startswith("val: 1 images without masks, 2 classes, 1 shards,")


def test_changed_pixel_range_converts_again(tmp_path: Path, root: Path) -> None:
    (root / "images/train/a.bmp").unlink()
    Image.fromarray(np.full((20, 24), 1000, np.uint16)).save(root / "images/train/a.png")
    edit_labels(root, "a.bmp", "a.png")
    for white, expected in ((4000.0, 64), (2000.0, 128)):
        cfg = config(tmp_path, root, source={"pixel_range": (0.0, white)})
        run(cfg)
        shards = load_manifest(cfg.shards_dir).split("train").shards
        samples = [s for shard in shards for s in read_shard(cfg.shards_dir / shard.file, masks=False, max_pixels=1000)]
        assert {sample.source_id: sample.image[0, 0].tolist() for sample in samples}["a.png"] == [expected] * 3


@pytest.mark.parametrize("change", [{"samples_per_shard": 2}, {"streams": 4}, {"splits": ("train",)}])
def test_changed_settings_convert_again(cfg: Config, tmp_path: Path, root: Path, change: dict[str, Any]) -> None:
    run(cfg)
    before = load_manifest(cfg.shards_dir)
    run(config(tmp_path, root, **change))
    after = load_manifest(cfg.shards_dir)
    assert after != before
    listed = {shard.file for split in after.splits.values() for shard in split.shards}
    assert {path.name for path in cfg.shards_dir.glob("*.tar")} == listed


def test_cut_shard_of_a_finished_conversion_is_named(cfg: Config) -> None:
    run(cfg)
    path = cfg.shards_dir / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(ShardError, match=r"train-00001\.tar has 1024 bytes"):
        run(cfg)


def test_conversion_resumes_after_a_bad_image_was_corrected(cfg: Config, root: Path) -> None:
    good = (root / "images/train/d.bmp").read_bytes()
    (root / "images/train/d.bmp").write_bytes(good[:-20])
    with pytest.raises(SourceError, match=r"image d\.bmp: .* damaged"):
        run(cfg)
    assert not (cfg.shards_dir / "manifest.json").exists()
    kept = state(cfg.shards_dir)
    assert set(kept) == {"train-00000.tar", "val-00000.tar"}
    (root / "images/train/d.bmp").write_bytes(good)
    run(cfg)
    assert kept.items() <= state(cfg.shards_dir).items()
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
    before = state(cfg.shards_dir)
    run(cfg)
    assert state(cfg.shards_dir) == before
    run(config(tmp_path, root, source=source | {"seed": 1}))
    assert state(cfg.shards_dir) != before
