from __future__ import annotations

from pathlib import Path

import pytest

from seam_dist.report.examples import rank_keys


def _write(path: Path, scores: list[str]) -> Path:
    path.write_text("key,miou\n" + "".join(f"k{number},{score}\n" for number, score in enumerate(scores)))
    return path


def test_best_median_and_worst_images_are_picked_in_order(tmp_path: Path) -> None:
    path = _write(tmp_path / "val-images.csv", [str(value / 10) for value in (3, 9, 1, 5, 7, 2, 8, 4, 6)])
    picked = rank_keys(path, 2)
    assert [(rank, miou) for rank, _, miou in picked] == [
        ("best", 0.9),
        ("best", 0.8),
        ("median", 0.6),
        ("median", 0.5),
        ("worst", 0.2),
        ("worst", 0.1),
    ]
    assert picked[0][1] == "k1"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 11])
def test_no_image_is_shown_twice(tmp_path: Path, count: int) -> None:
    picked = rank_keys(_write(tmp_path / "s.csv", [str(k / 20) for k in range(count)]), 4)
    keys = [key for _, key, _ in picked]
    assert len(set(keys)) == len(keys) == min(count, 12)


def test_images_without_objects_are_never_the_best(tmp_path: Path) -> None:
    path = _write(tmp_path / "s.csv", ["1.0", "1.0", "0.9", "0.8", "0.2", "0.1"])
    picked = rank_keys(path, 2, empty={"k0", "k1", "k5"})
    assert [(rank, key) for rank, key, _ in picked] == [
        ("best", "k2"),
        ("best", "k3"),
        ("median", "k0"),
        ("median", "k1"),
        ("worst", "k4"),
        ("worst", "k5"),
    ]
    assert {rank for rank, _, _ in rank_keys(path, 2, empty={f"k{number}" for number in range(6)})} == {
        "median",
        "worst",
    }


def test_images_without_a_score_and_files_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    assert [key for _, key, _ in rank_keys(_write(tmp_path / "s.csv", ["nan", "0.5", ""]), 3)] == ["k1"]
    assert rank_keys(tmp_path / "missing.csv", 3) == []


def test_a_file_without_scores_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("key,score\nk0,0.5\n")
    with pytest.raises(ValueError, match=r"s\.csv has no numbers in columns key and miou"):
        rank_keys(tmp_path / "s.csv", 3)
