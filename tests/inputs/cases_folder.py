"""Plain folders of images: the table of labels."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path

from case import Case, Outcome
from small_sets import HEADING, LABELS, TABLE, folder_set, listed

from seam_dist.data.sources.folder import FolderSource

table = functools.partial(Case, reader="labels.csv")

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def rows(text: str) -> str:
    return HEADING + text


def _renamed(root: Path, name: str) -> Outcome:
    folder_set()(root)
    (root / "labels.csv").rename(root / name)
    return listed(FolderSource(root))


CASES = [
    table(
        fault="one class a field",
        run=folder_set(table=rows("a.jpg,train,cat,sofa\nb.jpg,train,dog\n")),
        refused=r"labels\.csv, line 2: 'a\.jpg,train,cat,sofa' has 4 fields, .* has 3: "
        r"classes are separated by `;`, so write cat;sofa$",
    ),
    table(
        fault="one class a field, in an unnamed column",
        run=folder_set(table="image,split,classes,,\na.jpg,train,cat,sofa,\nb.jpg,train,dog,,\n"),
        refused=r"line 2: .* has 5 fields, .* has 3: .* write cat;sofa",
    ),
    table(
        fault="empty extra fields",
        run=folder_set(table=rows("a.jpg,train,cat,,\nb.jpg,train,dog;sofa,\n")),
        works=LABELS,
    ),
    table(
        fault="another column",
        run=folder_set(table="image,split,classes,note\na.jpg,train,cat,good\nb.jpg,train,dog;sofa,\n"),
        works=LABELS,
    ),
    table(
        fault="an index before the columns",
        run=folder_set(table=",image,split,classes\n0,a.jpg,train,cat\n1,b.jpg,train,dog;sofa\n"),
        works=LABELS,
    ),
    table(
        fault="columns in another order",
        run=folder_set(table="split,classes,image\ntrain,cat,a.jpg\ntrain,dog;sofa,b.jpg\n"),
        works=LABELS,
    ),
    table(
        fault="upper case, spaces and a byte order mark in the heading",
        run=folder_set(table="\ufeffImage, SPLIT ,Classes\na.jpg,train,cat\nb.jpg,train,dog;sofa\n"),
        works=LABELS,
    ),
    table(
        fault="semicolons between the fields, quoted classes",
        run=folder_set(table='image;split;classes\na.jpg;train;cat\nb.jpg;train;"dog;sofa"\n'),
        works=LABELS,
    ),
    table(
        fault="semicolons between fields and classes",
        run=folder_set(table="image;split;classes\na.jpg;train;cat\nb.jpg;train;dog;sofa\n"),
        refused=r'line 3: .* has 4 fields, .* write "dog;sofa"$',
    ),
    table(fault="tabs between the fields", run=folder_set(table=TABLE.replace(",", "\t")), works=LABELS),
    table(
        fault="another delimiter in the rows than in the heading",
        run=folder_set(table=rows("a.jpg;train;cat\nb.jpg;train;dog\n")),
        refused=r"line 2 has fewer than 3 fields with the delimiter of the first line, ',', but has ';': "
        r"use one for all \(2 such cases\)",
    ),
    table(fault="Excel's line with the delimiter", run=folder_set(table=f"sep=,\r\n{TABLE}"), works=LABELS),
    table(fault="line ends of Windows", run=folder_set(table=TABLE.replace("\n", "\r\n")), works=LABELS),
    table(fault="line ends of old Macs", run=folder_set(table=TABLE.replace("\n", "\r")), works=LABELS),
    table(
        fault="blank lines and lines of commas", run=folder_set(table=TABLE.replace("\n", "\n\n,,\n  \n")), works=LABELS
    ),
    table(
        fault="UTF-16 as Excel saves Unicode text",
        run=folder_set(table=TABLE.replace(",", "\t").encode("utf-16")),
        works=LABELS,
    ),
    table(
        fault="UTF-16 without a byte order mark",
        run=folder_set(table=TABLE.encode("utf-16-le")),
        refused=r"labels\.csv, line 1: it holds a NUL character, so it is UTF-16 without a byte order mark",
    ),
    table(
        fault="Latin-1",
        run=folder_set(table=rows("a.jpg,train,cat\nb.jpg,train,café\n").encode("latin-1")),
        refused=r"labels\.csv, line 3: byte 0xe9 is no UTF-8 \(it may be cp1252\): save the file as UTF-8",
    ),
    table(
        fault="quotes around all fields",
        run=folder_set(table='"image","split","classes"\n"a.jpg","train","cat"\n"b.jpg", "train", "dog; sofa"\n'),
        works=LABELS,
    ),
    table(
        fault="a quote that is never closed",
        run=folder_set(table=rows('a.jpg,train,"cat\nb.jpg,train,dog;sofa\n')),
        refused=r"line 2: 'a\.jpg,train,\"cat' cannot be read \(.*\): close the quote",
    ),
    table(
        fault="text after a closed quote",
        run=folder_set(table=rows('a.jpg,train,"cat" dog\nb.jpg,train,dog\n')),
        refused=r"line 2: .* cannot be read .*remove it",
    ),
    table(
        fault="no heading",
        run=folder_set(table="a.jpg,train,cat\nb.jpg,train,dog\n"),
        refused=r"no column 'image' \(found: a\.jpg, train, cat\): add the line image,split,classes before it",
    ),
    table(
        fault="one column a class",
        run=folder_set(table="image,split,cat,dog\na.jpg,train,1,0\n"),
        refused=r"no column 'classes' \(found: image, split, cat, dog\)",
    ),
    table(
        fault="a row without its split",
        run=folder_set(table=rows("a.jpg,,cat\nb.jpg,train,dog\n")),
        refused=r"line 2: 'a\.jpg,,cat' has no split: write it",
    ),
    table(
        fault="a row that ends early",
        run=folder_set(table=rows("a.jpg,train\nb.jpg,train,dog\n")),
        refused=r"line 2 has fewer than 3 fields: .*nothing after the last comma for an image without any object",
    ),
    table(
        fault="no class in a row",
        run=folder_set(table=rows("a.jpg,train,\nb.jpg,train, ; \n")),
        works={"a.jpg": (), "b.jpg": ()},
    ),
    table(
        fault="`none` for an image without any object",
        run=folder_set(table=rows("a.jpg,train,none\nb.jpg,train,dog\n")),
        refused=r"class 'none' .*so leave it empty",
    ),
    table(
        fault="the background as a class",
        run=folder_set(table=rows("a.jpg,train,background;cat\nb.jpg,train,dog\n")),
        refused=r"class 'background' .*so leave it out",
    ),
    table(
        fault="numbers for classes",
        run=folder_set(table=rows("a.jpg,train,1\nb.jpg,train,2;3\n")),
        refused=r"class '1' .*write names instead of numbers, such as 'cat'; "
        r"unknown as well: '2', '3' \(3 such cases\)",
    ),
    table(
        fault="commas between classes",
        run=folder_set(table=rows('a.jpg,train,cat\nb.jpg,train,"dog, sofa"\n')),
        refused=r"line 3: class 'dog, sofa' is not one of the 3 classes: write dog;sofa",
    ),
    table(
        fault="a list in Python's notation",
        run=folder_set(table=rows("a.jpg,train,cat\nb.jpg,train,\"['dog', 'sofa']\"\n")),
        refused=r"line 3: .*: write dog;sofa",
    ),
    table(
        fault="an unknown class",
        run=folder_set(table=rows("a.jpg,train,cat\nb.jpg,train,dog;sofaa\n")),
        refused=r"line 3: class 'sofaa' .*did you mean 'sofa'\?",
    ),
    table(
        fault="an unknown class that is like none",
        run=folder_set(table=rows("a.jpg,train,cat\nb.jpg,train,zebra\n")),
        refused=r"class 'zebra' .*: expected one of cat, dog, sofa",
    ),
    table(
        fault="classes in another case and with spaces",
        run=folder_set(table=rows("a.jpg,train, Cat \nb.jpg,train,DOG ; \u00a0sofa\n")),
        works=LABELS,
    ),
    table(
        fault="a class with an invisible character",
        run=folder_set(table=rows("a.jpg,train,c\u200bat\nb.jpg,train,dog;\ufeffsofa\n")),
        works=LABELS,
    ),
    table(
        fault="a class in the decomposed form",
        run=folder_set(classes=f"{NFC}\n", table=rows(f"a.jpg,train,{NFD}\nb.jpg,train,\n")),
        works={"a.jpg": (1,), "b.jpg": ()},
    ),
    table(
        fault="a class in the composed form",
        run=folder_set(classes=f"{NFD}\n", table=rows(f"a.jpg,train,{NFC}\nb.jpg,train,\n")),
        works={"a.jpg": (1,), "b.jpg": ()},
    ),
    table(
        fault="a class in a case that two classes have",
        run=folder_set(classes="cardigan\nCardigan\n", table=rows("a.jpg,train,CARDIGAN\nb.jpg,train,Cardigan\n")),
        refused=r"class 'CARDIGAN' .*it may be 'cardigan' or 'Cardigan': write it exactly so",
    ),
    table(
        fault="a split in another case",
        run=folder_set(table=rows("a.jpg,Train,cat\nb.jpg, TRAIN ,dog;sofa\n")),
        works=LABELS,
    ),
    table(
        fault="a misspelled split in all rows",
        run=folder_set(table=TABLE.replace("train", "trian")),
        refused=r"line 2: split 'trian' has no folder of images, but 'train' has the image 'a\.jpg' and no line",
    ),
    table(
        fault="a misspelled split in one row",
        run=folder_set(table=TABLE.replace("b.jpg,train", "b.jpg,trian")),
        refused=r"b\.jpg has no labels \(line 3 lists it in split 'trian'\)",
    ),
    table(
        fault="no row of the split",
        run=folder_set(table=HEADING),
        works={"a.jpg": None, "b.jpg": None},
        warns=r"no line of split 'train': its 2 images count as unlabelled",
    ),
    table(
        fault="spaces around an image",
        run=folder_set(table=rows("a.jpg ,train,cat\n  b.jpg,train,dog;sofa\n")),
        works=LABELS,
    ),
    table(fault="images without extension", run=folder_set(table=TABLE.replace(".jpg", "")), works=LABELS),
    table(fault="images with another extension", run=folder_set(table=TABLE.replace(".jpg", ".png")), works=LABELS),
    table(
        fault="images without extension and with a dot",
        run=folder_set(images=["v1.a.jpg", "v1.b.jpg"], table=rows("v1.a,train,cat\nv1.b,train,dog\n")),
        works={"v1.a.jpg": (1,), "v1.b.jpg": (2,)},
    ),
    table(
        fault="the split before images",
        run=folder_set(table=rows("train/a.jpg,train,cat\n./Train/b.jpg,train,dog;sofa\n")),
        works=LABELS,
    ),
    table(
        fault="the whole path before images",
        run=folder_set(table=rows("images/train/a.jpg,train,cat\n/data/set/images/train/b.jpg,train,dog;sofa\n")),
        works=LABELS,
    ),
    table(
        fault="paths of Windows",
        run=folder_set(table=rows("images\\train\\a.jpg,train,cat\nC:\\set\\images\\train\\b.jpg,train,dog;sofa\n")),
        works=LABELS,
    ),
    table(
        fault="another split before an image",
        run=folder_set(table=rows("val/a.jpg,train,cat\nb.jpg,train,dog\n")),
        refused=r"line 2: it lists 'val/a\.jpg' in split 'train', but .*images/train has no such file",
    ),
    table(fault="images in another case", run=folder_set(table=TABLE.replace("a.jpg", "A.JPG")), works=LABELS),
    table(
        fault="an image in another Unicode form",
        run=folder_set(images=[f"{NFD}.jpg"], table=rows(f"{NFC}.jpg,train,cat\n")),
        works={f"{NFD}.jpg": (1,)},
    ),
    table(
        fault="an image in a case that two files have",
        run=folder_set(images=["a.jpg", "A.jpg", "b.jpg"], table=rows("a.JPG,train,cat\nb.jpg,train,dog\n")),
        refused=r"line 2: 'a\.JPG' may be 'A\.jpg' or 'a\.jpg': write the name of the file$",
    ),
    table(
        fault="files that differ in case, each with its row",
        run=folder_set(images=["a.jpg", "A.jpg"], table=rows("a.jpg,train,cat\nA.jpg,train,dog\n")),
        works={"A.jpg": (2,), "a.jpg": (1,)},
    ),
    table(
        fault="a row without its image",
        run=folder_set(table=TABLE + "bb.jpg,train,cat\n"),
        refused=r"line 4: it lists 'bb\.jpg' in split 'train', but .* no such file \(did you mean 'b\.jpg'\?\)",
    ),
    table(
        fault="an image without its row",
        run=folder_set(table=rows("a.jpg,train,cat\n")),
        refused=r"b\.jpg has no labels: add the line b\.jpg,train,CLASS;CLASS",
    ),
    table(
        fault="an image twice, equal labels",
        run=folder_set(table=TABLE + "b.jpg,train,sofa;dog\n"),
        works=LABELS,
        warns=r"line 4: image 'b\.jpg' is listed twice, first in line 3 with the same classes",
    ),
    table(
        fault="an image twice, a class a row",
        run=folder_set(table=TABLE + "a.jpg,train,sofa\n"),
        refused=r"line 4: image 'a\.jpg' is listed twice, first in line 2, with other classes: .*into cat;sofa",
    ),
    table(
        fault="an image under two spellings",
        run=folder_set(table=TABLE + "A,train,sofa\n"),
        refused=r"line 4: image 'A' is listed twice, first in line 2 as 'a\.jpg'",
    ),
    table(
        fault="called labels.csv.txt",
        run=lambda root: _renamed(root, "labels.csv.txt"),
        refused=r"labels\.csv is missing \(there is 'labels\.csv\.txt' beside it\)",
    ),
]
