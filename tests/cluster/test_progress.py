from __future__ import annotations

import io
import sys

import pytest
import torch

from seam_dist.cluster.distributed import World
from seam_dist.cluster.progress import progress_bar


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("stage", 1000, "image") as bar:
        assert bar.mininterval == (0.5 if terminal else 30)
        for _ in range(1000):
            bar.update(1)
    return stream.getvalue()


def test_bar_does_not_fill_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=False)
    assert text.count("\r") <= 3
    assert "1000/1000" in text


def test_bar_is_lively_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1000/1000" in shown(monkeypatch, terminal=True)


def test_ranks_other_than_the_main_one_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for rank, title in ((0, "stage (rank 1 of 2)"), (1, "")):
        world = World(rank, 2, rank, 2, torch.device("cpu"))
        assert list(progress_bar("stage", 3, "image", items=range(3), world=world)) == [0, 1, 2]
        shown = capsys.readouterr().err
        assert title in shown
        assert bool(shown) == (rank == 0)
