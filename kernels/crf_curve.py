"""Error against time of dense_crf on a CPU: the lattice, the exact sum, and the exact sum from fewer sources.

    python kernels/crf_curve.py --image FILE.jpg --mask FILE.png [--sizes 80x60 160x120] [--strides 1 2 3 4 6 8]
                                [--csv FILE] [--plot FILE]
    python kernels/crf_curve.py --csv FILE --plot FILE        draws an existing CSV

The photograph is scaled down together with the bilateral width: 80 pixels at a width of 500. The scores are soft, as
CAMs are: each class of the mask (palette PNG, class index) is blurred and mixed with smooth noise; the background is
(1 - largest score)^4. All methods get the same scores and the other constants of the pipeline (10 iterations) and are
compared with the exact sum in float64: largest and mean difference of probabilities, and the share of pixels whose
label differs. Times are process time, one thread, median of three.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, one_hot

if __package__ in (None, "") and str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from bench import pyplot
from result_files import check_options, replace_rows, save_plot
from seam_kernels import dense_crf

FIELDS = ("size", "labels", "method", "time_ms", "max_error", "mean_error", "flipped_labels")


def soft_scores(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return scores (1, C, H, W) like those of CAMs, from a mask (H0, W0) of class indices, 0 the background."""
    _, index = mask.unique(return_inverse=True)
    planes = interpolate(one_hot(index).permute(2, 0, 1).float()[None, 1:], size, mode="area")
    width = 2 * (max(size) // 16) + 1
    for _ in range(2):
        planes = avg_pool2d(planes, width, stride=1, padding=width // 2, count_include_pad=False)
    noise = torch.rand(1, planes.shape[1], 6, 8, generator=torch.Generator().manual_seed(0))
    planes = planes / planes.amax(dim=(2, 3), keepdim=True)
    planes = (planes + 0.4 * interpolate(noise, size, mode="bicubic") - 0.2).clamp(0, 1)
    return torch.cat([(1 - planes.amax(dim=1, keepdim=True)) ** 4, planes], dim=1)


def measured(run: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    """Return the result and the median process time in ms."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        out = run()
        times.append((time.process_time() - begin) * 1e3)
    return out, sorted(times)[len(times) // 2]


def measure(
    image: Tensor, mask: Tensor, size: tuple[int, int], strides: list[int], repeats: int
) -> list[dict[str, object]]:
    """Return the rows of one size."""
    small = interpolate(image[None].float(), size, mode="area").round()
    prob = soft_scores(mask, size)
    sxy = 80 * size[1] / 500
    exact = dense_crf(prob.double(), small.double(), bilateral_sxy=sxy, impl="torch")
    methods: dict[str, Callable[[], Tensor]] = {
        "lattice": lambda: dense_crf(prob, small, bilateral_sxy=sxy, impl="lattice")
    }
    for stride in strides:
        methods[f"stride {stride}"] = lambda stride=stride: dense_crf(
            prob, small, bilateral_sxy=sxy, source_stride=stride, impl="torch"
        )
    methods["no CRF"] = lambda: prob
    rows: list[dict[str, object]] = []
    for method, run in methods.items():
        got, took = measured(run, repeats)
        error = (got.double() - exact).abs()
        flipped = (got.argmax(dim=1) != exact.argmax(dim=1)).double().mean().item()
        figures = (f"{took:.4g}", f"{error.max().item():.3g}", f"{error.mean().item():.3g}", f"{flipped:.5f}")
        values = (f"{size[1]}x{size[0]}", prob.shape[1], method, *figures)
        rows.append(dict(zip(FIELDS, values, strict=True)))
        print("  ".join(str(value) for value in values), flush=True)
    return rows


def plot(source: Path, target: Path) -> None:
    """Draw mean error and flipped labels against time, a column for each size."""
    plt = pyplot()
    with source.open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] != "no CRF"]
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    figure, axes = plt.subplots(2, len(sizes), figsize=(5.5 * len(sizes), 8), squeeze=False, sharey="row")
    for column, size in enumerate(sizes):
        for axis, key, scale, name in zip(
            axes[:, column],
            ("mean_error", "flipped_labels"),
            (1, 100),
            ("mean error", "flipped labels, %"),
            strict=True,
        ):
            for lattice in (False, True):
                points = [
                    (float(row["time_ms"]), scale * float(row[key]), row["method"].removeprefix("stride "))
                    for row in rows
                    if row["size"] == size and (row["method"] == "lattice") == lattice
                ]
                label = "lattice" if lattice else "exact sum, every s-th source"
                axis.plot(*list(zip(*points, strict=True))[:2], "s" if lattice else "o-", label=label)
                for x, y, text in points if not lattice else []:
                    axis.annotate(f"s={text}", (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
            axis.set_xscale("log")
            axis.set_yscale("log" if key == "mean_error" else "linear")
            axis.set(title=size, xlabel="ms an image, one core", ylabel=f"{name} against float64")
            axis.grid(True, which="both", alpha=0.3)
            axis.legend(fontsize=8)
    figure.tight_layout()
    save_plot(figure, target)


def main() -> None:
    """Measure and print, write the CSV, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--mask", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["80x60", "160x120"], help="width x height")
    parser.add_argument("--strides", nargs="+", type=int, default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path, help="draw the CSV (extra bench)")
    args = parser.parse_args()
    check_options(parser, args.csv, args.plot, FIELDS)
    torch.set_num_threads(1)
    if args.image and args.mask:
        import numpy as np
        from PIL import Image

        image = torch.from_numpy(np.array(Image.open(args.image).convert("RGB"))).permute(2, 0, 1)
        mask = torch.from_numpy(np.array(Image.open(args.mask)))
        rows = []
        for text in args.sizes:
            width, height = map(int, text.split("x"))
            rows += measure(image, mask, (height, width), args.strides, args.repeats)
        if args.csv:
            replace_rows(args.csv, FIELDS, rows)
    elif args.image or args.mask or not args.plot:
        parser.error("expected --image and --mask to measure, or --csv and --plot to draw")
    if args.plot:
        if args.csv is None:
            parser.error("--plot reads a CSV: name it with --csv")
        plot(args.csv, args.plot)


if __name__ == "__main__":
    main()
