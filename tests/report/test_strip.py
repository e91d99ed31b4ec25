from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    strip = draw_strip([example((1,)), example((2,))], ["walk"])
    assert strip.shape == (2 * 30 + 4, 4 * 40 + 3 * 4, 3)
    assert (strip[:30, :40] == 100).all()
    assert (strip[30:34] == 255).all()
    assert (strip[5, 140] != strip[39, 140]).any() or (
        strip[15, 150] != strip[49, 150]
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


def test_committed_strip_is_a_small_picture() -> None:
    path = Path(__file__).parents[2] / "launch/pipeline.png"
    with Image.open(path) as image:
        assert image.width <= 1000
    assert path.stat().st_size < 200_000
