"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from seam_dist.artifacts import atomic


def test_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"a": 1})

    def fill() -> None:
        with atomic.atomic_file(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert atomic.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_written_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic.atomic_write(tmp_path / "new" / "a", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "new" / "a").stat().st_mode & 0o777 == 0o640


def test_json_refuses_nan_before_touching_the_file(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "a.json", [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "a.json", float("nan"))
    assert atomic.read_json(tmp_path / "a.json") == [1]


def test_broken_json_is_reported_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        atomic.read_json(tmp_path / "a.json")


def test_csv_has_the_header_first_and_quotes_what_needs_it(tmp_path: Path) -> None:
    atomic.write_csv(tmp_path / "a.csv", [("key", "note"), ("k1", 'a,"b"')])
    assert (tmp_path / "a.csv").read_bytes() == b'key,note\nk1,"a,""b"""\n'
