"""The loss of AffinityNet against a slow reading of PARITY.md section 5, pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from seam_kernels import edge_affinity, half_plane_offsets
from torch import Tensor

from seam_dist.losses.affinity import affinity_losses, pair_counts, pair_types

BORDERS = ["paper", "full"]
SHAPES = [(2, 14, 13, 5), (1, 5, 9, 3), (2, 11, 3, 2), (1, 7, 7, 5)]  # B, h, w, radius; the third has few pairs


def label_map(shape: tuple[int, int, int], seed: int = 0, *, classes: int = 3, ignored: float = 0.2) -> Tensor:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes + 1, shape)
    labels[rng.random(shape) < ignored] = 255
    return torch.from_numpy(labels.astype(np.uint8))


def feature_map(batch: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randn(batch, 6, height, width, generator=generator, dtype=torch.float64).to(dtype)


def slow_losses(
    feature: NDArray[np.float64], labels: NDArray[np.uint8], radius: int, border: str
) -> tuple[dict[str, float], list[int]]:
    """Every pair of cells nearer than the radius, once, in plain Python."""
    batch, _, height, width = feature.shape
    margin = radius - 1
    sums, counts = {"bg": 0.0, "fg": 0.0, "neg": 0.0}, {"bg": 0, "fg": 0, "neg": 0}
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                for dy in range(radius):
                    for dx in range(-margin, radius):
                        if dx * dx + dy * dy >= radius * radius or (dy == 0 and dx <= 0):
                            continue
                        if border == "paper" and (y >= height - margin or x < margin or x >= width - margin):
                            continue
                        if not (0 <= y + dy < height and 0 <= x + dx < width):
                            continue
                        first, second = int(labels[b, y, x]), int(labels[b, y + dy, x + dx])
                        if 255 in (first, second):
                            continue
                        distance = np.abs(feature[b, :, y, x] - feature[b, :, y + dy, x + dx]).mean()
                        affinity = math.exp(-distance)
                        term = "neg" if first != second else "bg" if first == 0 else "fg"
                        counts[term] += 1
                        sums[term] -= math.log(1 + 1e-5 - affinity if term == "neg" else affinity + 1e-5)
    terms = {name: sums[name] / (counts[name] + 1e-5) for name in sums}
    return {"loss": terms["bg"] / 4 + terms["fg"] / 4 + terms["neg"] / 2, **terms}, list(counts.values())


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("batch", "height", "width", "radius"), SHAPES)
def test_loss_equals_the_pair_by_pair_reading(batch: int, height: int, width: int, radius: int, border: str) -> None:
    labels, feature = label_map((batch, height, width)), feature_map(batch, height, width)
    expected, expected_counts = slow_losses(feature.numpy(), labels.numpy(), radius, border)
    counts = pair_counts(labels, radius=radius, border=border)
    assert counts.dtype == torch.int64
    assert counts.tolist() == expected_counts
    affinity = edge_affinity(feature.float(), radius=radius, border=border)
    losses = affinity_losses(affinity, labels, counts, radius=radius, border=border)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_published_pair_counts_on_a_crop_of_448() -> None:
    labels = torch.zeros(1, 56, 56, dtype=torch.uint8)
    # PARITY.md section 5: 34 offsets of 2,496 cells; the paper's rule has no other pairs.
    assert pair_counts(labels, radius=5, border="paper").tolist() == [84_864, 0, 0]
    assert pair_counts(labels, radius=5, border="full").sum() > 84_864


@pytest.mark.parametrize("border", BORDERS)
def test_gradient_equals_that_of_gathered_pairs(border: str) -> None:
    """Autograd through an explicit list of pairs, double precision."""
    labels, feature = label_map((2, 12, 11)), feature_map(2, 12, 11).requires_grad_()
    index: dict[str, list[tuple[int, ...]]] = {"bg": [], "fg": [], "neg": []}
    types = pair_types(labels, radius=5, border=border)
    for b, k, y, x in types.nonzero().tolist():
        dy, dx = half_plane_offsets(5)[k]
        index[("bg", "fg", "neg")[int(types[b, k, y, x]) - 1]].append((b, y, x, y + dy, x + dx))
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in (("bg", 0.25), ("fg", 0.25), ("neg", 0.5)):
        b, y, x, to_y, to_x = torch.tensor(index[name]).T
        affinity = torch.exp(-(feature[b, :, y, x] - feature[b, :, to_y, to_x]).abs().mean(dim=1))
        value = 1 + 1e-5 - affinity if name == "neg" else affinity + 1e-5
        total = total - weight * value.log().sum() / (len(b) + 1e-5)
    (expected,) = torch.autograd.grad(total, feature)
    counts = pair_counts(labels, radius=5, border=border)
    leaf = feature.detach().float().requires_grad_()
    affinity = edge_affinity(leaf, radius=5, border=border)
    losses = affinity_losses(affinity, labels, counts, radius=5, border=border)
    (gradient,) = torch.autograd.grad(losses["loss"], leaf)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-7)


def test_parts_add_up_to_the_batch_when_counts_are_global() -> None:
    labels = label_map((4, 9, 10))
    labels[2:] = label_map((2, 9, 10), 7, classes=1, ignored=0.7)  # parts with very different numbers of pairs
    affinity = edge_affinity(feature_map(4, 9, 10, torch.float32), border="full")
    counts = pair_counts(labels, radius=5, border="full")
    whole = affinity_losses(affinity, labels, counts, radius=5, border="full")
    parts = [
        affinity_losses(affinity[half], labels[half], counts, radius=5, border="full")
        for half in (slice(0, 2), slice(2, 4))
    ]
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value)
    own = [pair_counts(labels[half], radius=5, border="full") for half in (slice(0, 2), slice(2, 4))]
    assert torch.equal(own[0] + own[1], counts)


@pytest.mark.parametrize("value", [0, 2, 255])
def test_pair_types_that_are_absent_cost_nothing_and_stay_finite(value: int) -> None:
    labels = torch.full((1, 9, 9), value, dtype=torch.uint8)
    leaf = feature_map(1, 9, 9, torch.float32).requires_grad_()
    counts = pair_counts(labels, radius=5, border="full")
    losses = affinity_losses(edge_affinity(leaf, border="full"), labels, counts, radius=5, border="full")
    present = {0: {"bg"}, 2: {"fg"}, 255: set()}[value]
    assert {name for name in ("bg", "fg", "neg") if losses[name] != 0} == present
    (gradient,) = torch.autograd.grad(losses["loss"], leaf)
    assert torch.isfinite(gradient).all()
    assert bool(gradient.any()) == bool(present)


def test_equal_features_of_two_classes_are_punished_without_infinity() -> None:
    labels = (torch.arange(12) % 2).to(torch.uint8).expand(1, 12, 12)
    feature = torch.zeros(1, 4, 12, 12)
    counts = pair_counts(labels, radius=5, border="full")
    losses = affinity_losses(edge_affinity(feature, border="full"), labels, counts, radius=5, border="full")
    assert float(losses["neg"]) == pytest.approx(-math.log(1e-5), rel=0.01)  # in float32, of 1 + 1e-5 - 1
    assert float(losses["bg"]) == pytest.approx(-math.log(1 + 1e-5), abs=1e-6)


def test_arguments_that_do_not_fit_are_refused() -> None:
    affinity, labels = torch.rand(1, 34, 9, 9), torch.zeros(1, 8, 9, dtype=torch.uint8)
    counts = torch.ones(3)
    with pytest.raises(ValueError, match=r"labels \(1, 8, 9\), expected \(B, 34, h, w\) and \(B, h, w\): make"):
        affinity_losses(affinity, labels, counts, radius=5, border="full")
    with pytest.raises(ValueError, match=r"expected \(B, 22, h, w\)"):
        affinity_losses(affinity, torch.zeros(1, 9, 9, dtype=torch.uint8), counts, radius=4, border="full")
    with pytest.raises(ValueError, match=r"labels are torch\.float32 \(1, 9, 9\), expected class indices"):
        pair_counts(torch.zeros(1, 9, 9), radius=5, border="full")
