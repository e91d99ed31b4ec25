"""PARITY.md sections 3, 5 and 6 read literally: one image at a time, full-size maps, N x N matrices, loops, float64.

Nothing of the project is called here; networks come in as functions. Slow on purpose: for images of a few thousand
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

Network = Callable[[torch.Tensor], torch.Tensor]
Crf = Callable[[np.ndarray, np.ndarray], np.ndarray]


def bilinear(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (C, h, w) with align_corners=False: output pixel i looks at (i + 0.5) h / H - 0.5, not below 0."""

    def weights(points: int, pixels: int) -> np.ndarray:
        matrix = np.zeros((pixels, points))
        for i in range(pixels):
            at = max((i + 0.5) * points / pixels - 0.5, 0)
            low = min(int(at), points - 1)
            high = min(low + 1, points - 1)
            matrix[i, low] += 1 - (at - low)
            matrix[i, high] += at - low
        return matrix

    return np.einsum("yh,chw,xw->cyx", weights(maps.shape[1], height), maps, weights(maps.shape[2], width))


def normalized_image(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return (1, 3, H, W) float64 of uint8 (H, W, 3)."""
    scaled = (pixels.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(scaled.transpose(2, 0, 1).copy())[None]


def cam_map(
    network: Network,
    image: np.ndarray,
    classes: Sequence[int],
    scales: Sequence[float],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    flip: bool = True,
) -> np.ndarray:
    """Section 3: normalized CAM (K, H, W) of the present classes; network gives maps at the size of its input."""
    height, width = image.shape[:2]
    total = 0
    for scale in scales:
        size = (round(width * scale), round(height * scale))
        scaled = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        for turned in (False, True) if flip else (False,):
            given = normalized_image(scaled[:, ::-1] if turned else scaled, mean, std)
            with torch.no_grad():
                maps = network(given)[0].double().numpy()
            full = bilinear(maps, height, width)
            total = total + (full[:, :, ::-1] if turned else full)
    result = []
    for index in classes:
        cam = np.maximum(total[index], 0)
        low, high = cam.min(), cam.max()
        cam = np.where(cam < low + 1e-5, 0, cam)
        result.append((cam - low - 1e-5) / (high - low + 1e-5))
    return np.array(result).reshape(len(classes), height, width)


def dense_crf(num_iters: int, gaussian: tuple[float, float], bilateral: tuple[float, float, float]) -> Crf:
    """Return the mean field of section 4 with both kernels as N x N matrices; (image, scores) -> probabilities."""

    def solve(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
        channels, height, width = scores.shape
        place = np.array([(x, y) for y in range(height) for x in range(width)], np.float64)
        color = image.reshape(-1, 3).astype(np.float64)
        far = ((place[:, None] - place[None]) ** 2).sum(-1)
        color_far = ((color[:, None] - color[None]) ** 2).sum(-1)
        kernels = []
        for kernel, compat in (
            (np.exp(-far / (2 * gaussian[0] ** 2)), gaussian[1]),
            (np.exp(-far / (2 * bilateral[0] ** 2) - color_far / (2 * bilateral[1] ** 2)), bilateral[2]),
        ):
            norm = 1 / np.sqrt(kernel.sum(1) + 1e-20)
            kernels.append(compat * norm[:, None] * kernel * norm[None])
        pairwise = kernels[0] + kernels[1]
        unary = -np.log(np.clip(scores.reshape(channels, -1).astype(np.float64), 1e-5, 1))

        def softmax(energy: np.ndarray) -> np.ndarray:
            grown = np.exp(energy - energy.max(0))
            return grown / grown.sum(0)

        q = softmax(-unary)
        for _ in range(num_iters):
            q = softmax(-unary + q @ pairwise)
        return q.reshape(channels, height, width)

    return solve


def lattice_crf(num_iters: int, gaussian: tuple[float, float], bilateral: tuple[float, float, float]) -> Crf:
    """Return the published CRF, pydensecrf called as imutils.crf_inference calls it."""
    from pydensecrf.densecrf import DenseCRF2D

    def solve(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
        channels, height, width = scores.shape
        crf = DenseCRF2D(width, height, channels)
        unary = -np.log(np.clip(scores.astype(np.float32), 1e-5, 1))
        crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(channels, -1)))
        crf.addPairwiseGaussian(sxy=gaussian[0], compat=gaussian[1])
        sxy, srgb, compat = bilateral
        crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=np.ascontiguousarray(image), compat=compat)
        return np.array(crf.inference(num_iters)).reshape(channels, height, width)

    return solve


def crf_scores(crf: Crf, image: np.ndarray, cam: np.ndarray, alpha: float) -> np.ndarray:
    """Section 3: CRF of (1 - max over classes)^alpha and the classes, (K + 1, H, W)."""
    strongest = np.zeros(image.shape[:2], np.float32)
    if len(cam):
        strongest = cam.max(axis=0).astype(np.float32)
    background = np.power(1 - strongest, np.float32(alpha))
    return crf(image, np.concatenate([background[None], cam]).astype(np.float32))


def crop_scores(scores: np.ndarray, top: int, left: int, side: int, *, flip: bool) -> np.ndarray:
    """Return a crop of side x side from (top, left), which may lie outside, filled with 0, then mirrored."""
    channels, height, width = scores.shape
    crop = np.zeros((channels, side, side), scores.dtype)
    for y in range(side):
        for x in range(side):
            if 0 <= top + y < height and 0 <= left + x < width:
                crop[:, y, x] = scores[:, top + y, left + x]
    return crop[:, :, ::-1] if flip else crop


def affinity_labels(low: np.ndarray, high: np.ndarray, classes: Sequence[int], stride: int) -> np.ndarray:
    """Section 5: block means of both score stacks, argmax, then the rule; sides need not be multiples of stride."""
    ids = [0, *classes]
    rows, columns = -(-low.shape[1] // stride), -(-low.shape[2] // stride)
    labels = np.zeros((rows, columns), np.uint8)
    for y in range(rows):
        for x in range(columns):
            where = np.s_[:, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
            la = low[where].astype(np.float64).sum((1, 2)) / stride**2
            ha = high[where].astype(np.float64).sum((1, 2)) / stride**2
            label = ids[int(la.argmax())]
            if label == 0:
                label = 255
            if ha.argmax() == 0:
                label = 0
            if max(la.max(), ha.max()) < 1e-5:
                label = 255
            labels[y, x] = label
    return labels


def transition(feature: np.ndarray, radius: int, border: str, beta: float) -> np.ndarray:
    """Section 6: the column-normalized N x N matrix of features (D, h, w), pairs as in section 5."""
    _, height, width = feature.shape
    if min(height, width) < 11:
        radius = max(1, min(radius, (min(height, width) - 1) // 2))
    offsets = [(0, dx) for dx in range(1, radius)]
    offsets += [
        (dy, dx) for dy in range(1, radius) for dx in range(-radius + 1, radius) if dy * dy + dx * dx < radius * radius
    ]
    matrix = np.eye(height * width)
    for y in range(height):
        for x in range(width):
            if border == "paper" and (y >= height - radius + 1 or x < radius - 1 or x >= width - radius + 1):
                continue
            for dy, dx in offsets:
                if y + dy >= height or not 0 <= x + dx < width:
                    continue
                affinity = np.exp(-np.abs(feature[:, y, x] - feature[:, y + dy, x + dx]).mean())
                one, two = y * width + x, (y + dy) * width + x + dx
                matrix[one, two] = matrix[two, one] = affinity**beta
    return matrix / matrix.sum(axis=0, keepdims=True)


def random_walk(
    network: Network,
    image: np.ndarray,
    cam: np.ndarray,
    classes: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    stride: int,
    radius: int,
    border: str,
    alpha: float,
    beta: float,
    log_steps: int,
) -> np.ndarray:
    """Section 6: labels (H, W) from a full-size CAM (K, H, W); all classes walk, absent ones with 0."""
    height, width = image.shape[:2]
    rows, columns = -(-height // stride), -(-width // stride)
    padded = torch.zeros(1, 3, rows * stride, columns * stride, dtype=torch.float64)
    padded[:, :, :height, :width] = normalized_image(image, mean, std)
    with torch.no_grad():
        feature = network(padded)[0].double().numpy()
    matrix = transition(feature, radius, border, beta)
    for _ in range(log_steps):
        matrix = matrix @ matrix
    full = np.zeros((num_classes + 1, height, width))
    for index, scores in zip(classes, cam, strict=True):
        full[index] = scores
    full[0] = (1 - full[1:].max(axis=0)) ** alpha
    whole = np.zeros((num_classes + 1, rows * stride, columns * stride))
    whole[:, :height, :width] = full
    pooled = whole.reshape(num_classes + 1, rows, stride, columns, stride).mean((2, 4))
    walked = (pooled.reshape(num_classes + 1, -1) @ matrix).reshape(pooled.shape)
    return bilinear(walked, rows * stride, columns * stride).argmax(axis=0)[:height, :width].astype(np.uint8)
