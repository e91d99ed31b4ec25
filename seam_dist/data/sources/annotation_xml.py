"""The names of the objects in an annotation of PASCAL VOC's form, in whatever encoding it was saved.

The parser, expat, knows few encodings, so the text is decoded first, as its byte order mark or its declaration says.
"""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from seam_dist.config.text_file import TextError, decode_text
from seam_dist.data.sources.base import SourceError

_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?\sencoding\s*=\s*["']([^"'>]*)["']""")
# What is written under these names is often the larger set, which decodes the smaller one alike.
_SUPERSET = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "cp950"}
_MYSQL = {"utf8mb4": "utf-8", "utf8mb3": "utf-8"}
_NO_ENCODING = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7")
_WITHOUT_MARK = {b"<\0?\0": "utf-16-le", b"\0<\0?": "utf-16-be"}


def object_names(path: Path) -> list[str]:
    """Return the class name of each object in the order of the file, empty for an image without any object.

    Raises SourceError when the file cannot be read, is no annotation, or holds an object without a name.
    """
    try:
        text = decode_xml(path.read_bytes(), str(path))
    except (TextError, OSError) as error:
        raise SourceError(str(error)) from None
    if "<!ENTITY" in text:
        what = f"{path} defines entities, which annotations do not need and which can be harmful"
        raise SourceError(f"{what}: remove them")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:  # ValueError: for a lone surrogate
        raise SourceError(f"{path} is not readable as XML ({error}): unpack it again") from None
    objects = [entry for entry in root if _local(entry) == "object"]
    if not objects:
        _check_empty(root, path)
    names = [next((e.text or "" for e in entry if _local(e) == "name"), "").strip() for entry in objects]
    if "" in names:
        raise SourceError(f"{path}: object {names.index('') + 1} of {len(names)} has no <name>: add it, or remove it")
    return names


def decode_xml(data: bytes, name: str) -> str:
    """Return the text of an XML file `name`; raise TextError when its encoding is unknown or does not fit."""
    declared = _DECLARED.match(data)
    encoding = _python_codec(declared[1].decode("latin-1"), name) if declared else "utf-8"
    return decode_text(data, name, encoding=_WITHOUT_MARK.get(data[:4], encoding))


def _python_codec(declared: str, name: str) -> str:
    try:
        codec = codecs.lookup(_MYSQL.get(declared.lower(), declared))
        if codec.name.startswith(("utf-16", "utf-32")):
            return "utf-8"  # the declaration was read byte by byte, so it is wrong: programs write it from habit
        if codec.name.replace("_", "-") in _NO_ENCODING:
            raise LookupError
        b"<".decode(codec.name)  # refuses codecs of Python that are none of text
    except (LookupError, ValueError):
        raise TextError(
            f"{name}, line 1: the declared encoding {declared!r} is not known: save the file as UTF-8 and declare "
            'encoding="UTF-8"'
        ) from None
    return _SUPERSET.get(codec.name, codec.name)


def _check_empty(root: ElementTree.Element, path: Path) -> None:
    """Raise SourceError when a file that has no object where objects belong is not an annotation of an empty image."""
    if _local(root).lower() != "annotation":
        raise SourceError(f"{path} begins with <{_local(root)}>, expected <annotation>: unpack it again")
    if any(_local(entry).lower() in ("object", "objects") for entry in root.iter()):
        raise SourceError(f"{path} has objects, but not as <object> directly in <annotation>: write them there")


def _local(element: ElementTree.Element) -> str:
    """Return the name of an element without its namespace."""
    return str(element.tag).rpartition("}")[2]
