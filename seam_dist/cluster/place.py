"""Who a process is among the ranks of a job, from the variables of whatever started it; imports neither torch nor MPI.

In this order: RANK and its companions, which the DeepSpeed launcher and torchrun set; Open MPI, MVAPICH and the
launchers that speak PMI (MPICH, Intel MPI), which say neither address nor port; srun, which says enough for both. A
process without any of them is the only rank, and so is the script of an sbatch job or the shell of an salloc.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_EXPLICIT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# rank, number of ranks, rank on the host, ranks on the host
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
# The step numbers of what is no srun: the shell of an salloc, the script of an sbatch, and two of Slurm's own.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# Below the ports that Linux gives to outgoing connections, which begin at 32768.
_FIRST_PORT, _NUM_PORTS = 20000, 12000

_RANGE = r"[0-9]+(?:-[0-9]+)?"
_HOST = rf"(?:[^,\[\]]|\[{_RANGE}(?:,{_RANGE})*\])+"
_HOSTS = re.compile(f"{_HOST}(?:,{_HOST})*")


@dataclass(frozen=True)
class Place:
    """A process among the ranks of its job; `local_size` is None where the launcher does not say."""

    rank: int
    size: int
    local_rank: int
    local_size: int | None
    master_addr: str = ""
    master_port: int = 0
    launched: bool = False
    """A launcher started it, alone or with others."""
    by_scheduler: bool = False
    """It is a task of srun or mpirun, which may give each task a GPU of its own."""

    def variables(self) -> dict[str, str]:
        """Return the variables that torch and DeepSpeed read; none for a process without a launcher."""
        if not self.launched:
            return {}
        numbers = {
            "RANK": self.rank,
            "WORLD_SIZE": self.size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_size,
            "MASTER_PORT": self.master_port,
        }
        given = {name: str(value) for name, value in numbers.items() if value is not None}
        return given | {"MASTER_ADDR": self.master_addr}


def read_place(env: Mapping[str, str], *, terminal: bool = False) -> Place:
    """Return the place that the variables give; `terminal` says whether the process reads from a terminal.

    Raises ValueError when they are incomplete or contradict each other, with the variable, its value and the remedy.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        return _read_explicit(env)
    step = _slurm_tasks(env)
    for names in _MPI:
        if names[0] in env and names[1] in env:
            rank, size = _number(env, names[0]), _number(env, names[1])
            # srun --mpi=pmi2 sets PMI's variables, too; where they differ from srun's, mpirun started daemons by srun.
            if size > 1 and not (names[0] == "PMI_RANK" and step == size and env.get("SLURM_PROCID") == str(rank)):
                return _read_mpi(env, names)
    if step > 1:
        return _read_slurm(env, step, terminal=terminal)
    return Place(0, 1, 0, 1)


def is_first(env: Mapping[str, str]) -> bool:
    """Return whether the process is the one that prints what all ranks have to say; true where nobody can tell."""
    try:
        return read_place(env).rank == 0
    except ValueError:
        return True


def expand_hosts(text: str) -> list[str]:
    """Return the names of a node list of Slurm, in order: `node[01-03,7],gpu3` is node01, node02, node03, node7, gpu3.

    Raises ValueError for a list that is none.
    """
    if not _HOSTS.fullmatch(text):
        raise ValueError(f"{text!r} is no list of Slurm nodes such as node[01-04],gpu7: set MASTER_ADDR")
    hosts: list[str] = []
    for entry in re.findall(_HOST, text):
        names = [""]
        for plain, ranges in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", entry):
            parts = [plain] if plain else [number for part in ranges.split(",") for number in _numbers(part)]
            names = [name + part for name in names for part in parts]
        hosts += names
    return hosts


def _numbers(part: str) -> list[str]:
    """Return the numbers of `01-03` or `7`, with the zeros that they have."""
    first, _, last = part.partition("-")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]


