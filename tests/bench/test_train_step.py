"""The benchmark of a training step: both forms compute the same step, its parts are the whole, and its rows."""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seam_dist.bench.train_step import COLUMNS, FORMS, PARTS, Step, main

TINY = argparse.Namespace(batch=2, crop=40, scale=0.6, width=1 / 16, classes=3)


def step(form: str) -> Step:
    made = Step(TINY, form, torch.device("cpu"))
    made.model.eval()  # dropout would draw
    return made


def test_forms_share_weights_and_loss() -> None:
    published, fused = step("published"), step("fused")
    exact = published.forward()
    assert fused.forward().item() == pytest.approx(exact.item(), rel=0.03)  # bf16
    fused.autocast = published.autocast  # type: ignore[method-assign]
    torch.testing.assert_close(fused.forward(), exact)


@pytest.mark.parametrize("form", ["published", "fused"])
def test_parts_of_a_step_train_as_the_whole_step(form: str) -> None:
    whole, cut = step(form), step(form)
    whole()
    spent = cut.parts(lambda: 0.0)
    assert tuple(spent) == PARTS
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        if a.requires_grad:
            expected = whole.optimizer.state[a]["momentum_buffer"]
            got = cut.optimizer.state[b]["momentum_buffer"]
            assert (got - expected).norm() <= 1e-4 * expected.norm() + 1e-7


def test_rows_hold_the_figures_of_each_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "step.csv"
    options = "--device cpu --batch 2 --crop 32 --scale 0.5 --width 0.0625 --classes 3 --steps 1 --warmup 0 --forms"
    main([*options.split(), *FORMS[:2], "--csv", str(table)])
    rows = list(csv.DictReader(table.open()))
    assert [row["form"] for row in rows] == ["published", "fused"]
    assert tuple(rows[0]) == COLUMNS
    for row in rows:
        assert float(row["images_per_s"]) > 0
        assert float(row["mfu"]) > 0
        assert all(float(row[f"{part}_ms"]) >= 0 for part in PARTS)
        assert row["tflop_per_image"] == rows[0]["tflop_per_image"]
    assert "x the images/s of the published form" in capsys.readouterr().out


def test_table_of_another_program_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "step.csv"
    table.write_text("patient,age\n")
    with pytest.raises(SystemExit) as stop:
        main(["--device", "cpu", "--csv", str(table)])
    assert stop.value.code == 2
    assert "is no table of this benchmark: expected the columns form,batch" in capsys.readouterr().err
    assert table.read_text() == "patient,age\n"


def test_needs_neither_deepspeed_nor_webdataset() -> None:
    code = (
        "import sys, seam_dist.bench.train_step; print(sorted({'deepspeed', 'webdataset', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
