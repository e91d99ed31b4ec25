"""Time and memory of the operations: one row for each op, impl, direction and shape.

    python kernels/bench.py [--impls published torch] [--shapes voc448] [--batch 8] [--threads 1] [--csv FILE]

Times are process time on a CPU (neighbours do not count) and event time on a GPU; the impls of a shape take turns, so
that a drift of the machine meets them alike. Peak memory counts from the inputs on: what the call adds, including
gradients; on a CPU it is the growth of the resident set in a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

if __package__ in (None, "") and str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from seam_kernels import pcm_attention, pcm_attention_reference

SHAPES = {"voc448": (56, 56), "coco": (60, 80), "multiscale": (112, 112), "cityscapes": (128, 256)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIELDS = ("op", "impl", "direction", "dtype", "shape", "median_ms", "p20_ms", "p80_ms", "peak_mib", "device", "torch")


def published_pcm(cam: Tensor, feature: Tensor) -> Tensor:
    """Return PCM in the order of the published code: the similarity is normalised as a matrix, then applied."""
    unit = feature / (torch.norm(feature, dim=1, keepdim=True) + 1e-5)
    affinity = torch.relu(torch.matmul(unit.transpose(1, 2), unit))
    return torch.matmul(cam, affinity / (torch.sum(affinity, dim=1, keepdim=True) + 1e-5))


IMPLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "published": published_pcm,
    "reference": pcm_attention_reference,
    "torch": lambda cam, feature: pcm_attention(cam, feature, impl="torch"),
}


def make_inputs(args: argparse.Namespace, shape: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cam without and feature with a gradient, as SEAM calls the operation."""
    height, width = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    cam = torch.rand(args.batch, args.classes, height * width, generator=generator)
    feature = torch.randn(args.batch, args.channels, height * width, generator=generator)
    dtype = DTYPES[args.dtype]
    return cam.to(device, dtype), feature.to(device, dtype).requires_grad_()


def call(impl: str, direction: str, cam: Tensor, feature: Tensor) -> Callable[[], object]:
    """Return a function that runs one direction; the graph of a backward run is kept and used again."""
    function = IMPLS[impl]
    if direction == "forward":
        return lambda: function(cam, feature.detach())
    if direction == "both":
        return lambda: torch.autograd.grad(function(cam, feature).sum(), feature)
    out = function(cam, feature)
    return lambda: torch.autograd.grad(out, feature, torch.ones_like(out), retain_graph=True)


def time_ms(run: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds of one run: process time, or the GPU's own clock."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))
    begin = time.process_time()
    run()
    return (time.process_time() - begin) * 1e3 / torch.get_num_threads()


def resident_peak_mib() -> float:
    """Return the largest resident set of this process since its peak was last cleared (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def peak_mib_here(args: argparse.Namespace, impl: str, shape: str, device: torch.device) -> float:
    """Return the MiB that one forward and backward (or forward) run adds to the process or the GPU."""
    direction = "forward" if args.peak_of[2] == "forward" else "both"
    cam, feature = make_inputs(args, shape, device)
    call(impl, direction, cam[..., :32].contiguous(), feature[..., :32].detach().contiguous().requires_grad_())()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(impl, direction, cam, feature)()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, without the import's
    before = resident_peak_mib()
    call(impl, direction, cam, feature)()
    return resident_peak_mib() - before


def peak_mib(args: argparse.Namespace, impl: str, shape: str, direction: str) -> float:
    """Return the peak memory of one run, measured in a fresh process."""
    words = [sys.executable, __file__, *args.words, "--peak-of", impl, shape, direction]
    return float(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))


def measure(args: argparse.Namespace, shape: str, device: torch.device) -> list[dict[str, object]]:
    """Return the rows of one shape."""
    rows: list[dict[str, object]] = []
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} x{args.threads}"
    for direction in ("forward", "backward"):
        cam, feature = make_inputs(args, shape, device)
        runs = {impl: call(impl, direction, cam, feature) for impl in args.impls}
        times: dict[str, list[float]] = {impl: [] for impl in args.impls}
        for repeat in range(args.repeats + 1):
            for impl, run in runs.items():
                took = time_ms(run, device)
                if repeat:  # the first round warms up
                    times[impl].append(took)
        for impl in args.impls:
            p20, median, p80 = torch.tensor(times[impl]).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
            values = ("pcm_attention", impl, direction, args.dtype)
            size = f"{shape}: B{args.batch} C{args.classes} D{args.channels} N{cam.shape[2]}"
            peak = peak_mib(args, impl, shape, direction)
            figures = (f"{median:.2f}", f"{p20:.2f}", f"{p80:.2f}", f"{peak:.1f}")
            rows.append(dict(zip(FIELDS, (*values, size, *figures, name, torch.__version__), strict=True)))
            print("  ".join(str(value) for value in rows[-1].values()), flush=True)
    return rows


def main() -> None:
    """Parse the words, print a row as it is measured, and write the CSV at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impls", nargs="+", choices=IMPLS, default=["published", "torch"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["voc448"])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=21, help="rows of cam, background included")
    parser.add_argument("--channels", type=int, default=192, help="rows of feature")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.words = sys.argv[1:]
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if args.peak_of:
        print(json.dumps(peak_mib_here(args, args.peak_of[0], args.peak_of[1], device)))
        return
    rows = [row for shape in args.shapes for row in measure(args, shape, device)]
    if args.csv:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
