"""Run the command on all devices of this machine through the DeepSpeed launcher, and report how it really ended.

The launcher alone exits 0 when it is killed or when a rank is, and ends at a signal without waiting for its ranks;
here success is a file that rank 0 writes at the very end, and signals reach every rank, which then has 30 s to save.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil
import torch

from seam_dist.cluster.place import Place, read_place

DONE_FILE_VARIABLE = "SEAM_DIST_DONE_FILE"
_CPU_RANKS = 2
_GRACE_S = 40.0  # launch.py gives each rank 30 s between SIGTERM and SIGKILL


def count_ranks(ranks: str, device: str = "auto") -> int:
    """Return the number of ranks that `--ranks` asks for; `auto` is one a GPU, or two without a GPU.

    device: that of run.device. Raises ValueError when it is neither `auto` nor a positive number, more than there are
    GPUs, and in a process that is one of several ranks already: each of them would start ranks of its own.
    """
    try:
        place: Place | None = read_place(os.environ)
    except ValueError:
        place = None  # the launcher replaces variables that make no sense
    if place is not None and place.size > 1:
        raise ValueError(
            f"--ranks={ranks} in a process that is rank {place.rank} of {place.size} already: leave --ranks out, or "
            "run the command once, without srun, mpirun or another launcher"
        )
    num_gpus = torch.cuda.device_count()
    if ranks == "auto":
        return num_gpus or min(_CPU_RANKS, os.cpu_count() or 1)
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", ranks):
        raise ValueError(f"--ranks={ranks} is not a number of ranks: give auto or a number from 1")
    if device != "cpu" and 0 < num_gpus < int(ranks):
        raise ValueError(
            f"--ranks={ranks} is more than the {num_gpus} GPU(s) that this machine shows: give auto or a number up to "
            f"{num_gpus}, or set run.device=cpu"
        )
    return int(ranks)


def launch(ranks: int, arguments: Sequence[str]) -> int:
    """Run `seam-dist ARGUMENTS` on `ranks` processes of this machine; return 0 only when rank 0 reached the end."""
    with tempfile.TemporaryDirectory(prefix="seam-dist-") as folder:
        done = Path(folder) / "done"
        command = [
            *(sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--hostfile", os.devnull),
            *("--num_gpus" if torch.cuda.is_available() else "--num_accelerators", str(ranks)),
            *("--master_addr", "127.0.0.1", "--master_port", str(_free_port())),
            *("--module", "seam_dist.cli", *arguments),
        ]
        environment = {**os.environ, DONE_FILE_VARIABLE: str(done)}
        if not torch.cuda.is_available():
            # DeepSpeed looks for an accelerator when it is imported and warns, in every process, that it found none.
            environment.setdefault("DS_ACCELERATOR", "cpu")
        # A rank that a signal ends leaves semaphores, which their tracker removes: no news for whoever stopped it.
        quiet = filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning"))
        environment["PYTHONWARNINGS"] = ",".join(quiet)
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        received: list[int] = []

        def forward(number: int, frame: FrameType | None) -> None:
            received.append(number)
            _signal_group(process.pid, signal.SIGTERM)

        previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = process.wait()
            psutil.wait_procs(_session_members(process.pid), timeout=_GRACE_S)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            _signal_group(process.pid, signal.SIGKILL)
        if received:
            stopped = f"seam-dist: stopped by {signal.Signals(received[0]).name}: what is finished is kept"
            print(f"\n{stopped}, the same command resumes", file=sys.stderr)
            return 128 + received[0]
        if code == 0 and not done.exists():
            print("seam-dist: error: a rank was killed before the end: run the same command again", file=sys.stderr)
            return 1
        return code if code >= 0 else 128 - code


def mark_done() -> None:
    """Report to the launching process, if there is one, that everything was done; called by rank 0 at the end."""
    path = os.environ.get(DONE_FILE_VARIABLE)
    if path:
        Path(path).write_text("done\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _session_members(leader: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def _signal_group(leader: int, number: int) -> None:
    for process in _session_members(leader):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
