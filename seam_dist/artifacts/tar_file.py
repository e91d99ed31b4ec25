"""The tars of this project, shards, CAMs and labels: written with stable bytes, read as untrusted input.

A tar is walked header by header before any of its data is read. The walk is stricter than a tar reader on purpose:
those skip damaged headers, end at a cut, follow sparse files that grow; and it takes a twentieth of tarfile's time.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from seam_dist.artifacts.atomic import atomic_file

BLOCK = tarfile.BLOCKSIZE
KEY = "[A-Za-z0-9_-]{1,80}"
"""The pattern of a sample's key, which begins the name of each of its members."""


class TarError(ValueError):
    """A tar that is cut or damaged; the message leaves naming the file to the caller."""


class MemberError(TarError):
    """A tar with a member that is not allowed in it."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a tar: name, first byte and length of its data."""

    name: str
    start: int
    length: int


def write_tar(path: Path, allowed: re.Pattern[str], members: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, data) members in the given order, whole or not at all; equal members give equal bytes.

    Raises MemberError for a name that does not match `allowed` or comes twice.
    """
    seen: set[str] = set()
    with atomic_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            if not allowed.fullmatch(name) or name in seen:
                raise MemberError(f"member {name!r} is there twice or not allowed: use distinct keys of {KEY}")
            seen.add(name)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def walk_tar(path: Path, allowed: re.Pattern[str]) -> list[Member]:
    """Return the members of a tar from its headers alone.

    Raises TarError for a cut or damaged tar, MemberError for all but regular files whose names match `allowed`, and
    OSError for a file that cannot be read.
    """
    members: list[Member] = []
    position = 0
    with open(path, "rb", buffering=0) as file:
        while True:
            file.seek(position)
            block = file.read(BLOCK)
            if block == bytes(BLOCK) and file.read(BLOCK) == bytes(BLOCK):
                return members
            if len(block) < BLOCK or block == bytes(BLOCK):
                size = file.seek(0, io.SEEK_END)
                raise TarError(f"it ends after {size} bytes without the end mark of a tar, so it is cut")
            name, file_type, length = _parse_header(block, position)
            if file_type != tarfile.REGTYPE or not allowed.fullmatch(name):
                raise MemberError(f"member {name!r} (type {file_type!r}) is not allowed")
            members.append(Member(name, position + BLOCK, length))
            position += BLOCK + -(-length // BLOCK) * BLOCK


def read_member(file: io.BufferedReader, member: Member) -> bytes:
    """Return the data of a member; TarError when the file has become shorter than its headers say."""
    file.seek(member.start)
    data = file.read(member.length)
    if len(data) != member.length:
        raise TarError("it became shorter while it was read")
    return data


def read_tar(path: Path, allowed: re.Pattern[str]) -> Iterator[tuple[re.Match[str], bytes]]:
    """Yield the match of `allowed` and the data of each member of a tar, in stored order; raises as `walk_tar` does.

    Members of one name are refused, too.
    """
    members = walk_tar(path, allowed)
    seen: set[str] = set()
    with open(path, "rb") as file:
        for member in members:
            match = allowed.fullmatch(member.name)
            if match is None or member.name in seen:
                raise TarError(f"member {member.name!r} is there twice")
            seen.add(member.name)
            yield match, read_member(file, member)


@contextmanager
def naming_tar(path: Path, content: str, remedy: str) -> Iterator[None]:
    """Turn any error in reading a tar into a ValueError that names the file, its `content` and the `remedy`."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a whole tar of {content} ({error}): {remedy}") from None


def _parse_header(block: bytes, position: int) -> tuple[str, bytes, int]:
    """Return name, type and size from a ustar header."""
    try:
        stated = int(block[148:156].strip(b" \0"), 8)
        length = int(block[124:136].strip(b" \0"), 8)
        name = block[:100].rstrip(b"\0").decode("ascii")
    except ValueError:
        reason = "a number or the name cannot be read"
    else:
        if sum(block) - sum(block[148:156]) + 8 * ord(" ") != stated:
            reason = "its checksum is wrong"
        elif length < 0 or any(block[345:500]):
            reason = "it has a name prefix or a negative size"
        else:
            return name, block[156:157], length
    raise TarError(f"the tar header at byte {position} is damaged ({reason})")
