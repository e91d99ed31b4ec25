from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import changed
from torch import nn

from seam_dist.cluster.distributed import World, init_world
from seam_dist.cluster.signals import StopRequest
from seam_dist.config.schema import (
    AugmentConfig,
    Config,
    LossConfig,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
    TrainSeamConfig,
)
from seam_dist.data.augment.color import IDENTITY
from seam_dist.models import build_seam, parameter_groups
from seam_dist.models.dropout import DropoutKeys, SampleDropout2d, key_dropout
from seam_dist.training.checkpoint import CheckpointError, Checkpoints, TrainState
from seam_dist.training.engine import (
    Training,
    TrainingError,
    fit,
    lr_factor,
    micro_batches,
    num_steps,
    start_training,
    warmup_factor,
)
from seam_dist.training.logger import TrainLogger
from seam_dist.training.seam_task import TrainModule

BATCH = 4
SIDE = 32
CLASSES = 3


def settings(ablation: Any = "er", **train: Any) -> Config:
    values = {"global_batch_size": BATCH, "max_steps": 6, "lr": 1e-3, **train}
    return Config(
        run=RunConfig(threads=1),
        augment=AugmentConfig(crop_size=SIDE),
        model=ModelConfig(width=1 / 16, freeze_stem=False),
        loss=LossConfig(second_view_scale=0.5, ablation=ablation),
        train_seam=changed(TrainSeamConfig(), **values),
    )


def sample(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(0, 256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return image, (torch.rand(CLASSES, generator=generator) < 0.5).float()


def stream(size: int = BATCH, start: int = 0) -> Iterator[dict[str, Any]]:
    for first in itertools.count(start, size):
        numbers = range(first, first + size)
        samples = [sample(number) for number in numbers]
        yield {
            "image": torch.stack([image for image, _ in samples]),
            "label": torch.stack([label for _, label in samples]),
            "valid": torch.tensor([[0, 0, SIDE, SIDE]], dtype=torch.int32).repeat(size, 1),
            "color": torch.tensor(IDENTITY).repeat(size, 1),
            "key": [f"image-{number}" for number in numbers],
            "sample_number": torch.tensor(numbers),
        }


def begin(cfg: Config, resume: TrainState | None = None) -> Training:
    world = init_world(cfg)
    torch.manual_seed(cfg.run.seed)
    model, _ = build_seam(cfg, CLASSES)
    module = TrainModule(model, cfg)
    groups = parameter_groups(model, cfg.train_seam.schedule)
    return start_training(
        module, model, groups, cfg, world, max_steps=cfg.train_seam.schedule.max_steps or 1, resume=resume
    )


def copied(state: TrainState) -> TrainState:
    return replace(state, weights=dict(state.weights), momentum=dict(state.momentum))


@pytest.mark.parametrize("zero", [{"stage": 0}, {"stage": 2}, {"stage": 3, "offload_optimizer": {"device": "cpu"}}])
def test_resumed_run_is_bit_equal(zero: dict[str, Any]) -> None:
    cfg = replace(settings("full", gradient_clip=1.0), deepspeed={"zero_optimization": zero})
    whole = begin(cfg)
    batches = stream()
    curve = []
    for step in range(4):
        if step == 2:
            saved = copied(whole.state())
        curve.append(whole.train_step(batches))
    assert saved.samples == 2 * BATCH
    torch.manual_seed(12345)  # what the process drew before must not matter
    resumed = begin(cfg, saved)
    batches = stream(start=saved.samples)
    assert [resumed.train_step(batches) for _ in range(2)] == curve[2:]
    expected, found = whole.state(), resumed.state()
    assert (found.step, found.samples) == (4, 4 * BATCH)
    assert expected.momentum.keys() == {name for name, p in whole.model.named_parameters() if p.requires_grad}
    for before, after in ((expected.weights, found.weights), (expected.momentum, found.momentum)):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_random_numbers_depend_on_the_step_alone() -> None:
    def drawing(start: int) -> Iterator[dict[str, Any]]:
        for batch in stream(start=start):
            drawn.append(float(torch.rand(1)))
            yield batch

    drawn: list[float] = []
    training = begin(settings())
    batches = drawing(0)
    training.train_step(batches)
    saved = copied(training.state())
    training.train_step(batches)
    torch.rand(7)
    begin(settings(), saved).train_step(drawing(BATCH))
    assert drawn[0] != drawn[1]
    assert drawn[1] == drawn[2]


def test_resume_needs_the_momentum() -> None:
    cfg = settings()
    whole = begin(cfg)
    batches = stream()
    whole.train_step(batches)
    whole.train_step(batches)
    saved = copied(whole.state())
    saved.momentum = {name: torch.zeros_like(value) for name, value in saved.momentum.items()}
    lacking = begin(cfg, saved)
    for training, source in ((whole, batches), (lacking, stream(start=2 * BATCH))):
        training.train_step(source)
    expected, found = whole.state().weights, lacking.state().weights
    assert any(not torch.equal(value, found[name]) for name, value in expected.items())


def test_accumulation_equals_the_larger_batch() -> None:
    whole = begin(settings())
    parts = begin(settings(micro_batch_size=2))
    assert parts.accumulation == 2
    for step in range(3):
        batches = stream(BATCH, start=step * BATCH), stream(2, start=step * BATCH)
        one, other = whole.train_step(batches[0]), parts.train_step(batches[1])
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-5), (step, name)
    weights = whole.state().weights, parts.state().weights
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)


