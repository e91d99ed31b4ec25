"""Which files of a folder are images to work on, and what is said of the others.

Folders within it are entered, links to folders are not. Hidden files and folders and those that file managers leave
behind (`._a.jpg`, `.DS_Store`, `Thumbs.db`, `__MACOSX`) are no images. Files that a command wrote, as the journals of
artifacts/outputs.py say, are no inputs.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seam_dist.artifacts.outputs import JOURNAL, OutputFolder, printable
from seam_dist.config.phrases import count_of, first_of
from seam_dist.data.images import IMAGE_SUFFIXES
from seam_dist.data.sources.names import is_hidden


@dataclass
class ImageFolder:
    """The images of a folder by their name in it, `sub/folder/stem`, in order, and what is left out of it."""

    images: dict[str, Path] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    """Files of other formats by suffix."""
    num_outputs: int = 0
    """Images that commands wrote."""
    num_links: int = 0
    """Links to folders."""
    unreadable: list[str] = field(default_factory=list)
    """Folders that could not be listed, with the reason."""

    def notes(self) -> list[str]:
        """Return a line for each sort of file that is left out."""
        lines = []
        if self.skipped:
            sorts = [f"{count} {suffix}" for suffix, count in self.skipped.most_common()]
            lines.append(f"{count_of(self.skipped.total(), 'file')} skipped: {first_of(sorts)}")
        if self.num_outputs:
            lines.append(f"{count_of(self.num_outputs, 'image')} that seam-dist wrote left out")
        if self.num_links:
            lines.append(f"{count_of(self.num_links, 'link')} to folders not followed: give the folder itself")
        return lines


def list_images(
    source: Path,
    option: str,
    *,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    outputs: Sequence[OutputFolder] = (),
    with_outputs: bool = False,
    without: Path | None = None,
) -> ImageFolder:
    """Return the images in a folder; a file is taken by its stem, whatever its suffix.

    What commands wrote into `outputs`, which need not lie in `source`, and into folders in it is left out, unless
    `with_outputs` is set; so is the folder `without`. What ends in one of `suffixes` is listed even if it is a broken
    link or a pipe, so that reading it names it. Raises ValueError, which begins with `option`, when `source` is missing
    or no folder or file, and when two images have one name.
    """
    name = f"{option} {printable(source)}"
    if source.is_file():
        return ImageFolder({source.stem: source})
    if not source.is_dir():
        missing = "a link to nothing" if source.is_symlink() else "not there"
        what = "neither a folder nor a file" if source.exists() else missing
        raise ValueError(f"{name} is {what}: give a folder or an image")
    result = ImageFolder()
    writers = [_names_of(folder) for folder in outputs]
    closed = None if without is None else os.path.realpath(without)

    def note(error: OSError) -> None:
        result.unreadable.append(f"{printable(error.filename or source)}: {error.strerror or error}")

    def is_output(path: str) -> bool:
        return any(path.startswith(root) and path[len(root) :] in names for root, names in writers)

    paths: list[Path] = []
    for folder, subfolders, files in os.walk(source, onerror=note):
        if os.path.realpath(folder) == closed:
            subfolders.clear()
            continue
        if JOURNAL in files and not with_outputs:
            writers.append(_names_of(OutputFolder(Path(folder))))
        subfolders[:] = [sub for sub in subfolders if not is_hidden(sub)]
        result.num_links += sum(os.path.islink(os.path.join(folder, sub)) for sub in subfolders)
        root = os.path.join(os.path.realpath(folder), "")
        for file in files:
            if is_hidden(file):
                continue
            if is_output(root + file):
                result.num_outputs += Path(file).suffix.lower() in suffixes
            elif Path(file).suffix.lower() in suffixes:
                paths.append(Path(folder, file))
            else:
                result.skipped[printable(Path(file).suffix.lower()) or "without suffix"] += 1
    for path in sorted(paths):
        key = path.relative_to(source).with_suffix("").as_posix()
        if key in result.images:
            both = f"{printable(result.images[key])} and {printable(path)}"
            raise ValueError(f"{both} would both become {printable(key)}.png: rename or move one of them")
        result.images[key] = path
    return result


def check_readable(path: Path) -> None:
    """Raise OSError for what is no regular file; opening a pipe would wait for whoever writes into it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")


def _names_of(outputs: OutputFolder) -> tuple[str, set[str]]:
    return os.path.join(os.path.realpath(outputs.path), ""), set(outputs.own_names())
