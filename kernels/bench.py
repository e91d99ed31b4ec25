"""Time, memory and distance from the machine's limits of the operations: op x impl x direction x shape.

    python kernels/bench.py [--ops pcm edges walk crf] [--impls published torch] [--shapes voc448] [--batch 8]
                            [--dtype float32] [--threads 1] [--repeats 7] [--budget 30] [--no-memory] [--csv FILE]
    python kernels/bench.py --csv FILE [--plot FILE] [--ratios]

First the machine's matrix rate, float32 vector rate and copy bandwidth are measured; `fraction` is the least time
that they allow over the median time. Times are process time on a CPU (neighbors do not count) and event time on a
GPU; the impls of a shape alternate, so that a drift of the machine affects them alike. A row gets `--budget` seconds: a
slow impl is repeated less often (column repeats), and its first run, otherwise a warm-up, counts where it takes half of
the budget. Peak memory is what a forward and backward run adds to the inputs; on a CPU it is the growth of the resident
set of a process of its own.
`--plot` draws an existing CSV: log-log time and memory against pixels (extra `bench`). `--ratios` prints, as a table,
how many times faster and smaller than the published form each row of a CSV is.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __package__ in (None, "") and str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from result_files import add_rows, check_options, save_plot
from seam_kernels import dense_crf, edge_affinity, half_plane_offsets, pcm_attention, random_walk
from seam_kernels.dispatch import HAS_TRITON
from seam_kernels.reference import edge_matrix

SHAPES = {
    "voc448": (56, 56),
    "coco": (60, 80),
    "multiscale": (112, 112),
    "cityscapes": (128, 256),
    "image": (375, 500),
    "tiny": (16, 16),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIELDS = (
    "op", "impl", "direction", "dtype", "shape", "pixels", "median_ms", "p20_ms", "p80_ms", "repeats", "peak_mib",
    "fraction", "device", "torch", "triton", "commit",
)  # fmt: skip


def published_pcm(cam: Tensor, feature: Tensor) -> Tensor:
    """Return PCM in the order of the published code: the similarity is normalized as a matrix, then applied."""
    unit = feature / (torch.norm(feature, dim=1, keepdim=True) + 1e-5)
    affinity = torch.relu(torch.matmul(unit.transpose(1, 2), unit))
    return torch.matmul(cam, affinity / (torch.sum(affinity, dim=1, keepdim=True) + 1e-5))


def published_edges(feature: Tensor) -> Tensor:
    """Return the affinities of the published border rule from gathered copies of the features, (B, 34, pixels)."""
    height, width = feature.shape[2:]
    index = torch.arange(height * width, device=feature.device).view(height, width)
    first = index[:-4, 4:-4].flatten()
    second = torch.stack([first + dy * width + dx for dy, dx in half_plane_offsets(5)]).flatten()
    flat = feature.flatten(2)
    near = flat.index_select(2, first).unsqueeze(2)
    far = flat.index_select(2, second).view(*flat.shape[:2], 34, -1)
    return torch.exp(-torch.mean(torch.abs(near - far), dim=1))


def published_walk(cam: Tensor, affinity: Tensor, num_steps: int) -> Tensor:
    """Return the walk by repeated squaring of the dense transition matrix."""
    pixels = cam.shape[2] * cam.shape[3]
    transition = edge_matrix(affinity, 5) ** 8 + torch.eye(pixels, dtype=cam.dtype, device=cam.device)
    transition = transition / transition.sum(dim=1, keepdim=True)
    for _ in range(num_steps.bit_length() - 1):
        transition = torch.matmul(transition, transition)
    return torch.matmul(cam.flatten(2), transition).view(cam.shape)


@dataclass(frozen=True)
class Work:
    """The least a direction must do: matrix and vector floating point operations, and bytes moved."""

    matrix: float = 0.0
    vector: float = 0.0
    bytes: float = 0.0


Function = Callable[..., Tensor]


def operations(args: argparse.Namespace) -> dict[str, dict[str, Function]]:
    """Return the implementations of each operation; the first input that asks for a gradient gets one."""
    steps, walked = args.steps, {"num_steps": args.steps}

    def kernel(function: Function, **options: object) -> dict[str, Function]:
        names = ("torch", "triton") if HAS_TRITON and args.device == "cuda" else ("torch",)
        return {name: lambda *inputs, name=name: function(*inputs, impl=name, **options) for name in names}

    ops: dict[str, dict[str, Function]] = {
        "pcm": {"published": published_pcm, **kernel(pcm_attention)},
        "edges": {"published": published_edges, **kernel(edge_affinity)},
        "walk": {
            "published": lambda cam, affinity: published_walk(cam, affinity, steps),
            **kernel(random_walk, **walked),
            **{f"{k}-chebyshev": v for k, v in kernel(random_walk, method="chebyshev", **walked).items()},
        },
        "crf": {
            **kernel(dense_crf, source_stride=args.stride, num_iters=args.iterations),
        },
    }
    for op, published in (("pcm", published_pcm), ("edges", published_edges)):
        ops[op]["compiled"] = torch.compile(published)
    if importlib.util.find_spec("pydensecrf"):
        ops["crf"]["lattice"] = lambda prob, image: dense_crf(prob, image, num_iters=args.iterations, impl="lattice")
    return ops


def make_inputs(args: argparse.Namespace, op: str, shape: str) -> list[Tensor]:
    """Return the inputs; the one that asks for a gradient as the pipeline does is the last, or for crf none."""
    height, width = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    dtype, batch, classes = DTYPES[args.dtype], args.batch, args.classes

    def random(*size: int) -> Tensor:
        return torch.rand(size, generator=generator).to(args.device, dtype)

    if op == "pcm":
        pixels = height * width
        return [random(batch, classes, pixels), (random(batch, args.channels, pixels) * 2 - 1).requires_grad_()]
    if op == "edges":
        return [(random(batch, args.edge_channels, height, width) * 2 - 1).requires_grad_()]
    if op == "walk":
        inside = edge_affinity(torch.zeros(1, 1, height, width), border="full").to(args.device, dtype)
        return [random(batch, classes, height, width), (inside * random(batch, 34, height, width)).requires_grad_()]
    return [random(batch, classes, height, width), random(batch, 3, height, width) * 255]


def least_work(args: argparse.Namespace, op: str, direction: str, shape: str) -> Work:
    """Return the cost model of kernels/README.md."""
    height, width = SHAPES[shape]
    n, b, c, d = height * width, args.batch, args.classes, args.channels
    size = DTYPES[args.dtype].itemsize
    back = direction == "backward"
    if op == "pcm":
        flops = 2.0 * n * n * (2 * (d + c + 1) if back else d + c + 1)
        return Work(matrix=b * flops, bytes=b * size * n * (2 * d + 2 * c) * (1.5 if back else 0.5))
    if op == "edges":
        d = args.edge_channels
        # A difference and an addition, each a slot of the multiply-add units; backward meets both ends and has signs.
        return Work(vector=b * n * 34.0 * d * (12 if back else 4), bytes=b * size * n * (d * (2 if back else 1) + 34.0))
    if op == "walk":
        walks = 4 if back else 1  # states again, pulls, and the two products for the weights
        return Work(vector=b * n * c * 2 * 69.0 * args.steps * walks, bytes=b * size * n * (34.0 + 2 * c) * (1 + back))
    pairs = float(n) * (n // args.stride**2)
    return Work(matrix=b * pairs * 2 * (5 + c) * (args.iterations + 1), bytes=b * n * (2 * c + 3.0) * 4)


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def time_ms(run: Callable[[], object], device: str) -> float:
    """Return the milliseconds of one run: process time, or the GPU's own clock."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))
    begin = time.process_time()
    run()
    return (time.process_time() - begin) * 1e3 / torch.get_num_threads()


