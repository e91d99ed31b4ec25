"""Class lists, settings and JSON, as editors and people leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from case import Case, Outcome
from small_sets import HALF, Run, write

from seam_dist.artifacts.atomic import read_json
from seam_dist.config.findings import Findings
from seam_dist.config.load import load_config
from seam_dist.data.sources.class_list import read_class_list


def listed(content: str | bytes) -> Run:
    def run(root: Path) -> Outcome:
        write(root / "classes.txt", content)
        findings = Findings()
        names = read_class_list(root / "classes.txt", findings)
        findings.raise_errors(ValueError)
        return Outcome(names, [str(finding) for finding in findings.warnings])

    return run


def width(content: str | bytes, *, files: dict[str, str] | None = None, name: str = "a.yaml") -> Run:
    """Load a config and return model.width."""

    def run(root: Path) -> Outcome:
        write(root / "mine/a.yaml", content)
        for path, text in (files or {}).items():
            write(root / path, text)
        return Outcome(load_config(root / "mine" / name).config.model.width)

    return run


def loaded(content: str | bytes) -> Run:
    def run(root: Path) -> Outcome:
        write(root / "a.json", content)
        return Outcome(read_json(root / "a.json"))

    return run


def named(config: str | None, preset: str | None = None) -> Run:
    return lambda root: Outcome(load_config(config, preset=preset).config.model.width)


def classes(fault: str, run: str | bytes | Run, **outcome: Any) -> Case:
    """A row by the content of classes.txt, or by all that is made."""
    return Case("classes.txt", fault, run if callable(run) else listed(run), **outcome)


def settings(fault: str, run: str | bytes | Run, **outcome: Any) -> Case:
    """A row by the content of a file of settings, or by all that is made."""
    return Case("YAML", fault, run if callable(run) else width(run), **outcome)


def stored(fault: str, run: str | bytes | Run, **outcome: Any) -> Case:
    """A row by the content of a JSON file, or by all that is made."""
    return Case("JSON", fault, run if callable(run) else loaded(run), **outcome)


NAMES = ("cat", "dog")

CASES = [
    classes("a byte order mark and lines of Windows", b"\xef\xbb\xbfcat\r\ndog\r\n", works=NAMES),
    classes("lines of old Macs", "cat\rdog\r", works=NAMES),
    classes("UTF-32", "cat\ndog\n".encode("utf-32"), works=NAMES),
    classes("UTF-16, big end first", b"\xfe\xff" + "cat\ndog\n".encode("utf-16-be"), works=NAMES),
    classes(
        "UTF-16, cut off",
        "cat\ndog\n".encode("utf-16")[:-1],
        refused=r"classes\.txt, line 2: byte 0x0a is no UTF-16-LE: save the file as UTF-8",
    ),
    classes("blank lines and spaces", "\n  cat\t\n\n\u00a0dog\u200b\n", works=NAMES),
    classes("byte order marks between joined files", "\ufeffcat\n\ufeffdog\n", works=NAMES),
    classes(
        "names in Chinese, as gbk",
        "照片\n房子\n".encode("gbk"),
        refused=r"classes\.txt, line 1: byte 0xd5 is no UTF-8 \(it may be gb18030\)",
    ),
    classes(
        "not UTF-8 in a late line of an old Mac",
        b"cat\rdog\rcaf\xe9\r",
        refused=r"classes\.txt, line 3: byte 0xe9 is no UTF-8",
    ),
    classes(
        "an image",
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        refused=r"classes\.txt, line 1: byte 0xff is no UTF-8 "
        r"\(it may be UTF-16 without a byte order mark, or no text\)",
    ),
    classes("empty", b"\n", refused="names 0 classes, expected 1 to 254"),
    classes("a class twice", "cat\ndog\ncat \n", refused="line 3: 'cat' is named more than once, first in line 1"),
    classes(
        "a class in two Unicode forms",
        "caf\u00e9\ncafe\u0301\n",
        refused="line 2: .* is the class of line 1 in another Unicode form",
    ),
    classes("a class with two spaces", "traffic light\ntraffic  light\n", refused="line 2: .* with other spaces"),
    classes(
        "two classes that differ in case",
        "cat\nCat\n",
        works=("cat", "Cat"),
        warns="line 2: 'Cat' and 'cat' of line 1 are two classes",
    ),
    classes(
        "the background first",
        "background\ncat\n",
        refused="line 1: 'background' is no class, it is the value 0 of masks",
    ),
    classes(
        "the classes that are none in labelme",
        "__ignore__\n_background_\ncat\n",
        refused="line 1: '__ignore__' is no class, it is the value 255 .*2 such cases",
    ),
    classes(
        "numbers before the names",
        "0 cat\n1 dog\n",
        works=("0 cat", "1 dog"),
        warns="line 1: the number belongs to the name of class '0 cat'",
    ),
    classes(
        "numbers and colons before the names",
        "1: cat\n2: dog\n",
        works=("1: cat", "2: dog"),
        warns="remove the numbers",
    ),
    classes("names that begin with a number", "2-door car\ncar\n", works=("2-door car", "car")),
    classes(
        "a heading",
        "name\ncat\n",
        works=("name", "cat"),
        warns="line 1: 'name' is class 1: remove the line if it is a heading",
    ),
    classes("a comment", "# my classes\ncat\n", refused="line 1: '# my classes' looks like a comment"),
    classes(
        "all in one line", "cat,dog,sofa", refused="line 1: 'cat,dog,sofa' is one class, expected one class a line"
    ),
    classes("a semicolon after each", "cat;\ndog;\n", refused="line 1: 'cat;' is one class"),
    settings("a byte order mark", "\ufeff" + HALF, works=0.5),
    settings("UTF-16", HALF.encode("utf-16"), works=0.5),
    settings("not UTF-8", HALF.encode() + b"# caf\xe9\n", refused=r"a\.yaml, line 3: byte 0xe9 is no UTF-8"),
    settings("lines of Windows", HALF.replace("\n", "\r\n"), works=0.5),
    settings("tabs", "model:\n\twidth: 0.5\n", refused=r"a\.yaml:2 is not valid YAML: .*cannot start any token"),
    settings(
        "a date that is none",
        "run:\n  name: 2026-13-45\n",
        refused=r"a\.yaml holds a value that YAML cannot read \(month must be in 1\.\.12\): put quotes",
    ),
    settings(
        "a tag without its value", "run:\n  name: !!int x\n", refused=r"a\.yaml holds a value that YAML cannot read"
    ),
    settings(
        "a tag of Python",
        "run: !!python/object/apply:os.system [ls]\n",
        refused=r"a\.yaml:1 is not valid YAML: could not determine a constructor",
    ),
    settings(
        "a section in itself", "model: &a {b: *a}\n", refused=r"a\.yaml is nested too deeply, or refers to itself"
    ),
    settings("5,000 lists in each other", f"model: {'[' * 5000}", refused=r"a\.yaml is nested too deeply"),
    settings(
        "references that grow",
        "\n".join(
            [
                "a: &a0 {k: 1}",
                *(f"b{i}: &a{i + 1} {{{', '.join(f'k{j}: *a{i}' for j in range(9))}}}" for i in range(9)),
            ]
        ),
        refused=r"a\.yaml has more than 10000 settings",
    ),
    settings("two documents", f"{HALF}---\n{HALF}", refused=r"a\.yaml:3 is not valid YAML: but found another document"),
    settings("empty", b"", works=1.0),
    settings("a list", "- 1\n", refused=r"a\.yaml holds a list"),
    settings(
        "the config is a folder",
        lambda root: width(HALF, name="../mine")(root),
        refused=r"mine is a folder, which holds a\.yaml: give the path",
    ),
    settings("the ending .yml", width(HALF, name="a.yml"), refused=r"a\.yml does not exist \(did you mean a\.yaml\?\)"),
    settings(
        "a preset under --config",
        named("small"),
        refused=r"--config=small is a preset, not what is expected here: use --preset small",
    ),
    settings("a config under --preset", named(None, "demo"), refused=r"preset=demo is a config, .*use --config demo"),
    settings(
        "another case of a config",
        named("VOC12"),
        refused=r"--config=VOC12 is not known \(did you mean voc12\?\): "
        r"expected one of coco14, demo, folder, voc12, or the path",
    ),
    settings(
        "a preset that is not beside the file, nor installed",
        "preset: smal\n",
        refused=r"mine/a\.yaml:1: preset=smal is not known \(did you mean small\?\): "
        r"expected one of default, paper, small, or the path of a file, for example .*mine/smal\.yaml$",
    ),
    settings(
        "a preset in an empty folder beside the file",
        width("preset: small\n", files={"mine/presets/own.yaml": HALF}),
        works=0.5 * 2,
    ),
    settings(
        "a preset in another folder", width("preset: ../shared/own.yaml\n", files={"shared/own.yaml": HALF}), works=0.5
    ),
    settings("a preset that is no text", "preset: [small]\n", refused=r"a\.yaml:1: preset=\['small'\] is not known"),
    stored("a byte order mark", b'\xef\xbb\xbf{"a": 1}', works={"a": 1}),
    stored("UTF-16", json.dumps({"a": "é"}, ensure_ascii=False).encode("utf-16"), works={"a": "é"}),
    stored("not UTF-8", b'{"a": "\xe9"}', refused=r"a\.json, line 1: byte 0xe9 is no UTF-8 .*or remove it and rerun"),
    stored("cut off", '{"a": 1', refused=r"a\.json is not valid JSON .*rerun what writes it"),
    stored("empty", b"", refused=r"a\.json is not valid JSON"),
    stored("zeros after a crash", bytes(64), refused=r"a\.json, line 1: it holds a NUL character"),
    stored("100,000 lists in each other", "[" * 100_000, refused=r"a\.json is not valid JSON"),
    stored("a number of 5,000 digits", "1" * 5000, refused=r"a\.json is not valid JSON"),
]
