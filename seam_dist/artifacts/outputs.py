"""Files that commands write into folders which the user names: nothing there is overwritten but what they wrote.

A journal in the folder, `.seam-dist-outputs.jsonl`, has a line for each file: name below the folder, size, time and
SHA-256. The line is written before the file appears under its name, so a process that is killed leaves no file that the
next one takes for the user's. What is not in the journal, or is no longer as it says, belongs to the user.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from seam_dist.artifacts.atomic import TEMPORARY, atomic_file
from seam_dist.artifacts.provenance import sha256_file

JOURNAL = ".seam-dist-outputs.jsonl"

_NUM_SHOWN = 3
_ABANDONED_S = 3600  # a temporary file this old belongs to no process that still writes it


class OutputError(ValueError):
    """An output that would replace a file of the user's; the message names it and the remedy."""


class _Written(NamedTuple):
    """A file as it was written."""

    size: int
    mtime_ns: int
    sha256: str


class OutputFolder:
    """The outputs of commands in one folder of the user's, which need not be there yet.

    Several processes may write into one folder at a time, each under names of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._journal = self.path / JOURNAL
        self._known: dict[str, list[_Written]] = {}
        self._inode, self._offset = 0, 0

    def is_own(self, name: str) -> bool:
        """Return whether the file `name` is there as a command wrote it."""
        self._refresh()
        return self._is_known(name)

    def own_names(self) -> list[str]:
        """Return the names of the files that are there as commands wrote them."""
        self._refresh()
        return [name for name in self._known if self._is_known(name)]

    def check(self, names: Iterable[str], *, remedy: str = "") -> None:
        """Raise OutputError, with count and first names, when any of the files cannot be written without a loss.

        `remedy` is what can be done beside moving them away, such as `give another --out`.
        """
        if not self.path.is_dir():
            if os.path.lexists(self.path):
                advice = remedy or "move it away"
                raise OutputError(f"{printable(self.path)} is no folder, so nothing can be written into it: {advice}")
            return
        self._refresh()
        reasons = dict.fromkeys(filter(None, map(self._obstacle, names)))
        if reasons:
            first = ", ".join(list(reasons)[:_NUM_SHOWN]) + (", ..." if len(reasons) > _NUM_SHOWN else "")
            number = "1 file is" if len(reasons) == 1 else f"{len(reasons)} files are"
            advice = " or ".join(filter(None, (f"move {'it' if len(reasons) == 1 else 'them'} away", remedy)))
            raise OutputError(f"{number} in the way of outputs and never overwritten: {first}: {advice}")

    @contextmanager
    def file(self, name: str, *, remedy: str = "") -> Iterator[Path]:
        """Yield a temporary path that becomes the file `name`, whole or not at all, as `atomic_file` does.

        Raises OutputError when that would replace a file of the user's, before and after the block.
        """
        self.check([name], remedy=remedy)

        def record(temporary: Path) -> None:
            self.check([name], remedy=remedy)
            self._append(name, temporary)

        with atomic_file(self.path / name, record) as temporary:
            yield temporary

    def write(self, name: str, data: bytes) -> None:
        """Write the file `name`, whole or not at all; raises as `file` does."""
        with self.file(name) as temporary:
            temporary.write_bytes(data)

    def remove_abandoned(self, names: Iterable[str]) -> None:
        """Remove temporary files of these outputs that killed processes left."""
        targets = {self.path / name for name in names}
        for folder in {target.parent for target in targets}:
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    match = TEMPORARY.fullmatch(entry.name)
                    is_ours = match and folder / match["name"] in targets and entry.is_file(follow_symlinks=False)
                    if is_ours and entry.stat().st_mtime < time.time() - _ABANDONED_S:
                        Path(entry.path).unlink(missing_ok=True)

    def _is_known(self, name: str) -> bool:
        """Return whether the file `name` is there as the journal, as far as it has been read, says."""
        all_written = self._known.get(name)
        if all_written is None:
            return False
        try:
            status = os.lstat(self.path / name)
        except (OSError, ValueError):
            return False
        if not stat.S_ISREG(status.st_mode):
            return False
        same_size = [written for written in all_written if written.size == status.st_size]
        if any(written.mtime_ns == status.st_mtime_ns for written in same_size):
            return True
        # Copies and file systems with coarse times change the time alone.
        return bool(same_size) and sha256_file(self.path / name) in {written.sha256 for written in same_size}

    def _obstacle(self, name: str) -> str | None:
        """Return the path that keeps `name` from being written, and why."""
        path = self.path / name
        for parent in list(path.parents)[: len(Path(name).parts) - 1]:
            if os.path.lexists(parent) and not parent.is_dir():
                return f"{printable(parent)} (a file where a folder is needed)"
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(mode):
            return f"{printable(path)} (a link)"
        if stat.S_ISDIR(mode):
            return f"{printable(path)} (a folder)"
        if self._is_known(name):
            return None
        reason = "changed since it was written" if name in self._known else "not written"
        return f"{printable(path)} ({reason} by seam-dist)"

    def _refresh(self) -> None:
        """Read the lines that the journal has got since the last call."""
        try:
            file = open(self._journal, "rb")  # noqa: SIM115
        except (FileNotFoundError, NotADirectoryError):
            self._known, self._inode, self._offset = {}, 0, 0
            return
        with file:
            inode, size = (status := os.fstat(file.fileno())).st_ino, status.st_size
            if inode != self._inode or size < self._offset:
                self._known, self._inode, self._offset = {}, inode, 0
            if size == self._offset:
                return
            file.seek(self._offset)
            # A last line without its end is still being written, or was cut.
            whole = file.read().rpartition(b"\n")[0]
        for line in whole.split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry: dict[str, Any] = json.loads(line)
                written = _Written(int(entry["size"]), int(entry["mtime_ns"]), str(entry["sha256"]))
                self._known.setdefault(str(entry["name"]), []).append(written)
        self._offset += len(whole) + 1 if whole else 0

    def _append(self, name: str, temporary: Path) -> None:
        """Add the line of a file that is about to be renamed to `name`."""
        status = temporary.stat()
        written = _Written(status.st_size, status.st_mtime_ns, sha256_file(temporary))
        line = json.dumps({"name": name, **written._asdict()}).encode() + b"\n"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self._journal, flags, 0o666), "ab") as file:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            cut = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write(b"\n" * cut + line)
            file.flush()
            os.fsync(file.fileno())


@lru_cache(maxsize=64)
def output_folder(path: Path) -> OutputFolder:
    """Return the one object of a folder in this process, so that its journal is read once for many files."""
    return OutputFolder(path)


def existing_parent(path: Path) -> Path:
    """Return the path itself or the nearest path above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists() or place.is_symlink())


def why_not_writable(path: Path) -> str | None:
    """Return why this process cannot create or fill a folder, or None."""
    try:
        place = existing_parent(path)
    except OSError as error:
        return f"{error.strerror}"
    if not place.is_dir():
        return f"{printable(place)} is a file" if place.is_file() else f"{printable(place)} is no folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{printable(place)} gives no permission to write"


def printable(path: Path | str) -> str:
    """Return a path for messages: on one line, bytes of it that are no UTF-8 as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(path))
