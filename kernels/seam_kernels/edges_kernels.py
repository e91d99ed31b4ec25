# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Triton kernels of edge_affinity; equations in edges.py.

Forward    a program owns BLOCK pixels of one image and PLANES offsets: acc [PLANES, BLOCK] sums |f(p) - f(q)| over all
           channels. Shifted reads of a tile come from the first cache, so each feature leaves memory about once.
Backward   a program owns BLOCK pixels and CHANNELS channels: acc [CHANNELS, BLOCK] sums w sign(f(p) - f(q)) over the
           2 K neighbors, those in front and those behind. Each output is written by one program: no atomics.
Numbers    differences, sums and exponentials in float32; results in the dtype of the input.
Memory     inputs and outputs, and one table of K offsets.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from seam_kernels.stencil import half_plane_offsets
from seam_kernels.tuning import tuned

# Tile shapes, not yet measured on a GPU: PLANES 4 wastes 2 of 36 rows at radius 5, 8 wastes 6 of 40.
FORWARD_CONFIGS = [
    triton.Config({"BLOCK": 128, "PLANES": 4}, num_warps=4, num_stages=1),
    triton.Config({"BLOCK": 256, "PLANES": 4}, num_warps=4, num_stages=1),
    triton.Config({"BLOCK": 128, "PLANES": 8}, num_warps=4, num_stages=1),
]
BACKWARD_CONFIGS = [
    triton.Config({"BLOCK": 128, "CHANNELS": 8}, num_warps=4, num_stages=1),
    triton.Config({"BLOCK": 128, "CHANNELS": 16}, num_warps=4, num_stages=1),
    triton.Config({"BLOCK": 256, "CHANNELS": 8}, num_warps=8, num_stages=1),
]


@triton.jit
def _edge_fwd_kernel(
    feature_ptr,
    offsets_ptr,
    out_ptr,
    num_channels,
    num_planes,
    height,
    width,
    margin,
    stride_fb,
    stride_fd,
    BLOCK: tl.constexpr,
    PLANES: tl.constexpr,
):
    pixels = height * width
    batch = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.program_id(1) * PLANES + tl.arange(0, PLANES)
    y, x = p // width, p % width
    dy = tl.load(offsets_ptr + 2 * k, mask=k < num_planes, other=0)[:, None]
    dx = tl.load(offsets_ptr + 2 * k + 1, mask=k < num_planes, other=0)[:, None]
    # margin < 0: both pixels in the image. Otherwise the first one also keeps `margin` from left, right and bottom.
    inside = (y[None, :] + dy < height) & (x[None, :] + dx >= 0) & (x[None, :] + dx < width)
    paper = (y < height - margin) & (x >= margin) & (x < width - margin)
    pair = (p < pixels)[None, :] & (k < num_planes)[:, None] & inside & ((margin < 0) | paper)[None, :]
    q = p[None, :] + dy * width + dx  # [PLANES, BLOCK]
    near_ptr = feature_ptr + batch * stride_fb + p
    far_ptr = feature_ptr + batch * stride_fb + q
    total = tl.zeros((PLANES, BLOCK), dtype=tl.float32)
    for _ in range(num_channels):
        near = tl.load(near_ptr, mask=p < pixels, other=0.0).to(tl.float32)
        far = tl.load(far_ptr, mask=pair, other=0.0).to(tl.float32)
        total += tl.abs(near[None, :] - far)
        near_ptr += stride_fd
        far_ptr += stride_fd
    affinity = tl.where(pair, tl.exp(-total / num_channels), 0.0)
    out = out_ptr + (batch * num_planes + k[:, None]) * pixels + p[None, :]
    tl.store(out, affinity.to(out_ptr.dtype.element_ty), mask=(p < pixels)[None, :] & (k < num_planes)[:, None])


