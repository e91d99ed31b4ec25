"""`seam-dist check` on data sets with one of every fault: a line each, and none on the clean set."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import kit
import numpy as np
import planted_sets as sets
import pytest
from planted_sets import SHARED, Fault

from seam_dist import cli


class DataSet(NamedTuple):
    """A layout with its source; `odd` are the warnings of the clean set."""

    layout: str
    make: Callable[[Path], None]
    plant: Callable[[Path], list[Fault]]
    odd: Sequence[str] = ()


def real(folder: str, copy: Callable[[Path, Path], None]) -> Callable[[Path], None]:
    return lambda root: copy(SHARED / folder, root)


DATA_SETS = {
    "folder": DataSet("folder", sets.write_folder, sets.plant_folder),
    "voc": DataSet("voc", sets.write_voc, sets.plant_voc, ["in the list of classes, but"]),
    "coco": DataSet("coco", sets.write_coco, sets.plant_coco),
    "photos": DataSet("folder", real("photos", sets.copy_folder), sets.plant_folder),
    "msrc_voc": DataSet("voc", real("msrc_voc", sets.copy_voc), sets.plant_voc, ["in the list of classes, but"]),
    "coco_small": DataSet(
        "coco",
        real("coco_small", sets.copy_coco),
        sets.plant_coco,
        ["in the list of classes, but", "in split val, but"],
    ),
}
needs_shared = {
    name: pytest.mark.skipif(not (SHARED / name).is_dir(), reason="needs the shared data sets")
    for name in ("photos", "msrc_voc", "coco_small")
}


@pytest.fixture(params=[pytest.param(name, marks=needs_shared.get(name, ())) for name in DATA_SETS])
def data_set(request: pytest.FixtureRequest) -> DataSet:
    return DATA_SETS[request.param]


def check(layout: str, root: Path, capsys: pytest.CaptureFixture[str], *settings: str) -> tuple[int, list[str]]:
    """The exit code of the command and its lines of errors and warnings; their numbers are those it prints."""
    arguments = [f"source.kind={layout}", f"source.root={root}", f"run.dir={root.parent / 'runs'}", *settings]
    code = cli.main(["check", "--config", "folder", "--only", "shard", *arguments])
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith(("error: ", "warning: "))]
    if lines:
        errors, warnings = (sum(line.startswith(f"{sort}: ") for line in lines) for sort in ("error", "warning"))
        assert re.search(rf"^{errors} errors?, {warnings} warnings? ", out, re.MULTILINE)
    assert (code == 2) == any(line.startswith("error: ") for line in lines)
    return code, lines


def assert_one_line_each(lines: Sequence[str], faults: Sequence[Fault]) -> None:
    for severity, pattern in faults:
        matched = [line for line in lines if line.startswith(f"{severity}: ") and re.search(pattern, line)]
        assert len(matched) == 1, (pattern, matched, lines)
    known = [line for line in lines if any(re.search(pattern, line) for _, pattern in faults)]
    assert [line for line in lines if line not in known] == []
    assert len(lines) == len(faults)


def test_a_clean_set_has_no_line(data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_set.make(tmp_path / "set")
    code, lines = check(data_set.layout, tmp_path / "set", capsys, "source.image_list=all")
    assert code == 0
    assert_one_line_each(lines, [Fault("warning", text) for text in data_set.odd])


def test_one_of_every_fault_gives_a_line_each(
    data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    data_set.make(root)
    faults = data_set.plant(root)
    code, lines = check(data_set.layout, root, capsys, "source.image_list=all")
    assert code == 2
    assert_one_line_each(lines, [*faults, *(Fault("warning", text) for text in data_set.odd)])


@pytest.mark.parametrize("layout", ["folder", "voc"])
def test_masks_of_0_and_255_are_one_error_a_split(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    DATA_SETS[layout].make(root)
    for path in root.rglob("*.png"):
        path.write_bytes(kit.encode(np.where(sets.read_mask(path) > 0, 255, 0).astype(np.uint8), "PNG"))
    code, lines = check(layout, root, capsys)
    assert code == 2
    faults = [
        Fault("error", f"split '{split}': masks contradict .*the masks hold only 0 and 255")
        for split in sets.NUM_IMAGES
    ]
    assert_one_line_each(lines, [*faults, *(Fault("warning", text) for text in DATA_SETS[layout].odd)])


@pytest.mark.parametrize("name", ["folder", pytest.param("photos", marks=needs_shared["photos"])])
def test_classes_in_another_order_are_one_error_a_split(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    DATA_SETS[name].make(root)
    classes = (root / "classes.txt").read_text().split()
    (root / "classes.txt").write_text("\n".join([*classes[1:], classes[0]]))
    code, lines = check("folder", root, capsys)
    assert code == 2
    faults = [
        Fault(
            "error", f"split '{split}': masks contradict .*list the classes|split '{split}': masks contradict .*shifted"
        )
        for split in sets.NUM_IMAGES
    ]
    assert_one_line_each(lines, faults)


def test_names_that_no_terminal_can_show_are_printed(tmp_path: Path) -> None:
    root = tmp_path / "set"
    sets.write_folder(root)
    os.rename(root / "images/train/train_000.jpg", os.fsencode(root / "images/train") + b"/\xff\n%d#.jpg")
    (root / "images/train/train_001.jpg").rename(root / "images/train/\N{SNOWMAN}.jpg")
    arguments = ["source.kind=folder", f"source.root={root}", f"run.dir={tmp_path / 'runs'}"]
    command = [sys.executable, "-m", "seam_dist.cli", "check", "--config", "folder", "--only", "shard", *arguments]
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    assert "seam-dist: error" not in result.stderr
    lines = [line for line in result.stdout.splitlines() if "has no labels" in line]
    assert len(lines) == 1
    assert "\\u2603.jpg has no labels" in lines[0] or r"\udcff\n%d#.jpg has no labels" in lines[0]
    assert (tmp_path / "runs/folder/check/dataset.html").is_file()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_a_pipe_among_the_images_is_one_line_and_nobody_waits_for_it(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    DATA_SETS[layout].make(root)
    path = min(root.rglob("train_0*.jpg"))
    path.unlink()
    os.mkfifo(path)
    _, lines = check(layout, root, capsys)
    pipe = Fault("error", rf"{path.stem}\.jpg of image \S+ cannot be read: it is no regular file")
    assert_one_line_each(lines, [pipe, *(Fault("warning", text) for text in DATA_SETS[layout].odd)])
