"""Dense CRF of class scores and colors by mean field, the pairwise sums exact: no lattice, no N x N matrix.

Model      Q = softmax(log p + sum over kernels of compat n K (n Q)), repeated; K over all pixel pairs, i = j included;
           n = 1 / sqrt(row sum of K + 1e-20) (symmetric normalization).
Gaussian   exp(-|dx, dy|^2 / (2 sxy^2)) is separable: one matrix for rows and one for columns, exact.
Bilateral  exp(-|dx, dy|^2 / (2 sxy^2) - |drgb|^2 / (2 srgb^2)): the sum over all pairs, in blocks of targets. With
           source_stride s only every s-th pixel of every s-th row sends messages, and n is computed from the same sums.
Gradient   of the scores: K is symmetric, so the gradient of a sum over sources is the same sum over targets; the
           rest is autograd's. A state of Q is kept for each iteration. The image has no gradient.
Cost       num_iters + 1 times 2 N^2 (C + 5) / s^2 flops and N^2 / s^2 exponentials: about 3.4 ns a pair of one CPU core
           with 3 labels, that is 20 minutes for a 500 x 375 image with s = 1 and 20 s with s = 8; impl "lattice" takes
           about a second.
Lattice    impl "lattice" passes the image to pydensecrf (permutohedral lattice, an approximation), CPU only.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

from seam_kernels.dispatch import check_tensor, choose_impl, full_precision, working
from seam_kernels.reference import dense_crf_reference

# Elements of a block of K; see kernels/bench.py.
_BLOCK_ELEMENTS = 1 << 18
_LATTICE = "pydensecrf.densecrf"
# Why its import failed, once it did: a second attempt may fail with a message of no use.
_broken: list[str] = []


@torch.library.custom_op("seam_kernels::gaussian_sum", mutates_args=())
def _gaussian_sum(values: Tensor, sources: Tensor, targets: Tensor, impl: str) -> Tensor:
    """Return (B, M, N): for each target i the sum over sources j of exp(-|target_i - source_j|^2 / 2) values_j.

    values (B, M, S), sources (B, F, S), targets (B, F, N), all float32 or all float64.
    """
    if impl == "triton":
        from seam_kernels import crf_kernels

        return crf_kernels.gaussian_sum(values, sources, targets)
    result = values.new_zeros(values.shape[0], values.shape[1], targets.shape[2])
    block = max(1, _BLOCK_ELEMENTS // max(1, sources.shape[2]))
    # Colors far apart are the common case, and exp takes ten times as long where its result is below the normal
    # numbers; e^-80 is as good as nothing.
    lowest = -80 if values.dtype == torch.float32 else -700
    for value, source, target, out in zip(values, sources, targets, result, strict=True):
        half = (source * source).sum(dim=0) / 2
        for i0 in range(0, target.shape[1], block):
            t = target[:, i0 : i0 + block]
            exponent = t.t() @ source  # [block, S]
            exponent -= half
            exponent -= ((t * t).sum(dim=0) / 2).unsqueeze(1)
            torch.mm(value, exponent.clamp_(lowest, 0).exp_().t(), out=out[:, i0 : i0 + block])
    return result


@_gaussian_sum.register_fake
def _gaussian_sum_fake(values: Tensor, sources: Tensor, targets: Tensor, impl: str) -> Tensor:
    return values.new_empty((values.shape[0], values.shape[1], targets.shape[2]))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, str], output: Tensor) -> None:
    _, sources, targets, ctx.impl = inputs
    ctx.save_for_backward(sources, targets)


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    sources, targets = ctx.saved_tensors
    with full_precision(grad):
        dvalues: Tensor = _gaussian_sum(grad.contiguous(), targets, sources, ctx.impl)
    return dvalues, None, None, None


_gaussian_sum.register_autograd(_autograd_backward, setup_context=_setup_context)


@torch.library.custom_op("seam_kernels::separable_sum", mutates_args=())
def _separable_sum(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows @ values @ columns for values (B, C, H, W), both matrices symmetric: an operator for autocast's sake.

    The backward pass of plain products would run in the dtype of an autocast that is active there.
    """
    return rows @ values @ columns


