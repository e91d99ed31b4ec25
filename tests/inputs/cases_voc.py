"""PASCAL VOC's layout: lists of images, and annotations in all encodings."""

from __future__ import annotations

import functools

from case import Case
from small_sets import annotation, voc_set

image_list = functools.partial(Case, reader="VOC list")
xml = functools.partial(Case, reader="VOC annotation")

LABELS = {"2007_1": (8,), "2007_2": (12, 18)}
CAT = annotation("cat")
BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


def declared(encoding: str, text: str = CAT, *, codec: str | None = None) -> bytes:
    return f"<?xml version='1.0' encoding='{encoding}'?>\n{text}".encode(codec or encoding)


def chinese(encoding: str, folder: str = "图片", *, codec: str | None = None) -> bytes:
    text = CAT.replace("<annotation>", f"<annotation><folder>{folder}</folder>")
    return declared(encoding, text, codec=codec)


CASES = [
    image_list(fault="a byte order mark", run=voc_set(listing="\ufeff2007_1\n2007_2\n"), works=LABELS),
    image_list(fault="UTF-16", run=voc_set(listing="2007_1\n2007_2\n".encode("utf-16")), works=LABELS),
    image_list(
        fault="not UTF-8",
        run=voc_set(listing=b"2007_1\n\xff\xfe2007_2\n"),
        refused=r"train\.txt, line 2: byte 0xff is no UTF-8",
    ),
    image_list(
        fault="lines of Windows, spaces and blank lines",
        run=voc_set(listing="2007_1 \r\n\r\n \t2007_2\r\n\r\n"),
        works=LABELS,
    ),
    image_list(fault="suffixes", run=voc_set(listing="2007_1.jpg\n2007_2.JPG\n"), works=LABELS),
    image_list(
        fault="paths", run=voc_set(listing="/JPEGImages/2007_1.jpg\nVOC2012\\JPEGImages\\2007_2.jpg\n"), works=LABELS
    ),
    image_list(fault="another case", run=voc_set(images=["2007_1.jpg", "2007_2.JPG"]), works=LABELS),
    image_list(fault="PNG images", run=voc_set(images=["2007_1.png", "2007_2.jpg"]), works=LABELS),
    image_list(
        fault="names with spaces",
        run=voc_set(listing="my cat\n2007_2\n", images=["my cat.jpg", "2007_2.jpg"]),
        refused=r"image my cat\.jpg has no labels: .*my cat\.xml is missing",
    ),
    image_list(
        fault="an image twice",
        run=voc_set(listing="2007_1\n2007_2\n2007_1.jpg\n"),
        refused=r"train\.txt, line 3 lists 2007_1\.jpg again, first in line 1: remove one",
    ),
    image_list(
        fault="an image that is not there",
        run=voc_set(listing="2007_1\n2007_22\n2007_9\n"),
        refused=r"2007_22 is missing in JPEGImages but listed in .*train\.txt, line 2 "
        r"\(did you mean '2007_2\.jpg'\?\).*\(2 such cases\)",
    ),
    image_list(
        fault="an image that may be two files",
        run=voc_set(listing="A\n2007_2\n", images=["a.png", "a.gif", "2007_2.jpg"]),
        refused=r"line 1: 'A' may be 'a\.gif' or 'a\.png'",
    ),
    image_list(
        fault="the column of a class",
        run=voc_set(listing="2007_1 -1\n2007_2  1\n"),
        refused=r"line 1: '2007_1 -1' is from the list of one class.*such as train \(2 such cases\)",
    ),
    image_list(
        fault="commas",
        run=voc_set(listing="2007_1.jpg,2007_1.png\n"),
        refused=r"2007_1\.jpg,2007_1\.png is missing in JPEGImages",
    ),
    image_list(
        fault="three columns",
        run=voc_set(listing="2007_1 a.png b.png\n"),
        refused=r"line 1: .* is not an image id, nor the paths",
    ),
    image_list(
        fault="a mask outside",
        run=voc_set(listing="2007_1.jpg ..\\..\\a.png\n"),
        refused=r"line 1: .* is not an image id, nor the paths",
    ),
    image_list(
        fault="a comment", run=voc_set(listing="# mine\n2007_1\n"), refused=r"line 1: '# mine' looks like a comment"
    ),
    image_list(fault="empty", run=voc_set(listing=b""), refused=r"split 'train' is empty"),
    image_list(
        fault="lists of Main alone, another asked for",
        run=voc_set(place="Main/train", split="val"),
        refused=r"Segmentation/val\.txt is missing, found train: add the list",
    ),
    image_list(
        fault="no annotation at all",
        run=voc_set(without=["Annotations/2007_1.xml", "Annotations/2007_2.xml"]),
        works={"2007_1": None, "2007_2": None},
        warns=r"its 2 images count as unlabelled",
    ),
    image_list(
        fault="one annotation is missing",
        run=voc_set(without=["Annotations/2007_1.xml"]),
        refused=r"image 2007_1\.jpg has no labels: .*2007_1\.xml is missing",
    ),
    image_list(
        fault="one mask is missing",
        run=voc_set(files=["SegmentationClass/2007_1.png"]),
        refused=r"2007_2\.png is missing \(1 of 2\), others are there",
    ),
    image_list(
        fault="masks with the ending .PNG",
        run=voc_set(files=[f"SegmentationClass/2007_{i}.PNG" for i in (1, 2)]),
        refused=r"2007_1\.png is missing \(2 of 2\), but there is '2007_1\.PNG': rename it",
    ),
    xml(fault="a byte order mark", run=voc_set(xml=b"\xef\xbb\xbf" + declared("utf-8")), works=LABELS),
    xml(fault="gb2312", run=voc_set(xml=chinese("gb2312")), works=LABELS),
    xml(
        fault="gbk characters under the name gb2312",
        run=voc_set(xml=chinese("GB2312", "圖片", codec="gbk")),
        works=LABELS,
    ),
    xml(fault="gb18030", run=voc_set(xml=chinese("gb18030")), works=LABELS),
    xml(fault="big5", run=voc_set(xml=chinese("big5", "圖片")), works=LABELS),
    xml(fault="shift_jis", run=voc_set(xml=chinese("Shift_JIS", "画像")), works=LABELS),
    xml(fault="euc-kr", run=voc_set(xml=chinese("euc-kr", "사진")), works=LABELS),
    xml(fault="iso-8859-15", run=voc_set(xml=chinese("ISO-8859-15", "déjà €")), works=LABELS),
    xml(fault="windows-1251", run=voc_set(xml=chinese("windows-1251", "фото")), works=LABELS),
    xml(fault="utf8mb4", run=voc_set(xml=chinese("utf8mb4", codec="utf-8")), works=LABELS),
    xml(fault="UTF-16", run=voc_set(xml=chinese("utf-16")), works=LABELS),
    xml(fault="UTF-16 without a byte order mark", run=voc_set(xml=chinese("utf-16", codec="utf-16-le")), works=LABELS),
    xml(fault="UTF-16 declared, UTF-8 written", run=voc_set(xml=chinese("utf-16", codec="utf-8")), works=LABELS),
    xml(
        fault="an unknown encoding",
        run=voc_set(xml=declared("utf-9", codec="utf-8")),
        refused=r"2007_1\.xml, line 1: the declared encoding 'utf-9' is not known: save the file as UTF-8 and declare",
    ),
    xml(
        fault="a codec that is no encoding",
        run=voc_set(xml=declared("zip", codec="utf-8")),
        refused=r"the declared encoding 'zip' is not known",
    ),
    xml(
        fault="a codec of names of hosts",
        run=voc_set(xml=declared("idna", annotation("é"), codec="utf-8")),
        refused=r"2007_1\.xml, line 1: the declared encoding 'idna' is not known",
    ),
    xml(
        fault="gbk without a declaration",
        run=voc_set(xml=f"\n{CAT}\n<!-- 照片 -->".encode("gbk")),
        refused=r"2007_1\.xml, line 3: byte 0xd5 is no UTF-8 \(it may be gb18030\)",
    ),
    xml(fault="entities that grow", run=voc_set(xml=BOMB + annotation("&b;")), refused=r"2007_1\.xml defines entities"),
    xml(
        fault="an entity from a file",
        run=voc_set(xml='<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>' + annotation("&x;")),
        refused=r"2007_1\.xml defines entities",
    ),
    xml(
        fault="a document type elsewhere", run=voc_set(xml='<!DOCTYPE annotation SYSTEM "voc.dtd">' + CAT), works=LABELS
    ),
    xml(
        fault="no object", run=voc_set(xml="<annotation><size/></annotation>"), works={"2007_1": (), "2007_2": (12, 18)}
    ),
    xml(
        fault="a namespace",
        run=voc_set(xml=CAT.replace("<annotation>", '<annotation xmlns="http://voc">')),
        works=LABELS,
    ),
    xml(
        fault="objects in a list",
        run=voc_set(xml=CAT.replace("annotation>", "annotation><objects>", 1).replace("</a", "</objects></a")),
        refused=r"2007_1\.xml has objects, but not as <object> directly in <annotation>",
    ),
    xml(
        fault="objects in capitals",
        run=voc_set(xml=CAT.replace("object", "Object")),
        refused=r"2007_1\.xml has objects, but not as <object>",
    ),
    xml(
        fault="an error page of a server",
        run=voc_set(xml="<html><body>404</body></html>"),
        refused=r"2007_1\.xml begins with <html>, expected <annotation>",
    ),
    xml(
        fault="an object without a name",
        run=voc_set(xml=annotation("cat", " ")),
        refused=r"2007_1\.xml: object 2 of 2 has no <name>",
    ),
    xml(fault="a class in another case", run=voc_set(xml=annotation(" Cat ", "CAT")), works=LABELS),
    xml(
        fault="an unknown class",
        run=voc_set(xml=annotation("airplane")),
        refused=r"2007_1\.xml: class 'airplane' .*did you mean 'aeroplane'",
    ),
    xml(fault="cut off", run=voc_set(xml=CAT[:-5]), refused=r"2007_1\.xml is not readable as XML"),
    xml(fault="empty file", run=voc_set(xml=b""), refused=r"2007_1\.xml is not readable as XML"),
    xml(
        fault="100,000 elements in each other",
        run=voc_set(xml=f"<annotation>{'<a>' * 100_000}{'</a>' * 100_000}</annotation>"),
        works={"2007_1": (), "2007_2": (12, 18)},
    ),
]
