"""A strip of pictures for pages and talks: image, CAM, refined CAM, pseudo-label, prediction, an image a row.

    python -m seam_dist.report.strip runs/demo-seam strip.png [--split val] [--images 3] [--width 900]

The rows are the images that the final network segments best, no two with the same classes.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seam_dist.artifacts.layout import LABEL_TYPES, read_run_config, scores_folder
from seam_dist.artifacts.outputs import OutputFolder
from seam_dist.config.paths import user_path
from seam_dist.data.manifest import load_manifest
from seam_dist.report.examples import Example, load_examples, rank_keys
from seam_dist.report.pictures import heat_map, label_map
from seam_dist.report.records import read_run

_GAP = 4  # white pixels between pictures


def draw_strip(examples: Sequence[Example], labels: Sequence[str]) -> NDArray[np.uint8]:
    """Return rows of image, CAM, refined CAM and the label types `labels`, uint8 RGB; all images have one size."""
    rows, frame = [], ((0, _GAP), (0, _GAP), (0, 0))
    for example in examples:
        maps = [heat_map(example.image, example.cams[name]) for name in ("plain", "refined") if name in example.cams]
        masks = [label_map(example.image, example.labels[name]) for name in labels]
        pictures = [np.pad(part, frame, constant_values=255) for part in (example.image, *maps, *masks)]
        rows.append(np.concatenate(pictures, axis=1))
    return np.concatenate(rows)[:-_GAP, :-_GAP]


def choose(examples: Sequence[Example], num_images: int, labels: Sequence[str]) -> list[Example]:
    """Return the first wide images of one size with objects and all labels, no two of the same classes.

    Raises ValueError without any.
    """
    chosen: dict[tuple[int, ...], Example] = {}
    for example in examples:
        height, width = example.image.shape[:2]
        like_first = not chosen or next(iter(chosen.values())).image.shape == example.image.shape
        if example.classes and set(labels) <= example.labels.keys() and width >= height and like_first:
            chosen.setdefault(example.classes, example)
    if not chosen:
        names = " and ".join(labels)
        raise ValueError(
            f"no wide image with an object has labels of {names}: run the stages that make them, and evaluate"
        )
    return list(chosen.values())[:num_images]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the strip; return 2 with one line on standard error when the run does not have what it shows."""
    parser = argparse.ArgumentParser(
        prog="python -m seam_dist.report.strip", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "run", type=user_path, metavar="RUN", help="folder of a finished run, for example runs/demo-seam"
    )
    parser.add_argument("out", type=user_path, metavar="PNG", help="picture to write")
    parser.add_argument("--split", help="split of the images (default: that of the report)")
    parser.add_argument("--images", type=int, default=3, metavar="N", help="number of rows (default: 3)")
    parser.add_argument("--labels", nargs="+", default=["walk_crf", "seg_crf"], choices=LABEL_TYPES, metavar="TYPE")
    parser.add_argument("--width", type=int, default=900, metavar="PIXELS", help="largest width (default: 900)")
    arguments = parser.parse_args(argv)
    outputs = OutputFolder(arguments.out.parent)
    try:
        outputs.check([arguments.out.name], remedy="give another PNG")
        cfg = read_run_config(arguments.run)
        cfg = replace(cfg, report=replace(cfg.report, split=arguments.split or cfg.report_split))
        scores = scores_folder(cfg.run_dir, arguments.labels[-1]) / f"{cfg.report_split}-images.csv"
        best = [row for row in rank_keys(scores, 10**6) if row[0] == "best"]
        primary, threshold = read_run(cfg.run_dir).primary, cfg.evaluate.default_threshold
        examples = load_examples(cfg, load_manifest(cfg.shards_dir), best, primary=primary, threshold=threshold)
        picture = Image.fromarray(draw_strip(choose(examples, arguments.images, arguments.labels), arguments.labels))
        data = io.BytesIO()
        picture.thumbnail((arguments.width, picture.height))
        picture.quantize(64).save(data, "PNG", optimize=True)  # a fifth of the bytes of full color
        outputs.write(arguments.out.name, data.getvalue())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
