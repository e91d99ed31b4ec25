"""Random and damaged text files: a reader returns a listing or raises a ValueError that names the file."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sets import CLASSES, HALF, TABLE, annotation, folder_set, voc_set, write

from seam_dist.artifacts.atomic import read_json
from seam_dist.config.load import ConfigError, load_config, read_yaml
from seam_dist.data.sources.base import Source
from seam_dist.data.sources.folder import FolderSource
from seam_dist.data.sources.voc import VOCSource

# What tells a reader something, and what it may stumble over.
ANY = (
    *(
        "\n",
        "\r",
        "\r\n",
        "\0",
        "\ufeff",
        "\u200b",
        "\u2028",
        "\x0b",
        " ",
        "#",
        "-1",
        "9" * 50,
        "cafe\u0301",
        "\U0001f431",
    ),
    *("..", "/", "\\", "'", '"', ",", ";", "\t", "|", ":", "=", "a" * 300),
)
LISTS = (
    "a.jpg",
    "A",
    "train/",
    "2007_1",
    "2007_2.jpg 1",
    "cat",
    "CAT ",
    "dog;sofa",
    "sep=;\n",
    '"a',
    "background",
    "x.png",
)
XML = (
    *(
        "<?xml version='1.0' encoding='",
        "'?>",
        "gbk",
        "utf-16",
        "punycode",
        "zip",
        "idna",
        "undefined",
        "rot13",
        "cp037",
    ),
    *("<annotation>", "</annotation>", "<object>", "</object>", "<name>", "</name>", "&lt;", "&x;", "&#0;", "&#xd800;"),
    *("<!DOCTYPE a [", "<!ENTITY x 'y'>", "]>", "<![CDATA[", "<!--", " xmlns='a'", "<a>" * 50),
)
JSON = ("{", "}", "[", "]", "1e999", "NaN", "-", "\\ud800", "\\u", "null", "[" * 3000, "1" * 5000)
YAML = (
    *(
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "&a ",
        "*a",
        "<<: ",
        "? ",
        "!!int ",
        "!!timestamp ",
        "!!bool x",
        "!!binary x",
        "!x ",
    ),
    *(
        "2026-13-45",
        "0x_",
        "0b_",
        "1:99",
        '"\\ud800"',
        '"\\U00110000"',
        "preset: ",
        "%YAML 9.9\n",
        "---\n",
        "~",
        "[" * 3000,
    ),
    *("&a {b: *a}", "1" * 5000),
)
ENCODINGS = (*("utf-8",) * 6, "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030", "latin-1")


def content(seed: int, good: str, parts: Sequence[str]) -> bytes:
    """Bytes: parts in a row, or a good text with some of its tokens replaced, saved in some encoding and damaged."""
    rng = random.Random(seed)

    def part() -> str:
        return rng.choice(rng.choice((ANY, parts)))

    tokens = [""] * rng.randrange(12) if rng.random() < 0.2 else re.findall(r"\w+|\s|.", good)
    places = (
        range(len(tokens)) if "" in tokens else [rng.randrange(len(tokens)) for _ in range(rng.randrange(4)) if tokens]
    )
    for place in places:
        tokens[place] = part() + (tokens[place] if rng.random() < 0.5 else "")
    data = bytearray("".join(tokens).encode(rng.choice(ENCODINGS), "replace"))
    for _ in range(rng.choice((0, 0, 1, 3))):
        place = rng.randrange(len(data) + 1)
        data[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data)


@contextlib.contextmanager
def refusing(name: str) -> Iterator[None]:
    """Let a ValueError pass whose text names the file."""
    try:
        yield
    except ValueError as error:
        if name not in str(error):
            raise


def list_set(make: Callable[[Path], Source], root: Path, name: str) -> None:
    with refusing(Path(name).name):
        listing = make(root).listing("train")
        assert listing.records or listing.findings.errors
        assert len({record.key for record in listing.records}) == len(listing.records)
        assert all(str(finding) for finding in listing.findings)


def read_stored(root: Path, name: str) -> None:
    with refusing(name):
        read_json(root / name)


def read_settings(root: Path, name: str) -> None:
    with refusing(name):
        values, _ = read_yaml(root / name)
        assert isinstance(values, dict)
        with contextlib.suppress(ConfigError):  # of settings that are wrong together, whose files are not named
            load_config(root / name)


FOLDER = folder_set(files=["masks/train/a.png", "masks/train/b.png"])
READERS = {
    "labels.csv": (FOLDER, partial(list_set, FolderSource), TABLE, LISTS),
    "classes.txt": (FOLDER, partial(list_set, FolderSource), CLASSES, LISTS),
    "ImageSets/Segmentation/train.txt": (
        voc_set(),
        partial(list_set, VOCSource),
        "2007_1\n2007_2\nJPEGImages/2007_1.jpg SegmentationClass/2007_1.png\n",
        LISTS,
    ),
    "Annotations/2007_1.xml": (
        voc_set(),
        partial(list_set, VOCSource),
        f"<?xml version='1.0' encoding='gbk'?>\n{annotation('cat', 'dog')}",
        XML,
    ),
    "a.json": (FOLDER, read_stored, '{"a": [1, 2.5, "b"], "c": {"d": null, "e": true}}', JSON),
    "a.yaml": (FOLDER, read_settings, f"preset: small\nrun: {{name: a, seed: 3}}\n{HALF}", YAML),
}


@pytest.mark.parametrize("count", [250, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_any_content_is_read_or_refused_by_name(tmp_path: Path, name: str, count: int) -> None:
    make, read, good, parts = READERS[name]
    make(tmp_path)

    @settings(max_examples=count, derandomize=True, database=None, deadline=None)
    @given(st.integers(0, 2**48))
    def check(seed: int) -> None:
        write(tmp_path / name, content(seed, good, parts))
        read(tmp_path, name)

    check()
