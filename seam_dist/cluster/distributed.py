"""The ranks of a job: how they find each other, and the few collectives that the project uses.

The launcher (`deepspeed`, torchrun, srun, mpirun) says through the environment who a rank is (`place.py`); without it a
process is a world of its own. Only this file talks to torch.distributed and deepspeed.comm.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import psutil
import torch
import torch.distributed as dist

from seam_dist.cluster.place import Place, read_place
from seam_dist.config.schema import Config

T = TypeVar("T")
_VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class World:
    """Who this process is among the ranks of the job."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the rank that writes files and prints."""
        return self.rank == 0


def init_world(cfg: Config) -> World:
    """Join the job and return this rank's place in it; later calls in the same process return the same world.

    Sets the number of CPU threads (run.threads, else OMP_NUM_THREADS, else cores / local ranks), chooses the network
    interface from the route to MASTER_ADDR unless GLOO_SOCKET_IFNAME is set, and gives every collective run.timeout_s
    seconds. Under a launcher the rank gets SIGTERM when the launcher dies, so that no training runs unwatched.

    Raises ValueError when the launcher's variables are incomplete or contradictory, or when the number of ranks is not
    run.world_size (a wrong --hostfile path would otherwise silently train on one rank).
    """
    place = read_place(os.environ, terminal=os.isatty(0))
    check_world_size(cfg, place.size)
    device = _device(cfg.run.device, place)
    # The number of the GPU where each task has its own: DeepSpeed takes the device of this number, too.
    local_rank = place.local_rank if device.index is None else device.index
    _publish(place, local_rank)
    # Read by DeepSpeed at its import, which would otherwise take the first accelerator that it finds.
    os.environ["DS_ACCELERATOR"] = device.type
    if not dist.is_initialized():
        _start_group(place, device, timedelta(seconds=cfg.run.timeout_s))
    local_size = place.local_size or _count_local(place)
    if cfg.run.threads is not None:
        torch.set_num_threads(cfg.run.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
    _set_timeouts(cfg.run.timeout_s)
    return World(rank=place.rank, size=place.size, local_rank=local_rank, local_size=local_size, device=device)


def check_world_size(cfg: Config, size: int) -> None:
    """Raise ValueError when the number of ranks is not the one that run.world_size expects."""
    if cfg.run.world_size is not None and cfg.run.world_size != size:
        raise ValueError(
            f"run.world_size={cfg.run.world_size} but {size} rank(s) were started: check the launcher's "
            "--hostfile, --num_nodes and --num_accelerators, or change run.world_size"
        )


def check_device(wanted: str) -> None:
    """Raise ValueError when run.device is cuda and there is no GPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device=cuda but torch sees no GPU: install a GPU build of torch, or set run.device=cpu")


def barrier(world: World) -> None:
    """Wait until every rank has come here."""
    if world.size > 1:
        dist.barrier(device_ids=[world.device.index] if world.device.type == "cuda" else None)


def all_reduce_sum(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Return the sum of `tensor` over all ranks, in its dtype and on its device; the argument stays as it is."""
    total = tensor.detach().clone()
    if world.size > 1:
        # The process group of a GPU job moves GPU tensors only.
        moved = total.to(world.device)
        dist.all_reduce(moved)
        total = moved.to(tensor.device)
    return total


def all_gather_object(obj: T, world: World) -> list[T]:
    """Return every rank's object, by rank; objects travel pickled, among the processes of this job only."""
    if world.size == 1:
        return [obj]
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, obj)
    return gathered


def broadcast_object(obj: T, world: World) -> T:
    """Return the main rank's object on every rank."""
    if world.size == 1:
        return obj
    carrier: list[Any] = [obj if world.is_main else None]
    dist.broadcast_object_list(carrier, src=0, device=world.device)
    received: T = carrier[0]
    return received


def on_main(function: Callable[[], T], world: World) -> T:
    """Run `function` on the main rank alone; return its result, or raise its error, on every rank.

    An error that stayed on the main rank would leave the others waiting for it in their next collective.
    """
    result: T | None = None
    error: Exception | None = None
    if world.is_main:
        try:
            result = function()
        except Exception as failure:
            error = failure
    result, error = broadcast_object((result, error), world)
    if error is not None:
        raise error
    return cast(T, result)


