"""What the bytes of a file are, by their first bytes: one of the image formats that are read, or the name of another.

People save web pages as .jpg, forget to fetch the files behind Git LFS pointers and rename HEIC photos. An error that
names what is really there says what to do.
"""

from __future__ import annotations

import re

KEPT_FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats, by Pillow's names, whose bytes are stored as they are."""
CONVERTED_FORMATS = ("TIFF", "BMP", "GIF", "PPM", "JPEG2000")
"""Formats that are stored as PNG."""

_CONVERT = "convert it to JPEG or PNG"
_EXPORT = "export the picture in it as JPEG or PNG"
_NO_IMAGE = "replace it by the image itself, or remove it"
_AGAIN = "download the image again"
_LFS, _ANNEX = (f"fetch the file itself with `git {tool}`" for tool in ("lfs pull", "annex get"))
_TOPICS = {_NO_IMAGE: "text", _AGAIN: "text", _LFS: "pointer", _ANNEX: "pointer"}

# Some of them are TIFF, whose first picture is a thumbnail.
_CAMERA_RAW = rb"....ftypcrx|II\*\0.{4}CR|FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb"
_HTML = rb"(?i)\s*(?:<[?!].*?>\s*)?<(?:!doctype html|html|head|body)\b"
# Pattern at the start of the file -> format that is read.
_READ: tuple[tuple[bytes, str], ...] = (
    (rb"RIFF....WEBP", "WEBP"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"P[1-6yfF][\s#]", "PPM"),
    (rb"\0\0\0\x0cjP {2}\r\n\x87\n|\xff\x4f\xff\x51", "JPEG2000"),
)
# Pattern at the start of the file -> what it is, remedy. The first that fits counts.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (rb"....ftyp(?:hei|hev|mif1|msf1)", "a HEIC or HEIF photo", _CONVERT),
    (rb"....ftypavi[fs]", "an AVIF image", _CONVERT),
    (_CAMERA_RAW, "a camera raw file", _EXPORT),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI |\0\0\x01\xba", "a video", "extract its frames as JPEG or PNG"),
    (rb"%PDF", "a PDF document", _EXPORT),
    (rb"8BPS", "a Photoshop file", _EXPORT),
    (rb"gimp xcf", "a GIMP file", _EXPORT),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file", _EXPORT),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image", _CONVERT),
    (rb"II\xbc\x01", "a JPEG XR image", _CONVERT),
    (rb"\0\0[\x01\x02]\0[^\0]", "an icon", _CONVERT),
    (rb"v/1\x01|#\?RADIANCE|#\?RGBE", "an OpenEXR or Radiance image", _CONVERT),
    (rb"SIMPLE  =", "a FITS image", _CONVERT),
    (rb".{128}DICM", "a DICOM image", _CONVERT),
    (rb"DDS |qoif", "a DDS or QOI image", _CONVERT),
    (rb"\x93NUMPY", "a NumPy array", _CONVERT),
    (rb"\x89HDF|MATLAB 5", "an HDF5 or MATLAB file", _EXPORT),
    (rb"PK[\x03\x05]|\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ", "an archive or compressed file", "unpack it"),
    (rb"\0\x05\x16\x07", "an AppleDouble file, which macOS adds beside the real one", "remove it"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the image", _LFS),
    (rb"(?:\.\./)*(?:\.git)?/annex/objects/", "a git-annex pointer, not the image", _ANNEX),
    (_HTML, "an HTML page, probably an error page of a download", _AGAIN),
    (rb"(?i)\s*(?=<[?!s]).*?<svg\b", "an SVG drawing", _CONVERT),
    (rb"\s*<\?xml", "an XML file", _NO_IMAGE),
    (rb"\s*[{\[][\s\"{\[\]}0-9-]", "JSON, probably an error answer of a server", _AGAIN),
)
_TEXT = re.compile(r"[^\x00-\x08\x0e-\x1f\x7f]*")
_SAMPLE = 4096


def format_of(data: bytes) -> str | None:
    """Return Pillow's name of the format, one of KEPT_FORMATS and CONVERTED_FORMATS, or None for other bytes."""
    if data.startswith((b"\xff\xd8", b"\x89PNG")):  # nearly all, by the short way
        return "JPEG" if data[0] == 0xFF else "PNG"
    if re.match(_CAMERA_RAW, data[:_SAMPLE], re.DOTALL):
        return None
    return next((name for pattern, name in _READ if re.match(pattern, data[:_SAMPLE], re.DOTALL)), None)


def describe_bytes(data: bytes, expected: str) -> tuple[str, str]:
    """Return the sort of fault of bytes that are not of the `expected` formats, and the text on what they are."""
    if not data:
        return "empty", f"it is empty (0 bytes), expected {expected}: copy or download it again"
    if (format := format_of(data)) is not None:
        return "format", f"it is a {format} file, expected {expected}: convert it"
    start = data[:_SAMPLE].removeprefix(b"\xef\xbb\xbf")
    for pattern, what, remedy in _OTHERS:
        if re.match(pattern, start, re.DOTALL):
            return _TOPICS.get(remedy, "format"), f"it is {what}, expected {expected}: {remedy}"
    if not data.strip(b"\0"):
        return "empty", f"all its {len(data)} bytes are zero, expected {expected}: copy or download it again"
    text = start.decode("utf-8", "ignore")
    # A character may be cut at the end of the sample.
    if len(text.encode()) > len(start) - 4 and _TEXT.fullmatch(text):
        line = text.strip().partition("\n")[0][:40]
        return "text", f"it is text that begins with {line!r}, expected {expected}: {_NO_IMAGE}"
    shown = data[:8].hex(" ")
    text = f"its {len(data)} bytes begin with {shown}, which is no known image format, expected {expected}"
    return "format", f"{text}: {_CONVERT}"
