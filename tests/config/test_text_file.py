"""Decoding of text that people write: the mark decides, nothing is guessed, and an error says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from seam_dist.config.text_file import TextError, decode_text, read_text, split_lines

TEXT = "cat\r\ncafé 猫\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marks_decide(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize(("encoding", "mark"), [("utf-16-be", b"\xfe\xff"), ("utf-32-be", b"\0\0\xfe\xff")])
def test_marks_of_the_big_end_decide(encoding: str, mark: bytes) -> None:
    assert decode_text(mark + TEXT.encode(encoding), "a.txt") == TEXT


def test_mark_is_stronger_than_the_encoding_that_is_expected() -> None:
    assert decode_text(TEXT.encode("utf-16"), "a.xml", encoding="gb18030") == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cat\ncaf\xe9\n", r"a\.txt, line 2: byte 0xe9 is no UTF-8 \(it may be cp1252\): save the file as UTF-8"),
        (b"cat\rdog\rcaf\xe9", r"a\.txt, line 3: byte 0xe9"),
        ("cat\r\n照片\r\n".encode("gbk"), r"a\.txt, line 2: byte 0xd5 is no UTF-8 \(it may be gb18030\)"),
        ("ｶﾒﾗ".encode("shift_jis"), r"\(it may be shift_jis\)"),
        (b"\x81\xff\x81", r"\(it may be binary data\)"),
        ("é".encode("utf-16-le"), r"\(it may be UTF-16 without a byte order mark, or no text\)"),
        ("a\nb".encode("utf-16-le"), r"a\.txt, line 1: it holds a NUL character"),
        (b"a\nb\n\0", r"a\.txt, line 3: it holds a NUL character"),
        ("a\nb\n".encode("utf-16")[:-1], r"a\.txt, line 2: byte 0x0a is no UTF-16-LE: save"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(TextError, match=message):
        decode_text(data, "a.txt")


def test_only_line_ends_end_lines() -> None:
    assert split_lines("a\r\nb\rc\nd\x0be\u2028f") == ["a", "b", "c", "d\x0be\u2028f"]
