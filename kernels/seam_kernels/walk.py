"""Random walk of class scores over the affinities of neighboring pixels, as a stencil: no N x N matrix.

Weights    w_k(p) = affinity_k(p)^beta where the pair lies in the image; W holds them symmetrically, with ones on its
           diagonal; s = column sums of W. A step is P x = (W x) / s, for each class alone: x T = P x, T = W / s.
Exact      out = P^num_steps cam.
Chebyshev  out = sum over k <= degree of c_k y_k, y_0 = cam, y_1 = P cam, y_k+1 = 2 P y_k - y_k-1: the expansion of
           x^num_steps, truncated where the remaining c_k sum to at most the tolerance. P has the eigenvalues of the
           symmetric W / sqrt(s s^T), all within [-1, 1], so the error is at most tolerance |cam| in the norm that
           weighs pixels with s. No tighter interval is assumed.
Backward   P is its own adjoint up to the scale s: with v = gradient / s the gradient walks by the same P. A step
           y = P x adds x_p v_q + x_q v_p - (y_p v_p + y_q v_q) to the gradient of w_pq; that of affinity is
           beta affinity^(beta - 1) times it.
Memory     exact: a state for every sqrt(num_steps) steps, the rest are recomputed. Chebyshev: the recurrence runs
           backwards too, y_k-1 = 2 P y_k - y_k+1, so no state is kept.
Packed     a batch is flat: image after image, class after class, row after row; sizes may differ.
Left out   double backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from seam_kernels.dispatch import check_same, check_tensor, choose_impl, full_precision, working
from seam_kernels.reference import random_walk_reference
from seam_kernels.stencil import check_radius, half_plane_offsets, pair_mask, shifts

CHEBYSHEV_TOLERANCE = 1e-5
METHODS = ("exact", "chebyshev")
# What both operators take after their tensors; the lists have an entry for each image of a packed batch.
_SETTINGS = (
    "SymInt[] channels, SymInt[] heights, SymInt[] widths, "
    "SymInt radius, float beta, SymInt num_steps, str method, str impl"
)


@lru_cache
def chebyshev_coefficients(num_steps: int, tolerance: float = CHEBYSHEV_TOLERANCE) -> tuple[float, ...]:
    """Return c_0 .. c_degree of x^num_steps in Chebyshev polynomials, truncated to an error of at most `tolerance`.

    c_k = 2^(1 - n) binomial(n, (n - k) / 2) for k of the parity of n = num_steps, c_0 half of that; they are positive
    and sum to 1. For a tolerance of 1e-5: degree 34 for 64 steps, 70 for 256.
    """
    if num_steps == 0:
        return (1.0,)
    full = [math.comb(num_steps, (num_steps - k) // 2) * ((num_steps - k) % 2 == 0) for k in range(num_steps + 1)]
    scale = 1 << (num_steps - 1)
    values = [count / scale for count in full]
    values[0] /= 2
    rest, degree = 0.0, num_steps
    while degree > 0 and rest + values[degree] <= tolerance:
        rest += values[degree]
        degree -= 1
    return tuple(values[: degree + 1])


class _Stencil:
    """The operator P of one image (flat), its weights and its gradient."""

    def __init__(self, affinity: Tensor, height: int, width: int, radius: int, beta: float) -> None:
        self.mask = pair_mask(height, width, radius, "full").to(affinity.device)
        self.pairs = shifts(height, width, radius)
        self.pixels = height * width
        self.base = affinity
        self.beta = beta
        self.weight = (affinity**beta).masked_fill_(~self.mask, 0)  # [K, N]
        self.colsum = affinity.new_ones(self.pixels)
        for k, shift in self.pairs:
            self.colsum[: self.pixels - shift] += self.weight[k, : self.pixels - shift]
            self.colsum[shift:] += self.weight[k, : self.pixels - shift]
        self.inverse = self.colsum.reciprocal()
        # A step's slices, built once: building them takes longer than the products (3 classes of 60 x 80 pixels).
        self.source = self.target = affinity.new_empty(0)
        self.views: list[tuple[Tensor, Tensor, Tensor]] = []

    def step(self, state: Tensor) -> Tensor:
        """Return P state for a state of [C, N]."""
        if self.source.shape != state.shape:
            self.source, self.target = torch.empty_like(state), torch.empty_like(state)
            self.views = list(self._make_views())
        self.source.copy_(state)
        self.target.copy_(state)
        for target, source, weight in self.views:
            target.addcmul_(source, weight)
        return self.target.mul_(self.inverse).clone()

    def _make_views(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the slices of target, source and weight of each pair, from both of its ends."""
        for k, shift in self.pairs:
            count = self.pixels - shift
            weight = self.weight[k, :count]
            yield self.target[:, :count], self.source[:, shift:], weight
            yield self.target[:, shift:], self.source[:, :count], weight

    def add_gradient(self, total: Tensor, lost: Tensor, before: Tensor, after: Tensor, pull: Tensor) -> None:
        """Add to the gradients of weights, `total` [K, N], and of column sums, -`lost` [N], those of steps [M, N]."""
        lost += (after * pull).sum(dim=0)
        for k, shift in self.pairs:
            head, tail = slice(0, self.pixels - shift), slice(shift, None)
            total[k, head] += (before[:, head] * pull[:, tail]).sum(dim=0)
            total[k, head] += (before[:, tail] * pull[:, head]).sum(dim=0)

    def affinity_gradient(self, total: Tensor, lost: Tensor) -> Tensor:
        """Return the gradient of affinity [K, N] from those of weights and column sums."""
        for k, shift in self.pairs:
            total[k, : self.pixels - shift] -= lost[: self.pixels - shift] + lost[shift:]
        slope = self.base ** (self.beta - 1)
        return (total * slope * self.beta).masked_fill_(~self.mask, 0)


