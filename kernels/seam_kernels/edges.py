"""Affinity of neighboring pixels from the L1 distance of their features, without gathered copies of the features.

Forward    a_k(p) = exp(-mean over D of abs(f(p) - f(q))), q = p + offset k, zero where the pair does not exist.
Backward   w_k(p) = -da_k(p) a_k(p) / D; df(p) = sum over k of w_k(p) sign(f(p) - f(q)) and, of the pairs in which p is
           the second pixel, w_k(r) sign(f(p) - f(r)), r = p - offset k. sign(0) = 0.
Memory     the input and the result are kept; a buffer of a few hundred KiB serves every offset and block of channels.
Sums       over D in float32 (float64 for float64), in a fixed order.
Left out   double backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seam_kernels.dispatch import check_tensor, choose_impl, full_precision, working
from seam_kernels.reference import edge_affinity_reference
from seam_kernels.stencil import check_border, check_radius, half_plane_offsets, pair_mask, shifts

# Elements of the buffer of differences. With 2^16 to 2^17 it stays in a CPU core's second cache together with the
# features that it is computed from (kernels/bench.py, 56 x 56 x 448).
_BUFFER_ELEMENTS = 1 << 17


def _channel_block(channels: int, pixels: int) -> int:
    return max(1, min(channels, _BUFFER_ELEMENTS // max(1, pixels)))


@torch.library.custom_op("seam_kernels::edge_affinity_forward", mutates_args=())
def _edge_forward(feature: Tensor, radius: int, border: str, impl: str) -> Tensor:
    """Return a (B, K, H, W) in the dtype of feature."""
    if impl == "triton":
        from seam_kernels import edges_kernels

        return edges_kernels.forward(feature, radius, border)
    batch, channels, height, width = feature.shape
    pixels = height * width
    planes = len(half_plane_offsets(radius))
    flat = feature.reshape(batch, channels, pixels)
    total = working(feature.new_empty(0)).new_zeros(batch, planes, pixels)
    block = _channel_block(channels, pixels)
    buffer = total.new_empty(block, pixels)
    pairs = shifts(height, width, radius)
    for b in range(batch):
        for c0 in range(0, channels, block):
            f = working(flat[b, c0 : c0 + block])
            for k, shift in pairs:
                difference = buffer[: f.shape[0], : pixels - shift]
                torch.sub(f[:, : pixels - shift], f[:, shift:], out=difference).abs_()
                total[b, k, : pixels - shift] += difference.sum(dim=0)
    mask = pair_mask(height, width, radius, border).to(feature.device)
    affinity = total.div_(-channels).exp_().masked_fill_(~mask, 0)
    return affinity.to(feature.dtype).view(batch, planes, height, width)


@_edge_forward.register_fake
def _edge_forward_fake(feature: Tensor, radius: int, border: str, impl: str) -> Tensor:
    batch, _, height, width = feature.shape
    return feature.new_empty((batch, len(half_plane_offsets(radius)), height, width))


@torch.library.custom_op("seam_kernels::edge_affinity_backward", mutates_args=())
def _edge_backward(grad: Tensor, feature: Tensor, affinity: Tensor, radius: int, impl: str) -> Tensor:
    """Return the gradient of feature."""
    if impl == "triton":
        from seam_kernels import edges_kernels

        return edges_kernels.backward(grad, feature, affinity, radius)
    batch, channels, height, width = feature.shape
    pixels = height * width
    flat = feature.reshape(batch, channels, pixels)
    # Zero where the pair does not exist, as affinity is zero there.
    weight = (working(grad) * working(affinity) / -channels).flatten(2)
    result = torch.zeros_like(flat, dtype=weight.dtype, memory_format=torch.contiguous_format)
    block = _channel_block(channels, pixels)
    buffer = weight.new_empty(block, pixels)
    pairs = shifts(height, width, radius)
    for b in range(batch):
        for c0 in range(0, channels, block):
            f, df = working(flat[b, c0 : c0 + block]), result[b, c0 : c0 + block]
            for k, shift in pairs:
                sign = buffer[: f.shape[0], : pixels - shift]
                torch.sub(f[:, : pixels - shift], f[:, shift:], out=sign).sign_().mul_(weight[b, k, : pixels - shift])
                df[:, : pixels - shift] += sign
                df[:, shift:] -= sign
    return result.to(feature.dtype).view(feature.shape)


@_edge_backward.register_fake
def _edge_backward_fake(grad: Tensor, feature: Tensor, affinity: Tensor, radius: int, impl: str) -> Tensor:
    return feature.new_empty(feature.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int, str, str], output: Tensor) -> None:
    feature, ctx.radius, _, ctx.impl = inputs
    ctx.save_for_backward(feature, output)


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    feature, affinity = ctx.saved_tensors
    with full_precision(grad):
        return _edge_backward(grad, feature, affinity, ctx.radius, ctx.impl), None, None, None


_edge_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def edge_affinity(feature: Tensor, *, radius: int = 5, border: str = "paper", impl: str = "auto") -> Tensor:
    """Return the affinities (B, K, H, W) of `feature` (B, D, H, W), in 0..1 and in its dtype.

    Entry k at (y, x) is exp(-mean over D of abs(f(y, x) - f(y + dy, x + dx))) for the k-th of
    `half_plane_offsets(radius)`, and zero where the pair does not exist. border "paper": a pixel within radius - 1 of
    the left, right or bottom edge is never the first of a pair; "full": every pair inside the image exists. On a map
    smaller than 2 * radius + 1 the published code uses a smaller radius: see `shrunk_radius`.

    Raises ValueError for a wrong rank or dtype, no channels, a radius below 1, and an unknown border or impl.
    Source: PARITY.md sections 1 (AffinityNet) and 5.
    """
    check_tensor("feature", feature, "BDHW")
    check_radius(radius)
    check_border(border)
    if feature.shape[1] == 0:
        raise ValueError(
            f"feature has shape {tuple(feature.shape)}, expected at least one channel (dimension 1): D > 0"
        )
    chosen = choose_impl("edge_affinity", impl, feature)
    with full_precision(feature):
        if chosen == "reference":
            return edge_affinity_reference(feature, radius=radius, border=border)
        out: Tensor = _edge_forward(feature, radius, border, chosen)
        return out