def _number(env: Mapping[str, str], name: str, *, remedy: str = "check the launcher") -> int:
    text = env[name].strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        what = "is empty" if not text else "is not a number"
        raise ValueError(f"{name}={env[name]!r} in the environment {what}: {remedy}, or unset {name}")
    return int(text)


def _check(place: Place, rank: str, size: str) -> Place:
    """Return the place when its numbers fit each other; `rank` and `size` are the variables that they came from."""
    if place.size < 1:
        raise ValueError(f"{size}={place.size} is below 1, the number of ranks: check the launcher, or unset {size}")
    if place.rank >= place.size:
        raise ValueError(f"{rank}={place.rank} is not below {size}={place.size}: check the launcher, or unset both")
    local = place.size if place.local_size is None else place.local_size
    if place.local_rank >= local or local > place.size:
        raise ValueError(
            f"local rank {place.local_rank} of {local} on this host does not fit {size}={place.size}: check the "
            "launcher's LOCAL_RANK and LOCAL_WORLD_SIZE"
        )
    if place.size > 1 and not place.master_addr:
        raise ValueError("MASTER_ADDR is empty: set it to the host of rank 0")
    if not 0 < place.master_port < 65536:
        raise ValueError(f"MASTER_PORT={place.master_port} is no port: set it to a free one from 1024 to 65535")
    return place


def _master_port(env: Mapping[str, str]) -> int:
    return _number(env, "MASTER_PORT", remedy="set it to a free port from 1024 to 65535")


