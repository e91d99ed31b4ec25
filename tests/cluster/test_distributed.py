from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seam_dist.cluster import distributed
from seam_dist.cluster.distributed import (
    World,
    all_gather_object,
    all_reduce_sum,
    barrier,
    broadcast_object,
    deepspeed_ready,
    init_world,
    interface_to,
    shutdown,
)
from seam_dist.cluster.place import Place
from seam_dist.config.schema import Config, RunConfig

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
CPU = Config(run=RunConfig(device="cpu"))


def test_process_without_a_launcher_is_a_world_of_one() -> None:
    world = init_world(CPU)
    assert world == World(0, 1, 0, 1, torch.device("cpu"))
    assert world.is_main
    assert init_world(CPU) == world
    barrier(world)
    assert all_gather_object("x", world) == ["x"]
    assert broadcast_object({"a": 1}, world) == {"a": 1}
    value = torch.tensor([2**60, 1])
    total = all_reduce_sum(value, world)
    assert torch.equal(total, value)
    total.zero_()
    assert value[1] == 1


def test_world_can_be_left_and_entered_again() -> None:
    for _ in range(2):
        world = init_world(CPU)
        with deepspeed_ready(world, 60):
            pass
        shutdown(world)
    shutdown(world)


def test_every_group_gets_the_configured_timeout() -> None:
    world = init_world(replace(CPU, run=RunConfig(device="cpu", timeout_s=7)))
    groups = torch.distributed.distributed_c10d._world.pg_map
    assert groups
    with deepspeed_ready(world, 7):
        torch.distributed.new_group([0])
    for group in groups:
        options = group._get_backend(torch.device("cpu")).options
        assert options._timeout.total_seconds() == 7
    shutdown(world)


def test_deepspeed_compiles_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    shutdown(init_world(CPU))
    world = init_world(CPU)
    with deepspeed_ready(world, 60):
        pass
    shutdown(world)
    assert list(tmp_path.iterdir()) == []


def test_another_number_of_ranks_than_configured_stops() -> None:
    with pytest.raises(ValueError, match=r"run\.world_size=8 but 1 rank\(s\) were started: check .*--hostfile"):
        init_world(Config(run=RunConfig(world_size=8)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_ADDR": None}, "MASTER_ADDR not set while other variables"),
        ({"LOCAL_RANK": None, "RANK": None}, r"RANK, LOCAL_RANK not set while .*\(WORLD_SIZE=2\)"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' in the environment is not a number"),
        ({"RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
    ],
)
def test_contradictory_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None], message: str
) -> None:
    for name, value in {**LAUNCHED, **change}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        init_world(CPU)


def test_gpu_is_asked_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"run\.device=cuda but torch sees no GPU"):
        init_world(Config(run=RunConfig(device="cuda")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="local rank 2 has no GPU, the host shows 2"):
        distributed._device("auto", Place(2, 3, 2, 3))


@pytest.mark.parametrize(
    ("place", "visible", "expected"),
    [
        (Place(3, 4, 3, 4, by_scheduler=True), "5", 0),
        (Place(3, 4, 3, 4, by_scheduler=True), None, "local rank 3 has no GPU, the host shows 1.*--gpus-per-task=1"),
        (Place(3, 4, 3, 4), "5", "local rank 3 has no GPU, the host shows 1"),
        (Place(0, 4, 0, 4), "5", 0),
    ],
)
def test_a_task_with_its_own_gpu_takes_device_0(
    monkeypatch: pytest.MonkeyPatch, place: Place, visible: str | None, expected: int | str
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            distributed._device("auto", place)
    else:
        assert distributed._device("auto", place) == torch.device("cuda", expected)
        assert chosen == [torch.device("cuda", expected)]


@pytest.mark.parametrize(
    ("threads", "environment", "local_size", "expected"),
    [(3, "1", 2, 3), (None, "1", 2, None), (None, None, 2, 4), (None, None, 16, 1)],
)
def test_threads(
    monkeypatch: pytest.MonkeyPatch, threads: int | None, environment: str | None, local_size: int, expected: int | None
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    place = Place(0, 1, 0, local_size)
    monkeypatch.setattr(distributed, "read_place", lambda *arguments, **options: place)
    if environment is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    init_world(Config(run=RunConfig(threads=threads, device="cpu")))
    assert asked == ([] if expected is None else [expected])


# A host with two networks whose own name resolves to a loopback address, as Debian sets it up.
NAMES = {"head": "10.0.0.1", "myself": "127.0.1.1", "192.0.2.1": "192.0.2.1"}
ROUTES = {"10.0.0.1": "10.0.0.7", "127.0.1.1": "127.0.0.1", "192.0.2.1": "192.168.1.5"}
INTERFACES = {"lo": ["127.0.0.1"], "eth0": ["192.168.1.5"], "ib0": ["fe80::1%ib0", "10.0.0.7"]}


@pytest.mark.parametrize(
    ("host", "crosses_hosts", "interface"),
    [("head", True, "ib0"), ("myself", True, "eth0"), ("myself", False, "lo"), ("unknown", False, None)],
)
def test_interface_follows_the_route(
    monkeypatch: pytest.MonkeyPatch, host: str, crosses_hosts: bool, interface: str | None
) -> None:
    class Probe:
        def __init__(self, *arguments: Any) -> None:
            self.source = ""

        def __enter__(self) -> Probe:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def connect(self, target: tuple[str, int]) -> None:
            self.source = ROUTES[target[0]]

        def getsockname(self) -> tuple[str, int]:
            return self.source, 1

    def resolve(name: str, port: int, type: int) -> list[Any]:
        if name not in NAMES:
            raise socket.gaierror
        return [(socket.AF_INET, type, 0, "", (NAMES[name], port))]

    class Entry:
        def __init__(self, address: str) -> None:
            self.address = address

    interfaces = {name: [Entry(address) for address in addresses] for name, addresses in INTERFACES.items()}
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "socket", Probe)
    monkeypatch.setattr(distributed.psutil, "net_if_addrs", lambda: interfaces)
    assert interface_to(host, 29500, crosses_hosts=crosses_hosts) == interface


def test_rank_ends_with_its_launcher() -> None:
    """A launcher that is killed takes its ranks along: SIGTERM, which training answers with a checkpoint."""
    rank = (
        "import os, signal\n"
        "from seam_dist.cluster.distributed import _end_with_launcher\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'asked to stop\\n'), os._exit(0)))\n"
        "_end_with_launcher()\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    launcher = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {rank!r}])\n"
    process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait(timeout=30)
    # The pipe closes when the last process that holds it has ended.
    assert process.stdout.read() == "asked to stop\n"
