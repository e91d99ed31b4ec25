# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Triton kernels of pcm_attention; equations in pcm.py.

Layout     features are normalized once into rows (B, N padded to 128, D padded), zero in the padding, so that the loops
           need no mask: a zero row has S = 0. D, C + 1 and 2 (C + 1) are padded to a power of two or to a sum of two
           (192 = 128 + 64, 82 -> 64 + 32), each with its own product.
Forward    a program owns ROWS columns j of S; blocks of COLUMNS pixels i pass by: s [ROWS, COLUMNS] = F_j F_i, its
           rectified value in the operands' dtype times [cam; 1] gives scores and column sum in one product.
Backward   the same sweep: ds [ROWS, COLUMNS] = [cam'; G']_j [G'; cam']_i where s > 0, times F_i into [ROWS, D]; the
           gradient of the normalization in the epilogue. dcam is the forward kernel on g, without its normalizer.
Numbers    products of the input's dtype into float32; float32 inputs as tf32, or tf32x3 (ieee on AMD) where
           torch.get_float32_matmul_precision() is "highest". G' is scaled into the range of float16 image by image.
Memory     the padded rows of features, scores and (backward) gradients; no atomics, a fixed order of sums.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from seam_kernels.tuning import current_family, tuned

_PAD = 128  # a multiple of every ROWS and COLUMNS


def _config(rows: int, columns: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps, num_stages=stages)


# By family of matrix units and by operand: 16 bits, tf32, or x3, float32 in full. What does not fit in a chip's
# shared memory is skipped by the autotuner. Left out is what spills more than 64 bytes of registers (x3: 512) on a chip
# of the family (kernels/results/compiled.csv): backward holds [ROWS, D] sums beside two [ROWS, COLUMNS] products, and
# where operands live in registers too, 64 columns spill 110 to 290 bytes; on AMD so do 128 rows and 8 warps.
# Which of them is fastest has not yet been measured on a GPU.
FORWARD_CONFIGS = {
    "wgmma": {
        "16": [_config(128, 128, 8, 3), _config(128, 128, 8, 2), _config(128, 64, 4, 3), _config(64, 64, 4, 2)],
        "tf32": [_config(128, 64, 8, 2), _config(64, 32, 4, 2)],
        "x3": [_config(64, 32, 8, 2), _config(32, 32, 8, 2)],
    },
    "amd": {
        "16": [_config(128, 64, 4, 2), _config(64, 64, 8, 2), _config(64, 64, 4, 2), _config(128, 32, 4, 2)],
        "tf32": [_config(64, 32, 4, 2), _config(32, 32, 4, 1)],
        "x3": [_config(64, 32, 4, 2), _config(32, 32, 4, 1)],
    },
}
FORWARD_CONFIGS["mma"] = FORWARD_CONFIGS["wgmma"]
BACKWARD_CONFIGS = {
    "wgmma": {
        "16": [_config(128, 64, 8, 3), _config(128, 64, 8, 2), _config(64, 64, 4, 2)],
        "tf32": [_config(64, 64, 8, 2), _config(64, 32, 8, 2)],
        "x3": [_config(32, 32, 8, 2), _config(16, 32, 4, 2)],
    },
    "mma": {
        "16": [_config(128, 32, 8, 3), _config(128, 32, 8, 2), _config(64, 32, 4, 3)],
        "tf32": [_config(32, 32, 4, 2)],
        "x3": [_config(32, 32, 8, 2), _config(16, 32, 4, 2)],
    },
    "amd": {
        "16": [_config(64, 32, 8, 3), _config(64, 32, 4, 3)],
        "tf32": [_config(64, 32, 4, 1), _config(32, 32, 4, 1)],
        "x3": [_config(64, 32, 4, 1), _config(32, 32, 4, 1)],
    },
}


@triton.jit
def _unit_kernel(
    feature_ptr,
    unit_ptr,
    norm_ptr,
    eps,
    num_pixels,
    padded_pixels,
    num_channels,
    stride_b,
    stride_d,
    stride_n,
    D_PADDED: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, DEPTH)
    here = n < num_pixels
    base = feature_ptr + batch * stride_b + n[:, None].to(tl.int64) * stride_n
    squares = tl.zeros((BLOCK,), dtype=tl.float32)
    for d0 in range(0, D_PADDED, DEPTH):
        mask = here[:, None] & (d0 + d < num_channels)[None, :]
        f = tl.load(base + (d0 + d[None, :]).to(tl.int64) * stride_d, mask=mask, other=0.0).to(tl.float32)
        squares += tl.sum(f * f, axis=1)
    norm = tl.sqrt(squares)
    tl.store(norm_ptr + batch * padded_pixels + n, norm)
    # In the padding norm + eps may be 0.
    inverse = 1.0 / tl.where(here, norm + eps, 1.0)
    for d0 in range(0, D_PADDED, DEPTH):
        mask = here[:, None] & (d0 + d < num_channels)[None, :]
        f = tl.load(base + (d0 + d[None, :]).to(tl.int64) * stride_d, mask=mask, other=0.0).to(tl.float32)
        out = unit_ptr + (batch * padded_pixels + n[:, None]) * D_PADDED + d0 + d[None, :]
        tl.store(out, (f * inverse[:, None]).to(unit_ptr.dtype.element_ty))


