"""Data sets of a few empty files: readers list them without opening an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from case import Outcome

from seam_dist.data.sources.base import Source
from seam_dist.data.sources.folder import FolderSource
from seam_dist.data.sources.voc import VOCSource

Run = Callable[[Path], Outcome]
CLASSES = "cat\ndog\nsofa\n"
HEADING = "image,split,classes\n"
TABLE = f"{HEADING}a.jpg,train,cat\nb.jpg,train,dog;sofa\n"
LABELS = {"a.jpg": (1,), "b.jpg": (2, 3)}
"""What TABLE says."""
HALF = "model:\n  width: 0.5\n"


def write(path: Path, content: str | bytes = b"") -> None:
    """Write a file and the folders above it, text as UTF-8 with its own line ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def listed(source: Source, split: str = "train") -> Outcome:
    """Image name -> class ids of a split, and the warnings; raises all errors."""
    listing = source.listing(split)
    listing.findings.raise_errors(ValueError)
    value = {record.source_id: record.classes for record in listing.records}
    assert len(value) == len(listing.records)
    return Outcome(value, [str(finding) for finding in listing.findings.warnings])


def folder_set(
    *,
    table: str | bytes = TABLE,
    classes: str | bytes = CLASSES,
    images: Iterable[str] = ("a.jpg", "b.jpg"),
    files: Mapping[str, str | bytes] | Iterable[str] = (),
) -> Run:
    """Make a plain folder with a train split and list it; `files` are more files by their paths."""

    def run(root: Path) -> Outcome:
        write(root / "classes.txt", classes)
        write(root / "labels.csv", table)
        (root / "images/train").mkdir(parents=True)
        for name in images:
            write(root / "images/train" / name)
        for name in files:
            write(root / name, files[name] if isinstance(files, Mapping) else b"")
        return listed(FolderSource(root))

    return run


def annotation(*names: str) -> str:
    """The XML of an image with objects of these classes."""
    return f"<annotation>{''.join(f'<object><name>{name}</name></object>' for name in names)}</annotation>"


def voc_set(
    *,
    listing: str | bytes = "2007_1\n2007_2\n",
    xml: str | bytes | None = None,
    images: Iterable[str] = ("2007_1.jpg", "2007_2.jpg"),
    files: Iterable[str] = (),
    without: Iterable[str] = (),
    place: str = "Segmentation/train",
    split: str = "train",
) -> Run:
    """Make a set in VOC's layout and list it; 2007_1 shows a cat or has `xml`, 2007_2 shows a dog and a sofa."""

    def run(root: Path) -> Outcome:
        write(root / f"ImageSets/{place}.txt", listing)
        (root / "JPEGImages").mkdir()
        for name in images:
            write(root / "JPEGImages" / name)
        write(root / "Annotations/2007_1.xml", annotation("cat") if xml is None else xml)
        write(root / "Annotations/2007_2.xml", annotation("dog", "sofa"))
        for name in files:
            write(root / name)
        for name in without:
            (root / name).unlink()
        return listed(VOCSource(root), split)

    return run
