"""The collectives between two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CODE = """
import json, signal, sys
import torch
from seam_dist.config.schema import Config, RunConfig
from seam_dist.cluster.distributed import *

world = init_world(Config(run=RunConfig(world_size=2, timeout_s=5, device="cpu")))
results = {"world": [world.rank, world.size, world.local_rank, world.local_size, world.is_main]}
value = torch.tensor([2**53 + world.rank, 1])
results["sum"] = all_reduce_sum(value, world).tolist()
results["argument"] = value.tolist()
results["gathered"] = all_gather_object(["rank", world.rank], world)
results["broadcast"] = broadcast_object(world.rank + 5, world)
results["main"] = on_main(lambda: world.rank, world)

def fail():
    raise OSError(28, "No space left on device")

try:
    on_main(fail, world)
except OSError as error:
    results["error"] = error.errno
barrier(world)
if world.is_main:
    try:
        barrier(world)
    except RuntimeError:
        results["gave up"] = True
    # As the command does: a thread of the group that frees a tensor while the interpreter ends aborts the process.
    shutdown(world)
    print(json.dumps(results), flush=True)
else:
    print(json.dumps(results), flush=True)
    signal.pause()
"""


def test_two_processes_agree_and_give_up_on_each_other_in_time(ranks: Any, tmp_path: Path) -> None:
    started = ranks.start(2, "-c", CODE)
    assert ranks.finish(started[:1], timeout_s=120) == [0], ranks.logs()
    results = [
        json.loads(next(line for line in (tmp_path / f"rank{rank}.log").read_text().splitlines() if line[0] == "{"))
        for rank in (0, 1)
    ]
    for rank in (0, 1):
        assert results[rank]["world"] == [rank, 2, rank, 2, rank == 0]
        assert results[rank]["sum"] == [2**54 + 1, 2]
        assert results[rank]["argument"] == [2**53 + rank, 1]
        assert results[rank]["gathered"] == [["rank", 0], ["rank", 1]]
        assert results[rank]["broadcast"] == 5
        assert results[rank]["main"] == 0
        assert results[rank]["error"] == 28
    assert results[0]["gave up"]
