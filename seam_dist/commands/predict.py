"""The command `seam-dist predict`: labels of any images from the weights of a final network, without shards or config.

For each image a palette PNG of class indices and an overlay; folders keep their structure. Nothing is overwritten but
what the command wrote itself (artifacts/outputs.py); all that is in the way is said before the first image.

Exit codes: 0 done; 1 some images or masks could not be used, each of which was named; 2 an argument or the weights are
wrong, or the outputs cannot be written; 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from seam_dist.artifacts.label_file import encode_labels
from seam_dist.artifacts.outputs import OutputError, OutputFolder, printable
from seam_dist.cluster.progress import progress_bar
from seam_dist.commands.predict_files import check_name, check_targets, complain, find_images
from seam_dist.config.inference import LARGEST_SCALE, check_scales
from seam_dist.config.paths import user_path
from seam_dist.config.phrases import count_of
from seam_dist.config.schema import Config, CrfConfig, InferSegConfig, RunConfig, SourceConfig
from seam_dist.data.image_files import read_image_file
from seam_dist.data.image_folder import ImageFolder, check_readable
from seam_dist.data.images import IMAGE_SUFFIXES, BadImageError, Pixels
from seam_dist.data.shards import Sample
from seam_dist.evaluation.mask_folder import MaskFolder
from seam_dist.inference.crf_pool import CrfPool, crf_device, crf_workers
from seam_dist.inference.export import check_export, export_network
from seam_dist.inference.segmentation import predict_samples, refine_in_order
from seam_dist.models import Trained, find_trained, load_deeplab
from seam_dist.report.overlay import draw_overlay

_DEFAULTS = InferSegConfig()
_JPEG_QUALITY = 90
_EXPORT_SIZE = (384, 512)


@dataclass
class Outcome:
    """What has become of the images: those whose labels are written, those that could not be used, bad masks."""

    num_done: int = 0
    num_failed: int = 0
    num_bad_masks: int = 0


def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        prog="seam-dist predict",
        description="Predict the class of every pixel of images with a trained final network. Writes NAME.png (palette "
        "PNG of class indices) and NAME_overlay.jpg for each image; replaces nothing but its own files.",
    )
    add = parser.add_argument
    formats = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
    add(
        "--weights",
        type=user_path,
        required=True,
        metavar="W",
        help="run, its train_seg/final, or model.safetensors there",
    )
    add(
        "--images", type=user_path, metavar="DIR|FILE", help=f"a folder ({formats}; folders within it, too) or an image"
    )
    add("--out", type=user_path, metavar="DIR", help="folder that gets the labels; its structure is that of --images")
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
    add("--masks", type=user_path, metavar="DIR", help="true masks (NAME.png, class indices): prints the mIoU")
    add("--export", type=user_path, metavar="FILE", help="write the network as FILE.pt2 (torch.export) or FILE.onnx")
    height, width = _EXPORT_SIZE
    size_help = f"size that it is traced with (default: {height} {width})"
    add("--export-size", type=_count, nargs=2, metavar=("H", "W"), help=size_help)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = build_parser().parse_args(argv)
    outcome = Outcome()
    try:
        return _run(arguments, outcome)
    except KeyboardInterrupt:
        done = count_of(outcome.num_done, "image is", "images are")
        done = "" if arguments.out is None else f", {done} done, in {printable(arguments.out)}"
        complain(f"interrupted{done}")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        raise
    except OSError as error:
        name = f"{printable(os.fsdecode(error.filename))}: " if error.filename is not None else ""
        complain(f"error: {name}{error.strerror or error}")
    except ValueError as error:
        complain(f"error: {error}")
    return 2


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return value


def _run(arguments: argparse.Namespace, outcome: Outcome) -> int:
    if arguments.export is None and arguments.images is None:
        raise ValueError("neither --images nor --export was given: name a folder of images or a file to export to")
    if (arguments.images is None) != (arguments.out is None):
        raise ValueError("--images and --out go together: give both, or neither with --export")
    if arguments.masks is not None and arguments.images is None:
        raise ValueError("--masks was given without --images, so there is nothing to compare: give --images and --out")
    if arguments.masks is not None and not arguments.masks.exists():
        raise ValueError(f"--masks {printable(arguments.masks)} is not there: give the folder of the masks")
    if arguments.crf_impl is not None and not arguments.crf:
        raise ValueError(f"--crf-impl={arguments.crf_impl} was given without --crf, so no CRF runs: give both")
    if arguments.export_size is not None and arguments.export is None:
        raise ValueError("--export-size was given without --export, so nothing is exported: give both")
    if arguments.scales is not None:
        check_scales(arguments.scales, "--scales")
        if max(arguments.scales) > LARGEST_SCALE:
            raise ValueError(f"--scales={arguments.scales}: expected at most {LARGEST_SCALE}, which memory can hold")
    if arguments.export is not None:
        check_export(arguments.export)
    trained = find_trained(arguments.weights, "train_seg")
    cfg = predict_settings(arguments, trained)
    listed = (
        ImageFolder() if arguments.images is None else find_images(arguments.images, arguments.out, arguments.masks)
    )
    images, targets = listed.images, check_targets(listed.images, arguments.out, arguments.overlay)
    masks = None
    if arguments.masks is not None:
        masks = MaskFolder(arguments.masks, images, trained.classes, max_pixels=arguments.max_pixels)
        for note in masks.notes:
            complain(f"warning: --masks {printable(arguments.masks)}: {note}")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.export is not None:
        height, width = arguments.export_size or _EXPORT_SIZE
        sizes = export_network(load_deeplab(trained), arguments.export, (height, width))
        logits = f"logits (1, {1 + len(trained.classes)}, H, W)"
        print(f"{printable(arguments.export)}: from uint8 RGB (1, 3, H, W), {sizes}, to {logits}")
    if arguments.images is None:
        return 0
    predict_images(trained, images, targets, cfg, arguments, outcome, masks)
    print(f"{outcome.num_done} of {len(images)} images done, in {printable(arguments.out)}")
    if masks is not None:
        print(masks.format_scores())
    if outcome.num_failed:
        complain(f"{count_of(outcome.num_failed, 'image', 'images')} could not be read or written, see above")
    if outcome.num_bad_masks:
        complain(f"{count_of(outcome.num_bad_masks, 'mask', 'masks')} could not be compared, see above")
    return 1 if outcome.num_failed or outcome.num_bad_masks or listed.unreadable else 0


def predict_settings(arguments: argparse.Namespace, trained: Trained) -> Config:
    """Return the settings in force: the arguments, then those that the network was trained with, then the defaults."""
    infer_seg = trained.recorded("infer_seg", ("scales", "flip", "crf_num_iters", "crf_bilateral_sxy"))
    infer_seg |= {name: value for name in ("scales", "flip") if (value := getattr(arguments, name)) is not None}
    crf = trained.recorded("crf", (entry.name for entry in fields(CrfConfig) if entry.name != "num_workers"))
    if arguments.crf_impl is not None:
        crf["impl"] = arguments.crf_impl
    return Config(
        source=SourceConfig(**trained.recorded("source", ("pixel_range",))),
        run=RunConfig(device=arguments.device, threads=arguments.threads),
        infer_seg=InferSegConfig(**infer_seg, batch_size=arguments.batch_size, crf=arguments.crf),
        crf=CrfConfig(**crf),
    )


def predict_images(
    trained: Trained,
    images: Mapping[str, Path],
    targets: Mapping[str, Sequence[str]],
    cfg: Config,
    arguments: argparse.Namespace,
    outcome: Outcome,
    masks: MaskFolder | None,
) -> None:
    """Write the labels of all images, and their overlays, and count in `outcome` what has become of them.

    Raises ValueError when the outputs cannot be written, for example on a full disk; those that are there are whole.
    """
    device = torch.device("cuda" if arguments.device != "cpu" and torch.cuda.is_available() else "cpu")
    if arguments.device == "cuda" and device.type == "cpu":
        raise ValueError("--device cuda but torch sees no GPU: use --device cpu, or a GPU build of torch")
    outputs = OutputFolder(arguments.out)
    with ExitStack() as stack:
        crf = None
        if cfg.infer_seg.crf:
            crf = stack.enter_context(CrfPool(cfg.crf, crf_workers(cfg), device=crf_device(cfg)))
        model = load_deeplab(trained).to(device)
        bar = stack.enter_context(progress_bar("predict", len(images), "image"))
        samples = _read(images, targets, cfg.source.pixel_range, arguments, outcome, bar)
        predictions = predict_samples(
            model, samples, cfg.infer_seg, align=trained.align, longest=arguments.max_side, crf=crf
        )
        for prediction, labels in refine_in_order(predictions):
            sample, key = prediction.sample, prediction.sample.key
            try:
                _write(outputs, targets[key], labels, sample.image, trained.classes)
            except (OSError, OutputError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
                    name = printable(arguments.out / targets[key][0])
                    raise ValueError(
                        f"{name} or its overlay cannot be written ({error.strerror or error}): {outcome.num_done} of "
                        f"{len(images)} images are done, their files are whole; correct it and rerun"
                    ) from None
                _leave_out(images[key], error, outcome, bar)
                continue
            outcome.num_done += 1
            bar.update(1)
            try:
                if masks is not None:
                    masks.add(key, labels)
            except ValueError as error:
                outcome.num_bad_masks += 1
                bar.write(f"seam-dist predict: warning: {error}", file=sys.stderr)


def _write(outputs: OutputFolder, names: Sequence[str], labels: Pixels, image: Pixels, classes: Sequence[str]) -> None:
    """Write the labels of an image and, with two names, its overlay."""
    outputs.write(names[0], encode_labels(labels))
    for name in names[1:]:
        data = io.BytesIO()  # on a full disk Pillow cuts a file that it writes itself and says nothing
        Image.fromarray(draw_overlay(image, labels, classes)).save(data, "JPEG", quality=_JPEG_QUALITY)
        outputs.write(name, data.getvalue())


def _read(
    images: Mapping[str, Path],
    targets: Mapping[str, Sequence[str]],
    pixel_range: tuple[float, float] | None,
    arguments: argparse.Namespace,
    outcome: Outcome,
    bar: tqdm[None],
) -> Iterator[Sample]:
    """Yield the images that can be decoded; say which cannot, and why."""
    for key, path in images.items():
        try:
            check_name(targets[key])
            check_readable(path)
            image = read_image_file(path, max_pixels=arguments.max_pixels, pixel_range=pixel_range)
        except (BadImageError, OSError) as error:
            _leave_out(path, error, outcome, bar)
            continue
        yield Sample(key, image, (), None, key)


def _leave_out(path: Path, error: Exception, outcome: Outcome, bar: tqdm[None]) -> None:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    outcome.num_failed += 1
    bar.write(f"seam-dist predict: warning: {printable(path)} is left out: {reason}", file=sys.stderr)
    bar.update(1)
