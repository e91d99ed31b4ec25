"""The same training on other numbers of ranks, at other ZeRO stages, in other micro-batches, and across a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from seam_dist.config.load import load_config
from seam_dist.stages import shard

ZERO = {stage: {"zero_optimization": {"stage": stage}} for stage in range(4)}


def losses(folder: Path, name: str) -> dict[int, float]:
    lines = (folder / "runs" / name / "train_seam" / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss/total"] for record in map(json.loads, lines)}


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs" / name / "train_seam" / "final" / "model.safetensors")


@pytest.mark.slow
def test_ranks_stages_micro_batches_and_resumes_agree(
    ranks: Any, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    # ER alone is continuous in the weights; PCM and ECR choose maxima, where one rounding can flip a pixel.
    smooth = {"loss": {"ablation": "er"}}
    every = {"schedule": {"checkpoint_every": 2}}
    one = write_config("one", train_seam=every, **smooth)
    shard.run(load_config(one, [], None).config)
    ranks.train(1, one, write_config("one-accumulated", train_seam={"schedule": {"micro_batch_size": 6}}, **smooth))
    two = [write_config(f"two-{stage}", train_seam=every, deepspeed=ZERO[stage], **smooth) for stage in range(4)]
    two += [write_config(f"full-{stage}", deepspeed=ZERO[stage]) for stage in (0, 3)]
    two.append(
        write_config("two-accumulated", train_seam={"schedule": {"micro_batch_size": 2}}, deepspeed=ZERO[2], **smooth)
    )
    saved = tmp_path / "runs" / "two-2" / "train_seam" / "checkpoints" / "step-00000002"
    resume = {"schedule": {"resume": str(saved)}}
    two.append(write_config("two-3-resumed", train_seam=resume, deepspeed=ZERO[3], **smooth))
    ranks.train(2, *two)
    ranks.train(1, write_config("one-resumed", train_seam=resume, **smooth))
    ranks.train(
        3,
        *(
            write_config(f"three-{stage}-resumed", train_seam=resume, deepspeed=ZERO[stage], **smooth)
            for stage in (2, 3)
        ),
    )

    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    curves = {name: losses(tmp_path, name) for name in names}
    for name in names:
        assert sorted(curves[name]) == ([3, 4] if name.endswith("resumed") else [1, 2, 3, 4]), name

    def distance(name: str, other: str) -> float:
        return max(abs(value / curves[other][step] - 1) for step, value in curves[name].items())

    # Relative; float32 holds 1.2e-7. Ranks add up their gradients in another order than one process does.
    smooth_names = [name for name in names if not name.startswith("full")]
    report = {name: (distance(name, "one"), distance(name, "two-2")) for name in smooth_names}
    print(report)
    assert max(value for pair in report.values() for value in pair) < 1e-6, report
    assert all(distance(f"two-{stage}", "two-0") == 0 for stage in (1, 2, 3)), report
    assert distance("full-3", "full-0") == 0
    final = weights(tmp_path, "one")
    for name in smooth_names:
        other = weights(tmp_path, name)
        assert other.keys() == final.keys(), name
        for key, value in final.items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