def test_step_equals_a_plain_loop() -> None:
    """The engine adds nothing: same losses and weights as forward, backward, clip and SGD by hand."""
    cfg = settings("full", gradient_clip=0.5, poly_power=0.9)
    training = begin(cfg)
    torch.manual_seed(cfg.run.seed)
    model, _ = build_seam(cfg, CLASSES)
    module = TrainModule(model, cfg).train()
    optimizer = torch.optim.SGD(
        parameter_groups(model, cfg.train_seam.schedule), momentum=cfg.train_seam.schedule.momentum
    )
    base = [group["lr"] for group in optimizer.param_groups]
    batches, own = stream(), stream()
    for step in range(3):
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * (1 - step / 6) ** 0.9
        optimizer.zero_grad()
        losses = module(next(own), 1.0)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        found = training.train_step(batches)
        assert found == pytest.approx({name: float(value.detach()) for name, value in losses.items()}, rel=1e-5)
    state = training.state().weights
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_and_buffers_stay_and_are_kept() -> None:
    cfg = replace(settings(), model=ModelConfig(width=1 / 16))
    training = begin(cfg)
    before = copied(training.state())
    training.train_step(stream())
    after = training.state()
    frozen = {name for name, p in training.model.named_parameters() if not p.requires_grad}
    assert "backbone.conv1a.weight" in frozen
    assert set(after.weights) == set(training.model.state_dict())
    buffers = {name for name, _ in training.model.named_buffers() if name in after.weights}
    assert buffers
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in frozen | buffers)
    assert not frozen & set(after.momentum)


def test_bf16_trains_float32_weights_with_float32_losses() -> None:
    exact = begin(settings("full")).train_step(stream())
    training = begin(settings("full", precision="bf16"))
    module = training.engine.module
    dtypes: list[torch.dtype] = []
    hook = module.model.backbone.b4.register_forward_hook(lambda m, i, output: dtypes.append(output[0].dtype))
    batch = next(stream())
    assert {value.dtype for value in module(batch, 1.0).values()} == {torch.float32}
    hook.remove()
    assert set(dtypes) == {torch.bfloat16}
    rounded = training.train_step(stream())
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert rounded["loss"] != exact["loss"]
    assert {value.dtype for value in training.state().weights.values()} == {torch.float32, torch.int64}


def test_activation_checkpointing_changes_nothing() -> None:
    plain = begin(settings())
    again = replace(settings(), model=ModelConfig(width=1 / 16, freeze_stem=False, activation_checkpointing=True))
    recomputed = begin(again)
    for training in (plain, recomputed):
        batches = stream()
        training.train_step(batches)
        training.train_step(batches)
    weights = recomputed.state().weights
    for name, value in plain.state().weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-7)


def test_nan_stops_before_the_weights_change_and_names_the_samples() -> None:
    training = begin(settings(micro_batch_size=2))
    batches = stream(2)
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
    cfg = replace(settings(), deepspeed={"zero_optimization": {"stage": 1}})
    training = begin(cfg)
    parameter = training.model.fc8.weight
    parameter.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
    with pytest.raises(TrainingError, match="the gradient at step 1 is NaN or infinite although the loss is finite"):
        training.train_step(stream())


def test_other_architecture_cannot_be_loaded(tmp_path: Path) -> None:
    training = begin(settings())
    Checkpoints(tmp_path, training.world, architecture={}, config={}, keep=1).save(training.state())
    model, _ = build_seam(settings("full"), CLASSES)
    with pytest.raises(CheckpointError, match=r"f8_3\.weight is missing there"):
        Checkpoints(tmp_path, training.world, architecture={}, config={}, keep=1).load("auto", model)


def parts_of_a_job(folder: Path, cfg: Config) -> tuple[Training, Checkpoints, TrainLogger]:
    training = begin(cfg)
    checkpoints = Checkpoints(folder / "checkpoints", training.world, architecture={}, config={}, keep=5)
    logger = TrainLogger(folder, training.world, max_steps=6, batch_size=BATCH, log_every=1, tensorboard=False)
    return training, checkpoints, logger


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_after_the_step_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    training, checkpoints, logger = parts_of_a_job(tmp_path, settings())

    def interrupted() -> Iterator[dict[str, Any]]:
        for index, batch in enumerate(stream()):
            if index == 1:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    with StopRequest() as stop, logger:
        assert fit(training, interrupted(), checkpoints, logger, stop) == number
    assert signal.getsignal(number) is before
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000002\n"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_second_interrupt_does_not_wait() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_fit_saves_on_schedule_and_at_the_end(tmp_path: Path) -> None:
    training, checkpoints, logger = parts_of_a_job(tmp_path, settings(checkpoint_every=4))
    with StopRequest() as stop, logger:
        assert fit(training, stream(), checkpoints, logger, stop) == 0
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000004", "step-00000006"]


