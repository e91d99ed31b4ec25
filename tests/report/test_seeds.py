"""The table of several seeds: grouping, mean, spread and gain over CAM-only."""

from __future__ import annotations

from pathlib import Path

import pytest

from seam_dist.artifacts.atomic import atomic_write, write_json
from seam_dist.report.seeds import main, seeds_table


def make_run(folder: Path, ablation: str, miou: float, plain: float | None = None) -> Path:
    def scores(value: float) -> dict[str, object]:
        return {"thresholds": [0.5], "miou": [value], "best": {"threshold": 0.5, "miou": value}}

    evaluation = {"map": "plain" if plain is None else "refined", **scores(miou)}
    if plain is not None:
        evaluation["plain"] = scores(plain)
    write_json(folder / "evaluate" / "cam" / "val.json", evaluation)
    write_json(folder / "evaluate" / "cam" / "manifest.json", {})
    atomic_write(folder / "evaluate" / "config.yaml", f"loss: {{ablation: {ablation}}}\n")
    return folder


def test_rows_give_mean_spread_and_gain_over_cam_only(tmp_path: Path) -> None:
    for name, value in (("a", 0.6), ("c", 0.62)):
        write_json(tmp_path / name / "evaluate" / "walk" / "val.json", {"miou": value})
        write_json(tmp_path / name / "evaluate" / "walk" / "manifest.json", {})
    runs = [
        make_run(tmp_path / "a", "full", 0.50, plain=0.45),
        make_run(tmp_path / "b", "cam", 0.40),
        make_run(tmp_path / "c", "full", 0.54, plain=0.43),
        make_run(tmp_path / "d", "cam", 0.42),
        make_run(tmp_path / "e", "er", 0.395),
    ]
    assert seeds_table(runs).splitlines() == [
        "| method and labels | seeds | val mIoU |",
        "|---|---|---|",
        "| CAM only, CAM | 2 | 41.0 ± 1.4 |",
        "| CAM + ER, CAM | 1 | 39.5 (-1.5) |",
        "| SEAM, CAM | 2 | 44.0 ± 1.4 (+3.0) |",
        "| SEAM, refined CAM | 2 | 52.0 ± 2.8 (+11.0) |",
        "| SEAM, random walk | 2 | 61.0 ± 1.4 (+20.0) |",
    ]


def test_run_without_evaluation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2
    assert "empty has no evaluation: run `--only evaluate`" in capsys.readouterr().err