def shutdown(world: World) -> None:
    """Leave the job; harmless when it was left before."""
    if not dist.is_initialized():
        return
    comm = sys.modules.get("deepspeed.comm")
    if comm is not None and comm.is_initialized():
        comm.destroy_process_group()
        # The next training in this process must not meet the backend of the group that is gone.
        sys.modules["deepspeed.comm.comm"].cdb = None  # type: ignore[attr-defined]
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def deepspeed_ready(world: World, timeout_s: float) -> Iterator[None]:
    """Prepare the process for deepspeed.initialize in the body, and give the groups that it makes their timeout.

    DeepSpeed would compile its shared-memory collective for CPUs, 25-97 s at first use and once more whenever the
    environment differs. It serves tensor-parallel inference only, so it is left out and nothing is compiled.
    """
    import deepspeed

    if not deepspeed.comm.is_initialized():
        # By name: the attribute `deepspeed.comm.torch` is torch itself.
        backend: Any = importlib.import_module("deepspeed.comm.torch")
        build = backend.build_shm_op
        backend.build_shm_op = lambda: None
        try:
            deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
        finally:
            backend.build_shm_op = build
    # DeepSpeed reads it from the environment also in a process without a launcher, at stage 3 in every step.
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    yield
    _set_timeouts(timeout_s)


def _set_timeouts(timeout_s: float) -> None:
    """Give every process group that exists `timeout_s` seconds for a collective; DeepSpeed makes its own with 1800."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def interface_to(address: str, port: int, *, crosses_hosts: bool) -> str | None:
    """Return the network interface whose route leads to `address`, or None without a route.

    A host name that resolves to a loopback address on its own host (Debian's 127.0.1.1) is of no use to other hosts:
    when the job crosses hosts, the default route's interface is taken instead.
    """
    source = _source_address(address, port)
    if crosses_hosts and (source is None or source.startswith("127.") or source == "::1"):
        # 192.0.2.1 is reserved for documentation; connecting a datagram socket sends nothing.
        source = _source_address("192.0.2.1", 9)
    if source is None:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == source for entry in addresses):
            return str(name)
    # 127.0.1.1 belongs to the loopback interface without being its address.
    return "lo" if source.startswith("127.") and "lo" in psutil.net_if_addrs() else None


def _device(wanted: str, place: Place) -> torch.device:
    check_device(wanted)
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # srun --gpus-per-task=1 shows each task its own GPU alone, under the number 0.
    alone = place.by_scheduler and count == 1 and any(os.environ.get(name) for name in _VISIBLE_DEVICES)
    index = 0 if alone else place.local_rank
    if index >= count:
        raise ValueError(
            f"local rank {place.local_rank} has no GPU, the host shows {count}: start at most {count} ranks a host, or "
            "give each task of srun a GPU with --gpus-per-task=1"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _publish(place: Place, local_rank: int) -> None:
    """Set the variables that torch and DeepSpeed read; srun and mpirun have others."""
    if place.launched:
        os.environ.update(place.variables() | {"LOCAL_RANK": str(local_rank)})
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:  # DeepSpeed insists that they agree
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(local_rank)


def _start_group(place: Place, device: torch.device, timeout: timedelta) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if place.launched:
        _end_with_launcher()
    if place.size == 1:
        # A store in memory: no port, so that any number of single processes share a host.
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        crosses_hosts = place.local_size is None or place.local_size < place.size
        name = interface_to(place.master_addr, place.master_port, crosses_hosts=crosses_hosts)
        if name is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name
    dist.init_process_group(backend, rank=place.rank, world_size=place.size, timeout=timeout)


def _count_local(place: Place) -> int:
    """Count the ranks on this host by asking all of them; for launchers that do not say."""
    names: list[Any] = [None] * place.size
    dist.all_gather_object(names, socket.gethostname())
    return names.count(socket.gethostname())


def _end_with_launcher() -> None:
    """Ask the kernel for SIGTERM at the launcher's death; it would otherwise leave its ranks training."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _source_address(address: str, port: int) -> str | None:
    """Return the local address from which a packet to `address` would leave."""
    try:
        family, socket_type, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket_type) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        # No such name or no route: the rendezvous itself reports it with the address.
        return None