@triton.jit
def _pcm_fwd_kernel(
    unit_ptr,
    rows_ptr,
    out_ptr,
    colsum_ptr,
    eps,
    num_pixels,
    padded_pixels,
    num_classes,
    D0: tl.constexpr,
    D1: tl.constexpr,
    V0: tl.constexpr,
    V1: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    j = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, COLUMNS)
    d0, v0 = tl.arange(0, D0), tl.arange(0, V0)
    unit = unit_ptr + batch * padded_pixels * (D0 + D1)
    rows = rows_ptr + batch * padded_pixels * (V0 + V1)
    own0 = tl.load(unit + j[:, None] * (D0 + D1) + d0[None, :])
    passing0 = unit + i[None, :] * (D0 + D1) + d0[:, None]
    value0 = rows + i[:, None] * (V0 + V1) + v0[None, :]
    total0 = tl.zeros((ROWS, V0), dtype=tl.float32)
    if D1 > 0:
        d1 = D0 + tl.arange(0, D1)
        own1 = tl.load(unit + j[:, None] * (D0 + D1) + d1[None, :])
        passing1 = unit + i[None, :] * (D0 + D1) + d1[:, None]
    if V1 > 0:
        v1 = V0 + tl.arange(0, V1)
        value1 = rows + i[:, None] * (V0 + V1) + v1[None, :]
        total1 = tl.zeros((ROWS, V1), dtype=tl.float32)
    for _ in range(0, padded_pixels, COLUMNS):
        s = tl.dot(own0, tl.load(passing0), input_precision=PRECISION)
        passing0 += COLUMNS * (D0 + D1)
        if D1 > 0:
            s = tl.dot(own1, tl.load(passing1), s, input_precision=PRECISION)
            passing1 += COLUMNS * (D0 + D1)
        s = tl.maximum(s, 0.0, propagate_nan=tl.PropagateNan.ALL).to(unit_ptr.dtype.element_ty)
        total0 = tl.dot(s, tl.load(value0), total0, input_precision=PRECISION)
        value0 += COLUMNS * (V0 + V1)
        if V1 > 0:
            total1 = tl.dot(s, tl.load(value1), total1, input_precision=PRECISION)
            value1 += COLUMNS * (V0 + V1)
    here = (j < num_pixels)[:, None]
    out = out_ptr + batch * num_classes * num_pixels + j[:, None]
    if NORMALIZE:
        # The row of ones follows the classes.
        colsum = tl.sum(tl.where((v0 == num_classes)[None, :], total0, 0.0), axis=1)
        if V1 > 0:
            colsum += tl.sum(tl.where((v1 == num_classes)[None, :], total1, 0.0), axis=1)
        tl.store(colsum_ptr + batch * num_pixels + j, colsum, mask=j < num_pixels)
        inverse = 1.0 / tl.where(j < num_pixels, colsum + eps, 1.0)
        total0 *= inverse[:, None]
        if V1 > 0:
            total1 *= inverse[:, None]
    element = out_ptr.dtype.element_ty
    columns0 = v0[None, :].to(tl.int64) * num_pixels
    tl.store(out + columns0, total0.to(element), mask=here & (v0 < num_classes)[None, :])
    if V1 > 0:
        columns1 = v1[None, :].to(tl.int64) * num_pixels
        tl.store(out + columns1, total1.to(element), mask=here & (v1 < num_classes)[None, :])


