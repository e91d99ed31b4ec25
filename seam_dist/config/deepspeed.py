"""The `deepspeed:` block of a config: checked as a whole before launch, then completed and passed on.

DeepSpeed itself silently takes an unknown top-level key and trains with ZeRO stage 0, so every key is looked up here
first. Nested keys are those of DeepSpeed's own models, whatever its version.
"""

from __future__ import annotations

import difflib
import importlib
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

# Sections with a model of DeepSpeed's own; keys and types below them are read from it.
_SECTIONS = {
    "zero_optimization": ("deepspeed.runtime.zero.config", "DeepSpeedZeroConfig"),
    "comms_logger": ("deepspeed.comm.config", "CommsLoggerConfig"),
}
_FLOPS_PROFILER: dict[str, type] = {
    "enabled": bool,
    "recompute_fwd_factor": float,
    "profile_step": int,
    "module_depth": int,
    "top_modules": int,
    "detailed": bool,
    "output_file": str,
}
_SCALARS: dict[str, type] = {
    "zero_force_ds_cpu_optimizer": bool,
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "communication_data_type": str,
    "disable_allgather": bool,
    "disable_python_gc": bool,
    "dump_state": bool,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
}
# Settings of every training stage's schedule that take the place of DeepSpeed's.
_IN_SCHEDULE = {
    "train_batch_size": ("global_batch_size",),
    "train_micro_batch_size_per_gpu": ("micro_batch_size",),
    "gradient_accumulation_steps": ("global_batch_size", "micro_batch_size"),
    "gradient_clipping": ("gradient_clip",),
    "optimizer": ("lr", "momentum", "weight_decay"),
    "scheduler": ("poly_power", "lr_warmup_steps"),
    **dict.fromkeys(("bf16", "fp16", "bfloat16", "amp", "torch_autocast", "data_types"), ("precision",)),
    **dict.fromkeys(("steps_per_print", "tensorboard", "csv_monitor"), ("log_every",)),
    "checkpoint": ("checkpoint_every",),
}
_UNSUPPORTED = {
    "zero_optimization.zenflow": "its optimizer state is out of reach of the portable checkpoint",
    "zero_optimization.save_muon_momentum_buffer_in_memory": "the optimizer is SGD",
}


def check_deepspeed_config(block: Mapping[str, Any]) -> None:
    """Refuse a `deepspeed:` block that DeepSpeed would misread or that repeats settings of other sections.

    Raises ValueError for an unknown key at any level (with the nearest known one), the word "auto", a value of a
    wrong type, a key whose value lives elsewhere in the config, and features that the checkpoint cannot hold.
    """
    _refuse_auto(block, "deepspeed")
    for key, value in block.items():
        name = f"deepspeed.{key}"
        if key in _IN_SCHEDULE:
            own = " and ".join(f"train_seam.schedule.{setting}" for setting in _IN_SCHEDULE[key])
            raise ValueError(
                f"{name} is set elsewhere in the config: use {own}, or the same of another training stage, and remove "
                "it here"
            )
        if key == "activation_checkpointing":
            raise ValueError(f"{name} is set elsewhere in the config: use model.{key} and remove it here")
        if key in _SCALARS:
            _check_scalar(name, value, _SCALARS[key])
        elif key == "flops_profiler":
            _check_mapping(name, value)
            for inner, entry in value.items():
                if inner not in _FLOPS_PROFILER:
                    raise ValueError(_unknown(f"{name}.{inner}", inner, _FLOPS_PROFILER))
                _check_scalar(f"{name}.{inner}", entry, _FLOPS_PROFILER[inner])
        elif key in _SECTIONS:
            module, model = _SECTIONS[key]
            _check_section(name, value, getattr(importlib.import_module(module), model))
        else:
            raise ValueError(_unknown(name, key, [*_SCALARS, *_SECTIONS, "flops_profiler"]))


def deepspeed_settings(
    block: Mapping[str, Any], *, global_batch_size: int, micro_batch_size: int, accumulation: int, gradient_clip: float
) -> dict[str, Any]:
    """Return the whole dictionary for deepspeed.initialize: the user's block and the values that live elsewhere."""
    check_deepspeed_config(block)
    return {
        # Any optimizer but DeepSpeed's own is "untested"; plain SGD is tested by this project at every stage.
        "zero_allow_untested_optimizer": True,
        # Offload to the host with torch's SGD instead of DeepSpeed's compiled Adam.
        "zero_force_ds_cpu_optimizer": False,
        **block,
        "train_batch_size": global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": gradient_clip,
        # No progress lines of its own: seam_dist.training.logger has them.
        "steps_per_print": 2**62,
    }


def _refuse_auto(value: Any, name: str) -> None:
    if value == "auto":
        raise ValueError(f'{name}="auto" is filled in by other frameworks, not here: give the value or remove the key')
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _refuse_auto(entry, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _refuse_auto(entry, f"{name}[{index}]")


def _check_mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={value!r} is not a section: write keys and values below it")


def _check_scalar(name: str, value: Any, expected: type) -> None:
    numeric = expected is float and isinstance(value, int) and not isinstance(value, bool)
    if not numeric and (not isinstance(value, expected) or (expected is int and isinstance(value, bool))):
        raise ValueError(f"{name}={value!r} is a {type(value).__name__}, expected a {expected.__name__}")


def _check_section(name: str, value: Any, model: type[BaseModel]) -> None:
    _check_mapping(name, value)
    _check_keys(name, value, model)
    for part in ("offload_optimizer", "offload_param"):
        if (value.get(part) or {}).get("device") == "nvme":
            raise ValueError(f"{name}.{part}.device=nvme is out of reach of the portable checkpoint: use cpu")
    try:
        model(**value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([name, *map(str, first["loc"])])
        raise ValueError(f"{place}={first.get('input')!r} was refused by DeepSpeed: {first['msg']}") from None


def _check_keys(name: str, value: Mapping[str, Any], model: type[BaseModel]) -> None:
    """Look up every key in the model's fields and aliases, and go down into sections."""
    known = {label: field for key, field in model.model_fields.items() for label in (key, field.alias or key)}
    for key, entry in value.items():
        full = f"{name}.{key}"
        if key not in known:
            raise ValueError(_unknown(full, key, known))
        reason = _UNSUPPORTED.get(full.removeprefix("deepspeed."))
        if reason:
            raise ValueError(f"{full} is not supported, {reason}: remove it")
        nested = _model_of(known[key].annotation)
        if nested is not None and entry is not None:
            _check_mapping(full, entry)
            _check_keys(full, entry, nested)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model in an annotation such as Optional[Model], if there is one."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _unknown(full: str, key: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "see DeepSpeed's documentation of its configuration"
    return f"{full} is unknown: {hint}"
