"""Class lists, settings and JSON, as editors and people leave them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

from case import Case, Outcome
from small_sets import HALF, write

from seam_dist.artifacts.atomic import read_json
from seam_dist.config.findings import Findings
from seam_dist.config.load import load_config
from seam_dist.data.sources.class_list import read_class_list

classes = functools.partial(Case, reader="classes.txt")
settings = functools.partial(Case, reader="YAML")
stored = functools.partial(Case, reader="JSON")


def listed(content: str | bytes) -> Callable[[Path], Outcome]:
    def run(root: Path) -> Outcome:
        write(root / "classes.txt", content)
        findings = Findings()
        names = read_class_list(root / "classes.txt", findings)
        findings.raise_errors(ValueError)
        return Outcome(names, [str(finding) for finding in findings.warnings])

    return run


def width(
    content: str | bytes, *, files: dict[str, str] | None = None, name: str = "a.yaml"
) -> Callable[[Path], Outcome]:
    """Load a config and return model.width."""

    def run(root: Path) -> Outcome:
        write(root / "mine/a.yaml", content)
        for path, text in (files or {}).items():
            write(root / path, text)
        return Outcome(load_config(root / "mine" / name).config.model.width)

    return run


def loaded(content: str | bytes) -> Callable[[Path], Outcome]:
    def run(root: Path) -> Outcome:
        write(root / "a.json", content)
        return Outcome(read_json(root / "a.json"))

    return run


def named(config: str | None, preset: str | None = None) -> Callable[[Path], Outcome]:
    return lambda root: Outcome(load_config(config, preset=preset).config.model.width)


NAMES = ("cat", "dog")

CASES = [
    classes(fault="a byte order mark and lines of Windows", run=listed(b"\xef\xbb\xbfcat\r\ndog\r\n"), works=NAMES),
    classes(fault="lines of old Macs", run=listed("cat\rdog\r"), works=NAMES),
    classes(fault="UTF-32", run=listed("cat\ndog\n".encode("utf-32")), works=NAMES),
    classes(fault="UTF-16, big end first", run=listed(b"\xfe\xff" + "cat\ndog\n".encode("utf-16-be")), works=NAMES),
    classes(
        fault="UTF-16, cut off",
        run=listed("cat\ndog\n".encode("utf-16")[:-1]),
        refused=r"classes\.txt, line 2: byte 0x0a is no UTF-16-LE: save the file as UTF-8",
    ),
    classes(fault="blank lines and spaces", run=listed("\n  cat\t\n\n\u00a0dog\u200b\n"), works=NAMES),
    classes(fault="byte order marks between joined files", run=listed("\ufeffcat\n\ufeffdog\n"), works=NAMES),
    classes(
        fault="names in Chinese, as gbk",
        run=listed("照片\n房子\n".encode("gbk")),
        refused=r"classes\.txt, line 1: byte 0xd5 is no UTF-8 \(it may be gb18030\)",
    ),
    classes(
        fault="not UTF-8 in a late line of an old Mac",
        run=listed(b"cat\rdog\rcaf\xe9\r"),
        refused=r"classes\.txt, line 3: byte 0xe9 is no UTF-8",
    ),
    classes(
        fault="an image",
        run=listed(b"\xff\xd8\xff\xe0\x00\x10JFIF"),
        refused=r"classes\.txt, line 1: byte 0xff is no UTF-8 "
        r"\(it may be UTF-16 without a byte order mark, or no text\)",
    ),
    classes(fault="empty", run=listed(b"\n"), refused="names 0 classes, expected 1 to 254"),
    classes(
        fault="a class twice",
        run=listed("cat\ndog\ncat \n"),
        refused="line 3: 'cat' is named more than once, first in line 1",
    ),
    classes(
        fault="a class in two Unicode forms",
        run=listed("caf\u00e9\ncafe\u0301\n"),
        refused="line 2: .* is the class of line 1 in another Unicode form",
    ),
    classes(
        fault="a class with two spaces",
        run=listed("traffic light\ntraffic  light\n"),
        refused="line 2: .* with other spaces",
    ),
    classes(
        fault="two classes that differ in case",
        run=listed("cat\nCat\n"),
        works=("cat", "Cat"),
        warns="line 2: 'Cat' and 'cat' of line 1 are two classes",
    ),
    classes(
        fault="the background first",
        run=listed("background\ncat\n"),
        refused="line 1: 'background' is no class, it is the value 0 of masks",
    ),
    classes(
        fault="the classes that are none in labelme",
        run=listed("__ignore__\n_background_\ncat\n"),
        refused="line 1: '__ignore__' is no class, it is the value 255 .*2 such cases",
    ),
    classes(
        fault="numbers before the names",
        run=listed("0 cat\n1 dog\n"),
        works=("0 cat", "1 dog"),
        warns="line 1: the number belongs to the name of class '0 cat'",
    ),
    classes(
        fault="numbers and colons before the names",
        run=listed("1: cat\n2: dog\n"),
        works=("1: cat", "2: dog"),
        warns="remove the numbers",
    ),
    classes(fault="names that begin with a number", run=listed("2-door car\ncar\n"), works=("2-door car", "car")),
    classes(
        fault="a heading",
        run=listed("name\ncat\n"),
        works=("name", "cat"),
        warns="line 1: 'name' is class 1: remove the line if it is a heading",
    ),
    classes(
        fault="a comment", run=listed("# my classes\ncat\n"), refused="line 1: '# my classes' looks like a comment"
    ),
    classes(
        fault="all in one line",
        run=listed("cat,dog,sofa"),
        refused="line 1: 'cat,dog,sofa' is one class, expected one class a line",
    ),
    classes(fault="a semicolon after each", run=listed("cat;\ndog;\n"), refused="line 1: 'cat;' is one class"),
    settings(fault="a byte order mark", run=width("\ufeff" + HALF), works=0.5),
    settings(fault="UTF-16", run=width(HALF.encode("utf-16")), works=0.5),
    settings(
        fault="not UTF-8", run=width(HALF.encode() + b"# caf\xe9\n"), refused=r"a\.yaml, line 3: byte 0xe9 is no UTF-8"
    ),
    settings(fault="lines of Windows", run=width(HALF.replace("\n", "\r\n")), works=0.5),
    settings(
        fault="tabs",
        run=width("model:\n\twidth: 0.5\n"),
        refused=r"a\.yaml:2 is not valid YAML: .*cannot start any token",
    ),
    settings(
        fault="a date that is none",
        run=width("run:\n  name: 2026-13-45\n"),
        refused=r"a\.yaml holds a value that YAML cannot read \(month must be in 1\.\.12\): put quotes",
    ),
    settings(
        fault="a tag without its value",
        run=width("run:\n  name: !!int x\n"),
        refused=r"a\.yaml holds a value that YAML cannot read",
    ),
    settings(
        fault="a tag of Python",
        run=width("run: !!python/object/apply:os.system [ls]\n"),
        refused=r"a\.yaml:1 is not valid YAML: could not determine a constructor",
    ),
    settings(
        fault="a section in itself",
        run=width("model: &a {b: *a}\n"),
        refused=r"a\.yaml is nested too deeply, or refers to itself",
    ),
    settings(
        fault="5,000 lists in each other", run=width(f"model: {'[' * 5000}"), refused=r"a\.yaml is nested too deeply"
    ),
    settings(
        fault="references that grow",
        run=width(
            "\n".join(
                [
                    "a: &a0 {k: 1}",
                    *(f"b{i}: &a{i + 1} {{{', '.join(f'k{j}: *a{i}' for j in range(9))}}}" for i in range(9)),
                ]
            )
        ),
        refused=r"a\.yaml has more than 10000 settings",
    ),
    settings(
        fault="two documents",
        run=width(f"{HALF}---\n{HALF}"),
        refused=r"a\.yaml:3 is not valid YAML: but found another document",
    ),
    settings(fault="empty", run=width(b""), works=1.0),
    settings(fault="a list", run=width("- 1\n"), refused=r"a\.yaml holds a list"),
    settings(
        fault="the config is a folder",
        run=lambda root: width(HALF, name="../mine")(root),
        refused=r"mine is a folder, which holds a\.yaml: give the path",
    ),
    settings(
        fault="the ending .yml",
        run=width(HALF, name="a.yml"),
        refused=r"a\.yml does not exist \(did you mean a\.yaml\?\)",
    ),
    settings(
        fault="a preset under --config",
        run=named("small"),
        refused=r"--config=small is a preset, not what is expected here: use --preset small",
    ),
    settings(
        fault="a config under --preset",
        run=named(None, "demo"),
        refused=r"preset=demo is a config, .*use --config demo",
    ),
    settings(
        fault="another case of a config",
        run=named("VOC12"),
        refused=r"--config=VOC12 is not known \(did you mean voc12\?\): "
        r"expected one of coco14, demo, folder, voc12, or the path",
    ),
    settings(
        fault="a preset that is not beside the file, nor installed",
        run=width("preset: smal\n"),
        refused=r"mine/a\.yaml:1: preset=smal is not known \(did you mean small\?\): "
        r"expected one of default, paper, small, or the path of a file, for example .*mine/smal\.yaml$",
    ),
    settings(
        fault="a preset in an empty folder beside the file",
        run=width("preset: small\n", files={"mine/presets/own.yaml": HALF}),
        works=0.5 * 2,
    ),
    settings(
        fault="a preset in another folder",
        run=width("preset: ../shared/own.yaml\n", files={"shared/own.yaml": HALF}),
        works=0.5,
    ),
    settings(
        fault="a preset that is no text",
        run=width("preset: [small]\n"),
        refused=r"a\.yaml:1: preset=\['small'\] is not known",
    ),
    stored(fault="a byte order mark", run=loaded(b'\xef\xbb\xbf{"a": 1}'), works={"a": 1}),
    stored(fault="UTF-16", run=loaded(json.dumps({"a": "é"}, ensure_ascii=False).encode("utf-16")), works={"a": "é"}),
    stored(
        fault="not UTF-8",
        run=loaded(b'{"a": "\xe9"}'),
        refused=r"a\.json, line 1: byte 0xe9 is no UTF-8 .*or remove it and rerun",
    ),
    stored(fault="cut off", run=loaded('{"a": 1'), refused=r"a\.json is not valid JSON .*rerun what writes it"),
    stored(fault="empty", run=loaded(b""), refused=r"a\.json is not valid JSON"),
    stored(fault="zeros after a crash", run=loaded(bytes(64)), refused=r"a\.json, line 1: it holds a NUL character"),
    stored(fault="100,000 lists in each other", run=loaded("[" * 100_000), refused=r"a\.json is not valid JSON"),
    stored(fault="a number of 5,000 digits", run=loaded("1" * 5000), refused=r"a\.json is not valid JSON"),
]
