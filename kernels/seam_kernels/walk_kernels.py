# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Triton kernels of random_walk; equations in walk.py.

Weights    affinity^beta once, kept by edge (half plane) in float16 when the affinities have 16 bits, else float32; the
           column sums are made of the kept values, so that the columns stay stochastic.
Steps      one program owns CLASSES classes of one image and walks all their steps in one launch: states alternate
           between slots in memory (they stay in the caches), with a barrier of the program between two steps. A weight
           is read once for its CLASSES classes. Many images or classes fill a GPU; one image alone does not.
           One kernel serves all recurrences: new = ALPHA P x [- the state before x] [+ base_t pull], optionally summed
           into out with c_t. RECORD keeps every slot, otherwise two alternate.
Gradient   of the weights: a program owns BLOCK pixels and a group of planes and sums x_p v_q + x_q v_p over recorded
           slots and classes, segment by segment. No atomics; a fixed order.
Tables     images are packed; (image, first class) and (image, first pixel) of each program come from int32 tables.
Memory     weights, 1 / s, two states; in backward 2 sqrt(num_steps) slots more and the gradient of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from seam_kernels.stencil import half_plane_offsets
from seam_kernels.walk import chebyshev_coefficients

# Not yet measured on a GPU. Fixed rather than tuned: the steps change their own input.
STEP_BLOCK, STEP_WARPS = 1024, 16
PIXEL_BLOCK = 256
PLANES_OF_A_PROGRAM = 4


@triton.jit
def _power(a, beta):
    # exp2(beta log2(a)), and 0 at a = 0 without a logarithm of zero.
    return tl.where(a > 0, tl.exp2(beta * tl.log2(tl.where(a > 0, a, 1.0))), 0.0)


@triton.jit
def _weights_kernel(
    affinity_ptr, offsets_ptr, images_ptr, table_ptr, weight_ptr, colsum_ptr, beta, num_planes, BLOCK: tl.constexpr
):
    # images [image, 4]: height, width, first pixel, first score. table [program, 2]: image, first pixel in it.
    image = tl.load(table_ptr + 2 * tl.program_id(0))
    p = tl.load(table_ptr + 2 * tl.program_id(0) + 1) + tl.arange(0, BLOCK)
    height = tl.load(images_ptr + 4 * image).to(tl.int32)
    width = tl.load(images_ptr + 4 * image + 1).to(tl.int32)
    first = tl.load(images_ptr + 4 * image + 2)
    pixels = height * width
    y, x = p // width, p % width
    here = p < pixels
    total = tl.full((BLOCK,), 1.0, dtype=tl.float32)
    plane = first * num_planes
    for k in range(num_planes):
        dy, dx = tl.load(offsets_ptr + 2 * k), tl.load(offsets_ptr + 2 * k + 1)
        front = here & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        a = tl.load(affinity_ptr + plane + p, mask=front, other=0.0).to(tl.float32)
        w = _power(a, beta).to(weight_ptr.dtype.element_ty)
        tl.store(weight_ptr + plane + p, w, mask=here)
        total += w.to(tl.float32)
        back = here & (y - dy >= 0) & (x - dx >= 0) & (x - dx < width)
        a = tl.load(affinity_ptr + plane + p - dy * width - dx, mask=back, other=0.0).to(tl.float32)
        total += _power(a, beta).to(weight_ptr.dtype.element_ty).to(tl.float32)
        plane += pixels
    tl.store(colsum_ptr + first + p, total, mask=here)


