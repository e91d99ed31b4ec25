"""Pixel correlation module: attention by the rectified cosine of features, without an N x N matrix.

Forward    F = feature / (norm + eps), S = relu(F^T F), s = column sum of S, out = cam S / (s + eps).
Backward   g = dout / (s + eps), delta = sum over C of dout * out. With a row of ones under cam, cam' = [cam; 1], and
           G' = [g; -delta / (s + eps)], the gradient of S is cam'^T G' where S > 0. As S = S^T, the gradient of F is
           F (M * (cam'^T G' + G'^T cam')), M = [S > 0]: one product of 2 (C + 1) rows and one with F. dcam = g S.
Memory     inputs, out and s are kept; S is rebuilt block by block in both directions.
Blocks     both matrices are symmetric, so rows i0..i1 need the columns from i0 on only: the block serves its rows and,
           transposed, its columns. Blocks run one after another: the order of summation is fixed.
Left out   the N x N matrix and double backward. This file is the PyTorch path of any device; pcm_kernels.py has Triton.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seam_kernels.dispatch import check_same, check_tensor, choose_impl, full_precision
from seam_kernels.reference import pcm_attention_reference

# Elements of a block of S. Measured on an AMD EPYC core with 0.5 MiB of L2, N = 3136: 2^17 takes 1.6 times as long,
# 2^20 gains up to a quarter forward and nothing backward for twice the memory.
_BLOCK_ELEMENTS = 1 << 19
_MIN_BLOCK_ROWS = 16
# Beyond them the tiles of the Triton kernels outgrow a chip's registers; the row blocks serve such shapes.
_TRITON_CHANNELS, _TRITON_CLASSES = 256, 127


def _block_rows(num_pixels: int) -> int:
    return max(1, min(num_pixels, max(_MIN_BLOCK_ROWS, _BLOCK_ELEMENTS // max(1, num_pixels))))


def _working(tensor: Tensor) -> Tensor:
    """Return the tensor in the dtype of accumulation: float32, or float64 when it is that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _normalize(feature: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(feature, dim=1, keepdim=True)
    return feature / (norm + eps), norm


@torch.library.custom_op("seam_kernels::pcm_torch_forward", mutates_args=())
def _pcm_forward(cam: Tensor, feature: Tensor, eps: float, impl: str = "torch") -> tuple[Tensor, Tensor]:
    """Return out (B, C, N) in the dtype of cam and the column sum of S (B, N), float32 or float64."""
    if impl == "triton":
        from seam_kernels import pcm_kernels

        return pcm_kernels.forward(cam, feature, eps)
    unit, _ = _normalize(_working(feature), eps)
    batch, channels, pixels = cam.shape
    rows = torch.cat([_working(cam), unit.new_ones(batch, 1, pixels)], dim=1)  # [B, C + 1, N]
    total = torch.zeros_like(rows)
    block = _block_rows(pixels)
    buffer = unit.new_empty(block * pixels)
    for f, v, z in zip(unit, rows, total, strict=True):
        for i0 in range(0, pixels, block):
            i1 = min(i0 + block, pixels)
            s = buffer[: (i1 - i0) * (pixels - i0)].view(i1 - i0, pixels - i0)
            torch.mm(f[:, i0:i1].t(), f[:, i0:], out=s).relu_()
            z[:, i0:].addmm_(v[:, i0:i1], s)
            if i1 < pixels:
                z[:, i0:i1].addmm_(v[:, i1:], s[:, i1 - i0 :].t())
    colsum = total[:, channels].clone()
    return (total[:, :channels] / (colsum + eps).unsqueeze(1)).to(cam.dtype), colsum


@_pcm_forward.register_fake
def _pcm_forward_fake(cam: Tensor, feature: Tensor, eps: float, impl: str = "torch") -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if cam.dtype == torch.float64 else torch.float32
    return cam.new_empty(cam.shape), cam.new_empty((cam.shape[0], cam.shape[2]), dtype=dtype)


@torch.library.custom_op("seam_kernels::pcm_torch_backward", mutates_args=())
def _pcm_backward(
    dout: Tensor,
    cam: Tensor,
    feature: Tensor,
    out: Tensor,
    colsum: Tensor,
    eps: float,
    need_cam: bool,
    need_feature: bool,
    impl: str = "torch",
) -> tuple[Tensor, Tensor]:
    """Return the gradients of cam and feature; one that is not needed comes back with no elements."""
    if impl == "triton":
        from seam_kernels import pcm_kernels

        return pcm_kernels.backward(dout, cam, feature, out, colsum, eps, need_cam, need_feature)
    work = _working(feature)
    unit, norm = _normalize(work, eps)
    batch, _, pixels = cam.shape
    scale = (colsum + eps).unsqueeze(1)
    grad = _working(dout) / scale
    dcam = torch.zeros_like(grad) if need_cam else grad.new_empty(0)
    dunit = torch.zeros_like(unit) if need_feature else unit.new_empty(0)
    left = right = grad
    if need_feature:
        delta = (_working(dout) * _working(out)).sum(dim=1, keepdim=True) / scale
        ones = torch.ones_like(delta)
        left = torch.cat([_working(cam), ones, grad, -delta], dim=1)  # [B, 2 (C + 1), N]
        right = torch.cat([grad, -delta, _working(cam), ones], dim=1)
    block = _block_rows(pixels)
    buffers = unit.new_empty(2 if need_feature else 1, block * pixels)
    for b in range(batch):
        f, g = unit[b], grad[b]
        for i0 in range(0, pixels, block):
            i1 = min(i0 + block, pixels)
            shape = (i1 - i0, pixels - i0)
            s = buffers[0, : shape[0] * shape[1]].view(shape)
            torch.mm(f[:, i0:i1].t(), f[:, i0:], out=s).relu_()
            if need_cam:
                dcam[b][:, i0:].addmm_(g[:, i0:i1], s)
                if i1 < pixels:
                    dcam[b][:, i0:i1].addmm_(g[:, i1:], s[:, i1 - i0 :].t())
            if need_feature:
                ds = buffers[1, : shape[0] * shape[1]].view(shape)
                torch.mm(left[b][:, i0:i1].t(), right[b][:, i0:], out=ds)
                torch.ops.aten.threshold_backward.grad_input(ds, s, 0, grad_input=ds)  # zero where S is zero
                dunit[b][:, i0:].addmm_(f[:, i0:i1], ds)
                if i1 < pixels:
                    dunit[b][:, i0:i1].addmm_(f[:, i1:], ds[:, i1 - i0 :].t())
    dfeature = dunit
    if need_feature:
        # d(f / (n + eps)); at n = 0 the norm's gradient is taken as 0, and the unit vector is 0 there already.
        radial = (unit * dunit).sum(dim=1, keepdim=True) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        dfeature = (dunit / (norm + eps)).addcmul_(unit, radial, value=-1)
    return dcam.to(cam.dtype), dfeature.to(feature.dtype)


@_pcm_backward.register_fake
def _pcm_backward_fake(dout: Tensor, cam: Tensor, feature: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    need_cam, need_feature = settings[3:5]  # after out, colsum and eps
    return cam.new_empty(cam.shape if need_cam else 0), feature.new_empty(feature.shape if need_feature else 0)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, str], output: tuple[Tensor, Tensor]) -> None:
    cam, feature, ctx.eps, ctx.impl = inputs
    out, colsum = output
    ctx.mark_non_differentiable(colsum)
    ctx.save_for_backward(cam, feature, out, colsum)


