"""The instances file of COCO, read as a stream: categories, images, and each image's annotations in few bytes."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from seam_dist.config.findings import Findings
from seam_dist.config.packages import require_package
from seam_dist.data.sources.base import SourceError
from seam_dist.data.sources.class_list import check_class_names
from seam_dist.data.sources.coco_masks import has_outline, pack_annotation
from seam_dist.data.sources.names import split_path


class Instances(NamedTuple):
    """The content of an instances file: category id -> name, image id -> (name, height, width) and its annotations."""

    categories: dict[int, str]
    images: dict[int, tuple[str, int, int]]
    annotations: dict[int, list[bytes]]
    classes: dict[int, set[int]]
    findings: Findings
    has_outlines: bool = True


@lru_cache(maxsize=4)  # the preflight, the shard stage and the second split ask again; size and time tell a new file
def read_instances(path: Path, size: int, mtime_ns: int) -> Instances:
    """Read an instances file as a stream: no more than one annotation is held beside the result."""
    require_package("ijson", extra="coco", needed_by="source.kind=coco")
    result = Instances({}, {}, {}, {}, Findings())
    findings = result.findings
    for number, entry in enumerate(_items(path, "categories")):
        where = f"{path}: categories[{number}]"
        try:
            category, name = _whole(entry, "id"), _text(entry, "name")
        except (KeyError, TypeError, ValueError) as error:
            findings.error("category", f"{where}={entry!r:.80} cannot be used ({_reason(error)}): correct it")
            continue
        if category in result.categories:
            findings.error(
                "category-twice", f"{where}: category id {category} is given twice: remove one of the entries"
            )
        result.categories.setdefault(category, name)
    if not result.categories and not findings.errors:
        raise SourceError(
            f"{path} lists no categories, so it is no instances file (captions have none): use instances_*"
        )
    in_order = [(f"{path}: category {number}", name) for number, name in sorted(result.categories.items())]
    check_class_names(in_order, str(path), findings)
    for number, entry in enumerate(_items(path, "images")):
        try:
            name, image_id = split_path(_text(entry, "file_name"))[-1], _whole(entry, "id")
            height, width = _whole(entry, "height"), _whole(entry, "width")
            if height < 1 or width < 1:
                raise ValueError(f"it has {height} x {width} pixels (height, width)")
        except (KeyError, TypeError, ValueError) as error:
            where = f"{path}: images[{number}]={entry!r:.80}"
            findings.error("image-entry", f"{where} cannot be used ({_reason(error)}): correct it")
            continue
        if image_id in result.images:
            findings.error("image-twice", f"{path}: image id {image_id} is given twice: remove one of the entries")
        result.images[image_id] = (name, height, width)
    is_whole = not any(finding.topic in ("image-entry", "category") for finding in findings)
    without_outline: list[str] = []
    for index, entry in enumerate(_items(path, "annotations")):
        where = f"{path}: annotations[{index}]"
        try:
            image_id, category = _whole(entry, "image_id"), _whole(entry, "category_id")
            sort, number = ("image", image_id) if image_id not in result.images else ("category", category)
            if image_id not in result.images or category not in result.categories:
                if is_whole:  # else it is that entry that has to be corrected
                    findings.error(
                        f"annotation-{sort}", f"{where} belongs to {sort} {number}, which is not listed: remove it"
                    )
                continue
            packed = pack_annotation(entry, result.images[image_id][1:])
        except (KeyError, TypeError, ValueError) as error:
            if is_whole:
                findings.error("annotation", f"{where} cannot be used ({_reason(error)}): correct or remove it")
            continue
        if not has_outline(entry):
            without_outline.append(where)
        result.annotations.setdefault(image_id, []).append(packed)
        result.classes.setdefault(image_id, set()).add(category)
    number = sum(map(len, result.annotations.values()))
    if without_outline and len(without_outline) == number:
        findings.warning(
            "no-outlines",
            f"{path}: none of its {number} annotations has an outline (segmentation), so they are used as image-level "
            "labels alone: set source.masks where masks are needed",
        )
        return result._replace(has_outlines=False)
    if without_outline:
        findings.warning(
            "annotation-without-outline",
            f"{without_outline[0]} has no outline (segmentation), so its object is background in the mask: draw it, or "
            "remove the annotation",
            count=len(without_outline),
        )
    return result


def _whole(entry: Mapping[str, Any], name: str) -> int:
    """Return a whole number of an entry, which exports write as 1, 1.0 or "1"; raise ValueError for others."""
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, int | float | str) or float(value) != int(value):
        raise ValueError(f"{name}={value!r} is no whole number")
    return int(value)


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry[name]
    if not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{name}={value!r} is no name")
    return str(value).strip() if name == "name" else str(value)


def _reason(error: Exception) -> str:
    return f"it has no {error.args[0]}" if isinstance(error, KeyError) else f"{error!s:.100}"


def _items(path: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of one list of a JSON file; raise SourceError where it is damaged."""
    import ijson

    try:
        with open(path, "rb") as file:
            start = file.read(4)
            if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
                raise SourceError(f"{path} is UTF-16 or UTF-32, expected UTF-8, as JSON has: save it as UTF-8")
            file.seek(3 if start.startswith(codecs.BOM_UTF8) else 0)
            yield from ijson.items(file, f"{name}.item", use_float=True, buf_size=1 << 20)
    except ijson.JSONError as error:
        raise SourceError(f"{path} is damaged or no JSON ({str(error).splitlines()[0]}): download it again") from None


def image_number(name: str) -> str:
    """Return what is equal in COCO_train2014_000000000042.jpg, 000000000042 and 42; other names as they are."""
    stem = Path(name.split()[0]).name if name.split() else name
    stem = re.sub(r"\.(jpe?g|png)$", "", stem, flags=re.IGNORECASE)
    digits = re.search(r"(?:^|_)(\d+)$", stem)
    return str(int(digits[1])) if digits else stem
