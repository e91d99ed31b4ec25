"""The whole state of a DeepSpeed engine, gathered from its ranks at any ZeRO stage, and momentum set again.

Parameters are float32 at every stage and precision (bf16 is autocast), so the weights need no setting: they are
loaded before deepspeed.initialize, which partitions them. The momentum of SGD is made here, as zeros, before the first
step: SGD's first step from zeros is the same as from nothing, and it can then be read and set at any time. DeepSpeed's
own universal checkpoints handle neither SGD momentum nor frozen parameters and buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from seam_dist.cluster.distributed import World

_MOMENTUM = "momentum_buffer"


def make_momentum(engine: Any) -> None:
    """Give every optimizer parameter of this rank a zero momentum, where DeepSpeed finds each part of it."""
    optimizer, stage = engine.basic_optimizer, engine.zero_optimization_stage()
    if not optimizer.defaults["momentum"]:
        return
    # What the optimizer steps on this rank: parameters, or flat partitions of them.
    if stage == 0:
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    elif stage == 3:
        tensors = engine.optimizer.fp32_partitioned_groups_flat
    else:
        tensors = engine.optimizer.single_partition_of_fp32_groups
    for tensor in tensors:
        optimizer.state[tensor][_MOMENTUM] = torch.zeros_like(tensor, requires_grad=False)
    if stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def gather_weights(engine: Any, model: nn.Module, world: World) -> dict[str, Tensor]:
    """Return every parameter (frozen ones too) and persistent buffer of `model` on the CPU by name, on the main rank.

    `model` is the engine's module or a part of it. Every rank must call it; the others get an empty dictionary.
    """
    import deepspeed

    persistent = set(model.state_dict().keys())
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if world.is_main:
                weights[name] = _on_host(parameter)
    if world.is_main:
        weights.update({name: _on_host(buffer) for name, buffer in model.named_buffers() if name in persistent})
    return weights


def gather_momentum(engine: Any, model: nn.Module, world: World) -> dict[str, Tensor]:
    """Return the momentum of every trained parameter on the CPU by name, on the main rank; every rank must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    momentum: dict[str, Tensor] = {}
    for name, parameter in _trained(engine, model):
        if engine.zero_optimization_stage() == 0:
            value = engine.basic_optimizer.state[parameter][_MOMENTUM]
        else:
            value = safe_get_full_optimizer_state(parameter, _MOMENTUM)
        if world.is_main:
            momentum[name] = _on_host(value)
    return momentum


def set_momentum(engine: Any, model: nn.Module, world: World, read: Callable[[str], Tensor]) -> None:
    """Set the momentum of every trained parameter to `read(name)`, whatever the stage and number of ranks."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    stage = engine.zero_optimization_stage()
    for name, parameter in _trained(engine, model):
        value = read(name).to(torch.float32)
        if stage == 0:
            engine.basic_optimizer.state[parameter][_MOMENTUM].copy_(value)
        elif stage == 3:
            # Partitions are padded to equal size; DeepSpeed's own setter fails when the size does not divide.
            size = parameter.ds_tensor.ds_numel
            padded = torch.zeros(size * world.size)
            padded[: value.numel()] = value.flatten()
            part = padded[world.rank * size : (world.rank + 1) * size]
            safe_set_local_optimizer_state(parameter, part.to(parameter.device), _MOMENTUM)
        else:
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), _MOMENTUM)


def _trained(engine: Any, model: nn.Module) -> Iterator[tuple[str, Any]]:
    if engine.basic_optimizer.defaults["momentum"]:
        yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _on_host(tensor: Tensor) -> Tensor:
    """Return a contiguous copy in host memory; safetensors stores neither strides nor shared memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()
