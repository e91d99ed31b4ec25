"""The command `seam-dist predict`: labels of any images from the weights of a final network, without shards or config.

For each image a palette PNG of class indices and an overlay; folders keep their structure. Exit codes: 0 done; 1 some
images could not be read, each of which was named; 2 an argument or the weights are wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from seam_dist.artifacts.atomic import atomic_file, atomic_write
from seam_dist.artifacts.label_file import encode_labels
from seam_dist.cluster.progress import progress_bar
from seam_dist.config.schema import Config, CrfConfig, InferSegConfig, RunConfig
from seam_dist.data.images import BadImageError, decode_mask, read_image_file
from seam_dist.data.shards import Sample
from seam_dist.evaluation.label_scores import confusion_matrix
from seam_dist.evaluation.metrics import scores_from_confusion
from seam_dist.evaluation.text_table import aligned
from seam_dist.inference.batching import check_scales
from seam_dist.inference.crf_pool import CrfPool, crf_device, crf_workers
from seam_dist.inference.export import check_export, export_network
from seam_dist.inference.segmentation import Prediction, predict_samples, refine_in_order
from seam_dist.models import Trained, find_trained, load_deeplab
from seam_dist.report.overlay import draw_overlay

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_DEFAULTS = InferSegConfig()
_JPEG_QUALITY = 90


@dataclass
class Outcome:
    """What has become of the images: how many could not be read, and the scores of those with a mask."""

    confusion: torch.Tensor
    num_scored: int = 0
    num_failed: int = 0


def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        prog="seam-dist predict",
        description="Predict the class of every pixel of images with a trained final network. Writes NAME.png (palette "
        "PNG of class indices) and NAME_overlay.jpg for each image.",
    )
    add = parser.add_argument
    add("--weights", type=Path, required=True, metavar="W", help="run, its train_seg/final, or model.safetensors there")
    add("--images", type=Path, metavar="DIR|FILE", help="a folder (jpg, png, webp, folders within it, too) or an image")
    add("--out", type=Path, metavar="DIR", help="folder that gets the labels; its structure is that of --images")
    add("--scales", type=float, nargs="+", metavar="S", help="sizes relative to the image (default: as trained for)")
    add("--flip", action=argparse.BooleanOptionalAction, help="add the mirror image (default: as trained for)")
    add("--crf", action="store_true", help="refine the labels by a dense CRF")
    impls = ("lattice", "torch", "triton", "auto")
    add("--crf-impl", choices=impls, help="implementation of the CRF (default: as trained for)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the network runs")
    add(
        "--batch-size",
        type=_count,
        default=_DEFAULTS.batch_size,
        metavar="N",
        help="images of one size at a time",
    )
    add("--threads", type=_count, metavar="N", help="CPU threads (default: all)")
    add("--max-side", type=_count, default=1024, metavar="N", help="scale longer images to N pixels for the network")
    add("--max-pixels", type=_count, default=50_000_000, metavar="N", help="refuse to decode larger images")
    add("--overlay", action=argparse.BooleanOptionalAction, default=True, help="write NAME_overlay.jpg, too")
    add("--masks", type=Path, metavar="DIR", help="true masks (NAME.png, class indices): prints the mIoU")
    add("--export", type=Path, metavar="FILE", help="write the network as FILE.pt2 (torch.export) or FILE.onnx")
    size = (384, 512)
    add("--export-size", type=_count, nargs=2, default=size, metavar=("H", "W"), help="size that it is traced with")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return _run(arguments)
    except (OSError, ValueError) as error:
        print(f"seam-dist predict: error: {error}", file=sys.stderr)
    return 2


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _run(arguments: argparse.Namespace) -> int:
    if arguments.export is None and arguments.images is None:
        raise ValueError("neither --images nor --export was given: name a folder of images or a file to export to")
    if (arguments.images is None) != (arguments.out is None):
        raise ValueError("--images and --out go together: give both, or neither with --export")
    if arguments.export is not None:
        check_export(arguments.export)
    trained = find_trained(arguments.weights, "train_seg")
    cfg = predict_settings(arguments, trained)
    images = {} if arguments.images is None else find_images(arguments.images, arguments.out)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.export is not None:
        height, width = arguments.export_size
        sizes = export_network(load_deeplab(trained), arguments.export, (height, width))
        logits = f"logits (1, {1 + len(trained.classes)}, H, W)"
        print(f"{arguments.export}: from uint8 RGB (1, 3, H, W), {sizes}, to {logits}")
    if arguments.images is None:
        return 0
    outcome = predict_images(trained, images, cfg, arguments)
    print(f"{len(images) - outcome.num_failed} of {len(images)} images done, in {arguments.out}")
    if arguments.masks is not None:
        print(format_scores(outcome, trained.classes))
    if outcome.num_failed:
        print(f"seam-dist predict: {outcome.num_failed} images could not be read, see above", file=sys.stderr)
        return 1
    return 0


def predict_settings(arguments: argparse.Namespace, trained: Trained) -> Config:
    """Return the settings in force: the arguments, then those that the network was trained with, then the defaults."""
    infer_seg = trained.recorded("infer_seg", ("scales", "flip", "crf_num_iters", "crf_bilateral_sxy"))
    infer_seg |= {name: value for name in ("scales", "flip") if (value := getattr(arguments, name)) is not None}
    crf = trained.recorded("crf", (entry.name for entry in fields(CrfConfig) if entry.name != "num_workers"))
    if arguments.crf_impl is not None:
        crf["impl"] = arguments.crf_impl
    cfg = Config(
        run=RunConfig(device=arguments.device, threads=arguments.threads),
        infer_seg=InferSegConfig(**infer_seg, batch_size=arguments.batch_size, crf=arguments.crf),
        crf=CrfConfig(**crf),
    )
    check_scales(cfg.infer_seg.scales)
    return cfg


def find_images(source: Path, out: Path) -> dict[str, Path]:
    """Return the images by their name in the output, `sub/folder/stem`, in order; a single file by its stem.

    Raises ValueError when there are none, when two would have the same name, or when `out` is the folder of images.
    """
    if not source.exists():
        raise ValueError(f"--images {source} is not there: give a folder or an image")
    inside = out.resolve()
    if inside == (source if source.is_dir() else source.parent).resolve():
        raise ValueError(f"--out {out} is the folder of the images: labels would replace images; give another folder")
    if source.is_file():
        return {source.stem: source}
    images: dict[str, Path] = {}
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or inside in path.resolve().parents:
            continue
        name = path.relative_to(source).with_suffix("").as_posix()
        if name in images:
            raise ValueError(f"{images[name]} and {path} would both become {name}.png: rename or move one of them")
        images[name] = path
    if not images:
        raise ValueError(f"--images {source} holds no {', '.join(SUFFIXES)}: give a folder of images")
    return images


def predict_images(trained: Trained, images: Mapping[str, Path], cfg: Config, arguments: argparse.Namespace) -> Outcome:
    """Write the labels of all images, and their overlays; return what became of them."""
    device = torch.device("cuda" if arguments.device != "cpu" and torch.cuda.is_available() else "cpu")
    if arguments.device == "cuda" and device.type == "cpu":
        raise ValueError("--device cuda but torch sees no GPU: use --device cpu, or a GPU build of torch")
    classes = trained.classes
    outcome = Outcome(torch.zeros(len(classes) + 1, len(classes) + 1, dtype=torch.int64))
    with ExitStack() as stack:
        crf = None
        if cfg.infer_seg.crf:
            crf = stack.enter_context(CrfPool(cfg.crf, crf_workers(cfg), device=crf_device(cfg)))
        model = load_deeplab(trained).to(device)
        bar = stack.enter_context(progress_bar("predict", len(images), "image"))
        samples = _read(images, arguments.max_pixels, outcome, bar)
        predictions = predict_samples(
            model, samples, cfg.infer_seg, align=trained.align, longest=arguments.max_side, crf=crf
        )
        for prediction, labels in refine_in_order(predictions):
            target = arguments.out / f"{prediction.sample.key}.png"
            atomic_write(target, encode_labels(labels))
            if arguments.overlay:
                picture = Image.fromarray(draw_overlay(prediction.sample.image, labels, classes))
                with atomic_file(target.with_name(f"{target.stem}_overlay.jpg")) as temporary:
                    picture.save(temporary, "JPEG", quality=_JPEG_QUALITY)
            if arguments.masks is not None:
                _score(prediction, labels, arguments.masks, outcome, arguments.max_pixels)
            bar.update(1)
    return outcome


def _read(images: Mapping[str, Path], max_pixels: int, outcome: Outcome, bar: tqdm[None]) -> Iterator[Sample]:
    """Yield the images that can be decoded; say which cannot, and why."""
    for name, path in images.items():
        try:
            image = read_image_file(path, max_pixels=max_pixels)
        except (BadImageError, OSError) as error:
            outcome.num_failed += 1
            bar.write(f"seam-dist predict: warning: {path} is left out: {error}", file=sys.stderr)
            bar.update(1)
            continue
        yield Sample(name, image, (), None, name)


def _score(prediction: Prediction, labels: Any, masks: Path, outcome: Outcome, max_pixels: int) -> None:
    path = masks / f"{prediction.sample.key}.png"
    if not path.is_file():
        return
    try:
        mask = decode_mask(path.read_bytes(), max_pixels=max_pixels)
        outcome.confusion += confusion_matrix(labels, mask, len(outcome.confusion))
    except ValueError as error:
        raise ValueError(f"{path} cannot be compared ({error}): fix the mask, or leave --masks out") from None
    outcome.num_scored += 1


def format_scores(outcome: Outcome, classes: Sequence[str]) -> str:
    """Return the IoU of each class and their mean, in percent, over the images that have a mask."""
    if outcome.num_scored == 0:
        return "no image has a mask of its name in --masks"
    scores = scores_from_confusion(outcome.confusion)
    names = ["background", *classes]
    rows = [(f"  {name}", f"{100 * iou:6.2f}") for name, iou in zip(names, scores.iou.tolist(), strict=True)]
    title = f"mIoU {100 * float(scores.miou):.2f} over {outcome.num_scored} images with masks"
    return f"{title}\n{aligned(rows, num_left=1)}"
