from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from seam_dist.config.schema import Config
from seam_dist.report import strip
from seam_dist.report.examples import Example
from seam_dist.report.strip import choose, draw_strip, main


def example(classes: tuple[int, ...], size: tuple[int, int] = (30, 40), labels: tuple[str, ...] = ("walk",)) -> Example:
    image = np.full((*size, 3), 100, np.uint8)
    heat = np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size)
    mask = np.zeros(size, np.uint8)
    mask[10:, 10:] = classes[0] if classes else 0
    cams = {"refined": heat, "plain": heat[::-1]}
    return Example("key", "best", 0.5, classes, image, cams, mask, mask, dict.fromkeys(labels, mask))


def test_strip_has_a_row_an_image_and_a_column_a_step() -> None:
    drawn = draw_strip([example((1,)), example((2,))], ["walk"])
    assert drawn.shape == (2 * 30 + 4, 4 * 40 + 3 * 4, 3)
    assert (drawn[:30, :40] == 100).all()
    assert (drawn[30:34] == 255).all()
    assert (drawn[5, 140] != drawn[39, 140]).any() or (
        drawn[15, 150] != drawn[49, 150]
    ).any()  # other class, other color


def test_chosen_images_are_wide_of_one_size_and_of_other_classes() -> None:
    tall, wide, same, other, larger = (
        example((1,), (40, 30)), example((1,)), example((1,)), example((2,)), example((3,), (60, 80))
    )  # fmt: skip
    assert choose([tall, wide, same, larger, other], 5, ["walk"]) == [wide, other]
    assert choose([wide, other], 1, ["walk"]) == [wide]
    with pytest.raises(
        ValueError, match="no wide image with an object has labels of seg_crf: run the stages that make"
    ):
        choose([wide], 1, ["seg_crf"])


def test_images_without_objects_are_not_chosen() -> None:
    empty, cat = example(()), example((1,))
    assert choose([empty, cat], 2, ["walk"]) == [cat]


def test_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "strip.png")]) == 2
    assert "holds no stage of a run" in capsys.readouterr().err
    assert not (tmp_path / "strip.png").exists()


def test_strip_replaces_its_own_picture_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strip, "read_run_config", lambda folder: Config())
    monkeypatch.setattr(strip, "rank_keys", lambda *arguments: [])
    monkeypatch.setattr(strip, "read_run", lambda folder: SimpleNamespace(primary="refined"))
    monkeypatch.setattr(strip, "load_manifest", lambda folder: None)
    monkeypatch.setattr(strip, "load_examples", lambda *arguments, **settings: [example((1,))])
    out = tmp_path / "strip.png"
    arguments = [str(tmp_path), str(out), "--labels", "walk"]
    assert main(arguments) == 0
    assert main([*arguments, "--width", "50"]) == 0
    with Image.open(out) as picture:
        assert picture.width == 50
    out.write_text("mine")
    assert main(arguments) == 2
    assert (
        "strip.png (changed since it was written by seam-dist): move it away or give another" in capsys.readouterr().err
    )
    assert out.read_text() == "mine"


def test_committed_strip_is_a_small_picture() -> None:
    path = Path(__file__).parents[2] / "launch/pipeline.png"
    with Image.open(path) as image:
        assert image.width <= 1000
    assert path.stat().st_size < 200_000
