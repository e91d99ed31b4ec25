"""The tar reader: what it takes, and that cuts, damage and members of other names or types are seen."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from seam_dist.artifacts.tar_file import MemberError, TarError, naming_tar, read_member, read_tar, walk_tar, write_tar

TEXT, ANY = re.compile(r"(\w+)\.txt"), re.compile(".*")
MEMBERS = [("a.txt", b"first"), ("b.txt", b""), ("c.txt", b"x" * 1500)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tar(tmp_path / "x.tar", TEXT, MEMBERS)
    return tmp_path / "x.tar"


def test_members_are_read_as_written_and_as_tarfile_reads_them(path: Path) -> None:
    assert [(match[0], match[1], data) for match, data in read_tar(path, TEXT)] == [
        (name, name[0], data) for name, data in MEMBERS
    ]
    with tarfile.open(path) as tar:
        places = [(member.name, member.offset_data, member.size) for member in tar]
    assert [(member.name, member.start, member.length) for member in walk_tar(path, TEXT)] == places


def test_an_empty_tar_has_no_members(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", TEXT, [])
    assert walk_tar(tmp_path / "x.tar", TEXT) == []


def test_a_cut_at_any_block_is_seen(path: Path) -> None:
    whole = path.read_bytes()
    end = walk_tar(path, TEXT)[-1].start + 1536
    for size in (*range(0, end + 1024, 512), 100):
        path.write_bytes(whole[:size])
        with pytest.raises(TarError, match=f"ends after {size} bytes without the end mark of a tar"):
            walk_tar(path, TEXT)
    path.write_bytes(whole[: end + 1024])
    assert len(walk_tar(path, TEXT)) == 3


def test_a_flipped_bit_in_any_header_is_seen(path: Path) -> None:
    whole = path.read_bytes()
    for member in walk_tar(path, TEXT):
        for place in (0, 124, 150, 400):
            damaged = bytearray(whole)
            damaged[member.start - 512 + place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(TarError, match=f"header at byte {member.start - 512} is damaged"):
                walk_tar(path, TEXT)


@pytest.mark.parametrize("name", ["a.png", "../a.txt", "d/a.txt", "/a.txt"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MemberError, match="twice or not allowed"):
        write_tar(tmp_path / "x.tar", TEXT, [(name, b"")])
    write_tar(tmp_path / "x.tar", ANY, [("a.txt", b""), (name, b"")])
    with pytest.raises(MemberError, match="is not allowed"):
        walk_tar(tmp_path / "x.tar", TEXT)


@pytest.mark.parametrize("member_type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_folders_and_sparse_files_are_refused(tmp_path: Path, member_type: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo("a.txt")
        member.type, member.linkname = member_type, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(MemberError, match="is not allowed"):
        walk_tar(tmp_path / "x.tar", TEXT)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemberError, match="twice or not allowed"):
        write_tar(tmp_path / "x.tar", TEXT, [("a.txt", b"1"), ("a.txt", b"2")])
    assert list(tmp_path.iterdir()) == []
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(TarError, match=r"member 'a\.txt' is there twice"):
        list(read_tar(tmp_path / "x.tar", TEXT))


def test_a_file_that_becomes_shorter_is_seen(path: Path) -> None:
    last = walk_tar(path, TEXT)[-1]
    path.write_bytes(path.read_bytes()[: last.start + 10])
    with open(path, "rb") as file, pytest.raises(TarError, match="became shorter"):
        read_member(file, last)


def test_errors_are_given_the_path_the_content_and_the_remedy(tmp_path: Path) -> None:
    wanted = pytest.raises(ValueError, match=r"gone\.tar is not a whole tar of texts \(.*No such file.*\): write it")
    with wanted, naming_tar(tmp_path / "gone.tar", "texts", "write it"):
        list(read_tar(tmp_path / "gone.tar", TEXT))