def machine_limits(args: argparse.Namespace) -> dict[str, float]:
    """Return matrix and vector flops a second and bytes a second, as measured here and now."""
    side, count = (8192, 1 << 28) if args.device == "cuda" else (768, 1 << 23)

    def rate(dtype: torch.dtype) -> float:
        a = torch.rand(side, side, device=args.device).to(dtype)
        times = [time_ms(lambda: a @ a, args.device) for _ in range(6)]
        return 2 * side**3 / (sorted(times[1:])[2] * 1e-3)

    source = torch.rand(count, device=args.device)
    target = torch.empty_like(source)
    copies = [time_ms(lambda: target.copy_(source), args.device) for _ in range(6)]
    limits = {"matrix": rate(DTYPES[args.dtype]), "vector": rate(torch.float32)}
    return limits | {"bytes": 8 * count / (sorted(copies[1:])[2] * 1e-3)}


def runner(function: Function, inputs: list[Tensor], direction: str) -> Callable[[], object] | None:
    """Return a function that runs one direction, or None where there is no gradient; a graph is kept and used again."""
    asked = [x for x in inputs if x.requires_grad]
    plain = [x.detach() for x in inputs]
    if direction == "forward":
        return lambda: function(*plain)
    if not asked:
        return None
    if direction == "both":
        return lambda: torch.autograd.grad(function(*inputs).sum(), asked)
    out = function(*inputs)
    ones = torch.ones_like(out)
    return lambda: torch.autograd.grad(out, asked, ones, retain_graph=True)


