from __future__ import annotations

from typing import Any

import pytest

from seam_dist.config.deepspeed import check_deepspeed_config, deepspeed_settings
from seam_dist.config.schema import ScheduleConfig


@pytest.mark.parametrize(
    ("block", "message"),
    [
        # DeepSpeed itself accepts this one and trains with stage 0.
        (
            {"zero_optimizaton": {"stage": 2}},
            r"zero_optimizaton is unknown: did you mean zero_optimization\?",
        ),
        ({"zero_optimization": {"stag": 2}}, r"deepspeed\.zero_optimization\.stag is unknown: did you mean stage\?"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            r"deepspeed\.zero_optimization\.offload_optimizer\.devise is unknown: did you mean device\?",
        ),
        ({"zero_optimization": {"stage": "auto"}}, r'deepspeed\.zero_optimization\.stage="auto" is filled in by other'),
        ({"zero_optimization": "auto"}, r'deepspeed\.zero_optimization="auto"'),
        ({"zero_optimization": 2}, r"deepspeed\.zero_optimization=2 is not a section"),
        ({"zero_optimization": {"stage": 4}}, r"deepspeed\.zero_optimization\.stage=4 was refused"),
        ({"zero_optimization": {"offload_optimizer": True}}, r"offload_optimizer=True is not a section"),
        ({"zero_optimization": {"zenflow": {}}}, "zenflow is not supported"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            "device=nvme is out of reach",
        ),
        (
            {"train_batch_size": 8},
            r"deepspeed\.train_batch_size is set elsewhere .* use train_seam\.schedule\.global_batch_size",
        ),
        ({"train_micro_batch_size_per_gpu": 8}, "use train_seam.schedule.micro_batch_size"),
        (
            {"gradient_accumulation_steps": 2},
            "use train_seam.schedule.global_batch_size and train_seam.schedule.micro_batch_size",
        ),
        ({"gradient_clipping": 1.0}, "use train_seam.schedule.gradient_clip"),
        (
            {"optimizer": {"type": "Adam"}},
            "lr and train_seam.schedule.momentum and train_seam.schedule.weight_decay, or the same",
        ),
        ({"scheduler": {}}, "use train_seam.schedule.poly_power"),
        ({"bf16": {"enabled": True}}, "use train_seam.schedule.precision"),
        ({"fp16": {"enabled": True}}, "use train_seam.schedule.precision"),
        ({"steps_per_print": 10}, "use train_seam.schedule.log_every"),
        ({"activation_checkpointing": {}}, "use model.activation_checkpointing and remove"),
        ({"wall_clock_breakdown": "yes"}, r"deepspeed\.wall_clock_breakdown='yes' was refused: .*valid boolean"),
        ({"gradient_predivide_factor": True}, "predivide_factor=True was refused: .*valid number"),
        ({"flops_profiler": {"profile_step": True}}, r"flops_profiler\.profile_step=True was refused: .*valid integer"),
        ({"flops_profiler": {"enable": True}}, r"flops_profiler\.enable is unknown: did you mean enabled\?"),
        ({"qqq": 1}, r"deepspeed\.qqq is unknown: see DeepSpeed's documentation"),
    ],
)
def test_bad_block_is_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_deepspeed_config(block)


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "overlap_comm": False}},
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}}},
        {"wall_clock_breakdown": False, "gradient_predivide_factor": 2, "comms_logger": {"enabled": True}},
        {"flops_profiler": {"enabled": True, "profile_step": 5}},
    ],
)
def test_good_block_passes(block: dict[str, Any]) -> None:
    check_deepspeed_config(block)


def test_block_is_passed_on_with_the_values_of_other_sections() -> None:
    block = {"zero_optimization": {"stage": 2}}
    schedule = ScheduleConfig(global_batch_size=8, gradient_clip=1.0)
    settings = deepspeed_settings(block, schedule, micro_batch_size=2, accumulation=2)
    assert settings["zero_optimization"] == {"stage": 2}
    assert settings["train_batch_size"] == 8
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_accumulation_steps"] == 2
    assert settings["gradient_clipping"] == 1.0
    assert block == {"zero_optimization": {"stage": 2}}
