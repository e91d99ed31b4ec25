# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Triton kernel of the exact bilateral sum of dense_crf; equations in crf.py.

Forward    a program owns ROWS targets; blocks of COLUMNS sources pass by: exponent [ROWS, COLUMNS] is one tensor-core
           product, K = exp2(exponent) in float32, the message acc [ROWS, MP] += K values is another.
Distance   -|t - s|^2 / 2 = t s - |t|^2 / 2 - |s|^2 / 2 with both points split in two float16, t = t1 + t2 to 22 bits:
           t1 s1 + t1 s2 + t2 s1 are three groups of 5 in one product of depth 16. The squares are float32 and enter
           outside. Points come with log2(e) folded in, so that exp2 serves.
Numbers    K is a float16 operand, values are two of them (an isolated pixel meets itself with K = 1, where rounded
           values would show); sums are float32; an exponent errs by about 2^-21 |t| |s|.
Gradient   the same kernel with targets and sources exchanged.
Memory     operands: 16 float16 and a float32 a point and side, and the padded values twice in float16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seam_kernels.tuning import tuned

# Not yet measured on a GPU. MP (the labels, padded) beyond 128 is served in slices of 128. The small tile is for AMD,
# where the larger ones do not fit in shared memory at MP = 128; what does not fit is skipped by the autotuner.
CONFIGS = [
    triton.Config({"ROWS": 128, "COLUMNS": 128}, num_warps=8, num_stages=2),
    triton.Config({"ROWS": 128, "COLUMNS": 64}, num_warps=4, num_stages=3),
    triton.Config({"ROWS": 64, "COLUMNS": 64}, num_warps=4, num_stages=2),
]
_DEPTH = 16
_SQRT_LOG2E = 1.2011224087864498  # sqrt(log2(e))


@triton.jit
def _gaussian_sum_kernel(
    targets_ptr,
    target_half_ptr,
    sources_ptr,
    source_half_ptr,
    values_ptr,
    out_ptr,
    num_targets,
    num_sources,
    padded_targets,
    padded_sources,
    num_values,
    MP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, 16)
    m = tl.arange(0, MP)
    j = tl.arange(0, COLUMNS)
    target = tl.load(targets_ptr + (batch * padded_targets + i[:, None]) * 16 + d[None, :])
    target_half = tl.load(target_half_ptr + batch * padded_targets + i)
    source_ptr = sources_ptr + (batch * padded_sources + j[None, :]) * 16 + d[:, None]
    half_ptr = source_half_ptr + batch * padded_sources + j
    value_ptr = values_ptr + (batch * padded_sources + j[:, None]) * 2 * MP + m[None, :]
    total = tl.zeros((ROWS, MP), dtype=tl.float32)
    for _ in range(0, num_sources, COLUMNS):
        # Padding: values are zero there, so no mask is needed.
        source = tl.load(source_ptr)  # [16, COLUMNS]
        exponent = tl.dot(target, source) - target_half[:, None] - tl.load(half_ptr)[None, :]
        kernel = tl.exp2(tl.minimum(exponent, 0.0)).to(tl.float16)
        total = tl.dot(kernel, tl.load(value_ptr), total)
        total = tl.dot(kernel, tl.load(value_ptr + MP), total)
        source_ptr += COLUMNS * 16
        half_ptr += COLUMNS
        value_ptr += COLUMNS * 2 * MP
    out = out_ptr + (batch * num_values + m[None, :]) * num_targets + i[:, None]
    tl.store(out, total, mask=(i < num_targets)[:, None] & (m < num_values)[None, :])


gaussian_sum_kernel = tuned(_gaussian_sum_kernel, CONFIGS, ["MP"])
_PAD = 128  # a multiple of every ROWS and COLUMNS


def _pad(length: int) -> int:
    return -(-max(length, 1) // _PAD) * _PAD


def _operands(points: Tensor, *, target: bool) -> tuple[Tensor, Tensor]:
    """Return the float16 rows (B, N padded, 16) of one side of the product and half the squares (B, N padded)."""
    batch, features, count = points.shape
    scaled = points.float() * _SQRT_LOG2E
    high = scaled.half()
    low = (scaled - high.float()).half()
    groups = (high, high, low) if target else (high, low, high)
    rows = points.new_zeros(batch, _pad(count), _DEPTH, dtype=torch.float16)
    rows[:, :count, : 3 * features] = torch.cat(groups, dim=1).transpose(1, 2)
    half = points.new_zeros(batch, _pad(count), dtype=torch.float32)
    half[:, :count] = scaled.square().sum(dim=1) / 2
    return rows, half


def gaussian_sum(values: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """Return for each target the sum over sources of exp(-|target - source|^2 / 2) values: (B, M, N) float32."""
    batch, channels, num_sources = values.shape
    num_targets = targets.shape[2]
    out = values.new_zeros(batch, channels, num_targets, dtype=torch.float32)
    if not out.numel() or not num_sources:
        return out
    left, left_half = _operands(targets, target=True)
    right, right_half = _operands(sources, target=False)
    # Gradients may be of any size: scale each image's values into the range of float16.
    scale = values.abs().amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    for m0 in range(0, channels, 128):
        part = values[:, m0 : m0 + 128] / scale
        padded = max(16, triton.next_power_of_2(part.shape[1]))
        rows = values.new_zeros(batch, _pad(num_sources), 2, padded, dtype=torch.float16)
        high = part.half()
        rows[:, :num_sources, 0, : part.shape[1]] = high.transpose(1, 2)
        rows[:, :num_sources, 1, : part.shape[1]] = (part - high.float()).half().transpose(1, 2)
        result = torch.empty(batch, part.shape[1], num_targets, device=values.device, dtype=torch.float32)

        def grid(meta: dict[str, int]) -> tuple[int, int]:
            return triton.cdiv(num_targets, meta["ROWS"]), batch

        sizes = (num_targets, num_sources, left.shape[1], right.shape[1], part.shape[1])
        gaussian_sum_kernel[grid](left, left_half, right, right_half, rows, result, *sizes, MP=padded)
        out[:, m0 : m0 + 128] = result * scale
    return out
