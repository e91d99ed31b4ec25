"""Names that people write for images, classes and splits, matched with those that exist.

A name means the one that is spelled the same, else the only one that differs from it in nothing but case, Unicode form,
surplus spaces and invisible characters. A name that could mean several means none.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from seam_dist.config.findings import Findings
from seam_dist.config.phrases import first_of
from seam_dist.data.images import IMAGE_SUFFIXES

_BLANK = r"[\s\u200b-\u200f\u2060\ufeff]+"  # zero-width characters and byte order marks are no spaces to Python
_OUTER_BLANK = re.compile(f"^{_BLANK}|{_BLANK}$")
_DESKTOP_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")
_SEPARATORS = re.compile(r"[\s,|/+&\[\]'\"]+")
_NO_CLASS = ("none", "empty", "nothing", "null", "nan", "no", "-")
_MASK_ENDING = re.compile(r"[-_ .]*(mask|masks|gt|label|labels|seg|segmentation|annotation|labelids|trainids)$")


def clean(text: str) -> str:
    """Return a text without spaces, invisible characters and byte order marks at its ends."""
    return _OUTER_BLANK.sub("", text)


def normal_form(name: str) -> str:
    """Return what is left of a name without case, Unicode form, invisible characters and surplus spaces."""
    if name.isascii():
        return " ".join(name.lower().split())
    return visible_form(unicodedata.normalize("NFKC", name).casefold())


def visible_form(name: str) -> str:
    """Return what a reader sees of a name: one Unicode form, single spaces, no invisible characters."""
    composed = unicodedata.normalize("NFKC", name)
    return " ".join("".join(c for c in composed if unicodedata.category(c) != "Cf").split())


def image_stem(name: str) -> str:
    """Return a file name without the suffix of an image format; another ending belongs to the name."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else name


def is_hidden(name: str) -> bool:
    """Return whether a file is one that desktops leave behind, such as `._a.jpg` or `Thumbs.db`."""
    return name.startswith(".") or name.lower() in _DESKTOP_FILES


def list_folder(folder: Path) -> list[str]:
    """Return the names in a folder in order, without hidden ones; empty when there is no such folder."""
    return sorted(path.name for path in folder.iterdir() if not is_hidden(path.name)) if folder.is_dir() else []


class Names:
    """Names that exist, to look up what people wrote."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._exact = frozenset(self.names)

    @cached_property
    def _by_form(self) -> dict[str, list[str]]:
        forms: dict[str, list[str]] = {}
        for name in self.names:
            forms.setdefault(normal_form(name), []).append(name)
        return forms

    def __contains__(self, name: str) -> bool:
        return name in self._exact

    def matches(self, written: str) -> Sequence[str]:
        """Return the names that may be meant: one for a match, several that differ in case or Unicode form, or none."""
        return [written] if written in self._exact else self._by_form.get(normal_form(written), [])

    def nearest(self, written: str) -> str | None:
        """Return the name that is most like the written one, None when none is; slow, so for messages alone."""
        near = difflib.get_close_matches(normal_form(written), self._by_form, n=1, cutoff=0.55)
        return self._by_form[near[0]][0] if near else None


class ImageNames(Names):
    """Names of image files, to look up names with a folder before them and without or with another suffix."""

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        for name in self.names:
            stems.setdefault(image_stem(normal_form(name)), []).append(name)
        return stems

    def matches(self, written: str) -> Sequence[str]:
        """Return the files that may be meant by the last part of a path, by the whole name first."""
        name = split_path(written)[-1]
        form = normal_form(name)
        return super().matches(name) or self._by_stem.get(form) or self._by_stem.get(image_stem(form), [])


def split_path(written: str) -> list[str]:
    """Return the folders and the name of a path in either notation, without `.`; at least one part."""
    return list(PurePosixPath(written.replace("\\", "/")).parts) or [""]


class ClassNames(Names):
    """The classes of a data set, to turn names into ids from 1; what is no class is kept for a finding."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self._ids = {name: index for index, name in enumerate(self.names, start=1)}
        self._unknown: list[tuple[str, str]] = []

    def ids(self, written: Iterable[str], *, where: str) -> tuple[int, ...] | None:
        """Return the ascending ids of the names, each once; None when one of them is no class."""
        chosen, num_unknown = set(), len(self._unknown)
        for name in written:
            if len(matched := self.matches(name)) == 1:
                chosen.add(self._ids[matched[0]])
            else:
                self._unknown.append((where, name))
        return tuple(sorted(chosen)) if len(self._unknown) == num_unknown else None

    def report_unknown(self, findings: Findings) -> None:
        """Add an error that says where the first name stands that is no class, and what it may mean."""
        if not self._unknown:
            return
        where, name = self._unknown[0]
        others = list(dict.fromkeys(repr(other) for _, other in self._unknown if other != name))
        also = f"; unknown as well: {first_of(others)}" if others else ""
        text = f"{where}: class {name!r} is not one of the {len(self.names)} classes: {self._meaning(name)}{also}"
        findings.error("unknown-class", text, count=len(self._unknown))

    def _meaning(self, name: str) -> str:
        form = normal_form(name)
        parts = [part for part in _SEPARATORS.split(name) if part]
        if len(matched := self.matches(name)) > 1:
            return f"it may be {' or '.join(map(repr, matched))}: write it exactly so"
        if parts and parts != [name] and all(self.matches(part) for part in parts):
            return f"write {';'.join(parts)}, names with `;` between them and nothing around"
        if form.strip("_") == "background":
            return "the background is part of every image, so leave it out"
        if form in _NO_CLASS:
            return "an image without any object has no class name at all, so leave it empty"
        if name.isdecimal():
            return f"write names instead of numbers, such as {self.names[0]!r}"
        near = self.nearest(name)
        return f"did you mean {near!r}?" if near else f"expected one of {first_of(self.names, 10)}"


def likely_mask(stem: str, names: Iterable[str]) -> str | None:
    """Return the file that is probably the mask of the image `stem` under another name, such as `STEM_mask.PNG`."""
    form = normal_form(stem)
    for name in names:
        other = image_stem(normal_form(name))
        if other == form or _MASK_ENDING.sub("", other) == form:
            return name
    return None
