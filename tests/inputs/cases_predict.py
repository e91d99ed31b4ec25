"""Folders, files and options that people give to `seam-dist predict`."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from case import Case, Outcome
from PIL import Image
from predict_kit import files_in, picture, save, trained_run

from seam_dist.commands import predict

A = ["a.png", "a_overlay.jpg"]
AB = [*A, "b.png", "b_overlay.jpg"]


def command(*options: str) -> tuple[int, list[str]]:
    """Run the command; return its exit code and warnings, and raise ValueError for what it refuses."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = predict.main(["--weights", str(trained_run()), "--device", "cpu", "--scales", "1", *options])
        except SystemExit as stop:
            code = int(stop.code or 0)
    assert "Traceback" not in said.getvalue()
    if code == 2:
        raise ValueError(said.getvalue())
    return code, [line for line in said.getvalue().splitlines() if "warning: " in line]


def predicted(make: Callable[[Path], object], images: str, out: str, *options: str) -> Callable[[Path], Outcome]:
    """Make an input and run the command; the value is the exit code, unless it is 0, and the files in the output."""

    def run(folder: Path) -> Outcome:
        make(folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        try:
            code, warnings = command("--images", images, "--out", out, *options)
        except ValueError:
            after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            assert after == before  # what is refused changes nothing
            raise
        files = files_in(Path(out).expanduser())
        return Outcome([code, *files] if code else files, warnings)

    return run


def each(*makes: Callable[[Path], object]) -> Callable[[Path], object]:
    """Do several things to a folder."""
    return lambda folder: [make(folder) for make in makes]


def image(name: str, height: int = 8, width: int = 8, format: str | None = None) -> Callable[[Path], object]:
    """Save an image."""
    return lambda folder: save(folder / name, picture(height, width), format)


def raw_image(name: bytes) -> Callable[[Path], object]:
    """Save a PNG of any name."""
    return lambda folder: save(folder / os.fsdecode(name), format="PNG")


def text(name: str, content: str = "mine") -> Callable[[Path], object]:
    """Write a file that is no image."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return make


def mask(name: str, value: int, side: int = 8) -> Callable[[Path], object]:
    """Save a mask of one value."""
    return lambda folder: save(folder / name, Image.fromarray(np.full((side, side), value, np.uint8)))


def link(name: str, to: str) -> Callable[[Path], object]:
    """Make a symbolic link."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(to)

    return make


def pipe(name: str) -> Callable[[Path], object]:
    """Make a pipe that nobody writes into."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / name)

    return make


def before(images: str, out: str) -> Callable[[Path], object]:
    """Run the command once."""
    return lambda folder: command("--images", images, "--out", out)


def under_home(folder: Path) -> Outcome:
    with mock.patch.dict(os.environ, HOME=str(folder / "home")):
        return predicted(image("home/in/a.png"), "~/in", "~/out")(folder)


def works(fault: str, value: list[object], *run: Callable[[Path], object] | str) -> Case:
    return Case(reader="predict", fault=fault, run=predicted(*run), works=value)  # type: ignore[arg-type]


def warned(fault: str, value: list[object], warning: str, *run: Callable[[Path], object] | str) -> Case:
    return Case(reader="predict", fault=fault, run=predicted(*run), works=value, warns=warning)  # type: ignore[arg-type]


def refused(fault: str, message: str, *run: Callable[[Path], object] | str) -> Case:
    return Case(reader="predict", fault=fault, run=predicted(*run), refused=message)  # type: ignore[arg-type]


def option(fault: str, message: str, *options: str) -> Case:
    return refused(fault, message, image("in/a.png"), "in", "out", *options)


LONG = "n" * 244  # with .jpg 248 bytes, its labels as many, its overlay 256
TREE = image("in/a.png")

_WORKS = [
    works("suffix in capitals", A, image("in/a.JPG", format="JPEG"), "in", "out"),
    works("one file without a suffix", A, image("a", format="PNG"), "a", "out"),
    works("folder called x.jpg", ["x.jpg/a.png", "x.jpg/a_overlay.jpg"], image("in/x.jpg/a.png"), "in", "out"),
    works("file of a Mac's other fork", A, each(TREE, text("in/._a.jpg")), "in", "out"),
    works(
        "files of file managers",
        A,
        each(
            TREE, text("in/Thumbs.db"), text("in/.DS_Store"), image("in/.cache/b.png"), image("in/__MACOSX/c.png"),
            text("in/desktop.ini"),
        ),
        "in", "out",
    ),
    works("spaces and a line end in a name", ["a \n b.png"], image("in/a \n b.jpg"), "in", "out", "--no-overlay"),
    works(
        "name that is no UTF-8", ["caf\udce9.png", "caf\udce9_overlay.jpg"], raw_image(b"in/caf\xe9.png"), "in", "out"
    ),
    works("names that differ in case", ["A.png", "a.png"], each(TREE, image("in/A.png")), "in", "out", "--no-overlay"),
    works("name with dots", ["a.b.c.png"], image("in/a.b.c.png"), "in", "out", "--no-overlay"),
    works(
        "image called like an overlay",
        ["a.png", "a_overlay.jpg", "a_overlay.png", "a_overlay_overlay.jpg"],
        each(TREE, image("in/a_overlay.jpg")), "in", "out",
    ),
    works("image of one pixel", A, image("in/a.png", 1, 1), "in", "out"),
    works("output in the images' folder", A, TREE, "in", "in/out"),
    works("images in the output's folder", [*A, "in/a.png"], image("out/in/a.png"), "out/in", "out"),
    works("output beside, through ..", A, TREE, "in/../in", "in/../out"),
    works(
        "output is a link to a folder", A,
        each(TREE, text("disk/x"), lambda f: (f / "disk/x").unlink(), link("out", "disk")), "in", "out",
    ),
    works("second run", A, each(TREE, before("in", "out")), "in", "out"),
    Case(reader="predict", fault="~ in paths", run=under_home, works=A),
    works("mask as one file", A, each(TREE, mask("m/a.png", 0)), "in/a.png", "out", "--masks", "m/a.png"),
    works("long name without overlay", [f"{LONG}.png"], image(f"in/{LONG}.png"), "in", "out", "--no-overlay"),
    works("masks in the images' folder", A, each(TREE, mask("in/m/a.png", 1)), "in", "out", "--masks", "in/m"),
]  # fmt: skip

_WARNED = [
    warned(
        "other formats", A, r"3 files skipped: 2 \.txt, 1 \.heic$",
        each(TREE, text("in/x.txt"), text("in/d/y.TXT"), text("in/z.heic")), "in", "out",
    ),
    warned(
        "file without a suffix in a folder", A, "1 file skipped: 1 without suffix",
        each(TREE, text("in/b")), "in", "out",
    ),
    warned(
        "link to a folder", A, "1 link to folders not followed",
        each(TREE, image("e/b.png"), link("in/e", "../e")), "in", "out",
    ),
    warned(
        "link to nothing", [1, *A], "in/b.png is left out: No such file",
        each(TREE, link("in/b.png", "no")), "in", "out",
    ),
    warned(
        "pipe called x.jpg", [1, *A], "in/x.jpg is left out: it is no regular file",
        each(TREE, pipe("in/x.jpg")), "in", "out",
    ),
    warned("empty file", [1, *A], r"in/b.jpg is left out: .*0 bytes", each(TREE, text("in/b.jpg", "")), "in", "out"),
    warned("text called b.png", [1, *A], "in/b.png is left out", each(TREE, text("in/b.png")), "in", "out"),
    warned(
        "image of too many pixels", [1, *A], "in/b.png is left out: .*30 x 20 pixels",
        each(TREE, image("in/b.png", 20, 30)), "in", "out", "--max-pixels", "500",
    ),
    warned(
        "long name", [1, *A], "left out: the name of its output has 256 bytes",
        each(TREE, image(f"in/{LONG}.png")), "in", "out",
    ),
    warned(
        "second run with the output among the images", A, "2 images that seam-dist wrote left out",
        each(TREE, before("in", "in/out")), "in", "in/out",
    ),
    warned(
        "output of another run among the images", A, "2 images that seam-dist wrote left out",
        each(TREE, before("in", "in/first")), "in", "in/out",
    ),
    warned(
        "mask that is no image", [1, *AB], "m/a.png is left out of the scores: .",
        each(TREE, image("in/b.png"), text("m/a.png"), mask("m/b.png", 0)), "in", "out", "--masks", "m",
    ),
    warned(
        "mask of another size", [1, *A], r"m/a.png is left out of the scores: the labels have \(8, 8\) pixels",
        each(TREE, mask("m/a.png", 0, 9)), "in", "out", "--masks", "m",
    ),
    warned(
        "mask with a value above the classes", [1, *A], "m/a.png is left out of the scores: it holds the value 4",
        each(TREE, mask("m/a.png", 4)), "in", "out", "--masks", "m",
    ),
    warned(
        "mask that is a pipe", [1, *A], "m/a.png is left out of the scores: it is no regular file",
        each(TREE, pipe("m/a.png")), "in", "out", "--masks", "m",
    ),
    warned(
        "image without a mask", AB, "1 image has no mask, the first b",
        each(TREE, image("in/b.png"), mask("m/a.png", 0)), "in", "out", "--masks", "m",
    ),
    warned(
        "mask without an image", A, "1 mask has no image, the first b",
        each(TREE, mask("m/a.png", 0), mask("m/b.png", 0)), "in", "out", "--masks", "m",
    ),
]  # fmt: skip

_REFUSED = [
    refused(
        "user's file where labels go", r"1 file is in the way .*out/a.png \(not written",
        each(TREE, text("out/a.png")), "in", "out",
    ),
    refused(
        "user's file where an overlay goes", r"out/a_overlay.jpg \(not written",
        each(TREE, text("out/a_overlay.jpg")), "in", "out",
    ),
    refused(
        "scans beside the images", r"in/scans lies in --images and holds 1 image .*in/scans/b.png",
        each(TREE, image("in/scans/b.png")), "in", "in/scans",
    ),
    refused(
        "labels that the user corrected", r"out/a.png \(changed since it was written",
        each(TREE, before("in", "out"), mask("out/a.png", 1)), "in", "out",
    ),
    refused(
        "four files of the user's",
        "4 files are in the way .*out/a.png .*, out/a_overlay.jpg .*, out/b.png .*, ...: move them",
        each(TREE, image("in/b.png"), *(text(f"out/{name}") for name in AB)), "in", "out",
    ),
    refused(
        "image that the labels of another would replace", r"out/in/a.png \(not written",
        each(image("out/in/a.png"), image("out/in/in/a.jpg")), "out/in", "out",
    ),
    refused(
        "link to a user's file", r"out/a.png \(a link\)",
        each(TREE, text("mine"), link("out/a.png", "../mine")), "in", "out",
    ),
    refused(
        "link to nothing where labels go", r"out/a.png \(a link\)",
        each(TREE, link("out/a.png", "no")), "in", "out",
    ),
    refused("folder where labels go", r"out/a.png \(a folder\)", each(TREE, text("out/a.png/x")), "in", "out"),
    refused(
        "file where a folder is needed", r"out/d \(a file where a folder",
        each(image("in/d/a.png"), text("out/d")), "in", "out",
    ),
    refused("output is a file", "out is no folder", each(TREE, text("out")), "in", "out"),
    refused(
        "journal of another program", r"out/a.png \(not written",
        each(TREE, text("out/a.png"), text("out/.seam-dist-outputs.jsonl", '{"name": "a.png"}\n[]\n\n\0x')),
        "in", "out",
    ),
    refused("output is the images' folder", "in is the folder of the images", TREE, "in", "in"),
    refused("output is the images' folder through ..", "is the folder of the images", TREE, "in", "in/../in"),
    refused(
        "output is a link to the images' folder", "is the folder of the images",
        each(TREE, link("out", "in")), "in", "out",
    ),
    refused("output is the folder of one image", "is the folder of the images", TREE, "in/a.png", "in"),
    refused(
        "output is the masks' folder", "is the folder of --masks",
        each(TREE, mask("m/a.png", 0)), "in", "m", "--masks", "m",
    ),
    refused(
        "two images of one name", "a.jpg and in/a.png would both become a.png",
        each(TREE, image("in/a.jpg")), "in", "out",
    ),
    refused(
        "folder called like labels", "a.png would be the labels of one",
        each(image("in/a.jpg"), image("in/a.png/b.png")), "in", "out",
    ),
    refused("empty folder", "in holds no .jpg, .*it is empty", lambda folder: (folder / "in").mkdir(), "in", "out"),
    refused("folder of other formats", r"holds no .jpg.* \(1 file skipped: 1 .heic\)", text("in/a.heic"), "in", "out"),
    refused("missing folder", "--images no is not there", TREE, "no", "out"),
    refused("pipe as the image", "neither a folder nor a file", pipe("p.jpg"), "p.jpg", "out"),
    refused("link to nothing as the image", "is a link to nothing", link("p.jpg", "no"), "p.jpg", "out"),
    refused("missing folder of masks", "--masks no is not there", TREE, "in", "out", "--masks", "no"),
    refused(
        "masks of other images", "no mask of any image, expected a.png .*the first b.png",
        each(TREE, mask("m/b.png", 0)), "in", "out", "--masks", "m",
    ),
    option("CRF that does not run", "--crf-impl=torch was given without --crf", "--crf-impl", "torch"),
    option("size of no export", "--export-size was given without --export", "--export-size", "64", "64"),
    option("scale that is no number", r"--scales=\[nan\]: expected", "--scales", "nan"),
    option("scale of 0", r"--scales=\[0.0\]: expected", "--scales", "0"),
    option("negative scale", r"--scales=\[1.0, -1.0\]: expected", "--scales", "1", "-1"),
    option("scale that no memory holds", r"--scales=\[1000000000.0\]: expected at most 16", "--scales", "1e9"),
    option("infinite scale", r"--scales=\[inf\]: expected", "--scales", "inf"),
    option("scale in words", "argument --scales: .*'big'", "--scales", "big"),
    option("batch of 0", "argument --batch-size: '0' is no whole number from 1 on", "--batch-size", "0"),
    option("threads in words", "argument --threads: 'x' is no whole number from 1 on", "--threads", "x"),
    option("home of nobody", "argument --masks: .*names a home folder", "--masks", "~nobody-of-this-name/m"),
    option("empty path", "argument --masks: path '' is empty", "--masks", ""),
    refused(
        "export over a user's file", r"net.pt2 \(not written by",
        each(TREE, text("net.pt2")), "in", "out", "--export", "net.pt2",
    ),
    refused(
        "export to a folder", r"net.pt2 \(a folder\)",
        each(TREE, text("net.pt2/x")), "in", "out", "--export", "net.pt2",
    ),
]  # fmt: skip

CASES = _WORKS + _WARNED + _REFUSED
