"""The cost of AffinityNet's loss, here and in the published form, forward and backward, on one core.

The published form gathers the second side of every pair, 34 copies of the features, then their differences. Both
compute the border rule `paper`. Each runs in a process of its own, so that peak memory is its own, too.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import torch
from seam_kernels import edge_affinity
from torch import Tensor

from seam_dist.bench.published import gathered_loss
from seam_dist.losses.affinity import affinity_losses, pair_counts

_RADIUS = 5


class Result(NamedTuple):
    """Medians of the repeats, and the loss, which must be the same in every form."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    loss: float


def inputs(batch_size: int, grid: int, channels: int) -> tuple[Tensor, Tensor]:
    """Return features as ELU leaves them, and labels of large areas, a fifth of them ignored."""
    generator = torch.Generator().manual_seed(0)
    feature = torch.nn.functional.elu(torch.randn(batch_size, channels, grid, grid, generator=generator))
    coarse = torch.randint(0, 5, (batch_size, -(-grid // 7), -(-grid // 7)), generator=generator)
    labels = coarse.repeat_interleave(7, 1).repeat_interleave(7, 2)[:, :grid, :grid].to(torch.uint8)
    return feature.requires_grad_(), labels.masked_fill(labels == 4, 255).contiguous()


def stencil_loss(feature: Tensor, labels: Tensor) -> Tensor:
    """Return the loss as training computes it, counts included."""
    counts = pair_counts(labels, radius=_RADIUS, border="paper")
    affinity = edge_affinity(feature, radius=_RADIUS, border="paper")
    return affinity_losses(affinity, labels, counts, radius=_RADIUS, border="paper")["loss"]


def measure_loss(form: str, batch_size: int, grid: int, channels: int, repeats: int) -> Result:
    """Measure one form in this process."""
    torch.set_num_threads(1)
    function = partial(gathered_loss, radius=_RADIUS) if form == "gathered" else stencil_loss
    # The first call of an operation prepares it; peak memory counts from there, the features included.
    function(*inputs(1, 12, 4)).backward()  # type: ignore[no-untyped-call]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    feature, labels = inputs(batch_size, grid, channels)
    wall, cpu = [], []
    for _ in range(repeats):
        feature.grad = None
        start, start_cpu = time.perf_counter(), time.process_time()
        loss = function(feature, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return Result(statistics.median(wall), statistics.median(cpu), peak, loss.item())


def main() -> None:
    """Print both rows and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--grid", type=int, default=56, help="cells on a side")
    parser.add_argument("--channels", type=int, default=448)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"batch {args.batch_size}, {args.grid} x {args.grid} x {args.channels}, radius {_RADIUS}, one core")
    print(f"{'':10}{'wall s':>10}{'CPU s':>10}{'peak MiB':>10}{'loss':>12}")
    cpu_s = {}
    for form in ("gathered", "stencil"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            one = pool.submit(measure_loss, form, args.batch_size, args.grid, args.channels, args.repeats).result()
        cpu_s[form] = one.cpu_s
        print(f"{form:10}{one.wall_s:10.3f}{one.cpu_s:10.3f}{one.peak_mib:10.0f}{one.loss:12.6f}", flush=True)
    print(f"gathered / stencil: {cpu_s['gathered'] / cpu_s['stencil']:.1f} of CPU time")


if __name__ == "__main__":
    main()
