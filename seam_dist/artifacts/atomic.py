"""Files that appear whole or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seam_dist.config.text_file import TextError, read_text

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)
"""What `atomic_file` calls a temporary file of `name`, in full."""

_LONGEST_NAME = 255  # bytes; what Linux file systems take


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, so that it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path, before_rename: Callable[[Path], object] = lambda temporary: None) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, remove it on any error.

    The folder is made when it is missing. `before_rename` is called with the whole temporary file; an exception in it
    leaves `path` as it was. Raises OSError as the file system gives it (a full disk, for example).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name near the limit leaves no room for more.
    shown = path.name if len(os.fsencode(path.name)) + 14 <= _LONGEST_NAME else path.name[:50]
    handle, name = tempfile.mkstemp(prefix=f".{shown}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        fsync(temporary)
        # mkstemp makes files private; outputs are shared like any other file of the user.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        before_rename(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what `atomic_file` left below a folder in processes that were killed; nobody may be writing there."""
    for path in Path(folder).rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write bytes, or text as UTF-8, to `path`, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all; NaN and infinity are refused."""
    atomic_write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, the header first, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    atomic_write(path, text.getvalue())


def read_json(path: Path) -> Any:
    """Read a JSON file; raise ValueError with the path when it is not JSON."""
    try:
        return json.loads(read_text(path))
    except TextError as error:
        raise ValueError(f"{error}, or remove it and rerun what writes it") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        raise ValueError(f"{path} is not valid JSON ({error}): remove it and rerun what writes it") from None
