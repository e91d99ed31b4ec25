"""Files in folders of the user's: what commands wrote is replaced, everything else stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from seam_dist.artifacts import outputs
from seam_dist.artifacts.atomic import atomic_file, remove_temporaries
from seam_dist.artifacts.outputs import JOURNAL, OutputError, OutputFolder, printable


def journal(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_own_files_are_replaced_also_by_another_process(tmp_path: Path) -> None:
    first = OutputFolder(tmp_path / "out")
    first.write("sub/a.png", b"one")
    first.write("sub/a.png", b"three")
    OutputFolder(tmp_path / "out").write("sub/a.png", b"four")
    first.write("sub/a.png", b"5")  # it reads what the other has added to the journal
    assert (tmp_path / "out/sub/a.png").read_bytes() == b"5"
    assert [line["size"] for line in journal(tmp_path / "out")] == [3, 5, 4, 1]
    assert first.own_names() == ["sub/a.png"]


def test_files_of_the_user_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    folder = OutputFolder(tmp_path)
    with pytest.raises(OutputError, match=r"a.png \(not written by seam-dist\): move it away or give another --out"):
        folder.check(["b.png", "a.png"], remedy="give another --out")
    with pytest.raises(OutputError, match="1 file is in the way"):
        folder.write("a.png", b"labels")
    assert names(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"mine"


def test_own_file_that_the_user_has_changed_is_the_users(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    folder.write("a.txt", b"1234")
    (tmp_path / "a.txt").write_bytes(b"1235")  # of the same size
    os.utime(tmp_path / "a.txt", ns=(5, 5))
    assert not folder.is_own("a.txt")
    with pytest.raises(OutputError, match=r"changed since it was written by seam-dist"):
        folder.write("a.txt", b"new")
    (tmp_path / "a.txt").unlink()
    folder.write("a.txt", b"new")


def test_copied_folder_is_still_known_by_its_content(tmp_path: Path) -> None:
    OutputFolder(tmp_path / "a").write("x", b"1234")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copy)  # without times
    os.utime(tmp_path / "b/x", ns=(0, 0))
    OutputFolder(tmp_path / "b").write("x", b"56")
    assert (tmp_path / "b/x").read_bytes() == b"56"


def test_file_that_appears_while_the_output_is_made_stays(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)

    def export() -> None:
        with folder.file("net.pt2") as temporary:
            temporary.write_bytes(b"program")
            (tmp_path / "net.pt2").write_bytes(b"mine")

    with pytest.raises(OutputError, match="in the way"):
        export()
    assert (tmp_path / "net.pt2").read_bytes() == b"mine"
    assert names(tmp_path) == ["net.pt2"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_process_leaves_no_file_that_blocks_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = OutputFolder(tmp_path)
    folder.write("a", b"old")
    original = Path.replace

    def killed(self: Path, target: Path) -> None:
        if moment == "after":
            original(self, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.write("a", b"new!")
    assert (tmp_path / "a").read_bytes() == (b"old" if moment == "before" else b"new!")
    OutputFolder(tmp_path).write("a", b"newest")
    assert names(tmp_path) == [JOURNAL, "a"]


def test_last_line_of_a_killed_process_does_not_spoil_the_next(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    folder.write("a", b"1")
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"name": "b", "si')
    folder.write("c", b"2")
    assert OutputFolder(tmp_path).own_names() == ["a", "c"]
    assert folder.own_names() == ["a", "c"]


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = OutputFolder(tmp_path)
    folder.write("a", b"old")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write("a", b"new!")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == [JOURNAL, "a"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"mine")
    out = tmp_path / "out"
    OutputFolder(out).write("a", b"mine")
    (out / "a").rename(tmp_path / "moved")
    (out / "a").symlink_to(tmp_path / "moved")
    with pytest.raises(OutputError, match=r"out/a \(a link\)"):
        OutputFolder(out).write("a", b"new")
    (out / JOURNAL).rename(tmp_path / "journal")
    (out / JOURNAL).symlink_to(tmp_path / "photo")
    with pytest.raises(OSError, match="symbolic links"):
        OutputFolder(out).write("b", b"new")
    assert (tmp_path / "photo").read_bytes() == b"mine"
    assert not (out / "b").exists()


def test_processes_share_a_folder(tmp_path: Path) -> None:
    def work(number: int) -> None:
        folder = OutputFolder(tmp_path)
        for turn in range(20):
            folder.write(f"{number}", f"{turn}".encode())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(OutputFolder(tmp_path).own_names()) == ["0", "1", "2", "3"]


def test_abandoned_temporaries_of_the_outputs_alone_are_removed(tmp_path: Path) -> None:
    for name in (".a.png.abcdefgh.tmp", ".b.png.abcdefgh.tmp", ".a.png.mine.tmp", ".new.png.abcdefg_.tmp"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".a.png.12345678.tmp").touch()  # of a process that is still writing
    OutputFolder(tmp_path).remove_abandoned(["a.png", "new.png", "sub/a.png"])
    assert names(tmp_path) == [".a.png.12345678.tmp", ".a.png.mine.tmp", ".b.png.abcdefgh.tmp"]


def test_temporaries_of_other_programs_stay(tmp_path: Path) -> None:
    for name in (".notes.tmp", ".a.b.tmp", ".a.tar.abcdefgh.tmp"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert names(tmp_path) == [".a.b.tmp", ".notes.tmp"]


def test_longest_name_of_a_file_system_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        with atomic_file(tmp_path / name) as temporary:
            temporary.write_bytes(b"1")
        assert (tmp_path / name).read_bytes() == b"1"


def test_printed_names_are_one_line_of_valid_text() -> None:
    assert printable(Path("a b/é\n\udcff.png")) == "a b/é\\n\\udcff.png"
