"""The preflight: all checks over all stages of a command, in one collection of findings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from seam_dist.config.findings import Findings
from seam_dist.config.schema import STAGES, Config, Stage
from seam_dist.preflight.data_set import read_data_set
from seam_dist.preflight.disk import check_disk
from seam_dist.preflight.inputs import check_inputs
from seam_dist.preflight.machine import check_machine
from seam_dist.preflight.networks import build_networks
from seam_dist.preflight.packages import check_packages
from seam_dist.preflight.plan import RunPlan, reported
from seam_dist.preflight.settings import check_settings
from seam_dist.preflight.splits import check_splits
from seam_dist.preflight.weights import check_weights


def check_run(
    cfg: Config,
    stages: Sequence[str],
    world_size: int = 1,
    *,
    done: Collection[str] = (),
    changed: Mapping[str, str] | None = None,
) -> Findings:
    """Return all that is wrong or odd with running `stages` now; errors would end the run, sooner or later.

    Args:
        done: stages that will be skipped; nothing is asked of them.
        changed: stages whose outputs belong to other settings, with what differs.
    """
    findings = Findings()
    pending: list[Stage] = [stage for stage in STAGES if stage in stages and stage not in done]
    data, of_data = read_data_set(cfg, pending)
    findings.merge(of_data)
    plan = RunPlan(cfg, tuple(pending), world_size, data)
    packages = check_packages(plan)
    networks, of_networks = ({}, Findings()) if packages.errors else build_networks(plan)
    findings.merge([*packages, *of_networks])
    checks: Sequence[Callable[[], Findings]] = (
        lambda: check_machine(plan),
        lambda: check_settings(plan),
        lambda: check_splits(plan),
        lambda: check_inputs(plan, changed or {}),
        lambda: check_weights(plan, networks),
        lambda: check_disk(plan, networks),
    )
    for check in checks:
        with reported(findings, "unreadable"):  # a folder of somebody else
            findings.merge(check())
    return findings