def _walk(stencil: _Stencil, cam: Tensor, num_steps: int, method: str) -> Tensor:
    """Return the scores [C, N] after `num_steps` steps."""
    if method == "exact":
        for _ in range(num_steps):
            cam = stencil.step(cam)
        return cam
    coefficients = chebyshev_coefficients(num_steps)
    before, state, out = cam, cam, cam * coefficients[0]
    for k, coefficient in enumerate(coefficients[1:]):
        after = stencil.step(state)
        before, state = state, after if k == 0 else after.mul_(2).sub_(before)
        if coefficient:
            out.add_(state, alpha=coefficient)
    return out


def _exact_pairs(stencil: _Stencil, cam: Tensor, pull: Tensor, num_steps: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield (x_t, x_t+1, v_t) for t = num_steps-1 .. 0 and at the end (v,) of the start, times 1 / s."""
    stride = max(1, math.isqrt(num_steps))
    kept = {}
    for t in range(num_steps):
        if t % stride == 0:
            kept[t] = cam
        if t < num_steps - 1:
            cam = stencil.step(cam)
    for start in sorted(kept, reverse=True):
        states = [kept.pop(start)]
        for _ in range(min(stride, num_steps - start)):
            states.append(stencil.step(states[-1]))
        while len(states) > 1:
            after = states.pop()
            yield states[-1], after, pull
            pull = stencil.step(pull)
    yield (pull,)


def _chebyshev_pairs(stencil: _Stencil, cam: Tensor, pull: Tensor, num_steps: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield (y_k, P y_k, v_k+1) for k = degree-1 .. 0, v scaled as y_k enters y_k+1, and at the end (v_0,)."""
    coefficients = chebyshev_coefficients(num_steps)
    degree = len(coefficients) - 1
    above, state = stencil.step(cam), cam  # y_k+1 and y_k
    for _ in range(1, degree):
        above, state = stencil.step(above).mul_(2).sub_(state), above
    later, adjoint = torch.zeros_like(pull), pull * coefficients[degree]
    for k in range(degree - 1, -1, -1):
        moved = stencil.step(state)
        factor = 2 if k else 1
        yield state, moved, adjoint * factor
        above, state = state, moved * 2 - above
        later, adjoint = adjoint, stencil.step(adjoint).mul_(factor).sub_(later).add_(pull, alpha=coefficients[k])
    yield (adjoint,)


def _split(
    cam: Tensor, affinity: Tensor, channels: Sequence[int], heights: Sequence[int], widths: Sequence[int], radius: int
) -> Iterator[tuple[Tensor, Tensor, int, int]]:
    """Yield cam [C, N], affinity [K, N], height and width of each image of a packed batch."""
    planes = len(half_plane_offsets(radius))
    c0 = a0 = 0
    for count, height, width in zip(channels, heights, widths, strict=True):
        pixels = height * width
        c1, a1 = c0 + count * pixels, a0 + planes * pixels
        yield cam[c0:c1].view(count, pixels), affinity[a0:a1].view(planes, pixels), height, width
        c0, a0 = c1, a1


@torch.library.custom_op(
    "seam_kernels::random_walk_forward",
    mutates_args=(),
    schema=f"(Tensor cam, Tensor affinity, {_SETTINGS}) -> Tensor",
)
def _walk_forward(cam: Tensor, affinity: Tensor, *settings: Any) -> Tensor:
    """Return the packed scores after the walk, one dimension, in the dtype of cam."""
    channels, heights, widths, radius, beta, num_steps, method, impl = settings
    sizes = (channels, heights, widths)
    if impl == "triton":
        from seam_kernels import walk_kernels

        return walk_kernels.forward(cam, affinity, *sizes, radius, beta, num_steps, method)
    result = torch.empty_like(cam, memory_format=torch.contiguous_format)
    parts = _split(cam.contiguous(), affinity.contiguous(), *sizes, radius)
    for start, (x, a, height, width) in zip(_starts(*sizes), parts, strict=True):
        stencil = _Stencil(working(a), height, width, radius, beta)
        result[start : start + x.numel()] = _walk(stencil, working(x), num_steps, method).flatten()
    return result


def _starts(channels: Sequence[int], heights: Sequence[int], widths: Sequence[int]) -> list[int]:
    """Return where each image begins in a packed cam."""
    starts = [0]
    for count, height, width in zip(channels, heights, widths, strict=True):
        starts.append(starts[-1] + count * height * width)
    return starts[:-1]


@_walk_forward.register_fake
def _walk_forward_fake(cam: Tensor, affinity: Tensor, *settings: Any) -> Tensor:
    return cam.new_empty(cam.shape)


@torch.library.custom_op(
    "seam_kernels::random_walk_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor cam, Tensor affinity, {_SETTINGS}, bool need_cam, bool need_affinity)"
    " -> (Tensor, Tensor)",
)
def _walk_backward(grad: Tensor, cam: Tensor, affinity: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    """Return the packed gradients of cam and affinity; one that is not needed comes back with no elements."""
    channels, heights, widths, radius, beta, num_steps, method, impl, need_cam, need_affinity = settings
    sizes = (channels, heights, widths, radius)
    if impl == "triton":
        from seam_kernels import walk_kernels

        return walk_kernels.backward(grad, cam, affinity, *sizes, beta, num_steps, method, need_cam, need_affinity)
    dcams, daffinities = [], []
    gradients = _split(grad.contiguous(), affinity.contiguous(), *sizes)
    for (x, a, height, width), (g, *_) in zip(
        _split(cam.contiguous(), affinity.contiguous(), *sizes), gradients, strict=True
    ):
        stencil = _Stencil(working(a), height, width, radius, beta)
        pull = working(g) * stencil.inverse
        if need_affinity and num_steps:
            pairs = _exact_pairs if method == "exact" else _chebyshev_pairs
            total, lost = torch.zeros_like(stencil.weight), torch.zeros_like(stencil.colsum)
            for before, *rest in pairs(stencil, working(x), pull, num_steps):
                if rest:
                    stencil.add_gradient(total, lost, before, rest[0], rest[1])
                else:
                    pull = before
            daffinities.append(stencil.affinity_gradient(total, lost).flatten())
        else:
            daffinities.append(torch.zeros_like(stencil.weight).flatten())
            pull = _walk(stencil, pull, num_steps, method)
        dcams.append((pull * stencil.colsum).flatten())
    none = cam.new_empty(0)
    return (
        torch.cat(dcams).to(cam.dtype) if need_cam and dcams else none.clone(),
        torch.cat(daffinities).to(affinity.dtype) if need_affinity and daffinities else none.clone(),
    )


@_walk_backward.register_fake
def _walk_backward_fake(grad: Tensor, cam: Tensor, affinity: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    need_cam, need_affinity = settings[-2:]
    return cam.new_empty(cam.shape if need_cam else 0), affinity.new_empty(affinity.shape if need_affinity else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    cam, affinity, *ctx.settings = inputs
    ctx.save_for_backward(cam, affinity)


def _autograd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    cam, affinity = ctx.saved_tensors
    need_cam, need_affinity = ctx.needs_input_grad[:2]
    with full_precision(grad):
        dcam, daffinity = _walk_backward(grad, cam, affinity, *ctx.settings, need_cam, need_affinity)
    return dcam if need_cam else None, daffinity if need_affinity else None, *[None] * 8


_walk_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _check(cam: Tensor, affinity: Tensor, radius: int, beta: float, num_steps: int, method: str, axes: str) -> None:
    name, second = ("cam", "affinity") if len(axes) == 4 else ("cams[i]", "affinities[i]")
    check_tensor(name, cam, axes)
    check_tensor(second, affinity, axes.replace("C", "K"))
    first = len(axes) - 3
    same = {index: axes[index] for index in range(len(axes)) if index != first}
    check_same(name, cam, second, affinity, same)
    planes = len(half_plane_offsets(radius))
    if affinity.shape[first] != planes:
        raise ValueError(
            f"{second} has {affinity.shape[first]} planes (dimension {first}), expected {planes} for radius={radius}: "
            f"compute it with edge_affinity(..., radius={radius})"
        )
    if beta <= 0:
        raise ValueError(f"beta={beta} is not above 0: it is the power of the affinities (paper: 8)")
    if num_steps < 0:
        raise ValueError(f"num_steps={num_steps} is negative, expected a count of steps (paper: 64)")
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")


def random_walk(
    cam: Tensor,
    affinity: Tensor,
    *,
    radius: int = 5,
    beta: float = 8.0,
    num_steps: int = 64,
    method: str = "exact",
    impl: str = "auto",
) -> Tensor:
    """Return `cam` (B, C, H, W) after `num_steps` steps over `affinity` (B, K, H, W), differentiable in both.

    A step multiplies by the column-normalized (affinity^beta + I); affinity is that of `edge_affinity` with the same
    radius, at least 0. Entries whose neighbor lies outside the image are ignored. method "chebyshev" takes about
    4.4 sqrt(num_steps) steps for an error of 1e-5 times the norm of cam, and of about 4e-4 of the gradient of affinity
    (64 steps); "reference" knows the exact method only.
    Pass only the classes that an image has: each walks alone.

    Raises ValueError for wrong ranks, shapes, dtypes or devices, a plane count that does not fit the radius, a radius
    below 1, a beta of 0 or less, negative steps, and an unknown method or impl. Source: PARITY.md section 6.
    """
    check_radius(radius)
    _check(cam, affinity, radius, beta, num_steps, method, "BCHW")
    chosen = choose_impl("random_walk", impl, cam)
    if chosen == "reference":
        if method != "exact":
            raise ValueError(f'impl="reference" has no method={method!r}: use method="exact" or impl="torch"')
        with full_precision(cam):
            return random_walk_reference(cam, affinity, radius=radius, beta=beta, num_steps=num_steps)
    batch, channels, height, width = cam.shape
    sizes = ([channels] * batch, [height] * batch, [width] * batch)
    with full_precision(cam):
        out: Tensor = _walk_forward(
            cam.reshape(-1), affinity.reshape(-1), *sizes, radius, float(beta), num_steps, method, chosen
        )
    return out.view(cam.shape)


def random_walk_packed(
    cams: Sequence[Tensor],
    affinities: Sequence[Tensor],
    *,
    radius: int = 5,
    beta: float = 8.0,
    num_steps: int = 64,
    method: str = "exact",
    impl: str = "auto",
) -> list[Tensor]:
    """Return `random_walk` of each image of a list: cams[i] (C_i, H_i, W_i) with affinities[i] (K, H_i, W_i).

    Images and their numbers of classes may differ in size; dtype and device are common. On a GPU the whole list walks
    in one launch, so that many small images fill it. Raises as `random_walk` does, naming cams[i].
    """
    check_radius(radius)
    if len(cams) != len(affinities):
        raise ValueError(
            f"cams has {len(cams)} images and affinities {len(affinities)}: give one affinity for each cam"
        )
    if not cams:
        return []
    for cam, affinity in zip(cams, affinities, strict=True):
        _check(cam, affinity, radius, beta, num_steps, method, "CHW")
        check_same("cams[i]", cam, "cams[0]", cams[0], {})
    chosen = choose_impl("random_walk_packed", impl, cams[0])
    if chosen == "reference":
        options: dict[str, Any] = {"radius": radius, "beta": beta, "num_steps": num_steps, "method": method}
        return [
            random_walk(cam[None], affinity[None], impl=chosen, **options)[0]
            for cam, affinity in zip(cams, affinities, strict=True)
        ]
    sizes = [[cam.shape[axis] for cam in cams] for axis in range(3)]
    with full_precision(cams[0]):  # autocast would refuse, or convert, what torch.cat gets
        packed: Tensor = _walk_forward(
            torch.cat([cam.reshape(-1) for cam in cams]),
            torch.cat([affinity.reshape(-1) for affinity in affinities]),
            *(*sizes, radius, float(beta), num_steps, method, chosen),
        )
    parts = torch.split(packed, [cam.numel() for cam in cams])
    return [part.view(cam.shape) for part, cam in zip(parts, cams, strict=True)]
