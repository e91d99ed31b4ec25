"""PASCAL VOC's layout: lists of images, and annotations in all encodings."""

from __future__ import annotations

from typing import Any

from case import Case
from small_sets import Run, annotation, voc_set

LABELS = {"2007_1": (8,), "2007_2": (12, 18)}
CAT = annotation("cat")
BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


def image_list(fault: str, run: str | bytes | Run, **outcome: Any) -> Case:
    """A row by the content of the list, or by all that is made."""
    return Case("VOC list", fault, run if callable(run) else voc_set(listing=run), **outcome)


def xml(fault: str, run: str | bytes | Run, **outcome: Any) -> Case:
    """A row by the content of the annotation, or by all that is made."""
    return Case("VOC annotation", fault, run if callable(run) else voc_set(xml=run), **outcome)


def declared(encoding: str, text: str = CAT, *, codec: str | None = None) -> bytes:
    return f"<?xml version='1.0' encoding='{encoding}'?>\n{text}".encode(codec or encoding)


def chinese(encoding: str, folder: str = "图片", *, codec: str | None = None) -> bytes:
    text = CAT.replace("<annotation>", f"<annotation><folder>{folder}</folder>")
    return declared(encoding, text, codec=codec)


CASES = [
    image_list("a byte order mark", "\ufeff2007_1\n2007_2\n", works=LABELS),
    image_list("UTF-16", "2007_1\n2007_2\n".encode("utf-16"), works=LABELS),
    image_list("not UTF-8", b"2007_1\n\xff\xfe2007_2\n", refused=r"train\.txt, line 2: byte 0xff is no UTF-8"),
    image_list("lines of Windows, spaces and blank lines", "2007_1 \r\n\r\n \t2007_2\r\n\r\n", works=LABELS),
    image_list("suffixes", "2007_1.jpg\n2007_2.JPG\n", works=LABELS),
    image_list("paths", "/JPEGImages/2007_1.jpg\nVOC2012\\JPEGImages\\2007_2.jpg\n", works=LABELS),
    image_list("another case", voc_set(images=["2007_1.jpg", "2007_2.JPG"]), works=LABELS),
    image_list("PNG images", voc_set(images=["2007_1.png", "2007_2.jpg"]), works=LABELS),
    image_list(
        "names with spaces",
        voc_set(listing="my cat\n2007_2\n", images=["my cat.jpg", "2007_2.jpg"]),
        refused=r"image my cat\.jpg has no labels: .*my cat\.xml is missing",
    ),
    image_list(
        "an image twice",
        "2007_1\n2007_2\n2007_1.jpg\n",
        refused=r"train\.txt, line 3 lists 2007_1\.jpg again, first in line 1: remove one",
    ),
    image_list(
        "an image that is not there",
        "2007_1\n2007_22\n2007_9\n",
        refused=r"2007_22 is missing in JPEGImages but listed in .*train\.txt, line 2 "
        r"\(did you mean '2007_2\.jpg'\?\).*\(2 such cases\)",
    ),
    image_list(
        "an image that may be two files",
        voc_set(listing="A\n2007_2\n", images=["a.png", "a.gif", "2007_2.jpg"]),
        refused=r"line 1: 'A' may be 'a\.gif' or 'a\.png'",
    ),
    image_list(
        "the column of a class",
        "2007_1 -1\n2007_2  1\n",
        refused=r"line 1: '2007_1 -1' is from the list of one class.*such as train \(2 such cases\)",
    ),
    image_list("commas", "2007_1.jpg,2007_1.png\n", refused=r"2007_1\.jpg,2007_1\.png is missing in JPEGImages"),
    image_list("three columns", "2007_1 a.png b.png\n", refused=r"line 1: .* is not an image id, nor the paths"),
    image_list("a mask outside", "2007_1.jpg ..\\..\\a.png\n", refused=r"line 1: .* is not an image id, nor the paths"),
    image_list("a comment", "# mine\n2007_1\n", refused=r"line 1: '# mine' looks like a comment"),
    image_list("empty", b"", refused=r"split 'train' is empty"),
    image_list(
        "lists of Main alone, another asked for",
        voc_set(place="Main/train", split="val"),
        refused=r"Segmentation/val\.txt is missing, found train: add the list",
    ),
    image_list(
        "no annotation at all",
        voc_set(without=["Annotations/2007_1.xml", "Annotations/2007_2.xml"]),
        works={"2007_1": None, "2007_2": None},
        warns=r"its 2 images count as unlabelled",
    ),
    image_list(
        "one annotation is missing",
        voc_set(without=["Annotations/2007_1.xml"]),
        refused=r"image 2007_1\.jpg has no labels: .*2007_1\.xml is missing",
    ),
    image_list(
        "one mask is missing",
        voc_set(files=["SegmentationClass/2007_1.png"]),
        refused=r"2007_2\.png is missing \(1 of 2\), others are there",
    ),
    image_list(
        "masks with the ending .PNG",
        voc_set(files=[f"SegmentationClass/2007_{i}.PNG" for i in (1, 2)]),
        refused=r"2007_1\.png is missing \(2 of 2\), but there is '2007_1\.PNG': rename it",
    ),
    xml("a byte order mark", b"\xef\xbb\xbf" + declared("utf-8"), works=LABELS),
    xml("gb2312", chinese("gb2312"), works=LABELS),
    xml("gbk characters under the name gb2312", chinese("GB2312", "圖片", codec="gbk"), works=LABELS),
    xml("gb18030", chinese("gb18030"), works=LABELS),
    xml("big5", chinese("big5", "圖片"), works=LABELS),
    xml("shift_jis", chinese("Shift_JIS", "画像"), works=LABELS),
    xml("euc-kr", chinese("euc-kr", "사진"), works=LABELS),
    xml("iso-8859-15", chinese("ISO-8859-15", "déjà €"), works=LABELS),
    xml("windows-1251", chinese("windows-1251", "фото"), works=LABELS),
    xml("utf8mb4", chinese("utf8mb4", codec="utf-8"), works=LABELS),
    xml("UTF-16", chinese("utf-16"), works=LABELS),
    xml("UTF-16 without a byte order mark", chinese("utf-16", codec="utf-16-le"), works=LABELS),
    xml("UTF-16 declared, UTF-8 written", chinese("utf-16", codec="utf-8"), works=LABELS),
    xml(
        "an unknown encoding",
        declared("utf-9", codec="utf-8"),
        refused=r"2007_1\.xml, line 1: the declared encoding 'utf-9' is not known: save the file as UTF-8 and declare",
    ),
    xml(
        "a codec that is no encoding",
        declared("zip", codec="utf-8"),
        refused=r"the declared encoding 'zip' is not known",
    ),
    xml(
        "a codec of names of hosts",
        declared("idna", annotation("é"), codec="utf-8"),
        refused=r"2007_1\.xml, line 1: the declared encoding 'idna' is not known",
    ),
    xml(
        "gbk without a declaration",
        f"\n{CAT}\n<!-- 照片 -->".encode("gbk"),
        refused=r"2007_1\.xml, line 3: byte 0xd5 is no UTF-8 \(it may be gb18030\)",
    ),
    xml("entities that grow", BOMB + annotation("&b;"), refused=r"2007_1\.xml defines entities"),
    xml(
        "an entity from a file",
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>' + annotation("&x;"),
        refused=r"2007_1\.xml defines entities",
    ),
    xml("a document type elsewhere", '<!DOCTYPE annotation SYSTEM "voc.dtd">' + CAT, works=LABELS),
    xml("no object", "<annotation><size/></annotation>", works={"2007_1": (), "2007_2": (12, 18)}),
    xml("a namespace", CAT.replace("<annotation>", '<annotation xmlns="http://voc">'), works=LABELS),
    xml(
        "objects in a list",
        CAT.replace("annotation>", "annotation><objects>", 1).replace("</a", "</objects></a"),
        refused=r"2007_1\.xml has objects, but not as <object> directly in <annotation>",
    ),
    xml(
        "objects in capitals", CAT.replace("object", "Object"), refused=r"2007_1\.xml has objects, but not as <object>"
    ),
    xml(
        "an error page of a server",
        "<html><body>404</body></html>",
        refused=r"2007_1\.xml begins with <html>, expected <annotation>",
    ),
    xml("an object without a name", annotation("cat", " "), refused=r"2007_1\.xml: object 2 of 2 has no <name>"),
    xml("a class in another case", annotation(" Cat ", "CAT"), works=LABELS),
    xml(
        "an unknown class", annotation("airplane"), refused=r"2007_1\.xml: class 'airplane' .*did you mean 'aeroplane'"
    ),
    xml("cut off", CAT[:-5], refused=r"2007_1\.xml is not readable as XML"),
    xml("empty file", b"", refused=r"2007_1\.xml is not readable as XML"),
    xml(
        "100,000 elements in each other",
        f"<annotation>{'<a>' * 100_000}{'</a>' * 100_000}</annotation>",
        works={"2007_1": (), "2007_2": (12, 18)},
    ),
]
