"""The machine: devices and ranks, CPU threads, and the port at which the ranks of a job meet."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from seam_dist.cluster.distributed import check_device, check_world_size
from seam_dist.cluster.place import read_place
from seam_dist.config.findings import Findings
from seam_dist.config.load import ConfigError
from seam_dist.preflight.plan import RunPlan, reported


def check_machine(plan: RunPlan) -> Findings:
    """Return what this machine lacks; ranks against its GPUs are counted by seam_dist.cluster.launcher."""
    findings = Findings()
    run = plan.cfg.run
    with reported(findings, "run.world_size"):
        check_world_size(plan.cfg, plan.world_size)
    with reported(findings, "run.device"):
        check_device(run.device)
    cores = len(os.sched_getaffinity(0))
    if run.threads is not None and run.threads > cores:
        findings.warning(
            "run.threads",
            f"run.threads={run.threads} is more than the {cores} cores of this machine: lower or unset it",
        )
    return findings


def check_port(env: Mapping[str, str]) -> None:
    """Raise ConfigError when this process would open the port at which the ranks meet and another one has it.

    A launcher that keeps the store itself, as torchrun does, has the port open already. Raises ValueError for variables
    of a launcher that do not fit each other.
    """
    place = read_place(env)
    if place.rank != 0 or place.size < 2 or env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    with socket.socket() as probe:
        # As torch does it: a port of connections that have just ended is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", place.master_port))
        except OSError as error:
            raise ConfigError(
                f"MASTER_PORT={place.master_port} cannot be opened on this host ({error.strerror}): choose another "
                "port, for example with the launcher's --master_port"
            ) from None