@_separable_sum.register_fake
def _separable_sum_fake(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return values.new_empty(values.shape)


def _separable_setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _separable_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    rows, columns = ctx.saved_tensors
    with full_precision(grad):
        dvalues: Tensor = _separable_sum(grad, rows, columns)
    return dvalues, None, None


_separable_sum.register_autograd(_separable_backward, setup_context=_separable_setup)


def _points(image: Tensor, sxy: float, srgb: float, like: Tensor) -> Tensor:
    """Return (B, 5, H, W): x, y and colors over their standard deviations, centered to keep squares small."""
    batch, _, height, width = image.shape
    y = torch.arange(height, dtype=like.dtype, device=like.device) - (height - 1) / 2
    x = torch.arange(width, dtype=like.dtype, device=like.device) - (width - 1) / 2
    place = torch.stack([x.expand(height, width), y[:, None].expand(height, width)]) / sxy
    color = (image.to(like.dtype) - 127.5) / srgb
    return torch.cat([place.expand(batch, 2, height, width), color], dim=1)


def _line(length: int, sxy: float, like: Tensor) -> Tensor:
    """Return the (length, length) matrix exp(-(i - j)^2 / (2 sxy^2))."""
    index = torch.arange(length, dtype=like.dtype, device=like.device)
    return torch.exp(-((index[:, None] - index) / sxy).square() / 2)


def _mean_field(
    prob: Tensor,
    image: Tensor,
    num_iters: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    stride: int,
    impl: str,
) -> Tensor:
    log_prob = working(prob).clamp(1e-5, 1).log()
    sxy, gaussian_compat = gaussian
    rows, columns = _line(prob.shape[2], sxy, log_prob), _line(prob.shape[3], sxy, log_prob)
    gaussian_norm = (rows.sum(dim=1)[:, None] * columns.sum(dim=0) + 1e-20).rsqrt()
    points = _points(image, bilateral[0], bilateral[1], log_prob)
    targets = points.flatten(2)
    sources = points[:, :, ::stride, ::stride].flatten(2)

    def bilateral_sum(values: Tensor) -> Tensor:
        sent = values[:, :, ::stride, ::stride].flatten(2)
        summed: Tensor = _gaussian_sum(sent, sources, targets, impl)
        return summed.view(values.shape)

    bilateral_norm = (bilateral_sum(torch.ones_like(log_prob[:, :1])) + 1e-20).rsqrt()
    q = log_prob.softmax(dim=1)
    for _ in range(num_iters):
        near = gaussian_norm * _separable_sum(gaussian_norm * q, rows, columns)
        far = bilateral_norm * bilateral_sum(bilateral_norm * q)
        q = (log_prob + gaussian_compat * near + bilateral[2] * far).softmax(dim=1)
    return q.to(prob.dtype)


def _lattice(
    prob: Tensor, image: Tensor, num_iters: int, gaussian: tuple[float, float], bilateral: tuple[float, float, float]
) -> Tensor:
    """Return the scores of pydensecrf, image by image."""
    import numpy
    from pydensecrf.densecrf import DenseCRF2D

    _, channels, height, width = prob.shape
    if prob.numel() == 0:  # the lattice knows no empty matrix
        return prob.clone()
    out = torch.empty(prob.shape, dtype=torch.float32)
    energy = -prob.detach().float().clamp(1e-5, 1).log().flatten(2)
    colors = image.detach().float().round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
    for b in range(prob.shape[0]):
        crf = DenseCRF2D(width, height, channels)
        crf.setUnaryEnergy(energy[b].contiguous().numpy())
        crf.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
        sxy, srgb, compat = bilateral
        crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=colors[b].numpy(), compat=compat)
        # Its matrix is stored by columns, which numpy reads from the strides and torch.tensor refuses.
        out[b] = torch.from_numpy(numpy.asarray(crf.inference(num_iters))).view(channels, height, width)
    return out.to(prob.dtype)


def _lattice_failure() -> str | None:
    """Return why the lattice's package cannot be imported, in one line, or None when it can.

    Compiled for another numpy it is installed and fails in one of many ways.
    """
    if _broken:
        return _broken[0]
    try:
        importlib.import_module(_LATTICE)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{_LATTICE}.".startswith(f"{error.name}."):
            return "not installed"
        _broken.append(f"broken: {error}")
    except Exception as error:
        _broken.append(" ".join(f"broken, {type(error).__name__}: {error}".split()))
    return _broken[0] if _broken else None


