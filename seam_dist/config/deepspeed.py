"""The `deepspeed:` block of a config: checked as a whole before launch, then completed and passed on.

DeepSpeed itself silently takes an unknown top-level key and trains with ZeRO stage 0, so every key is looked up here
first. Nested keys are those of DeepSpeed's own models, whatever its version.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError, create_model

from seam_dist.config.training import ScheduleConfig

# Sections with a model of DeepSpeed's own; keys and types below them are read from it.
_SECTIONS = {
    "zero_optimization": ("deepspeed.runtime.zero.config", "DeepSpeedZeroConfig"),
    "comms_logger": ("deepspeed.comm.config", "CommsLoggerConfig"),
}


class _FlopsProfiler(BaseModel, strict=True):
    enabled: bool = False
    recompute_fwd_factor: float = 0.0
    profile_step: int = 1
    module_depth: int = -1
    top_modules: int = 1
    detailed: bool = True
    output_file: str = ""


class _Block(BaseModel, strict=True):
    zero_force_ds_cpu_optimizer: bool = True
    prescale_gradients: bool = False
    gradient_predivide_factor: float = 1.0
    communication_data_type: str = ""
    disable_allgather: bool = False
    disable_python_gc: bool = False
    dump_state: bool = False
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    flops_profiler: _FlopsProfiler = _FlopsProfiler()
    # Of `_SECTIONS`: imported only when the block has them.
    zero_optimization: Any = None
    comms_logger: Any = None


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
    for key in block:
        name = f"deepspeed.{key}"
        if key in _IN_SCHEDULE:
            own = " and ".join(f"train_seam.schedule.{setting}" for setting in _IN_SCHEDULE[key])
            raise ValueError(
                f"{name} is set elsewhere in the config: use {own}, or the same of another training stage, and remove "
                "it here"
            )
        if key == "activation_checkpointing":
            raise ValueError(f"{name} is set elsewhere in the config: use model.{key} and remove it here")
    sections: dict[str, Any] = {
        key: (getattr(importlib.import_module(module), name), None)
        for key, (module, name) in _SECTIONS.items()
        if key in block
    }
    model = create_model("Block", __base__=_Block, **sections)
    _check_keys("deepspeed", block, model)
    for part in ("offload_optimizer", "offload_param"):
        if ((block.get("zero_optimization") or {}).get(part) or {}).get("device") == "nvme":
            raise ValueError(
                f"deepspeed.zero_optimization.{part}.device=nvme is out of reach of the portable checkpoint: use cpu"
            )
    try:
        model(**block)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["deepspeed", *map(str, first["loc"])])
        raise ValueError(f"{place}={first['input']!r} was refused: {first['msg']}") from None


def deepspeed_settings(
    block: Mapping[str, Any], schedule: ScheduleConfig, *, micro_batch_size: int, accumulation: int
) -> dict[str, Any]:
    """Return the whole dictionary for deepspeed.initialize: the user's block and the values that live elsewhere."""
    check_deepspeed_config(block)
    return {
        # Any optimizer but DeepSpeed's own is "untested"; plain SGD is tested by this project at every stage.
        "zero_allow_untested_optimizer": True,
        # Offload to the host with torch's SGD instead of DeepSpeed's compiled Adam.
        "zero_force_ds_cpu_optimizer": False,
        **block,
        "train_batch_size": schedule.global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": schedule.gradient_clip,
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


def _check_keys(name: str, value: Mapping[str, Any], model: type[BaseModel]) -> None:
    """Look up every key in the model's fields and aliases, and go down into sections."""
    known = {label: field for key, field in model.model_fields.items() for label in (key, field.alias or key)}
    for key, entry in value.items():
        full = f"{name}.{key}"
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else "see DeepSpeed's documentation of its configuration"
            raise ValueError(f"{full} is unknown: {hint}")
        reason = _UNSUPPORTED.get(full.removeprefix("deepspeed."))
        if reason:
            raise ValueError(f"{full} is not supported, {reason}: remove it")
        nested = _model_of(known[key].annotation)
        if nested is not None and entry is not None:
            if not isinstance(entry, Mapping):
                raise ValueError(f"{full}={entry!r} is not a section: write keys and values below it")
            _check_keys(full, entry, nested)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model in an annotation such as Optional[Model], if there is one."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
