"""The training loop: load, step, log, checkpoint, around a DeepSpeed engine.

bf16 is torch's autocast around the network: parameters, gradients and optimizer state stay float32 at every ZeRO
stage, so one form of checkpoint serves all of them and the losses never see a rounded weight.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seam_dist.cluster.distributed import World, all_gather_object, all_reduce_sum, deepspeed_ready
from seam_dist.cluster.signals import SIGNALS, StopRequest, Watchdog
from seam_dist.config.deepspeed import deepspeed_settings
from seam_dist.config.schema import ScheduleConfig
from seam_dist.models import parameter_groups
from seam_dist.training.checkpoint import CheckpointStore, TrainState
from seam_dist.training.logger import TrainLogger
from seam_dist.training.task import Batch, TrainModule
from seam_dist.training.zero_state import gather_momentum, gather_weights, make_momentum, set_momentum


class TrainingError(ValueError):
    """Training cannot continue; the message says at which step and why."""


@dataclass
class Training:
    """A DeepSpeed engine, where it stands in its schedule, and how a step is cut into micro-batches."""

    engine: Any
    module: TrainModule[Any]
    world: World
    max_steps: int
    micro_batch_size: int
    accumulation: int
    base_lr: list[float]
    step: int = 0
    samples: int = 0
    stop_signal: int = 0
    lr: float = 0.0
    _batch: Batch | None = None

    def train_step(self, batches: Iterator[Batch], stop: StopRequest | None = None) -> dict[str, float]:
        """Take one optimizer step; return the losses of the global batch by name.

        Sets `stop_signal` when any rank was asked to stop. Raises TrainingError on every rank, before the weights
        change, when the loss of any of them is NaN or infinite.
        """
        # Keyed by (seed, step, rank), so that a resumed run draws what it would have drawn.
        text = f"{self.module.cfg.run.seed}/{self.step}/{self.world.rank}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
        self._set_lr()
        parts: list[dict[str, Tensor]] = []
        keys: list[str] = []
        step_batches = [dict(next(batches)) for _ in range(self.accumulation)]
        self.module.begin_step(step_batches, self.step, self.world)
        for micro, batch in enumerate(step_batches):
            # Copies from pinned memory overlap with computation.
            self._batch = {
                name: value.to(self.world.device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in batch.items()
            }
            losses = self.engine(self._batch)
            self.engine.backward(losses["loss"])
            parts.append({name: value.detach() for name, value in losses.items()})
            keys += batch["key"]
            if micro + 1 < self.accumulation:
                self.engine.step()
        terms = self._reduce_losses(parts, stop)
        if not all(math.isfinite(value) for value in terms.values()):
            raise TrainingError(self._describe_bad_step(parts, keys))
        self.engine.step()
        if self.engine.zero_optimization_stage() and not self.engine.was_step_applied():
            raise TrainingError(
                f"the gradient at step {self.step + 1} is NaN or infinite although the loss is finite "
                f"({_format(terms)}): {self._remedy()} from the last checkpoint"
            )
        self.step += 1
        self.samples += self.module.schedule.global_batch_size
        return terms

    def state(self) -> TrainState:
        """Return the portable state of the training; tensors on the main rank only. Every rank must call it."""
        return TrainState(
            step=self.step,
            samples=self.samples,
            seed=self.module.cfg.run.seed,
            weights=gather_weights(self.engine, self.module.model, self.world),
            momentum=gather_momentum(self.engine, self.module.model, self.world),
        )

    def pictures(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return images in 0..1, both CAMs and labels of the batch in hand; every rank must call it."""
        assert self._batch is not None, "pictures follow a step"
        self.engine.eval()
        with torch.no_grad():
            images, cam, cam_refined = self.module.pictures(self._batch)
        self.engine.train()
        return images, cam, cam_refined, self._batch["label"]

    def _reduce_losses(self, parts: list[dict[str, Tensor]], stop: StopRequest | None) -> dict[str, float]:
        """Average the losses over micro-batches and ranks; the request to stop travels along."""
        names = list(parts[0])
        local = torch.stack([torch.stack([part[name] for part in parts]).mean() for name in names])
        asked = local.new_tensor([stop is not None and stop.signum == number for number in SIGNALS])
        total: list[float] = all_reduce_sum(torch.cat([local, asked]), self.world).tolist()
        for number, count in zip(SIGNALS, total[len(names) :], strict=True):
            if count:
                self.stop_signal = int(number)
        return {name: value / self.world.size for name, value in zip(names, total, strict=False)}

    def _describe_bad_step(self, parts: list[dict[str, Tensor]], keys: list[str]) -> str:
        size = self.micro_batch_size
        bad = [
            f"rank {self.world.rank}: {_format({name: float(value) for name, value in part.items()})} "
            f"from samples {', '.join(keys[index * size : (index + 1) * size])}"
            for index, part in enumerate(parts)
            if not all(bool(torch.isfinite(value)) for value in part.values())
        ]
        lines = [line for of_rank in all_gather_object(bad, self.world) for line in of_rank]
        return (
            f"the loss at step {self.step + 1} is NaN or infinite; {'; '.join(lines)}: the weights are as they were "
            f"before this step; look at these samples, {self._remedy()}"
        )

    def _remedy(self) -> str:
        stage = self.module.stage
        return f"lower {stage}.schedule.lr or set {stage}.schedule.gradient_clip, and resume"

    def _set_lr(self) -> None:
        schedule = self.module.schedule
        factor = lr_factor(self.step, self.max_steps, schedule)
        self.lr = schedule.lr * factor
        for group, base in zip(self.engine.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = base * factor


def start_training(
    module: TrainModule[Any], world: World, *, max_steps: int, resume: TrainState | None = None
) -> Training:
    """Return a training at step 0, or where `resume` left off, on any number of ranks and at any ZeRO stage.

    The weights of `module.model` are those that are kept. `resume` was loaded from a checkpoint that fits them.
    """
    cfg, schedule, model = module.cfg, module.schedule, module.model
    micro, accumulation = micro_batches(schedule, world.size, stage=module.stage)
    if resume is not None:
        model.load_state_dict(resume.weights, strict=True)
    _quiet_deepspeed()
    import deepspeed

    settings = deepspeed_settings(cfg.deepspeed, schedule, micro_batch_size=micro, accumulation=accumulation)
    optimizer = torch.optim.SGD(parameter_groups(model, schedule), lr=schedule.lr, momentum=schedule.momentum)
    # DeepSpeed sends and flattens parameters as bytes in C order; from stage 1 on they are parts of flat buffers.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with deepspeed_ready(world, cfg.run.timeout_s):
        engine = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)[0]
    if cfg.model.channels_last and engine.zero_optimization_stage() == 0:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if world.size == 1 and engine.zero_optimization_stage() == 0:
        # DeepSpeed would copy all gradients into one buffer and back, to reduce them with nobody.
        engine.enable_backward_allreduce = False
    engine.train()
    make_momentum(engine)
    base_lr = [float(group["lr"]) for group in engine.optimizer.param_groups]
    training = Training(engine, module, world, max_steps, micro, accumulation, base_lr)
    if resume is not None:
        set_momentum(engine, model, world, resume.momentum.__getitem__)
        training.step, training.samples = resume.step, resume.samples
    return training


