"""A SEAM training step as one graph: both views, the losses and every operation of the kernels, without a break."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kit import Probe
from seam_kernels import dense_crf, edge_affinity, random_walk
from torch import Tensor
from torch.nn.functional import interpolate

from seam_dist.losses.seam import seam_loss
from seam_dist.models import SEAM

_SIDE, _SECOND = 41, 25


def _inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, _SIDE, _SIDE, generator=generator)
    return image, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def _losses(model: SEAM, image: Tensor, label: Tensor, autocast: bool) -> dict[str, Tensor]:
    """Return the losses of a training step, and a term for each operation that the training itself does not use."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        first = model(image)
        second = model(interpolate(image, (_SECOND, _SECOND), mode="bilinear", align_corners=True))
    losses = seam_loss(first, second, label)
    grid = interpolate(first.cam, (6, 6))
    affinity = edge_affinity(grid, border="full")
    walked = random_walk(grid.relu(), affinity, num_steps=3)
    small = interpolate(image, (6, 6)) * 40 + 128
    crf = dense_crf(walked.sigmoid(), small, num_iters=2, impl="torch")
    extra = affinity.mean() + walked.mean() + crf[:, 1:].mean()
    return losses | {"loss": losses["loss"] + extra, "extra": extra}


def _step(run: Callable[..., dict[str, Tensor]], model: SEAM, autocast: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = run(model, *_inputs(), autocast)
    return losses, list(torch.autograd.grad(losses["loss"], parameters))


def _check(model: SEAM, autocast: bool) -> None:
    model.eval()  # a dropout draws otherwise in a graph
    torch._dynamo.reset()
    compiled = torch.compile(_losses, fullgraph=True, backend="aot_eager")
    losses, gradients = _step(compiled, model, autocast)
    again, gradients_again = _step(compiled, model, autocast)
    assert {name: value.item() for name, value in losses.items()} == {n: v.item() for n, v in again.items()}
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
    expected, expected_gradients = _step(_losses, model, autocast)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if autocast else {"rtol": 1e-4, "atol": 1e-5}
    for name in expected:
        torch.testing.assert_close(losses[name], expected[name], **tolerance)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        assert (got - wanted).norm() <= tolerance["rtol"] * wanted.norm() + 1e-6
    assert sum(bool(g.any()) for g in gradients) == len(gradients)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16 autocast"])
def test_step_compiles_into_one_graph_and_repeats_bit_by_bit(autocast: bool) -> None:
    _check(SEAM(Probe(), 3, pcm_channels=(5, 7)), autocast)


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16 autocast"])
def test_step_of_resnet38d_compiles_into_one_graph(seam: SEAM, autocast: bool) -> None:
    _check(seam, autocast)
