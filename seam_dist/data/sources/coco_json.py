"""The instances file of COCO, read as a stream: categories, images, and each image's annotations in few bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from seam_dist.config.findings import Findings
from seam_dist.config.packages import require_package
from seam_dist.data.sources.base import SourceError
from seam_dist.data.sources.coco_masks import pack_annotation


class Instances(NamedTuple):
    """The content of an instances file: category id -> name, image id -> (name, height, width) and its annotations."""

    categories: dict[int, str]
    images: dict[int, tuple[str, int, int]]
    annotations: dict[int, list[bytes]]
    classes: dict[int, set[int]]
    findings: Findings


@lru_cache(maxsize=4)  # the preflight, the shard stage and the second split ask again; size and time tell a new file
def read_instances(path: Path, size: int, mtime_ns: int) -> Instances:
    """Read an instances file as a stream: no more than one annotation is held beside the result."""
    require_package("ijson", extra="coco", needed_by="source.kind=coco")
    result = Instances({}, {}, {}, {}, Findings())
    findings = result.findings
    for number, entry in enumerate(_items(path, "categories")):
        try:
            result.categories[int(entry["id"])] = str(entry["name"]).strip()
        except (KeyError, TypeError, ValueError):
            findings.error("category", f"{path}: categories[{number}]={entry!r:.80} has no id and name: correct it")
    if not result.categories:
        raise SourceError(
            f"{path} lists no categories, so it is no instances file (captions have none): use instances_*"
        )
    for number, entry in enumerate(_items(path, "images")):
        try:
            name, image_id = str(entry["file_name"]), int(entry["id"])
            height, width = int(entry["height"]), int(entry["width"])
        except (KeyError, TypeError, ValueError):
            findings.error(
                "image-entry", f"{path}: images[{number}]={entry!r:.80} lacks id, file_name, height or width"
            )
            continue
        name = name.rpartition("/")[2]  # some exports put the folder before it
        if image_id in result.images:
            findings.error("image-twice", f"{path}: image id {image_id} is given twice: remove one of the entries")
        result.images[image_id] = (name, height, width)
    for index, entry in enumerate(_items(path, "annotations")):
        where = f"{path}: annotations[{index}]"
        try:
            image_id, category = int(entry["image_id"]), int(entry["category_id"])
            sort, number = ("image", image_id) if image_id not in result.images else ("category", category)
            if image_id not in result.images or category not in result.categories:
                findings.error(
                    f"annotation-{sort}", f"{where} belongs to {sort} {number}, which is not listed: remove it"
                )
                continue
            packed = pack_annotation(entry, result.images[image_id][1:])
        except (KeyError, TypeError, ValueError) as error:
            findings.error("annotation", f"{where} cannot be used ({error!r:.100}): correct or remove it")
            continue
        result.annotations.setdefault(image_id, []).append(packed)
        result.classes.setdefault(image_id, set()).add(category)
    return result


def _items(path: Path, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of one list of a JSON file; raise SourceError where it is damaged."""
    import ijson

    try:
        with open(path, "rb") as file:
            yield from ijson.items(file, f"{name}.item", use_float=True, buf_size=1 << 20)
    except ijson.JSONError as error:
        raise SourceError(f"{path} is damaged or no JSON ({str(error).splitlines()[0]}): download it again") from None


def image_number(name: str) -> str:
    """Return what is equal in COCO_train2014_000000000042.jpg, 000000000042 and 42; other names as they are."""
    stem = Path(name.split()[0]).name if name.split() else name
    stem = re.sub(r"\.(jpe?g|png)$", "", stem, flags=re.IGNORECASE)
    digits = re.search(r"(?:^|_)(\d+)$", stem)
    return str(int(digits[1])) if digits else stem
