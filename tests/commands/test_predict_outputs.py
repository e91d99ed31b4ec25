"""What becomes of a prediction that is interrupted or cannot write, and of files that appear meanwhile.

Folders, names and options are in tests/inputs/cases_predict.py.
"""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from predict_kit import files_in, labels_at, picture, run, save

from seam_dist.commands import predict

AB = ["a.png", "a_overlay.jpg", "b.png", "b_overlay.jpg"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name, seed in (("a", 0), ("b", 1)):
        save(tmp_path / "in" / f"{name}.png", picture(60, 90, seed))
    return tmp_path / "in"


def before_image(monkeypatch: pytest.MonkeyPatch, number: int, act: Any) -> None:
    """Call `act` before the labels of image `number`, from 1, are written."""
    original, calls = predict.encode_labels, []

    def encode(labels: Any) -> bytes:
        calls.append(labels)
        if len(calls) == number:
            act()
        return original(labels)

    monkeypatch.setattr(predict, "encode_labels", encode)


@contextmanager
def files_up_to(num_bytes: int) -> Iterator[None]:
    """Let the kernel cut files at a size, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_second_run_replaces_its_own_labels(images: Path, tmp_path: Path) -> None:
    out = images / "labels"
    assert run(images, out) == 0
    first = labels_at(out / "a.png")
    assert run(images, out, "--scales", "2") == 0
    assert files_in(out) == AB
    assert not np.array_equal(labels_at(out / "a.png"), first)


def test_interrupted_run_keeps_what_is_done(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_image(patch, 2, interrupt)
        assert run(images, tmp_path / "out") == 130
    assert f"interrupted, 1 image is done, in {tmp_path / 'out'}" in capsys.readouterr().err
    assert files_in(tmp_path / "out") == AB[:2]
    assert run(images, tmp_path / "out") == 0
    assert files_in(tmp_path / "out") == AB


def test_full_disk_ends_the_run_and_cuts_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, out = save(tmp_path / "a.png", picture(16, 16)), tmp_path / "out"
    assert run(image, out) == 0
    save(image, picture(60, 90))
    assert run(image, tmp_path / "room") == 0
    with files_up_to((tmp_path / "room/a_overlay.jpg").stat().st_size - 1):
        assert run(image, out) == 2
    assert f"{out / 'a.png'} or its overlay cannot be written (File too large): 0 of 1" in capsys.readouterr().err
    assert files_in(out) == AB[:2]
    with Image.open(out / "a_overlay.jpg") as overlay:
        overlay.load()
        assert overlay.width == 16


def test_file_that_appears_meanwhile_stays_and_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before_image(monkeypatch, 1, lambda: (tmp_path / "out/b.png").write_text("mine"))
    (tmp_path / "out").mkdir()
    assert run(images, tmp_path / "out") == 1
    assert (tmp_path / "out/b.png").read_text() == "mine"
    error = capsys.readouterr().err
    assert f"{images / 'b.png'} is left out: 1 file is in the way" in error
    assert "1 image could not be read or written" in error


def test_output_that_may_not_be_written_is_said_first(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    monkeypatch.setattr(predict, "load_deeplab", None)  # it is not reached
    assert run(images, tmp_path / "new/out") == 2
    reason = f"--out {tmp_path / 'new/out'} cannot be written to, {tmp_path} gives no permission to write: give another"
    assert reason in capsys.readouterr().err


def test_image_that_may_not_be_read_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = predict.read_image_file

    def read(path: Path, **settings: Any) -> Any:
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, **settings)

    monkeypatch.setattr(predict, "read_image_file", read)
    assert run(images, tmp_path / "out") == 1
    assert f"{images / 'a.png'} is left out: Permission denied" in capsys.readouterr().err
    assert files_in(tmp_path / "out") == AB[2:]


def test_folder_that_may_not_be_listed_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "closed").mkdir()
    original = os.scandir

    def scandir(path: Any) -> Any:
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert run(images, tmp_path / "out") == 1
    assert f"folder {images / 'closed'}: Permission denied, so its images are left out" in capsys.readouterr().err
    assert files_in(tmp_path / "out") == AB


def test_reader_of_the_output_that_is_gone_is_left_to_the_caller(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Gone())
    with pytest.raises(BrokenPipeError):  # cli.py ends quietly
        run(images, tmp_path / "out")
    assert files_in(tmp_path / "out") == AB


def test_missing_masks_are_said_before_anything_else(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "find_trained", None)
    assert run(tmp_path / "nowhere", tmp_path / "out", "--masks", str(tmp_path / "masks")) == 2
    assert f"--masks {tmp_path / 'masks'} is not there" in capsys.readouterr().err