def test_watchdog_ends_a_hanging_process_with_its_stacks() -> None:
    code = (
        "import threading\n"
        "from seam_dist.cluster.signals import Watchdog\n"
        "def stuck_in_a_step():\n"
        "    threading.Event().wait()\n"
        "with Watchdog(0.2) as watchdog:\n"
        "    watchdog.feed()\n"
        "    stuck_in_a_step()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "stuck_in_a_step" in result.stderr


def test_learning_rates_follow_the_published_schedule() -> None:
    cfg = settings(lr=0.01, lr_multipliers=(1.0, 2.0, 10.0, 20.0))
    training = begin(cfg)
    training.model.pretrained_names = set()  # type: ignore[assignment]
    training.train_step(stream())
    training.train_step(stream())
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
    cfg = replace(settings(), loss=LossConfig(second_view_scale=0.5, ablation="er", warmup_steps=2))
    losses = begin(cfg).train_step(stream())
    assert losses["er"] > 0
    assert losses["loss"] == losses["cls"]


@pytest.mark.parametrize(
    ("cfg", "ranks", "expected"),
    [
        (ScheduleConfig(global_batch_size=8), 2, (4, 1)),
        (ScheduleConfig(global_batch_size=8, micro_batch_size=2), 2, (2, 2)),
        (ScheduleConfig(global_batch_size=8), 3, "not a multiple of the 3 ranks"),
        (
            ScheduleConfig(global_batch_size=8, micro_batch_size=4),
            4,
            "train_seam.schedule.micro_batch_size=4 times 4 ranks",
        ),
    ],
)
def test_batch_is_dealt_out_evenly_or_refused(cfg: ScheduleConfig, ranks: int, expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            micro_batches(cfg, ranks)
    else:
        assert micro_batches(cfg, ranks) == expected


def test_length_of_the_schedule() -> None:
    # PARITY.md section 2: max_step = 10582 // 8 * 8.
    assert num_steps(ScheduleConfig(global_batch_size=8, epochs=8), 10582) == 10576
    assert num_steps(ScheduleConfig(max_steps=7), 10582) == 7
    assert num_steps(ScheduleConfig(global_batch_size=8, epochs=0.01), 16) == 1
    with pytest.raises(ValueError, match="has 7 samples, fewer than"):
        num_steps(ScheduleConfig(global_batch_size=8), 7)


def dropped(numbers: list[int], *, seed: int = 0, layer: int = 0, side: int = 2, channels: int = 2048) -> torch.Tensor:
    keys = DropoutKeys(seed)
    keys.sample_number = torch.tensor(numbers)
    module = SampleDropout2d(0.3, layer, keys).train()
    return module(torch.ones(len(numbers), channels, side, side))


def test_dropout_belongs_to_the_sample() -> None:
    together = dropped([5, 6, 7])
    assert torch.equal(together, torch.cat([dropped([5]), dropped([6, 7])]))
    assert torch.equal(dropped([7, 5])[0], together[2])
    kept = together != 0
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.03)
    assert together.max() == pytest.approx(1 / 0.7)
    # Whole channels.
    assert bool((kept == kept[:, :, :1, :1]).all())


@pytest.mark.parametrize("seed", [2, 12345, 2**31, 2**63])
def test_dropout_takes_every_seed(seed: int) -> None:
    assert float((dropped([5], seed=seed) != 0).float().mean()) == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("other", [{"numbers": [6]}, {"seed": 1}, {"layer": 1}, {"side": 3}])
def test_dropout_masks_are_independent(other: dict[str, Any]) -> None:
    one = dropped([5])[:, :, 0, 0] != 0
    two = dropped(**{"numbers": [5], **other})[:, :, 0, 0] != 0
    # Two independent masks agree with probability 0.7^2 + 0.3^2.
    assert float((one == two).float().mean()) == pytest.approx(0.58, abs=0.05)
    channels = one.float().flatten()
    assert abs(float(torch.corrcoef(torch.stack([channels[:-1], channels[1:]]))[0, 1])) < 0.08


def test_every_dropout_layer_gets_its_own_key() -> None:
    model = nn.Sequential(nn.Dropout2d(0.1), nn.Sequential(nn.Dropout2d(0.2)), nn.Dropout(0.3))
    key_dropout(model, DropoutKeys(0))
    found = [module for module in model.modules() if isinstance(module, SampleDropout2d)]
    assert [(module.p, module.layer) for module in found] == [(0.1, 0), (0.2, 1)]
    x = torch.ones(1, 4, 2, 2)
    assert torch.equal(model.eval()(x), x)


def test_world_of_one_is_finite() -> None:
    world = init_world(settings())
    assert world == World(0, 1, 0, 1, torch.device("cpu"))
    assert math.isfinite(begin(settings()).train_step(stream())["loss"])