@triton.jit
def _pcm_bwd_kernel(
    unit_ptr,
    norm_ptr,
    left_ptr,
    right_ptr,
    scale_ptr,
    out_ptr,
    eps,
    num_pixels,
    padded_pixels,
    num_channels,
    D0: tl.constexpr,
    D1: tl.constexpr,
    W0: tl.constexpr,
    W1: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    j = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, COLUMNS)
    d0, w0 = tl.arange(0, D0), tl.arange(0, W0)
    unit = unit_ptr + batch * padded_pixels * (D0 + D1)
    left = left_ptr + batch * padded_pixels * (W0 + W1) + j[:, None] * (W0 + W1)
    right0 = right_ptr + batch * padded_pixels * (W0 + W1) + i[:, None] * (W0 + W1) + w0[None, :]
    own0 = tl.load(unit + j[:, None] * (D0 + D1) + d0[None, :])
    left0 = tl.load(left + w0[None, :])
    passing0 = unit + i[:, None] * (D0 + D1) + d0[None, :]
    total0 = tl.zeros((ROWS, D0), dtype=tl.float32)
    if D1 > 0:
        d1 = D0 + tl.arange(0, D1)
        own1 = tl.load(unit + j[:, None] * (D0 + D1) + d1[None, :])
        passing1 = unit + i[:, None] * (D0 + D1) + d1[None, :]
        total1 = tl.zeros((ROWS, D1), dtype=tl.float32)
    if W1 > 0:
        w1 = W0 + tl.arange(0, W1)
        left1 = tl.load(left + w1[None, :])
        right1 = right_ptr + batch * padded_pixels * (W0 + W1) + i[:, None] * (W0 + W1) + w1[None, :]
    for _ in range(0, padded_pixels, COLUMNS):
        f0 = tl.load(passing0)
        passing0 += COLUMNS * (D0 + D1)
        s = tl.dot(own0, tl.trans(f0), input_precision=PRECISION)
        if D1 > 0:
            f1 = tl.load(passing1)
            passing1 += COLUMNS * (D0 + D1)
            s = tl.dot(own1, tl.trans(f1), s, input_precision=PRECISION)
        ds = tl.dot(left0, tl.trans(tl.load(right0)), input_precision=PRECISION)
        right0 += COLUMNS * (W0 + W1)
        if W1 > 0:
            ds = tl.dot(left1, tl.trans(tl.load(right1)), ds, input_precision=PRECISION)
            right1 += COLUMNS * (W0 + W1)
        ds = tl.where(s > 0, ds, 0.0).to(unit_ptr.dtype.element_ty)
        total0 = tl.dot(ds, f0, total0, input_precision=PRECISION)
        if D1 > 0:
            total1 = tl.dot(ds, f1, total1, input_precision=PRECISION)
    # d(f / (n + eps)) = (dF - F (F . dF) (n + eps) / n) / (n + eps); the norm's gradient is 0 at n = 0.
    scale = tl.load(scale_ptr + batch)
    norm = tl.load(norm_ptr + batch * padded_pixels + j)
    here = j < num_pixels
    unit0 = own0.to(tl.float32)
    radial = tl.sum(unit0 * total0, axis=1)
    if D1 > 0:
        unit1 = own1.to(tl.float32)
        radial += tl.sum(unit1 * total1, axis=1)
    radial = tl.where(norm > 0, radial / tl.where(norm > 0, norm, 1.0), 0.0) * scale
    inverse = scale / tl.where(here, norm + eps, 1.0)
    out = out_ptr + batch * num_channels * num_pixels + j[:, None]
    element = out_ptr.dtype.element_ty
    gradient0 = total0 * inverse[:, None] - unit0 * radial[:, None]
    columns0 = d0[None, :].to(tl.int64) * num_pixels
    tl.store(out + columns0, gradient0.to(element), mask=here[:, None] & (d0 < num_channels)[None, :])
    if D1 > 0:
        gradient1 = total1 * inverse[:, None] - unit1 * radial[:, None]
        columns1 = d1[None, :].to(tl.int64) * num_pixels
        tl.store(out + columns1, gradient1.to(element), mask=here[:, None] & (d1 < num_channels)[None, :])


@lru_cache
def _forward(family: str, operand: str):
    return tuned(_pcm_fwd_kernel, FORWARD_CONFIGS[family][operand], ["D0", "D1", "V0", "V1"])


@lru_cache
def _backward(family: str, operand: str):
    return tuned(_pcm_bwd_kernel, BACKWARD_CONFIGS[family][operand], ["D0", "D1", "W0", "W1"])


