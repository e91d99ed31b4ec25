"""A plain folder of tiny images that tests of stage shard change between two conversions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kit
import numpy as np

from seam_dist.config.load import from_tree
from seam_dist.config.schema import Config

NAMES = ("a", "b", "c", "d", "e")


def image(seed: int) -> bytes:
    return bytes(kit.encode(kit.pixels(seed, 20, 24), "BMP"))  # the same size for all


def mask(value: int) -> bytes:
    return bytes(kit.encode(np.pad(np.full((10, 12), value, np.uint8), ((5, 5), (6, 6))), "PNG", compress_level=0))


def write(root: Path, split: str, name: str, seed: int, *, value: int | None = None) -> None:
    for part, suffix, data in (("images", "bmp", image(seed)), ("masks", "png", mask(value or 1))):
        if part == "images" or value is not None:
            (root / part / split).mkdir(parents=True, exist_ok=True)
            (root / part / split / f"{name}.{suffix}").write_bytes(data)


def make_set(root: Path) -> Path:
    """Five training images with masks and one for validation without, in an old state: edits get another time."""
    lines = ["image,split,classes", "v.bmp,val,dog"]
    for i, name in enumerate(NAMES):
        write(root, "train", name, i, value=1 + i % 2)
        lines.append(f"{name}.bmp,train,{('cat', 'dog')[i % 2]}")
    write(root, "val", "v", 9)
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    for path in root.rglob("*.*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    return root


def config(tmp_path: Path, root: Path, *, name: str = "r", source: dict[str, Any] | None = None, **data: Any) -> Config:
    return from_tree(
        {
            "run": {"dir": str(tmp_path / "runs"), "name": name, "device": "cpu", "overwrite": False},
            "source": {"kind": "folder", "root": str(root)} | (source or {}),
            "data": {"streams": 2} | data,
        }
    )


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of the shards and the manifest."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("[mtv]*.*")}


def rewritten(before: dict[str, tuple[int, bytes]], after: dict[str, tuple[int, bytes]]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name] and name != "manifest.json"}


def edit_labels(root: Path, old: str, new: str) -> None:
    table = root / "labels.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def swap_images(root: Path) -> None:
    a, b = (root / "images" / "train" / f"{name}.bmp" for name in "ab")
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    assert len(a_bytes) == len(b_bytes)
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)


def data_of(folder: Path) -> dict[str, bytes]:
    """The bytes of the shards and the manifest."""
    return {name: data for name, (_, data) in state(folder).items()}
