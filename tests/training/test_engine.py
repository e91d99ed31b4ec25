"""Steps of the trainer: they equal a plain loop, whatever the resume, the accumulation and the precision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from training_kit import BATCH, begin_training, seam_batches, seam_config, seam_module

from seam_dist.cluster.distributed import World, init_world
from seam_dist.config.schema import LossConfig, ModelConfig, ScheduleConfig
from seam_dist.models import parameter_groups
from seam_dist.training.checkpoint import TrainState
from seam_dist.training.engine import TrainingError, lr_factor, micro_batches, num_steps
from seam_dist.training.seam_task import warmup_factor


def copied(state: TrainState) -> TrainState:
    return replace(state, weights=dict(state.weights), momentum=dict(state.momentum))


@pytest.mark.parametrize("zero", [{"stage": 0}, {"stage": 2}, {"stage": 3, "offload_optimizer": {"device": "cpu"}}])
def test_resumed_run_is_bit_equal(zero: dict[str, Any]) -> None:
    cfg = replace(seam_config("full", gradient_clip=1.0), deepspeed={"zero_optimization": zero})
    whole = begin_training(cfg)
    batches = seam_batches()
    curve = []
    for step in range(4):
        if step == 2:
            saved = copied(whole.state())
        curve.append(whole.train_step(batches))
    assert saved.samples == 2 * BATCH
    torch.manual_seed(12345)  # what the process drew before must not matter
    resumed = begin_training(cfg, saved)
    batches = seam_batches(start=saved.samples)
    assert [resumed.train_step(batches) for _ in range(2)] == curve[2:]
    expected, actual = whole.state(), resumed.state()
    assert (actual.step, actual.samples) == (4, 4 * BATCH)
    assert expected.momentum.keys() == {name for name, p in whole.module.model.named_parameters() if p.requires_grad}
    for before, after in ((expected.weights, actual.weights), (expected.momentum, actual.momentum)):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_random_numbers_depend_on_the_step_alone() -> None:
    def drawing(start: int) -> Iterator[dict[str, Any]]:
        for batch in seam_batches(start=start):
            drawn.append(float(torch.rand(1)))
            yield batch

    drawn: list[float] = []
    training = begin_training(seam_config())
    batches = drawing(0)
    training.train_step(batches)
    saved = copied(training.state())
    training.train_step(batches)
    torch.rand(7)
    begin_training(seam_config(), saved).train_step(drawing(BATCH))
    assert drawn[0] != drawn[1]
    assert drawn[1] == drawn[2]


def test_resume_needs_the_momentum() -> None:
    cfg = seam_config()
    whole = begin_training(cfg)
    batches = seam_batches()
    whole.train_step(batches)
    whole.train_step(batches)
    saved = copied(whole.state())
    saved.momentum = {name: torch.zeros_like(value) for name, value in saved.momentum.items()}
    lacking = begin_training(cfg, saved)
    for training, source in ((whole, batches), (lacking, seam_batches(start=2 * BATCH))):
        training.train_step(source)
    expected, actual = whole.state().weights, lacking.state().weights
    assert any(not torch.equal(value, actual[name]) for name, value in expected.items())


def test_accumulation_equals_the_larger_batch() -> None:
    whole = begin_training(seam_config())
    parts = begin_training(seam_config(micro_batch_size=2))
    assert parts.accumulation == 2
    for step in range(3):
        batches = seam_batches(BATCH, start=step * BATCH), seam_batches(2, start=step * BATCH)
        expected, accumulated = whole.train_step(batches[0]), parts.train_step(batches[1])
        for name, value in expected.items():
            assert accumulated[name] == pytest.approx(value, rel=1e-5), (step, name)
    weights = whole.state().weights, parts.state().weights
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)


def test_step_equals_a_plain_loop() -> None:
    """The engine adds nothing: same losses and weights as forward, backward, clip and SGD by hand."""
    cfg = seam_config("full", gradient_clip=0.5, poly_power=0.9)
    training = begin_training(cfg)
    module, schedule = seam_module(cfg).train(), cfg.train_seam.schedule
    model = module.model
    optimizer = torch.optim.SGD(parameter_groups(model, schedule), momentum=schedule.momentum)
    base = [group["lr"] for group in optimizer.param_groups]
    batches, own = seam_batches(), seam_batches()
    for step in range(3):
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * (1 - step / 6) ** 0.9
        optimizer.zero_grad()
        losses = module(next(own))
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        actual = training.train_step(batches)
        assert actual == pytest.approx({name: float(value.detach()) for name, value in losses.items()}, rel=1e-5)
    state = training.state().weights
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_and_buffers_stay_and_are_kept() -> None:
    cfg = replace(seam_config(), model=ModelConfig(width=1 / 16))
    training = begin_training(cfg)
    before = copied(training.state())
    training.train_step(seam_batches())
    after = training.state()
    frozen = {name for name, p in training.module.model.named_parameters() if not p.requires_grad}
    assert "backbone.conv1a.weight" in frozen
    assert set(after.weights) == set(training.module.model.state_dict())
    buffers = {name for name, _ in training.module.model.named_buffers() if name in after.weights}
    assert buffers
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in frozen | buffers)
    assert not frozen & set(after.momentum)


def test_bf16_trains_float32_weights_with_float32_losses() -> None:
    exact = begin_training(seam_config("full")).train_step(seam_batches())
    training = begin_training(seam_config("full", precision="bf16"))
    module = training.engine.module
    dtypes: list[torch.dtype] = []
    hook = module.model.backbone.b4.register_forward_hook(lambda m, i, output: dtypes.append(output[0].dtype))
    batch = next(seam_batches())
    assert {value.dtype for value in module(batch).values()} == {torch.float32}
    hook.remove()
    assert set(dtypes) == {torch.bfloat16}
    rounded = training.train_step(seam_batches())
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert rounded["loss"] != exact["loss"]
    assert {value.dtype for value in training.state().weights.values()} == {torch.float32, torch.int64}


def test_activation_checkpointing_changes_nothing() -> None:
    plain = begin_training(seam_config())
    again = replace(seam_config(), model=ModelConfig(width=1 / 16, freeze_stem=False, activation_checkpointing=True))
    recomputed = begin_training(again)
    for training in (plain, recomputed):
        batches = seam_batches()
        training.train_step(batches)
        training.train_step(batches)
    weights = recomputed.state().weights
    for name, value in plain.state().weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-7)


def test_nan_stops_before_the_weights_change_and_names_the_samples() -> None:
    training = begin_training(seam_config(micro_batch_size=2))
    batches = seam_batches(2)
    training.train_step(batches)
    before = copied(training.state())

    def poisoned() -> Iterator[dict[str, Any]]:
        yield next(batches)
        batch = next(batches)
        batch["label"][1, 0] = float("nan")
        yield batch

    with pytest.raises(TrainingError) as error:
        training.train_step(poisoned())
    text = str(error.value)
    assert "step 2 is NaN or infinite" in text
    assert "cls=nan" in text
    assert "image-6, image-7" in text
    assert "image-5" not in text
    after = training.state()
    assert all(torch.equal(value, after.weights[name]) for name, value in before.weights.items())


def test_infinite_gradient_stops_training_with_zero() -> None:
    cfg = replace(seam_config(), deepspeed={"zero_optimization": {"stage": 1}})
    training = begin_training(cfg)
    parameter = training.module.model.fc8.weight
    parameter.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
    with pytest.raises(TrainingError, match="the gradient at step 1 is NaN or infinite although the loss is finite"):
        training.train_step(seam_batches())


def test_learning_rates_follow_the_published_schedule() -> None:
    cfg = seam_config(lr=0.01, lr_multipliers=(1.0, 2.0, 10.0, 20.0))
    training = begin_training(cfg)
    training.module.model.pretrained_names = set()  # type: ignore[assignment]
    training.train_step(seam_batches())
    training.train_step(seam_batches())
    # PARITY.md section 2: lr0 (1 - step / max)^0.9, set before the step; all weights are new here.
    assert [group["lr"] for group in training.engine.optimizer.param_groups] == pytest.approx([0.1 * (5 / 6) ** 0.9])
    assert training.lr == pytest.approx(0.01 * (5 / 6) ** 0.9)


def test_warm_ups() -> None:
    cfg = ScheduleConfig(lr_warmup_steps=4)
    assert [lr_factor(step, 10**9, cfg) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert lr_factor(0, 10, ScheduleConfig()) == 1
    assert [warmup_factor(step, 2) for step in range(4)] == [0, 0.5, 1, 1]
    assert warmup_factor(0, 0) == 1


def test_loss_warm_up_reaches_the_losses() -> None:
    cfg = replace(seam_config(), loss=LossConfig(second_view_scale=0.5, ablation="er", warmup_steps=2))
    training, batches = begin_training(cfg), seam_batches()
    for factor in (0, 0.5, 1, 1):
        losses = training.train_step(batches)
        assert losses["er"] > 0
        assert losses["loss"] == pytest.approx(losses["cls"] + factor * losses["er"], rel=1e-6)


@pytest.mark.parametrize(
    ("cfg", "ranks", "expected"),
    [
        (ScheduleConfig(global_batch_size=8), 2, (4, 1)),
        (ScheduleConfig(global_batch_size=8, micro_batch_size=2), 2, (2, 2)),
        (ScheduleConfig(global_batch_size=8), 3, "not a multiple of the 3 ranks"),
        (
            ScheduleConfig(global_batch_size=8, micro_batch_size=4),
            4,
            r"train_seg\.schedule\.global_batch_size=8 is not .* of train_seg\.schedule\.micro_batch_size=4 times 4",
        ),
    ],
)
def test_batch_is_dealt_out_evenly_or_refused(cfg: ScheduleConfig, ranks: int, expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            micro_batches(cfg, ranks, stage="train_seg")
    else:
        assert micro_batches(cfg, ranks, stage="train_seg") == expected


def test_length_of_the_schedule() -> None:
    # PARITY.md section 2: max_step = 10582 // 8 * 8.
    assert num_steps(ScheduleConfig(global_batch_size=8, epochs=8), 10582, stage="train_seam") == 10576
    assert num_steps(ScheduleConfig(max_steps=7), 10582, stage="train_seam") == 7
    assert num_steps(ScheduleConfig(global_batch_size=8, epochs=0.01), 16, stage="train_seam") == 1
    with pytest.raises(ValueError, match=r"has 7 samples, fewer than train_affinity\.schedule\.global_batch_size=8"):
        num_steps(ScheduleConfig(global_batch_size=8), 7, stage="train_affinity")


def test_world_of_one_is_finite() -> None:
    world = init_world(seam_config())
    assert world == World(0, 1, 0, 1, torch.device("cpu"))
    assert math.isfinite(begin_training(seam_config()).train_step(seam_batches())["loss"])