def pieces(length: int) -> tuple[int, int]:
    """Return two powers of two of at least 16 (the second may be 0) whose sum is at least `length` and near it."""
    first = max(16, triton.next_power_of_2(length + 1) // 2)
    rest = length - first
    second = max(16, triton.next_power_of_2(rest)) if rest > 0 else 0
    return (2 * first, 0) if second == first else (first, second)


def _precision(dtype: torch.dtype) -> str:
    if dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee" if torch.version.hip else "tf32x3"


def _kind(dtype: torch.dtype) -> str:
    if dtype != torch.float32:
        return "16"
    return "tf32" if _precision(dtype) == "tf32" else "x3"


def _padded(rows: Tensor, pixels: int, width: int) -> Tensor:
    """Return (B, C, N) as zero-padded rows (B, pixels, width)."""
    out = rows.new_zeros(rows.shape[0], pixels, width)
    out[:, : rows.shape[2], : rows.shape[1]] = rows.transpose(1, 2)
    return out


def _unit(feature: Tensor, eps: float) -> tuple[Tensor, Tensor, int]:
    """Return the normalized rows (B, Np, Dp), the norms (B, Np) and Np."""
    batch, channels, pixels = feature.shape
    padded, depth = -(-pixels // _PAD) * _PAD, sum(pieces(channels))
    unit = feature.new_empty(batch, padded, depth)
    norm = feature.new_empty(batch, padded, dtype=torch.float32)
    _unit_kernel[(padded // 64, batch)](
        feature, unit, norm, eps, pixels, padded, channels, *feature.stride(), D_PADDED=depth, DEPTH=16, BLOCK=64,
        num_warps=4,
    )  # fmt: skip
    return unit, norm, padded


def _sweep(unit: Tensor, values: Tensor, padded: int, eps: float, *, normalize: bool) -> tuple[Tensor, Tensor]:
    """Return values S (B, C, N), divided by the column sum if `normalize`, and that sum (B, N) float32."""
    batch, channels, pixels = values.shape
    classes = channels - 1 if normalize else channels
    first, second = pieces(channels)
    rows = _padded(values, padded, first + second)
    d0, d1 = pieces(unit.shape[2])
    out = values.new_empty(batch, classes, pixels)
    colsum = values.new_empty(batch, pixels, dtype=torch.float32)

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(pixels, meta["ROWS"]), batch

    _forward(current_family(), _kind(unit.dtype))[grid](
        unit, rows, out, colsum, eps, pixels, padded, classes, D0=d0, D1=d1, V0=first, V1=second, NORMALIZE=normalize,
        PRECISION=_precision(unit.dtype),
    )  # fmt: skip
    return out, colsum


def forward(cam: Tensor, feature: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return out (B, C, N) in the dtype of cam and the column sum of S (B, N) float32."""
    if not cam.numel() or not feature.numel():
        return torch.zeros_like(cam), cam.new_zeros((cam.shape[0], cam.shape[2]), dtype=torch.float32)
    unit, _, padded = _unit(feature, eps)
    values = torch.cat([cam, cam.new_ones(cam.shape[0], 1, cam.shape[2])], dim=1)
    return _sweep(unit, values, padded, eps, normalize=True)


def backward(
    dout: Tensor, cam: Tensor, feature: Tensor, out: Tensor, colsum: Tensor, eps: float, need_cam: bool,
    need_feature: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of cam and feature; one that is not needed has no elements."""
    none = cam.new_empty(0)
    if not cam.numel() or not feature.numel():
        return torch.zeros_like(cam) if need_cam else none, torch.zeros_like(feature) if need_feature else none.clone()
    unit, norm, padded = _unit(feature, eps)
    inverse = 1 / (colsum + eps).unsqueeze(1)
    pull = dout.float() * inverse
    delta = (dout.float() * out.float()).sum(dim=1, keepdim=True) * inverse
    gradient = torch.cat([pull, -delta], dim=1)  # G', [B, C + 1, N]
    scale = gradient.abs().amax(dim=(1, 2)).clamp_min(torch.finfo(torch.float32).tiny)
    scaled = (gradient / scale.view(-1, 1, 1)).to(cam.dtype)
    dcam, dfeature = none, none.clone()
    if need_cam:
        dcam, _ = _sweep(unit, scaled[:, :-1], padded, eps, normalize=False)
        dcam = (dcam.float() * scale.view(-1, 1, 1)).to(cam.dtype)
    if need_feature:
        batch, channels, pixels = feature.shape
        plain = torch.cat([cam, cam.new_ones(cam.shape[0], 1, pixels)], dim=1)
        first, second = pieces(2 * plain.shape[1])
        left = _padded(torch.cat([plain, scaled], dim=1), padded, first + second)
        right = _padded(torch.cat([scaled, plain], dim=1), padded, first + second)
        d0, d1 = pieces(unit.shape[2])
        dfeature = feature.new_empty(batch, channels, pixels)

        def grid(meta: dict[str, int]) -> tuple[int, int]:
            return triton.cdiv(pixels, meta["ROWS"]), batch

        _backward(current_family(), _kind(unit.dtype))[grid](
            unit, norm, left, right, scale, dfeature, eps, pixels, padded, channels, D0=d0, D1=d1, W0=first, W1=second,
            PRECISION=_precision(unit.dtype),
        )  # fmt: skip
    return dcam, dfeature