def resident_peak_mib() -> float:
    """Return the largest resident set of this process since its peak was last cleared (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def peak_mib_here(args: argparse.Namespace, op: str, impl: str, shape: str, direction: str) -> float:
    """Return the MiB that one run adds to the process or the GPU."""
    function = operations(args)[op][impl]
    direction = "forward" if direction == "forward" else "both"
    for name in ("tiny", shape):  # the first run loads libraries
        run = runner(function, make_inputs(args, op, name), direction)
        assert run is not None
        synchronize(args.device)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            grown = (torch.cuda.max_memory_allocated() - before) / 2**20
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = resident_peak_mib()
            run()
            grown = resident_peak_mib() - before
    return grown


def peak_mib(args: argparse.Namespace, *which: str) -> float:
    """Return the peak memory of one run, measured in a fresh process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", *which]
    # glibc would keep freed blocks, such as those of making the inputs, and hand them out again unseen.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout))


def measure(args: argparse.Namespace, op: str, shape: str, limits: dict[str, float]) -> list[dict[str, object]]:
    """Return the rows of one operation and shape."""
    functions = {name: f for name, f in operations(args)[op].items() if name in args.impls}
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} x{args.threads}"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    triton_version = importlib.import_module("triton").__version__ if HAS_TRITON else ""
    rows: list[dict[str, object]] = []
    for direction in args.directions:
        inputs = make_inputs(args, op, shape)
        runs = {name: runner(function, inputs, direction) for name, function in functions.items()}
        times: dict[str, list[float]] = {name: [] for name, run in runs.items() if run}
        spent = dict.fromkeys(times, 0.0)
        for repeat in range(args.repeats + 1):
            for name, run in runs.items():
                if run is None or (times[name] and spent[name] >= args.budget * 1e3):
                    continue
                took = time_ms(run, args.device)
                spent[name] += took
                if repeat or took >= args.budget * 500:  # the first round warms up
                    times[name].append(took)
        work = least_work(args, op, direction, shape)
        least = max(work.matrix / limits["matrix"], work.vector / limits["vector"], work.bytes / limits["bytes"])
        height, width = SHAPES[shape]
        extra = {"pcm": f" D{args.channels}", "edges": f" D{args.edge_channels}", "walk": f" steps{args.steps}"}
        size = f"{shape} B{args.batch} C{args.classes}{extra.get(op, f' stride{args.stride}')}"
        for name, took in times.items():
            p20, median, p80 = torch.tensor(took).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
            peak = f"{peak_mib(args, op, name, shape, direction):.1f}" if args.memory else ""
            # The lattice does another, smaller work than the exact sum.
            fraction = "" if name == "lattice" else f"{least * 1e3 / median:.3f}"
            figures = (f"{median:.4g}", f"{p20:.4g}", f"{p80:.4g}", len(took), peak, fraction)
            which = (op, name, direction, args.dtype, size, height * width)
            versions = (device, torch.__version__, triton_version, commit.stdout.strip())
            rows.append(dict(zip(FIELDS, (*which, *figures, *versions), strict=True)))
            print("  ".join(str(value) for value in rows[-1].values()), flush=True)
    return rows