@triton.jit
def _edge_bwd_kernel(
    grad_ptr,
    feature_ptr,
    affinity_ptr,
    offsets_ptr,
    out_ptr,
    num_channels,
    num_planes,
    height,
    width,
    stride_fb,
    stride_fd,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    pixels = height * width
    batch = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    y, x = p // width, p % width
    here = p < pixels
    rows = (c < num_channels)[:, None]
    base = feature_ptr + batch * stride_fb + c[:, None].to(tl.int64) * stride_fd
    f = tl.load(base + p[None, :], mask=rows & here[None, :], other=0.0).to(tl.float32)
    total = tl.zeros((CHANNELS, BLOCK), dtype=tl.float32)
    plane = batch * num_planes * pixels
    for k in range(num_planes):
        dy, dx = tl.load(offsets_ptr + 2 * k), tl.load(offsets_ptr + 2 * k + 1)
        shift = dy * width + dx
        # The pair in which p is the first pixel. The affinity is zero where the border rule has none.
        front = here & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        a = tl.load(affinity_ptr + plane + p, mask=front, other=0.0).to(tl.float32)
        g = tl.load(grad_ptr + plane + p, mask=front, other=0.0).to(tl.float32)
        far = tl.load(base + (p + shift)[None, :], mask=rows & front[None, :], other=0.0).to(tl.float32)
        d = f - far
        total += tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)) * (a * g)[None, :]
        # The pair in which p is the second pixel.
        back = here & (y - dy >= 0) & (x - dx >= 0) & (x - dx < width)
        a = tl.load(affinity_ptr + plane + p - shift, mask=back, other=0.0).to(tl.float32)
        g = tl.load(grad_ptr + plane + p - shift, mask=back, other=0.0).to(tl.float32)
        far = tl.load(base + (p - shift)[None, :], mask=rows & back[None, :], other=0.0).to(tl.float32)
        d = f - far
        total += tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)) * (a * g)[None, :]
        plane += pixels
    out = out_ptr + (batch * num_channels + c[:, None]) * pixels + p[None, :]
    tl.store(out, (-total / num_channels).to(out_ptr.dtype.element_ty), mask=rows & here[None, :])


edge_fwd_kernel = tuned(_edge_fwd_kernel, FORWARD_CONFIGS, ["num_channels", "num_planes"])
edge_bwd_kernel = tuned(_edge_bwd_kernel, BACKWARD_CONFIGS, ["num_channels", "num_planes"])


@lru_cache(maxsize=16)
def _offsets(radius: int, device: torch.device) -> Tensor:
    """Return the (K, 2) int32 table of offsets on the device. Read only: callers share it."""
    return torch.tensor(half_plane_offsets(radius), dtype=torch.int32, device=device).view(-1, 2)


def forward(feature: Tensor, radius: int, border: str) -> Tensor:
    """Return the affinities (B, K, H, W) in the dtype of feature (B, D, H, W)."""
    batch, channels, height, width = feature.shape
    planes = len(half_plane_offsets(radius))
    flat = feature.contiguous()
    out = flat.new_empty(batch, planes, height, width)
    if out.numel():
        margin = radius - 1 if border == "paper" else -1

        def grid(meta: dict[str, int]) -> tuple[int, int, int]:
            return triton.cdiv(height * width, meta["BLOCK"]), triton.cdiv(planes, meta["PLANES"]), batch

        strides = (channels * height * width, height * width)
        table = _offsets(radius, feature.device)
        edge_fwd_kernel[grid](flat, table, out, channels, planes, height, width, margin, *strides)
    return out


def backward(grad: Tensor, feature: Tensor, affinity: Tensor, radius: int) -> Tensor:
    """Return the gradient of feature from those of the affinities and the affinities themselves."""
    batch, channels, height, width = feature.shape
    planes = affinity.shape[1]
    flat = feature.contiguous()
    out = torch.empty_like(flat)
    if out.numel():

        def grid(meta: dict[str, int]) -> tuple[int, int, int]:
            return triton.cdiv(height * width, meta["BLOCK"]), triton.cdiv(channels, meta["CHANNELS"]), batch

        strides = (channels * height * width, height * width)
        sizes = (channels, planes, height, width)
        table = _offsets(radius, feature.device)
        edge_bwd_kernel[grid](grad.contiguous(), flat, affinity.contiguous(), table, out, *sizes, *strides)
    return out
