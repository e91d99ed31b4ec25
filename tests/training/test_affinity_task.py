"""The module that trains AffinityNet: steps that do not depend on how the global batch is cut, padding, precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from kit import changed
from torch import Tensor
from training_kit import noise_batches, one_rank

from seam_dist.cluster.distributed import init_world, shutdown
from seam_dist.config.schema import Config, ModelConfig, RunConfig, TrainAffinityConfig
from seam_dist.losses.affinity import affinity_losses, pair_counts
from seam_dist.models import build_affinity_net
from seam_dist.training.affinity_task import AffinityModule
from seam_dist.training.engine import Training, start_training

BATCH = 8
SIDE = 88  # a grid of 11 cells, the smallest that keeps radius 5


def settings(micro: int = BATCH, **affinity: Any) -> Config:
    values = {"global_batch_size": BATCH, "micro_batch_size": micro, "max_steps": 6, "lr": 1e-3, **affinity}
    return Config(
        run=RunConfig(threads=1),
        model=ModelConfig(width=1 / 16, freeze_stem=False),
        train_affinity=changed(TrainAffinityConfig(), crop_size=SIDE, channels=(4, 6, 10), jitter=False, **values),
    )


def stream(size: int = BATCH, start: int = 0) -> Iterator[dict[str, Any]]:
    """Images of very different numbers of pairs: sample n has about n mod 4 fifths of its cells ignored."""

    def target(number: int, generator: torch.Generator) -> dict[str, Tensor]:
        cells = torch.randint(0, 3, (11, 11), generator=generator, dtype=torch.uint8)
        drop = torch.rand(11, 11, generator=generator) < number % 4 / 5
        return {"target": cells.masked_fill(drop, 255)}

    return noise_batches(SIDE, size, start, target)


def build(cfg: Config) -> AffinityModule:
    torch.manual_seed(cfg.run.seed)
    return AffinityModule(build_affinity_net(cfg)[0], cfg)


def begin(cfg: Config) -> Training:
    return start_training(build(cfg), init_world(cfg), max_steps=6)


def test_accumulation_equals_the_larger_batch() -> None:
    whole, parts = begin(settings()), begin(settings(micro=2))
    assert (whole.accumulation, parts.accumulation) == (1, 4)
    for step in range(3):
        start = step * BATCH
        expected, actual = whole.train_step(stream(start=start)), parts.train_step(stream(2, start))
        assert set(expected) == {"loss", "bg", "fg", "neg"}
        assert actual == pytest.approx(expected, rel=1e-5), step
    weights = whole.state().weights, parts.state().weights
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)
    assert not torch.equal(weights[0]["f9.weight"], build(settings()).model.f9.weight)


@pytest.mark.parametrize("ranks", [2, 4])
def test_mean_gradient_of_the_ranks_is_that_of_the_global_batch(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What DeepSpeed does with several ranks, by hand: each has its part, counts are summed, gradients averaged."""
    batch = next(stream())
    whole = build(settings()).train()
    whole.begin_step([batch], 0, one_rank())
    expected = whole(batch)
    expected["loss"].backward()
    counts = pair_counts(batch["target"], radius=5, border="full")
    monkeypatch.setattr("seam_dist.training.affinity_task.all_reduce_sum", lambda local, world: counts)
    total = {name: 0.0 for name in expected}
    shared = build(settings()).train()
    for rank in range(ranks):
        part = {name: value[rank::ranks] for name, value in batch.items()}
        shared.begin_step([part], 0, one_rank(ranks))
        losses = shared(part)
        (losses["loss"] / ranks).backward()
        total = {name: total[name] + float(value.detach()) / ranks for name, value in losses.items()}
    assert total == pytest.approx({name: float(value.detach()) for name, value in expected.items()}, rel=1e-5)
    for (name, parameter), of_ranks in zip(whole.named_parameters(), shared.parameters(), strict=True):
        if parameter.requires_grad:
            message = f"{name}: "
            torch.testing.assert_close(
                of_ranks.grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=message: n + m
            )


def test_forward_equals_the_network_and_the_loss() -> None:
    cfg = settings(border="paper", radius=4)
    module = build(cfg).eval()
    batch = next(stream(2))
    module.begin_step([batch], 0, one_rank())
    pixels = batch["image"].float() / 255
    image = (pixels - module.mean[:, None, None]) / module.std[:, None, None]
    counts = pair_counts(batch["target"], radius=4, border="paper")
    affinity = module.model(image, "paper")
    expected = affinity_losses(affinity, batch["target"], counts, radius=4, border="paper")
    actual = module(batch)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value)
    assert actual["loss"].requires_grad
    assert not actual["bg"].requires_grad


def test_padding_is_black_after_color_jitter() -> None:
    cfg = replace(settings(), train_affinity=changed(settings().train_affinity, jitter=True))
    module = build(cfg)
    batch = next(stream(2))
    batch["valid"][1] = torch.tensor([8, 16, 40, 60])
    batch["color"][:, :5] = torch.tensor([0.8, 1.3, 0.7, 0.1, 120.0])  # contrast would turn black to gray
    images = module.images(batch) * module.std[:, None, None] + module.mean[:, None, None]
    outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    outside[8:40, 16:60] = False
    assert images[1][:, outside].abs().max() < 1e-6
    assert images[1][:, ~outside].max() > 0.5
    plain = build(settings()).images(batch) * module.std[:, None, None] + module.mean[:, None, None]
    torch.testing.assert_close(plain[1][:, ~outside], batch["image"][1][:, ~outside].float() / 255)
    assert not torch.allclose(plain, images)


def test_bf16_keeps_the_loss_in_float32() -> None:
    exact, rounded = build(settings()).eval(), build(settings(precision="bf16")).eval()
    dtypes = []
    rounded.model.backbone.b4.register_forward_hook(lambda m, i, output: dtypes.append(output[0].dtype))
    batch = next(stream(2))
    results = []
    for module in (exact, rounded):
        module.begin_step([batch], 0, one_rank())
        results.append(module(batch))
    assert dtypes == [torch.bfloat16]
    assert {value.dtype for value in results[1].values()} == {torch.float32}
    exact_loss, rounded_loss = (float(result["loss"].detach()) for result in results)
    assert rounded_loss == pytest.approx(exact_loss, rel=0.05)
    assert rounded_loss != exact_loss


def test_dropout_belongs_to_the_sample() -> None:
    module = build(settings()).train()
    batch = next(stream(4))
    swapped = {name: [value[i] for i in (2, 0, 3, 1)] if name == "key" else value[[2, 0, 3, 1]]
               for name, value in batch.items()}  # fmt: skip
    losses = []
    for one in (batch, swapped):
        module.begin_step([one], 0, one_rank())
        losses.append(float(module(one)["loss"].detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    batch["sample_number"] += 100
    module.begin_step([batch], 0, one_rank())
    assert float(module(batch)["loss"].detach()) != pytest.approx(losses[0], rel=1e-5)


@pytest.fixture(autouse=True, scope="module")
def _leave_the_world() -> Iterator[None]:
    yield
    shutdown(init_world(Config()))