def _choose(prob: Tensor, impl: str, source_stride: int) -> str:
    """Return the implementation for a request, the lattice included."""
    if impl == "auto" and not prob.is_cuda:
        if source_stride != 1 or prob.requires_grad or prob.numel() == 0:
            return "torch"
        failure = _lattice_failure()
        if _broken:
            warnings.warn(f"pydensecrf2 is {failure}: dense_crf computes the exact sum, which is slow", stacklevel=3)
        return "torch" if failure else "lattice"
    if impl != "lattice":
        return choose_impl("dense_crf", impl, prob)
    if (failure := _lattice_failure()) is not None:
        raise ValueError(
            f'impl="lattice" needs the package pydensecrf2, which is {failure}: install seam-dist[crf] (a '
            'broken one: uninstall it first, install with --no-cache-dir), or use impl="torch"'
        )
    if prob.is_cuda:
        raise ValueError(f'impl="lattice" works on the CPU and prob is on {prob.device}: move it or use impl="auto"')
    if prob.requires_grad:
        raise ValueError('impl="lattice" has no gradient and prob asks for one: detach prob or use impl="torch"')
    if source_stride != 1:
        raise ValueError(f'impl="lattice" has no source_stride={source_stride}: leave it at 1 or use impl="torch"')
    return impl


def dense_crf(
    prob: Tensor,
    image: Tensor,
    *,
    num_iters: int = 10,
    gaussian_sxy: float = 3.0,
    gaussian_compat: float = 3.0,
    bilateral_sxy: float = 80.0,
    bilateral_srgb: float = 13.0,
    bilateral_compat: float = 10.0,
    source_stride: int = 1,
    impl: str = "auto",
) -> Tensor:
    """Return the probabilities (B, C, H, W) of a dense CRF over scores `prob` (B, C, H, W) and `image` (B, 3, H, W).

    Scores are clipped to 1e-5 .. 1 and need not sum to 1; colors are 0 .. 255, uint8 or floating. The pairwise sums
    are exact (float32, also under torch.autocast; float64 for float64 scores), differentiable in prob; the result has
    the dtype of prob. source_stride = s lets only every s-th
    pixel in both directions send bilateral messages: 1 / s^2 of the time. Pass the labels present only.

    impl: "auto" is exact on a GPU; on a CPU it is "lattice", the approximation of pydensecrf, where that can be
    imported, no gradient is asked for and source_stride is 1, else "torch", the exact sum: right for small images, many
    minutes for large ones (see the module). "reference" is dense. Name one where numbers must not depend on the
    machine.

    Raises ValueError for wrong ranks, sizes, dtypes or devices, an image that asks for a gradient, widths that are not
    positive, negative iterations, a stride below 1, and an impl that does not exist or does not fit.
    Source: PARITY.md section 4; Kraehenbuehl and Koltun 2011, Potts compatibility.
    """
    check_tensor("prob", prob, "BCHW")
    if image.dtype == torch.uint8:
        image = image.to(torch.float32)
    check_tensor("image", image, "BCHW")
    if image.shape != (prob.shape[0], 3, *prob.shape[2:]):
        raise ValueError(
            f"image has shape {tuple(image.shape)}, expected {(prob.shape[0], 3, *prob.shape[2:])} for prob "
            f"{tuple(prob.shape)}: resize one of them"
        )
    if image.device != prob.device:
        raise ValueError(f"image is on {image.device} and prob on {prob.device}: move them to one device with .to()")
    if image.requires_grad:
        raise ValueError("image asks for a gradient, which dense_crf has for prob only: pass image.detach()")
    widths = {"gaussian_sxy": gaussian_sxy, "bilateral_sxy": bilateral_sxy, "bilateral_srgb": bilateral_srgb}
    for name, value in widths.items():
        if value <= 0:
            raise ValueError(f"{name}={value} is not above 0: it is a standard deviation")
    if num_iters < 0:
        raise ValueError(f"num_iters={num_iters} is negative, expected a count of iterations (paper: 10)")
    if source_stride < 1:
        raise ValueError(f"source_stride={source_stride} is below 1: 1 lets every pixel send messages")
    chosen = _choose(prob, impl, source_stride)
    gaussian, bilateral = (gaussian_sxy, gaussian_compat), (bilateral_sxy, bilateral_srgb, bilateral_compat)
    with full_precision(prob):
        if chosen == "reference":
            return dense_crf_reference(prob, image, num_iters, gaussian, bilateral, source_stride)
        if chosen == "lattice":
            return _lattice(prob, image, num_iters, gaussian, bilateral)
        return _mean_field(prob, image, num_iters, gaussian, bilateral, source_stride, chosen)
