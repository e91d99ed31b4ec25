"""The published forms compute what this project computes, and the benchmarks of both run."""

from __future__ import annotations

import torch

from seam_dist.bench.affinity_loss import inputs, measure_loss, stencil_loss
from seam_dist.bench.published import gathered_loss, published_loss
from seam_dist.bench.trainer_overhead import measure_steps
from seam_dist.losses.seam import seam_loss
from seam_dist.models import SEAMOutput


def test_published_loss_is_that_of_the_trainer() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 4, *size, generator=generator).requires_grad_() for size in ((31, 29), (17, 16)) * 2]
    label = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    views = SEAMOutput(maps[0], maps[2]), SEAMOutput(maps[1], maps[3])
    plain, trained = published_loss(*views, label), seam_loss(*views, label)["loss"]
    torch.testing.assert_close(plain, trained)
    for got, expected in zip(torch.autograd.grad(plain, maps), torch.autograd.grad(trained, maps), strict=True):
        torch.testing.assert_close(got, expected)


def test_gathered_pairs_give_the_loss_of_the_stencil() -> None:
    feature, labels = inputs(2, 13, 6)
    results = []
    for loss in (gathered_loss(feature, labels, radius=5), stencil_loss(feature, labels)):
        results.append((loss, *torch.autograd.grad(loss, feature)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_benchmark_of_the_affinity_loss_measures_both_forms() -> None:
    gathered, stencil = (measure_loss(form, 1, 12, 4, 1) for form in ("gathered", "stencil"))
    assert abs(gathered.loss - stencil.loss) < 1e-5 * stencil.loss
    assert stencil.cpu_s > 0


def test_benchmark_of_the_trainer_times_each_step_of_both_loops() -> None:
    ticks = iter(range(100))
    bare, trainer = measure_steps(2, 32, 1 / 16, 2, lambda: float(next(ticks)))
    assert bare == trainer == [1.0, 1.0]