def fit(
    training: Training, batches: Iterator[Batch], checkpoints: CheckpointStore, logger: TrainLogger, stop: StopRequest
) -> int:
    """Train to the end of the schedule; return 0, or the number of the signal that ended it after a checkpoint.

    Raises TrainingError when a loss stops being finite and CheckpointError when a checkpoint cannot be written.
    """
    module, every = training.module, training.module.pictures_every
    with Watchdog(module.cfg.run.timeout_s) as watchdog:
        while training.step < training.max_steps:
            losses = training.train_step(batches, stop)
            watchdog.feed()
            done = training.step == training.max_steps
            logger.log(training.step, losses, lr=training.lr)
            if every is not None and (done or (every and training.step % every == 0)):
                logger.pictures(training.step, *training.pictures())
            if done or training.stop_signal or training.step % module.schedule.checkpoint_every == 0:
                checkpoints.save(training.state())
                watchdog.feed()
            if training.stop_signal and not done:
                return training.stop_signal
    return 0


def micro_batches(schedule: ScheduleConfig, world_size: int, *, stage: str) -> tuple[int, int]:
    """Return images a forward pass and forward passes a step, for each rank; ValueError when they are not whole."""
    total, micro = schedule.global_batch_size, schedule.micro_batch_size
    step = (micro or 1) * world_size
    if total % step:
        parts = f"{stage}.schedule.micro_batch_size={micro} times {world_size}" if micro else f"the {world_size}"
        raise ValueError(
            f"{stage}.schedule.global_batch_size={total} is not a multiple of {parts} ranks: change one of them"
        )
    return (micro, total // step) if micro else (total // step, 1)


def num_steps(schedule: ScheduleConfig, num_samples: int, *, stage: str) -> int:
    """Return the optimizer steps of the schedule: its max_steps, else epochs of floor(samples / batch) steps."""
    if schedule.max_steps is not None:
        return schedule.max_steps
    if num_samples < schedule.global_batch_size:
        raise ValueError(
            f"the training split has {num_samples} samples, fewer than {stage}.schedule.global_batch_size="
            f"{schedule.global_batch_size}: lower it, or set {stage}.schedule.max_steps"
        )
    return max(1, int(num_samples // schedule.global_batch_size * schedule.epochs))


def lr_factor(step: int, max_steps: int, schedule: ScheduleConfig) -> float:
    """Return the factor on every learning rate at `step`, counted from 0: poly decay, times a linear warm-up."""
    poly: float = (1 - step / max_steps) ** schedule.poly_power
    return poly * min(1.0, (step + 1) / schedule.lr_warmup_steps) if schedule.lr_warmup_steps else poly


def _quiet_deepspeed() -> None:
    """Let only DeepSpeed's warnings and errors through; that SGD is "untested" with ZeRO is not news here."""
    log = logging.getLogger("DeepSpeed")
    log.setLevel(logging.WARNING)
    log.addFilter(_is_news)
    # torch's advice to DeepSpeed, once a collective.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\.\w+. is deprecated", category=FutureWarning)


def _is_news(record: logging.LogRecord) -> bool:
    return "untested optimizer" not in record.getMessage()


def _format(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in losses.items())