@triton.jit
def _steps_kernel(
    slots_ptr,
    weight_ptr,
    colsum_ptr,
    base_ptr,
    coefficients_ptr,
    out_ptr,
    offsets_ptr,
    images_ptr,
    table_ptr,
    stride_slot,
    num_steps,
    num_slots,
    num_planes,
    alpha,
    SUBTRACT: tl.constexpr,
    ADD_BASE: tl.constexpr,
    SUM: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # table [program, 3]: image, first class, classes. Slots 0 and 1 hold the states before; step t writes slot t + 2.
    image = tl.load(table_ptr + 3 * tl.program_id(0))
    first_class = tl.load(table_ptr + 3 * tl.program_id(0) + 1)
    num_classes = tl.load(table_ptr + 3 * tl.program_id(0) + 2)
    height = tl.load(images_ptr + 4 * image).to(tl.int32)
    width = tl.load(images_ptr + 4 * image + 1).to(tl.int32)
    first = tl.load(images_ptr + 4 * image + 2)
    pixels = height * width
    c = tl.arange(0, CLASSES)[:, None]
    rows = c < num_classes
    start = tl.load(images_ptr + 4 * image + 3) + (first_class + c).to(tl.int64) * pixels  # [CLASSES, 1]
    zero = tl.full((), 0, dtype=tl.int64)  # makes products 64 bits wide
    for t in range(num_steps):
        source = slots_ptr + ((t + 1) % num_slots + zero) * stride_slot + start
        older = slots_ptr + (t % num_slots + zero) * stride_slot + start
        target = slots_ptr + ((t + 2) % num_slots + zero) * stride_slot + start
        for p0 in range(0, pixels, BLOCK):
            p = p0 + tl.arange(0, BLOCK)
            here = p < pixels
            own = rows & here[None, :]
            total = tl.load(source + p[None, :], mask=own, other=0.0)
            plane = weight_ptr + first * num_planes
            for k in range(num_planes):
                shift = tl.load(offsets_ptr + 2 * k) * width + tl.load(offsets_ptr + 2 * k + 1)
                # A weight is zero where the pair leaves the image, so the ends of the flat image are guard enough.
                front = here & (p + shift < pixels) & (shift > 0)
                w = tl.load(plane + p, mask=front, other=0.0).to(tl.float32)
                total += w[None, :] * tl.load(source + (p + shift)[None, :], mask=rows & front[None, :], other=0.0)
                back = here & (p >= shift) & (shift > 0)
                w = tl.load(plane + p - shift, mask=back, other=0.0).to(tl.float32)
                total += w[None, :] * tl.load(source + (p - shift)[None, :], mask=rows & back[None, :], other=0.0)
                plane += pixels
            total *= alpha / tl.load(colsum_ptr + first + p, mask=here, other=1.0)[None, :]
            if SUBTRACT:
                total -= tl.load(older + p[None, :], mask=own, other=0.0)
            if ADD_BASE:
                pull = tl.load(base_ptr + start + p[None, :], mask=own, other=0.0)
                total += tl.load(coefficients_ptr + t) * pull
            if SUM:
                summed = tl.load(out_ptr + start + p[None, :], mask=own, other=0.0)
                tl.store(out_ptr + start + p[None, :], summed + tl.load(coefficients_ptr + t) * total, mask=own)
            tl.store(target + p[None, :], total, mask=own)
        tl.debug_barrier()


@triton.jit
def _pairs_kernel(
    before_ptr,
    after_ptr,
    pull_ptr,
    dweight_ptr,
    lost_ptr,
    offsets_ptr,
    images_ptr,
    table_ptr,
    counts_ptr,
    stride_slot,
    num_slots,
    num_planes,
    PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Slot t of before and after goes with slot num_slots - 1 - t of pull: the pull walks backwards.
    image = tl.load(table_ptr + 2 * tl.program_id(0))
    p = tl.load(table_ptr + 2 * tl.program_id(0) + 1) + tl.arange(0, BLOCK)
    height = tl.load(images_ptr + 4 * image).to(tl.int32)
    width = tl.load(images_ptr + 4 * image + 1).to(tl.int32)
    first = tl.load(images_ptr + 4 * image + 2)
    scores = tl.load(images_ptr + 4 * image + 3)
    num_classes = tl.load(counts_ptr + image)
    pixels = height * width
    y, x = p // width, p % width
    here = p < pixels
    k = tl.program_id(1) * PLANES + tl.arange(0, PLANES)
    dy = tl.load(offsets_ptr + 2 * k, mask=k < num_planes, other=height)[:, None]
    dx = tl.load(offsets_ptr + 2 * k + 1, mask=k < num_planes, other=0)[:, None]
    pair = here[None, :] & (y[None, :] + dy < height) & (x[None, :] + dx >= 0) & (x[None, :] + dx < width)
    q = p[None, :] + dy * width + dx
    total = tl.zeros((PLANES, BLOCK), dtype=tl.float32)
    lost = tl.zeros((BLOCK,), dtype=tl.float32)
    zero = tl.full((), 0, dtype=tl.int64)  # makes products 64 bits wide
    for t in range(num_slots):
        for c in range(num_classes):
            row = scores + (c + zero) * pixels + (t + zero) * stride_slot
            pull_row = scores + (c + zero) * pixels + (num_slots - 1 - t + zero) * stride_slot
            near = tl.load(before_ptr + row + p, mask=here, other=0.0)
            far = tl.load(before_ptr + row + q, mask=pair, other=0.0)
            near_pull = tl.load(pull_ptr + pull_row + p, mask=here, other=0.0)
            far_pull = tl.load(pull_ptr + pull_row + q, mask=pair, other=0.0)
            total += near[None, :] * far_pull + far * near_pull[None, :]
            lost += near_pull * tl.load(after_ptr + row + p, mask=here, other=0.0)
    out = dweight_ptr + first * num_planes + k[:, None] * pixels + p[None, :]
    tl.store(out, tl.load(out, mask=pair, other=0.0) + total, mask=pair)
    if tl.program_id(1) == 0:
        tl.store(lost_ptr + first + p, tl.load(lost_ptr + first + p, mask=here, other=0.0) + lost, mask=here)


@triton.jit
def _affinity_gradient_kernel(
    dweight_ptr,
    lost_ptr,
    affinity_ptr,
    out_ptr,
    offsets_ptr,
    images_ptr,
    table_ptr,
    beta,
    num_planes,
    BLOCK: tl.constexpr,
):
    image = tl.load(table_ptr + 2 * tl.program_id(0))
    p = tl.load(table_ptr + 2 * tl.program_id(0) + 1) + tl.arange(0, BLOCK)
    height = tl.load(images_ptr + 4 * image).to(tl.int32)
    width = tl.load(images_ptr + 4 * image + 1).to(tl.int32)
    first = tl.load(images_ptr + 4 * image + 2)
    pixels = height * width
    y, x = p // width, p % width
    here = p < pixels
    lost = tl.load(lost_ptr + first + p, mask=here, other=0.0)
    plane = first * num_planes
    for k in range(num_planes):
        dy, dx = tl.load(offsets_ptr + 2 * k), tl.load(offsets_ptr + 2 * k + 1)
        front = here & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        a = tl.load(affinity_ptr + plane + p, mask=front, other=0.0).to(tl.float32)
        dw = tl.load(dweight_ptr + plane + p, mask=front, other=0.0)
        dw -= lost + tl.load(lost_ptr + first + p + dy * width + dx, mask=front, other=0.0)
        # beta a^(beta - 1), which is 1 everywhere for beta = 1.
        slope = tl.where(beta == 1.0, 1.0, beta * _power(a, beta - 1.0))
        tl.store(out_ptr + plane + p, tl.where(front, dw * slope, 0.0).to(out_ptr.dtype.element_ty), mask=here)
        plane += pixels


class _Batch:
    """Tables, weights and launches for one packed batch."""

    def __init__(
        self,
        affinity: Tensor,
        channels: Sequence[int],
        heights: Sequence[int],
        widths: Sequence[int],
        radius: int,
        beta: float,
    ) -> None:
        device = affinity.device
        self.beta, self.affinity = beta, affinity.contiguous()
        offsets = half_plane_offsets(radius)
        self.num_planes = len(offsets)
        self.offsets = torch.tensor(offsets, dtype=torch.int32).view(-1, 2).to(device)
        images, blocks, programs = [], [], []
        pixel = score = 0
        self.classes = _classes_of_a_program(channels, device)
        for image, (count, height, width) in enumerate(zip(channels, heights, widths, strict=True)):
            images.append((height, width, pixel, score))
            blocks += [(image, p) for p in range(0, height * width, PIXEL_BLOCK)]
            if height * width:
                programs += [(image, c, min(self.classes, count - c)) for c in range(0, count, self.classes)]
            pixel += height * width
            score += count * height * width
        self.images = torch.tensor(images, dtype=torch.int64).view(-1, 4).to(device)
        self.blocks = torch.tensor(blocks, dtype=torch.int32).view(-1, 2).to(device)
        self.programs = torch.tensor(programs, dtype=torch.int32).view(-1, 3).to(device)
        self.counts = torch.tensor(list(channels), dtype=torch.int32).to(device)
        kept = torch.float32 if affinity.dtype == torch.float32 else torch.float16
        self.weight = torch.empty(self.affinity.shape, dtype=kept, device=device)
        self.colsum = torch.empty(pixel, dtype=torch.float32, device=device)
        self.scores = score
        # Column sums of every class's pixels, to scale whole packed scores.
        parts = torch.split(self.colsum, [h * w for h, w in zip(heights, widths, strict=True)])
        if len(blocks):
            _weights_kernel[(len(blocks),)](
                self.affinity, self.offsets, self.images, self.blocks, self.weight, self.colsum, beta, self.num_planes,
                BLOCK=PIXEL_BLOCK, num_warps=4,
            )  # fmt: skip
        self.scale = torch.cat([part.repeat(count) for part, count in zip(parts, channels, strict=True)])

    def walk(
        self,
        slots: Tensor,
        num_steps: int,
        *,
        alpha: float = 1.0,
        subtract: bool = False,
        base: Tensor | None = None,
        out: Tensor | None = None,
        coefficients: Sequence[float] = (),
    ) -> None:
        """Take steps from slot 1 (and 0) on; step t writes slot (t + 2) modulo the number of slots."""
        if not num_steps or not len(self.programs):
            return
        table = torch.tensor(list(coefficients) or [0.0], dtype=torch.float32).to(slots.device)
        _steps_kernel[(len(self.programs),)](
            slots, self.weight, self.colsum, slots if base is None else base, table, slots if out is None else out,
            self.offsets, self.images, self.programs, self.scores, num_steps, slots.shape[0], self.num_planes, alpha,
            SUBTRACT=subtract, ADD_BASE=base is not None, SUM=out is not None, CLASSES=self.classes,
            BLOCK=STEP_BLOCK, num_warps=STEP_WARPS, num_stages=1,
        )  # fmt: skip

    def add_pairs(self, before: Tensor, after: Tensor, pull: Tensor, dweight: Tensor, lost: Tensor) -> None:
        """Add the gradients of the steps whose states and pulls are recorded; slot t goes with slot -1 - t of pull."""
        if not len(self.blocks):
            return
        grid = (len(self.blocks), triton.cdiv(max(1, self.num_planes), PLANES_OF_A_PROGRAM))
        _pairs_kernel[grid](
            before, after, pull, dweight, lost, self.offsets, self.images, self.blocks, self.counts, self.scores,
            before.shape[0], self.num_planes, PLANES=PLANES_OF_A_PROGRAM, BLOCK=PIXEL_BLOCK, num_warps=4,
        )  # fmt: skip

    def affinity_gradient(self, dweight: Tensor, lost: Tensor) -> Tensor:
        """Return the gradient of the packed affinities."""
        out = torch.zeros_like(self.affinity)
        if len(self.blocks):
            _affinity_gradient_kernel[(len(self.blocks),)](
                dweight, lost, self.affinity, out, self.offsets, self.images, self.blocks, self.beta, self.num_planes,
                BLOCK=PIXEL_BLOCK, num_warps=4,
            )  # fmt: skip
        return out


def _classes_of_a_program(channels: Sequence[int], device: torch.device) -> int:
    """Return how many classes share a program: as many as leave two programs for each multiprocessor, at most 4."""
    wanted = 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    for classes in (4, 2):
        if sum(-(-count // classes) for count in channels) >= wanted:
            return classes
    return 1


def _polynomial(batch: _Batch, start: Tensor, num_steps: int, method: str) -> Tensor:
    """Return P^num_steps start, or its truncated expansion."""
    if method == "exact":
        slots = torch.stack([start, start])
        batch.walk(slots, num_steps)
        return slots[(num_steps + 1) % 2]
    coefficients = chebyshev_coefficients(num_steps)
    out = start * coefficients[0]
    if len(coefficients) > 1:
        slots = torch.stack([start, start])
        batch.walk(slots, 1)  # slot 0 becomes P start, which serves as the state before start: T_-1 = T_1
        batch.walk(slots, len(coefficients) - 1, alpha=2.0, subtract=True, out=out, coefficients=coefficients[1:])
    return out


def forward(
    cam: Tensor, affinity: Tensor, channels: Sequence[int], heights: Sequence[int], widths: Sequence[int],
    radius: int, beta: float, num_steps: int, method: str,
) -> Tensor:  # fmt: skip
    """Return the packed scores after the walk."""
    if not cam.numel():
        return torch.empty_like(cam)
    batch = _Batch(affinity, channels, heights, widths, radius, beta)
    return _polynomial(batch, cam.contiguous().float(), num_steps, method).to(cam.dtype)


def backward(
    grad: Tensor, cam: Tensor, affinity: Tensor, channels: Sequence[int], heights: Sequence[int],
    widths: Sequence[int], radius: int, beta: float, num_steps: int, method: str, need_cam: bool, need_affinity: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the packed gradients of cam and affinity; one that is not needed has no elements."""
    if not cam.numel():
        return torch.empty_like(cam), torch.zeros_like(affinity)
    batch = _Batch(affinity, channels, heights, widths, radius, beta)
    start = cam.contiguous().float()
    pull = grad.contiguous().float() / batch.scale
    none = cam.new_empty(0)
    if not need_affinity:
        return (_polynomial(batch, pull, num_steps, method) * batch.scale).to(cam.dtype), none
    dweight = torch.zeros(batch.affinity.shape, dtype=torch.float32, device=cam.device)
    lost = torch.zeros_like(batch.colsum)
    walk_back = _exact_back if method == "exact" else _chebyshev_back
    pulled = walk_back(batch, start, pull, num_steps, dweight, lost) if num_steps else pull
    daffinity = batch.affinity_gradient(dweight, lost)
    return (pulled * batch.scale).to(cam.dtype) if need_cam else none, daffinity


def _exact_back(batch: _Batch, start: Tensor, pull: Tensor, num_steps: int, dweight: Tensor, lost: Tensor) -> Tensor:
    """Add the gradients of all steps, last segment first, and return the pull at the start."""
    stride = max(1, math.isqrt(num_steps))
    starts = list(range(0, num_steps, stride))
    kept = [start]
    slots = torch.stack([start, start])
    for _ in starts[1:]:
        batch.walk(slots, stride)
        newest = slots[(stride + 1) % 2].clone()
        kept.append(newest)
        slots = torch.stack([newest, newest])
    states = start.new_empty(stride + 2, start.numel())  # slot 0 is unused room for the state before
    pulls = torch.empty_like(states)
    for t0 in reversed(starts):
        length = min(stride, num_steps - t0)
        states[1] = kept.pop()
        batch.walk(states[: length + 2], length)
        pulls[1] = pull
        batch.walk(pulls[: length + 2], length)
        # Step i of the segment goes from slot 1 + i to 2 + i; its pull is the one walked length - 1 - i steps.
        batch.add_pairs(states[1 : length + 1], states[2 : length + 2], pulls[1 : length + 1], dweight, lost)
        pull = pulls[length + 1].clone()
    return pull


def _chebyshev_back(
    batch: _Batch, start: Tensor, pull: Tensor, num_steps: int, dweight: Tensor, lost: Tensor
) -> Tensor:
    """Add the gradients of the truncated expansion, its states walked backwards, and return the pull at the start."""
    coefficients = chebyshev_coefficients(num_steps)
    degree = len(coefficients) - 1
    zero = torch.zeros_like(start)
    slots = torch.stack([start, start])
    batch.walk(slots, 1)
    batch.walk(slots, degree - 1, alpha=2.0, subtract=True)
    # Slots alternate: y_degree-1 is the newest, y_degree-2 the one before (y_1 = y_-1 for degree 1).
    newest = degree % 2
    below, above = slots[1 - newest], None
    state = slots[newest]
    step = torch.stack([state, state])
    batch.walk(step, 1)
    above = 2 * step[0] - below if degree > 1 else step[0]
    stride = max(1, math.isqrt(degree))
    # v_degree = c_degree pull, v_k = c_k pull + 2 P v_k+1 - v_k+2; the last one, v_0, has P v_1 for 2 P v_1.
    before_pull, newest_pull = zero, pull * coefficients[degree]
    k = degree - 1  # y_k and v_k+1 are the newest
    while k >= 1:
        length = min(stride, k)
        states = torch.empty(length + 2, start.numel(), device=start.device)
        pulls = torch.empty_like(states)
        states[0], states[1] = above, state
        batch.walk(states, length, alpha=2.0, subtract=True)  # y_k-1, y_k-2, ...
        pulls[0], pulls[1] = before_pull, newest_pull
        wanted = [coefficients[j] for j in range(k, k - length, -1)]
        batch.walk(pulls, length, alpha=2.0, subtract=True, base=pull, coefficients=wanted)
        # Newest first: y_k goes with v_k+1; 2 P y_k = y_k+1 + y_k-1.
        doubled = states[:length] + states[2:]
        batch.add_pairs(states[1 : length + 1], doubled / 2, pulls[1 : length + 1].flip(0) * 2, dweight, lost)
        above, state = states[length], states[length + 1]
        before_pull, newest_pull = pulls[length], pulls[length + 1]
        k -= length
    # The last pair, y_0 with v_1: y_1 = P y_0.
    batch.add_pairs(state[None], above[None], newest_pull[None], dweight, lost)
    last = torch.stack([before_pull, newest_pull])
    batch.walk(last, 1, subtract=True, base=pull, coefficients=[coefficients[0]])
    return last[0]
