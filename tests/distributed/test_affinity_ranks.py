"""Training of AffinityNet on two ranks equals that on one, although the ranks hold very different numbers of pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from seam_dist.artifacts.atomic import write_json
from seam_dist.artifacts.label_file import write_labels
from seam_dist.cluster.distributed import init_world, shutdown
from seam_dist.config.load import load_config
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import read_shard
from seam_dist.stages import shard, train_affinity

CODE = """
import sys
from pathlib import Path
from seam_dist.cluster.distributed import init_world, shutdown
from seam_dist.config.load import load_config
from seam_dist.stages import train_affinity
for path in sys.argv[1:]:
    config = load_config(Path(path), [], None).config
    train_affinity.run(config)
shutdown(init_world(config))
"""


def make_labels(config: Any) -> None:
    """A finished infer_cam whose labels are known in the shards of even streams, and nearly unknown in the others."""
    folder = config.stage_dir("infer_cam")
    for index, entry in enumerate(load_manifest(config.shards_dir).split("train").shards):
        items = []
        for sample in read_shard(config.shards_dir / entry.file, masks=True, max_pixels=10**6):
            assert sample.mask is not None
            labels = np.ascontiguousarray(sample.mask[::8, ::8])
            if index % 2:
                labels[2:] = 255
            items.append((sample.key, labels))
        write_labels(folder / "affinity" / entry.file, items)
    write_json(folder / "manifest.json", {"fingerprint": "labels of the masks"})


def test_two_ranks_accumulation_and_one_rank_agree(
    ranks: Any, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    source = {"num_images": [16, 2], "image_size": [96, 80]}
    data = {"streams": 4, "samples_per_shard": 4}
    schedule = {"global_batch_size": 8, "max_steps": 3, "lr": 1e-3, "log_every": 1}
    affinity = {"crop_size": 88, "channels": [4, 6, 10]}
    micro = {"one": 8, "accumulated": 4, "two": 4, "two-accumulated": 2}
    paths = {
        name: write_config(
            name,
            source=source,
            data=data,
            train_affinity={"schedule": {"micro_batch_size": size, **schedule}, **affinity},
        )
        for name, size in micro.items()
    }
    configs = {name: load_config(path, [], None).config for name, path in paths.items()}
    shard.run(configs["one"])
    for config in configs.values():
        make_labels(config)
    started = ranks.start(2, "-c", CODE, str(paths["two"]), str(paths["two-accumulated"]))
    for name in ("one", "accumulated"):
        train_affinity.run(configs[name])
    shutdown(init_world(configs["one"]))
    assert ranks.finish(started) == [0, 0], ranks.logs()

    def results(name: str) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        folder = configs[name].stage_dir("train_affinity")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return lines, load_file(folder / "final" / "model.safetensors")

    lines, weights = results("one")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for name in ("accumulated", "two", "two-accumulated"):
        other_lines, other_weights = results(name)
        for line, other in zip(lines, other_lines, strict=True):
            for key in ("loss/total", "loss/bg", "loss/fg", "loss/neg"):
                assert abs(other[key] - line[key]) <= 1e-5 * line[key], (name, key, line, other)
        for key, value in weights.items():
            message = f"{name}: {key}"
            torch.testing.assert_close(
                other_weights[key], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=message: f"{n}: {m}"
            )
