"""Random and damaged text files: a reader returns a listing or raises a ValueError that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_sets import CLASSES, HALF, TABLE, annotation, folder_set, voc_set, write

from seam_dist.artifacts.atomic import read_json
from seam_dist.config.load import ConfigError, load_config, read_yaml
from seam_dist.data.sources.base import Source
from seam_dist.data.sources.folder import FolderSource
from seam_dist.data.sources.voc import VOCSource

# What tells readers something; the rest of the characters is drawn.
_PARTS = (
    *(b",", b";", b"\t", b"|", b'"', b"\n", b"\r", b"\r\n", b"\0", b"sep=,", b"..", b"/", b"\\", b"#"),
    *(b"a.jpg", b"2007_1", b"cat", b"dog", b"train", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0"),
    *(b"\xe9", "cafe\u0301".encode(), b"\xed\xa0\x80", b"gbk", b"utf-16", b"punycode", b"zip"),
    *(b"<?xml version='1.0' encoding='", b"'?>", b"<annotation>", b"</annotation>", b"<object>", b"</object>"),
    *(b"<name>", b"</name>", b"&lt;", b"&x;", b"<!DOCTYPE a [", b"<!ENTITY x 'y'>", b"]>", b"<![CDATA["),
    *(b"{", b"}", b"[", b"]", b": ", b"- ", b"&a ", b"*a", b"!!int ", b"!!timestamp ", b"2026-13-45", b"0x_"),
    *(b"<<: ", b"? ", b"1e999", b"NaN", b"-1", b"9" * 50, b"\\ud800", b"preset: ", b"model:", b"%YAML 9.9\n", b"---\n"),
)
_PIECES = st.one_of(
    st.sampled_from(_PARTS),
    st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=4),
)


def content(good: str) -> st.SearchStrategy[bytes]:
    """Bytes: pieces in a row, or a good file with some of its bytes replaced by pieces, saved in some encoding."""

    def damage(encoding: str, cuts: list[tuple[int, int, bytes]]) -> bytes:
        data = good.encode(encoding)
        for start, length, piece in cuts:
            start %= len(data) + 1
            data = data[:start] + piece + data[start + length :]
        return data

    cuts = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 12), _PIECES), max_size=4)
    damaged = st.builds(damage, st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030")), cuts)
    return st.lists(_PIECES, max_size=12).map(b"".join) | damaged


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    folder_set(files=["masks/train/a.png", "masks/train/b.png"])(root)
    return root


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc")
    voc_set()(root)
    return root


@contextlib.contextmanager
def refusing(name: str) -> Iterator[None]:
    """Let a ValueError pass whose text names the file."""
    try:
        yield
    except ValueError as error:
        if name not in str(error):
            raise


def _list(make: Callable[[Path], Source], root: Path, name: str, data: bytes) -> None:
    """List a set whose file `name` holds `data`."""
    before = (root / name).read_bytes()
    write(root / name, data)
    with refusing(name.rpartition("/")[2]):
        listing = make(root).listing("train")
        assert listing.records or listing.findings.errors
        assert len({record.key for record in listing.records}) == len(listing.records)
        assert all(str(finding) for finding in listing.findings)
    write(root / name, before)


def generated(good: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on 1,000 contents, the same in every run."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        options = settings(
            max_examples=1000, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )
        return options(given(data=content(good))(test))

    return decorate


@generated(TABLE)
def test_label_tables(folder: Path, data: bytes) -> None:
    _list(FolderSource, folder, "labels.csv", data)


@generated(CLASSES)
def test_class_lists(folder: Path, data: bytes) -> None:
    _list(FolderSource, folder, "classes.txt", data)


@generated("2007_1\n2007_2\nJPEGImages/2007_1.jpg SegmentationClass/2007_1.png\n")
def test_lists_of_images(voc: Path, data: bytes) -> None:
    _list(VOCSource, voc, "ImageSets/Segmentation/train.txt", data)


@generated(f"<?xml version='1.0' encoding='utf-8'?>\n{annotation('cat', 'dog')}")
def test_annotations(voc: Path, data: bytes) -> None:
    _list(VOCSource, voc, "Annotations/2007_1.xml", data)


@generated('{"a": [1, 2.5, "b"], "c": {"d": null, "e": true}}')
def test_json(folder: Path, data: bytes) -> None:
    write(folder / "a.json", data)
    with refusing("a.json"):
        read_json(folder / "a.json")


@generated(f"preset: small\nrun: {{name: a, seed: 3}}\n{HALF}")
def test_settings(folder: Path, data: bytes) -> None:
    write(folder / "a.yaml", data)
    with refusing("a.yaml"):
        values, _ = read_yaml(folder / "a.yaml")
        assert isinstance(values, dict)
        with contextlib.suppress(ConfigError):  # of settings that are wrong together, whose files are not named
            load_config(folder / "a.yaml")
