"""Numerical errors of the operations: each impl and dtype against float64 on the same, rounded inputs.

    python kernels/errors.py [--ops pcm edges walk crf] [--impls reference torch triton] [--dtypes float32] [--small]

Printed: for the result and for each gradient |got - exact| / |exact| in the Frobenius norm, and the largest error of
the result. "reference" is the dense form in the dtype itself. "triton" runs on a GPU, or with TRITON_INTERPRET=1 on a
CPU at small sizes (float32 as float32 there, not tf32; no bfloat16). Features of pcm have a mean, as trained ones do:
at S = 0 rounding decides whether a pair has a gradient.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

if __package__ in (None, "") and str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from seam_kernels import dense_crf, edge_affinity, pcm_attention, random_walk
from seam_kernels.dispatch import HAS_TRITON

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
Function = Callable[..., Tensor]


def _random(*shape: int, seed: int = 0, normal: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) if normal else torch.rand(shape, generator=generator)


def cases(small: bool) -> dict[str, tuple[Function, list[Tensor], list[str]]]:
    """Return the function, the inputs and the names of those that get a gradient, of each row."""
    pixels, side, channels, steps = (131, 12, 32, 8) if small else (784, 28, 64, 64)
    feature = _random(2, 192, pixels, seed=1, normal=True) + 0.7
    smooth = edge_affinity(_random(1, channels, side, side, seed=2, normal=True), border="full")
    image = (100 + 60 * _random(1, 3, side, side, seed=3)).round()
    scores = _random(1, 3, side, side)

    def crf(prob: Tensor, *, impl: str) -> Tensor:
        # Colors are 0 .. 255 whatever the dtype: their rounding is no error of the operation.
        return dense_crf(prob, image.to(prob.device, torch.promote_types(prob.dtype, torch.float32)), impl=impl)

    def walk(method: str) -> Function:
        def run_walk(cam: Tensor, affinity: Tensor, *, impl: str) -> Tensor:
            chosen = "exact" if impl == "reference" else method
            return random_walk(cam, affinity, num_steps=steps, impl=impl, method=chosen)

        return run_walk

    return {
        "pcm D192 C21": (pcm_attention, [_random(2, 21, pixels), feature], ["cam", "feature"]),
        f"edges D{channels}": (edge_affinity, [_random(1, channels, side, side, seed=4, normal=True)], ["feature"]),
        f"walk {steps} steps": (walk("exact"), [scores, smooth], ["cam", "affinity"]),
        f"walk {steps} steps chebyshev": (walk("chebyshev"), [scores, smooth], ["cam", "affinity"]),
        "crf 10 iterations": (crf, [scores], ["prob"]),
    }


def relative(got: Tensor, exact: Tensor) -> float:
    """Return the error in the Frobenius norm over that of the exact value."""
    return float((got.double() - exact).norm() / exact.norm())


def run(function: Function, inputs: list[Tensor], impl: str) -> list[Tensor]:
    """Return the result and the gradients of a weighted sum."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs, impl=impl)
    weight = _random(*out.shape, seed=9, normal=True).to(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def main() -> None:
    """Print a line for each operation, dtype and impl."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=("pcm", "edges", "walk", "crf"))
    parser.add_argument("--impls", nargs="+", choices=("reference", "torch", "triton"), default=["reference", "torch"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--small", action="store_true", help="the sizes of the interpreter, for comparisons with it")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "triton" in args.impls and not (HAS_TRITON and (device.type == "cuda" or INTERPRETED)):
        parser.error("impl triton needs a GPU, or TRITON_INTERPRET=1 in the environment")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| op | impl | dtype | result | largest | gradients |\n|---|---|---|---|---|---|")
    for name, (function, inputs, names) in cases(INTERPRETED or args.small).items():
        if args.ops and name.split()[0] not in args.ops:
            continue
        for dtype in args.dtypes:
            if dtype == "bfloat16" and INTERPRETED:
                continue  # tl.dot of the interpreter multiplies its bit patterns
            rounded = [x.to(device, DTYPES[dtype]) for x in inputs]
            exact = run(function, [x.double() for x in rounded], "reference")
            for impl in args.impls:
                if impl == "reference" and "chebyshev" in name:
                    continue
                got = run(function, rounded, impl)
                largest = float((got[0].double() - exact[0]).abs().max())
                gradients = ", ".join(
                    f"{which} {relative(g, e):.1e}" for which, g, e in zip(names, got[1:], exact[1:], strict=True)
                )
                shown = f"{impl}{' (interpreter)' if impl == 'triton' and INTERPRETED else ''}"
                cells = (name, shown, dtype, f"{relative(got[0], exact[0]):.1e}", f"{largest:.1e}", gradients)
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