def _read_explicit(env: Mapping[str, str]) -> Place:
    remedy = "start with the deepspeed launcher, torchrun or srun"
    given = {name: _number(env, name, remedy=remedy) for name in ("RANK", "WORLD_SIZE") if name in env}
    missing = [name for name in _EXPLICIT if name not in env]
    if missing:
        present = " and ".join(f"{name}={env[name]}" for name in given)
        srun = "; under srun its own variables serve without RANK and WORLD_SIZE" if _slurm_tasks(env) > 1 else ""
        raise ValueError(
            f"{', '.join(missing)} not set while other variables of a launcher are ({present}): {remedy}, set "
            f"{'it' if len(missing) == 1 else 'them'} as well, or unset RANK and WORLD_SIZE for a single process{srun}"
        )
    local_rank = _number(env, "LOCAL_RANK", remedy=remedy)
    local_size = next((_number(env, name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in env), None)
    place = Place(
        rank=given["RANK"],
        size=given["WORLD_SIZE"],
        local_rank=local_rank,
        local_size=local_size,
        master_addr=env["MASTER_ADDR"].strip(),
        master_port=_master_port(env),
        launched=True,
        by_scheduler=any(env.get(name) == str(local_rank) for name in _scheduler_locals(env)),
    )
    return _check(place, "RANK", "WORLD_SIZE")


def _scheduler_locals(env: Mapping[str, str]) -> list[str]:
    """Return the variables with the local rank of each scheduler that runs several tasks here."""
    mpi = [names[2] for names in _MPI if env.get(names[1], "1") != "1"]
    return [*mpi, "SLURM_LOCALID"] if _slurm_tasks(env) > 1 else mpi


def _read_mpi(env: Mapping[str, str], names: tuple[str, ...]) -> Place:
    rank, size, local_rank, local_size = names
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if local_rank not in env and "LOCAL_RANK" not in env:
        missing.append("LOCAL_RANK")
    if missing:
        hint = {"MASTER_ADDR": "the host of rank 0", "MASTER_PORT": "a free port", "LOCAL_RANK": "the rank on its host"}
        raise ValueError(
            f"{size}={env[size]} ranks were started by mpirun, which does not say where they meet: set "
            f"{' and '.join(f'{name} ({hint[name]})' for name in missing)} for all of them, for example with mpirun -x "
            f"or -genv, or unset {rank} for a single process"
        )
    place = Place(
        rank=_number(env, rank),
        size=_number(env, size),
        local_rank=_number(env, local_rank if local_rank in env else "LOCAL_RANK"),
        local_size=_number(env, local_size) if local_size in env else None,
        master_addr=env["MASTER_ADDR"].strip(),
        master_port=_master_port(env),
        launched=True,
        by_scheduler=True,
    )
    return _check(place, rank, size)


def _slurm_tasks(env: Mapping[str, str]) -> int:
    """Return the number of tasks of the srun that started this process; 0 outside of one.

    The script of an sbatch has SLURM_PROCID=0 and SLURM_NTASKS, too, but no step, or the batch step.
    """
    if not {"SLURM_STEP_ID", "SLURM_PROCID"} <= env.keys():
        return 0
    step = env["SLURM_STEP_ID"]
    if not step.isascii() or not step.isdigit() or int(step) >= _FIRST_SPECIAL_STEP:
        return 0
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    return _number(env, name, remedy="start with srun") if name in env else 0


def _read_slurm(env: Mapping[str, str], size: int, *, terminal: bool) -> Place:
    if terminal:
        raise ValueError(
            f"SLURM_NTASKS={size}, but this process runs in the terminal of one task (srun --pty): start all tasks "
            "with srun seam-dist, or unset SLURM_STEP_ID for a single process"
        )
    if "SLURM_LOCALID" not in env:
        raise ValueError("SLURM_LOCALID is not set while SLURM_PROCID is: start with srun, or set RANK and LOCAL_RANK")
    hosts = _slurm_hosts(env)
    place = Place(
        rank=_number(env, "SLURM_PROCID", remedy="start with srun"),
        size=size,
        local_rank=_number(env, "SLURM_LOCALID", remedy="start with srun"),
        local_size=_slurm_local_size(env, size),
        # A node of Slurm need not be a name that resolves; a job on one host has no need of it.
        master_addr=env.get("MASTER_ADDR", "").strip() or ("127.0.0.1" if len(hosts) == 1 else hosts[0]),
        master_port=_master_port(env) if env.get("MASTER_PORT") else _slurm_port(env),
        launched=True,
        by_scheduler=True,
    )
    return _check(place, "SLURM_PROCID", "SLURM_NTASKS")


def _slurm_hosts(env: Mapping[str, str]) -> list[str]:
    """Return the hosts of the step, that of rank 0 first; what stands in for them with MASTER_ADDR."""
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    name = next((name for name in names if env.get(name)), None)
    if env.get("MASTER_ADDR"):
        return [env["MASTER_ADDR"], ""]
    if name is None:
        raise ValueError(f"{names[0]} is not set, so the host of rank 0 is not known: set MASTER_ADDR to it")
    try:
        return expand_hosts(env[name])
    except ValueError as error:
        raise ValueError(f"{name}={error}") from None


def _slurm_local_size(env: Mapping[str, str], size: int) -> int | None:
    """Return the number of tasks on this node, where the variables agree on it."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        parts = re.findall(r"(\d+)(?:\(x(\d+)\))?(?:,|$)", env.get(name, ""))
        counts = [int(count) for count, times in parts for _ in range(int(times or 1))]
        node = env.get("SLURM_NODEID", "0" if len(counts) == 1 else "")
        if sum(counts) == size and node.isdigit() and int(node) < len(counts):
            return counts[int(node)]
    per_node = env.get("SLURM_NTASKS_PER_NODE", "")
    # It is the number that was asked for: the last node may have fewer.
    return int(per_node) if per_node.isdigit() and int(per_node) and size % int(per_node) == 0 else None


def _slurm_port(env: Mapping[str, str]) -> int:
    job = "SLURM_JOB_ID" if "SLURM_JOB_ID" in env else "SLURM_JOBID"
    if job not in env:
        raise ValueError("SLURM_JOB_ID is not set, so the ranks know no common port: set MASTER_PORT to a free one")
    # Steps of one job, and jobs that follow each other, differ.
    number = 31 * _number(env, job) + _number(env, "SLURM_STEP_ID")
    return _FIRST_PORT + number % _NUM_PORTS
