"""Plain folders of images: the table of labels."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from case import Case, Outcome
from small_sets import HEADING, LABELS, TABLE, Run, folder_set, listed

from seam_dist.data.sources.folder import FolderSource

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def table(fault: str, run: str | bytes | Run, **outcome: Any) -> Case:
    """A row by the content of labels.csv, or by all that is made."""
    return Case("labels.csv", fault, run if callable(run) else folder_set(table=run), **outcome)


def rows(text: str) -> str:
    return HEADING + text


def _renamed(root: Path, name: str) -> Outcome:
    folder_set()(root)
    (root / "labels.csv").rename(root / name)
    return listed(FolderSource(root))


CASES = [
    table(
        "one class a field",
        rows("a.jpg,train,cat,sofa\nb.jpg,train,dog\n"),
        refused=r"labels\.csv, line 2: 'a\.jpg,train,cat,sofa' has 4 fields, .* has 3: "
        r"classes are separated by `;`, so write cat;sofa$",
    ),
    table(
        "one class a field, in an unnamed column",
        "image,split,classes,,\na.jpg,train,cat,sofa,\nb.jpg,train,dog,,\n",
        refused=r"line 2: .* has 5 fields, .* has 3: .* write cat;sofa",
    ),
    table("empty extra fields", rows("a.jpg,train,cat,,\nb.jpg,train,dog;sofa,\n"), works=LABELS),
    table("another column", "image,split,classes,note\na.jpg,train,cat,good\nb.jpg,train,dog;sofa,\n", works=LABELS),
    table(
        "an index before the columns", ",image,split,classes\n0,a.jpg,train,cat\n1,b.jpg,train,dog;sofa\n", works=LABELS
    ),
    table("columns in another order", "split,classes,image\ntrain,cat,a.jpg\ntrain,dog;sofa,b.jpg\n", works=LABELS),
    table(
        "upper case, spaces and a byte order mark in the heading",
        "\ufeffImage, SPLIT ,Classes\na.jpg,train,cat\nb.jpg,train,dog;sofa\n",
        works=LABELS,
    ),
    table(
        "semicolons between the fields, quoted classes",
        'image;split;classes\na.jpg;train;cat\nb.jpg;train;"dog;sofa"\n',
        works=LABELS,
    ),
    table(
        "semicolons between fields and classes",
        "image;split;classes\na.jpg;train;cat\nb.jpg;train;dog;sofa\n",
        refused=r'line 3: .* has 4 fields, .* write "dog;sofa"$',
    ),
    table("tabs between the fields", TABLE.replace(",", "\t"), works=LABELS),
    table(
        "another delimiter in the rows than in the heading",
        rows("a.jpg;train;cat\nb.jpg;train;dog\n"),
        refused=r"line 2 has fewer than 3 fields with the delimiter of the first line, ',', but has ';': "
        r"use one for all \(2 such cases\)",
    ),
    table("Excel's line with the delimiter", f"sep=,\r\n{TABLE}", works=LABELS),
    table("line ends of Windows", TABLE.replace("\n", "\r\n"), works=LABELS),
    table("line ends of old Macs", TABLE.replace("\n", "\r"), works=LABELS),
    table("blank lines and lines of commas", TABLE.replace("\n", "\n\n,,\n  \n"), works=LABELS),
    table("UTF-16 as Excel saves Unicode text", TABLE.replace(",", "\t").encode("utf-16"), works=LABELS),
    table(
        "UTF-16 without a byte order mark",
        TABLE.encode("utf-16-le"),
        refused=r"labels\.csv, line 1: it holds a NUL character, so it is UTF-16 without a byte order mark",
    ),
    table(
        "Latin-1",
        rows("a.jpg,train,cat\nb.jpg,train,café\n").encode("latin-1"),
        refused=r"labels\.csv, line 3: byte 0xe9 is no UTF-8 \(it may be cp1252\): save the file as UTF-8",
    ),
    table(
        "quotes around all fields",
        '"image","split","classes"\n"a.jpg","train","cat"\n"b.jpg", "train", "dog; sofa"\n',
        works=LABELS,
    ),
    table(
        "a quote that is never closed",
        rows('a.jpg,train,"cat\nb.jpg,train,dog;sofa\n'),
        refused=r"line 2: 'a\.jpg,train,\"cat' cannot be read \(.*\): close the quote",
    ),
    table(
        "text after a closed quote",
        rows('a.jpg,train,"cat" dog\nb.jpg,train,dog\n'),
        refused=r"line 2: .* cannot be read .*remove it",
    ),
    table(
        "no heading",
        "a.jpg,train,cat\nb.jpg,train,dog\n",
        refused=r"no column 'image' \(found: a\.jpg, train, cat\): add the line image,split,classes before it",
    ),
    table(
        "one column a class",
        "image,split,cat,dog\na.jpg,train,1,0\n",
        refused=r"no column 'classes' \(found: image, split, cat, dog\)",
    ),
    table(
        "a row without its split",
        rows("a.jpg,,cat\nb.jpg,train,dog\n"),
        refused=r"line 2: 'a\.jpg,,cat' has no split: write it",
    ),
    table(
        "a row that ends early",
        rows("a.jpg,train\nb.jpg,train,dog\n"),
        refused=r"line 2 has fewer than 3 fields: .*nothing after the last comma for an image without any object",
    ),
    table("no class in a row", rows("a.jpg,train,\nb.jpg,train, ; \n"), works={"a.jpg": (), "b.jpg": ()}),
    table(
        "`none` for an image without any object",
        rows("a.jpg,train,none\nb.jpg,train,dog\n"),
        refused=r"class 'none' .*so leave it empty",
    ),
    table(
        "the background as a class",
        rows("a.jpg,train,background;cat\nb.jpg,train,dog\n"),
        refused=r"class 'background' .*so leave it out",
    ),
    table(
        "numbers for classes",
        rows("a.jpg,train,1\nb.jpg,train,2;3\n"),
        refused=r"class '1' .*write names instead of numbers, such as 'cat'; "
        r"unknown as well: '2', '3' \(3 such cases\)",
    ),
    table(
        "commas between classes",
        rows('a.jpg,train,cat\nb.jpg,train,"dog, sofa"\n'),
        refused=r"line 3: class 'dog, sofa' is not one of the 3 classes: write dog;sofa",
    ),
    table(
        "a list in Python's notation",
        rows("a.jpg,train,cat\nb.jpg,train,\"['dog', 'sofa']\"\n"),
        refused=r"line 3: .*: write dog;sofa",
    ),
    table(
        "an unknown class",
        rows("a.jpg,train,cat\nb.jpg,train,dog;sofaa\n"),
        refused=r"line 3: class 'sofaa' .*did you mean 'sofa'\?",
    ),
    table(
        "an unknown class that is like none",
        rows("a.jpg,train,cat\nb.jpg,train,zebra\n"),
        refused=r"class 'zebra' .*: expected one of cat, dog, sofa",
    ),
    table(
        "classes in another case and with spaces",
        rows("a.jpg,train, Cat \nb.jpg,train,DOG ; \u00a0sofa\n"),
        works=LABELS,
    ),
    table(
        "a class with an invisible character", rows("a.jpg,train,c\u200bat\nb.jpg,train,dog;\ufeffsofa\n"), works=LABELS
    ),
    table(
        "a class in the decomposed form",
        folder_set(classes=f"{NFC}\n", table=rows(f"a.jpg,train,{NFD}\nb.jpg,train,\n")),
        works={"a.jpg": (1,), "b.jpg": ()},
    ),
    table(
        "a class in the composed form",
        folder_set(classes=f"{NFD}\n", table=rows(f"a.jpg,train,{NFC}\nb.jpg,train,\n")),
        works={"a.jpg": (1,), "b.jpg": ()},
    ),
    table(
        "a class in a case that two classes have",
        folder_set(classes="cardigan\nCardigan\n", table=rows("a.jpg,train,CARDIGAN\nb.jpg,train,Cardigan\n")),
        refused=r"class 'CARDIGAN' .*it may be 'cardigan' or 'Cardigan': write it exactly so",
    ),
    table("a split in another case", rows("a.jpg,Train,cat\nb.jpg, TRAIN ,dog;sofa\n"), works=LABELS),
    table(
        "a misspelled split in all rows",
        TABLE.replace("train", "trian"),
        refused=r"line 2: split 'trian' has no folder of images, but 'train' has the image 'a\.jpg' and no line",
    ),
    table(
        "a misspelled split in one row",
        TABLE.replace("b.jpg,train", "b.jpg,trian"),
        refused=r"b\.jpg has no labels \(line 3 lists it in split 'trian'\)",
    ),
    table(
        "no row of the split",
        HEADING,
        works={"a.jpg": None, "b.jpg": None},
        warns=r"no line of split 'train': its 2 images count as unlabelled",
    ),
    table("spaces around an image", rows("a.jpg ,train,cat\n  b.jpg,train,dog;sofa\n"), works=LABELS),
    table("images without extension", TABLE.replace(".jpg", ""), works=LABELS),
    table("images with another extension", TABLE.replace(".jpg", ".png"), works=LABELS),
    table(
        "images without extension and with a dot",
        folder_set(images=["v1.a.jpg", "v1.b.jpg"], table=rows("v1.a,train,cat\nv1.b,train,dog\n")),
        works={"v1.a.jpg": (1,), "v1.b.jpg": (2,)},
    ),
    table("the split before images", rows("train/a.jpg,train,cat\n./Train/b.jpg,train,dog;sofa\n"), works=LABELS),
    table(
        "the whole path before images",
        rows("images/train/a.jpg,train,cat\n/data/set/images/train/b.jpg,train,dog;sofa\n"),
        works=LABELS,
    ),
    table(
        "paths of Windows",
        rows("images\\train\\a.jpg,train,cat\nC:\\set\\images\\train\\b.jpg,train,dog;sofa\n"),
        works=LABELS,
    ),
    table(
        "another split before an image",
        rows("val/a.jpg,train,cat\nb.jpg,train,dog\n"),
        refused=r"line 2: it lists 'val/a\.jpg' in split 'train', but .*images/train has no such file",
    ),
    table("images in another case", TABLE.replace("a.jpg", "A.JPG"), works=LABELS),
    table(
        "an image in another Unicode form",
        folder_set(images=[f"{NFD}.jpg"], table=rows(f"{NFC}.jpg,train,cat\n")),
        works={f"{NFD}.jpg": (1,)},
    ),
    table(
        "an image in a case that two files have",
        folder_set(images=["a.jpg", "A.jpg", "b.jpg"], table=rows("a.JPG,train,cat\nb.jpg,train,dog\n")),
        refused=r"line 2: 'a\.JPG' may be 'A\.jpg' or 'a\.jpg': write the name of the file$",
    ),
    table(
        "files that differ in case, each with its row",
        folder_set(images=["a.jpg", "A.jpg"], table=rows("a.jpg,train,cat\nA.jpg,train,dog\n")),
        works={"A.jpg": (2,), "a.jpg": (1,)},
    ),
    table(
        "a row without its image",
        TABLE + "bb.jpg,train,cat\n",
        refused=r"line 4: it lists 'bb\.jpg' in split 'train', but .* no such file \(did you mean 'b\.jpg'\?\)",
    ),
    table(
        "an image without its row",
        rows("a.jpg,train,cat\n"),
        refused=r"b\.jpg has no labels: add the line b\.jpg,train,CLASS;CLASS",
    ),
    table(
        "an image twice, equal labels",
        TABLE + "b.jpg,train,sofa;dog\n",
        works=LABELS,
        warns=r"line 4: image 'b\.jpg' is listed twice, first in line 3 with the same classes",
    ),
    table(
        "an image twice, a class a row",
        TABLE + "a.jpg,train,sofa\n",
        refused=r"line 4: image 'a\.jpg' is listed twice, first in line 2, with other classes: .*into cat;sofa",
    ),
    table(
        "an image under two spellings",
        TABLE + "A,train,sofa\n",
        refused=r"line 4: image 'A' is listed twice, first in line 2 as 'a\.jpg'",
    ),
    table(
        "called labels.csv.txt",
        lambda root: _renamed(root, "labels.csv.txt"),
        refused=r"labels\.csv is missing \(there is 'labels\.csv\.txt' beside it\)",
    ),
]
