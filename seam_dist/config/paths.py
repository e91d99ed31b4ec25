"""Paths as people write them, in settings and arguments: `~` is expanded, and what cannot be meant is refused.

Environment variables are not expanded: `$SCRATCH/runs` comes from quotes that kept the shell away from it, and would
make a folder called `$SCRATCH`. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_ODD = (
    (
        re.compile(r"\$([A-Za-z_]\w*|\{\w*\}?)"),
        "holds {0}, which is not expanded: write the path itself, or let the shell expand it",
    ),
    (re.compile(r"^[A-Za-z]:[\\/]|\\"), "is a path of Windows: write it with /, as this system sees it"),
    (re.compile(r"^\s|\s$"), "begins or ends with a space: remove it"),
    (re.compile(r"[\n\r\t]"), "holds a line break or a tab: remove it"),
    (re.compile(r"^~[^/]*"), "names a home folder ({0}) that this system does not know: write the path itself"),
)


class PathError(argparse.ArgumentTypeError, ValueError):
    """A text that cannot be the path that is meant; argparse and the settings both show its message."""


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that a user wrote, with `~` expanded; the type of path arguments.

    Raises PathError for an empty text, a URL, a path of Windows, and for `$NAME`, an unknown `~user` or spaces around
    it where nothing of that name exists.
    """
    return Path(expand_user(os.fspath(text)))


def expand_user(text: str) -> str:
    """Return the text of a path with `~` expanded and otherwise as it is; raises as `user_path` does."""
    if not text.strip():
        raise PathError(f"path {text!r} is empty: give a path (. is the working directory)")
    if "\0" in text:
        raise PathError(f"path {text!r} holds a NUL character: remove it")
    path = os.path.expanduser(text)
    url = _URL.match(path)
    if url and not _exists(path, url.end() - 1):
        if url[1].lower() == "file":
            raise PathError(f"path {text!r} is a URL: write the path alone, without file://")
        raise PathError(
            f"path {text!r} is remote, and remote files are not supported yet: mount them, or copy them to this machine"
        )
    for pattern, problem in _ODD:
        odd = pattern.search(path)
        if odd and not _exists(path, odd.end()):
            raise PathError(f"path {text!r} {problem.format(odd[0])}")
    return path


def _exists(path: str, end: int) -> bool:
    """Return whether there is something of the name that `path` has up to the component of character `end`."""
    return os.path.lexists(path[:end] + path[end:].partition("/")[0])


def _read_path(value: Any) -> Any:
    return user_path(value) if isinstance(value, str | os.PathLike) else value


def _read_name(value: Any) -> Any:
    return expand_user(value) if isinstance(value, str) else value


UserPath = Annotated[Path, BeforeValidator(_read_path)]
"""The type of path settings; a run's config.yaml has the expanded path."""
NameOrPath = Annotated[str, BeforeValidator(_read_name)]
"""The type of settings that are a path or one of a few names."""