def _autograd_backward(ctx: Any, dout: Tensor, _dcolsum: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    cam, feature, out, colsum = ctx.saved_tensors
    need_cam, need_feature = ctx.needs_input_grad[:2]
    with full_precision(dout):
        dcam, dfeature = _pcm_backward(dout, cam, feature, out, colsum, ctx.eps, need_cam, need_feature, ctx.impl)
    return dcam if need_cam else None, dfeature if need_feature else None, None, None


_pcm_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def pcm_attention(cam: Tensor, feature: Tensor, *, eps: float = 1e-5, impl: str = "auto") -> Tensor:
    """Return `cam` (B, C, N) propagated along the cosine similarity of `feature` (B, D, N): (B, C, N).

    F = feature / (norm over D + eps), S = relu(F^T F), out = cam S / (column sum of S + eps). Any floating dtype, the
    same for both; sums and normalizers are float32 (float64 for float64). Needs O(N) memory beside its inputs in both
    directions with impl "torch" ("auto" takes it), O(N^2) with "reference". Gradients are computed for the inputs
    that ask for one only. Non-contiguous inputs and an empty batch are fine.

    Raises ValueError for wrong shapes, dtypes or devices, a negative eps, and an impl that does not exist.
    Source: PARITY.md section 1, row PCM.
    """
    check_tensor("cam", cam, "BCN")
    check_tensor("feature", feature, "BDN")
    check_same("cam", cam, "feature", feature, {0: "B", 2: "N"})
    if eps < 0:
        raise ValueError(f"eps={eps} is negative, expected at least 0: it keeps the divisions of zero features finite")
    fits = feature.shape[1] <= _TRITON_CHANNELS and cam.shape[1] <= _TRITON_CLASSES
    if impl == "triton" and not fits:
        raise ValueError(
            f'impl="triton" takes at most D={_TRITON_CHANNELS} channels and C={_TRITON_CLASSES} classes, not '
            f'D={feature.shape[1]}, C={cam.shape[1]}: use impl="torch"'
        )
    chosen = choose_impl("pcm_attention", impl, feature, has_triton=fits)
    with full_precision(cam):
        if chosen == "reference":
            return pcm_attention_reference(cam, feature, eps=eps)
        out: Tensor = _pcm_forward(cam, feature, float(eps), chosen)[0]
        return out