def read_rows(source: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV; of rows that were measured several times, the last one."""
    with source.open() as file:
        rows = list(csv.DictReader(file))
    return list(
        {tuple(row[key] for key in ("op", "impl", "direction", "dtype", "shape")): row for row in rows}.values()
    )


def pyplot() -> Any:
    """Return matplotlib.pyplot, drawing to files; raise ValueError with the remedy when it cannot be imported."""
    # One built for another numpy is installed and raises anything.
    try:
        matplotlib = importlib.import_module("matplotlib")
    except Exception as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"is broken ({error})"
        raise ValueError(f"--plot needs matplotlib, which {reason}: pip install 'seam-dist[bench]'") from None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def plot(source: Path, target: Path) -> None:
    """Draw time and memory against pixels from a CSV, a column for each operation, a line for each impl and setting."""
    plt = pyplot()
    rows = read_rows(source)
    ops = list(dict.fromkeys(row["op"] for row in rows))
    impls = list(dict.fromkeys(row["impl"] for row in rows))
    figure, axes = plt.subplots(2, len(ops), figsize=(5 * len(ops), 9.5), squeeze=False)
    for column, op in enumerate(ops):
        chosen = [row for row in rows if row["op"] == op]
        settings_of_rows = [row["shape"].split()[1:] for row in chosen]
        for axis, key in zip(axes[:, column], ("median_ms", "peak_mib"), strict=True):
            groups: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
            for row, settings in zip(chosen, settings_of_rows, strict=True):
                # Of the settings (batch, classes, ...), those that differ between the rows of the operation.
                varied = " ".join(
                    value for i, value in enumerate(settings) if len({values[i] for values in settings_of_rows}) > 1
                )
                if row[key]:
                    group = (row["impl"], row["direction"], varied)
                    groups.setdefault(group, []).append((int(row["pixels"]), float(row[key])))
            settings_seen = list(dict.fromkeys(varied for _, _, varied in groups))
            for (impl, direction, varied), points in groups.items():
                axis.loglog(
                    *zip(*sorted(points), strict=True),
                    "-" if direction == "forward" else "--",
                    marker="osD^v<>*"[settings_seen.index(varied) % 8],
                    color=f"C{impls.index(impl)}",
                    markersize=5,
                    label=f"{impl} {direction} {varied}".strip(),
                )
            ticks = sorted({int(row["pixels"]) for row in chosen})
            axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30, ha="right")
            axis.set_xlim(min(ticks) / 1.3, max(ticks) * 1.3)
            axis.xaxis.set_minor_formatter(plt.NullFormatter())
            axis.set(title=op, xlabel="pixels N", ylabel="ms" if key == "median_ms" else "peak MiB")
            axis.grid(True, which="major", alpha=0.4)
        # Both plots of a column have the same lines; below them no line is hidden.
        axes[1, column].legend(fontsize=7, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.3))
    devices = ", ".join(dict.fromkeys(row["device"] for row in rows))
    figure.suptitle(f"{devices}; backward without its forward, memory of both together")
    figure.tight_layout()
    save_plot(figure, target)


def ratios(source: Path) -> str:
    """Return a Markdown table of a CSV: time and memory, and how many times less than the published form's they are."""
    rows = read_rows(source)
    halves: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        halves.setdefault((row["op"], row["impl"], row["shape"]), {})[row["direction"]] = row
    for pair in halves.values():
        if len(pair) == 2:
            total = sum(float(row["median_ms"]) for row in pair.values())
            rows.append(pair["backward"] | {"direction": "both", "median_ms": f"{total:.4g}", "fraction": ""})
    published = {(row["op"], row["direction"], row["shape"]): row for row in rows if row["impl"] == "published"}
    lines = ["| op | shape | direction | impl | ms | x faster | peak MiB | x smaller | of the limit |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        base = published.get((row["op"], row["direction"], row["shape"]))
        gains = {"median_ms": "", "peak_mib": ""}
        for key in gains:
            if base and base is not row and row[key] and base[key]:
                gains[key] = f"{float(base[key]) / float(row[key]):.3g}"
        cells = (
            row["op"], row["shape"], row["direction"], row["impl"], row["median_ms"], gains["median_ms"],
            row["peak_mib"], gains["peak_mib"], row["fraction"],
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the options, print a row as it is measured, add the rows to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    impls = ("published", "compiled", "torch", "triton", "torch-chebyshev", "triton-chebyshev", "lattice")
    parser.add_argument("--ops", nargs="+", choices=("pcm", "edges", "walk", "crf"), default=["pcm", "edges"])
    parser.add_argument("--impls", nargs="+", choices=impls, default=["published", "torch", "triton"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["voc448"])
    parser.add_argument("--directions", nargs="+", choices=("forward", "backward"), default=["forward", "backward"])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--classes", type=int, default=21, help="score maps of an image, background included")
    parser.add_argument("--channels", type=int, default=192, help="feature channels of pcm")
    parser.add_argument("--edge-channels", type=int, default=448, help="feature channels of edges")
    parser.add_argument("--steps", type=int, default=64, help="steps of the walk, a power of two")
    parser.add_argument("--stride", type=int, default=1, help="source_stride of crf")
    parser.add_argument("--iterations", type=int, default=10, help="of crf")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of a row, beyond which it is not repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--csv", type=Path, help="file that the rows are added to")
    parser.add_argument("--plot", type=Path, help="draw the rows of --csv instead of measuring (extra bench)")
    parser.add_argument("--ratios", action="store_true", help="print the rows of --csv as a table instead of measuring")
    parser.add_argument("--peak-of", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    check_options(parser, args.csv, args.plot, FIELDS)
    if args.plot or args.ratios:
        if args.csv is None:
            parser.error("--plot and --ratios read a CSV: name it with --csv")
        if args.plot:
            plot(args.csv, args.plot)
        if args.ratios:
            print(ratios(args.csv))
        return
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(json.dumps(peak_mib_here(args, *args.peak_of)))
        return
    limits = machine_limits(args)
    print(
        f"measured here: {args.dtype} matrices {limits['matrix'] / 1e12:.3g} Tflop/s, float32 "
        f"{limits['vector'] / 1e12:.3g} Tflop/s, copies {limits['bytes'] / 1e9:.3g} GB/s", flush=True,
    )  # fmt: skip
    for op in args.ops:
        for shape in args.shapes:
            rows = measure(args, op, shape, limits)
            if args.csv:
                add_rows(args.csv, FIELDS, rows)


if __name__ == "__main__":
    main()
