"""Who a process is under srun, mpirun and launchers that set RANK, and what variables are refused with which remedy."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seam_dist import cli
from seam_dist.cluster import place
from seam_dist.cluster.launcher import count_ranks
from seam_dist.cluster.place import Place, expand_hosts, is_first, read_place

# What srun sets in the sixth of seven tasks, which run on three nodes.
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "gpu[01-03],login",
    "SLURM_STEP_NODELIST": "gpu[01-03]",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1",
    "SLURM_TASKS_PER_NODE": "3(x2),1",
}
# The script of the job, before any srun.
SBATCH = {
    "SLURM_JOB_ID": "4711",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "16",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_JOB_NODELIST": "gpu[01-02]",
    "SLURM_TASKS_PER_NODE": "8(x2)",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "29500",
}
HYDRA = {
    "PMI_RANK": "1",
    "PMI_SIZE": "4",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "29500",
}
LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "29500"}
ALONE = Place(0, 1, 0, 1)


def changed(env: dict[str, str], **values: str | None) -> dict[str, str]:
    return {name: value for name, value in {**env, **values}.items() if value is not None}


def test_srun_says_everything() -> None:
    port = 20000 + (31 * 4711 + 2) % 12000
    expected = Place(5, 7, 2, 3, "gpu01", port, launched=True, by_scheduler=True)
    assert read_place(SRUN) == expected
    assert read_place(expected.variables()) == Place(5, 7, 2, 3, "gpu01", port, launched=True)
    assert read_place(SRUN | expected.variables()) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"SLURM_NODEID": "2", "SLURM_LOCALID": "0"}, {"local_size": 1}),
        # An older srun sets the step's numbers under the job's names.
        ({"SLURM_STEP_NUM_TASKS": None, "SLURM_STEP_TASKS_PER_NODE": None}, {"local_size": 3, "size": 7}),
        # Without agreement the ranks count themselves.
        ({"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_TASKS_PER_NODE": None}, {"local_size": None}),
        ({"SLURM_NODEID": None}, {"local_size": None}),
        ({"SLURM_STEP_NODELIST": None}, {"master_addr": "gpu01"}),
        ({"SLURM_STEP_NODELIST": "gpu03"}, {"master_addr": "127.0.0.1"}),  # one host: no name has to resolve
        ({"MASTER_ADDR": "10.0.0.1"}, {"master_addr": "10.0.0.1"}),
        ({"MASTER_ADDR": "10.0.0.1", "SLURM_STEP_NODELIST": "gpu["}, {"master_addr": "10.0.0.1"}),
        ({"MASTER_PORT": "29999"}, {"master_port": 29999}),
        ({"MASTER_PORT": "29999", "SLURM_JOB_ID": None}, {"master_port": 29999}),
        ({"SLURM_JOB_ID": None, "SLURM_JOBID": "4711"}, {"master_port": 20000 + (31 * 4711 + 2) % 12000}),
        ({"SLURM_NTASKS": "16"}, {"size": 7}),  # the job's number, of which this step has a part
    ],
)
def test_srun_of_other_versions_and_with_a_user_s_own_variables(
    change: dict[str, str | None], expected: dict[str, Any]
) -> None:
    found = read_place(changed(SRUN, **change))
    assert {name: getattr(found, name) for name in expected} == expected
    assert (found.rank, found.launched, found.by_scheduler) == (5, True, True)


def test_tasks_per_node_that_were_asked_for_serve_where_they_divide_the_tasks() -> None:
    env = changed(SRUN, SLURM_STEP_TASKS_PER_NODE=None, SLURM_TASKS_PER_NODE=None, SLURM_NTASKS_PER_NODE="7")
    assert read_place(env).local_size == 7
    assert read_place(env | {"SLURM_NTASKS_PER_NODE": "4"}).local_size is None


def test_ports_are_safe_and_differ_between_steps_and_jobs_that_follow_each_other() -> None:
    ports = {
        read_place(changed(SRUN, SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step))).master_port
        for job in range(10**7, 10**7 + 20)
        for step in range(20)
    }
    assert len(ports) == 400
    assert 1024 < min(ports) <= max(ports) < 32768


@pytest.mark.parametrize(
    "env",
    [
        {},
        SBATCH,
        SBATCH | {"SLURM_STEP_ID": "4294967291"},  # the batch step
        changed(SBATCH, SLURM_PROCID=None, SLURM_LOCALID=None),  # salloc
        SBATCH | {"SLURM_STEP_ID": "4294967290"},  # the shell of salloc with use_interactive_step
        changed(SRUN, SLURM_STEP_NUM_TASKS="1", SLURM_NTASKS="1", SLURM_PROCID="0"),
        changed(SRUN, SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0"),  # srun -n 1 in a job of seven
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
        {"MASTER_ADDR": "head", "MASTER_PORT": "x"},
        {"LOCAL_RANK": "0"},  # DeepSpeed needs it in a single process, too
    ],
    ids=[
        "nothing",
        "sbatch",
        "batch step",
        "salloc",
        "interactive",
        "srun -n 1",
        "part",
        "mpirun",
        "pmi",
        "master",
        "local",
    ],
)
def test_a_process_that_is_alone(env: dict[str, str]) -> None:
    assert read_place(env) == ALONE
    assert read_place(env).variables() == {}
    assert is_first(env)


@pytest.mark.parametrize("env", [OPEN_MPI, HYDRA], ids=["openmpi", "hydra"])
def test_mpirun_with_the_address_of_the_first_rank(env: dict[str, str]) -> None:
    assert read_place(env) == Place(1, 4, 1, 2, "head", 29500, launched=True, by_scheduler=True)
    assert not is_first(env)


def test_variables_of_a_launcher_come_before_all_others() -> None:
    """torchrun in each task of srun or mpirun, and the DeepSpeed launcher through mpirun."""
    expected = Place(1, 2, 1, None, "head", 29500, launched=True)
    assert read_place(SRUN | LAUNCHED) == expected
    assert read_place(SRUN | OPEN_MPI | LAUNCHED) == Place(
        1, 2, 1, None, "head", 29500, launched=True, by_scheduler=True
    )


def test_mpirun_that_starts_its_daemons_by_srun_is_not_taken_for_srun() -> None:
    daemon = changed(SRUN, SLURM_NTASKS="2", SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="0")
    for env in (OPEN_MPI, HYDRA):
        assert read_place(daemon | env).size == 4
    # srun --mpi=pmi2 sets PMI's variables for its own tasks: srun says where they meet.
    pmi2 = changed(SRUN, PMI_RANK="5", PMI_SIZE="7")
    assert read_place(pmi2) == read_place(SRUN)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (changed(LAUNCHED, RANK=""), r"^RANK='' in the environment is empty: start with .*srun, or unset RANK"),
        ({"RANK": ""}, r"^RANK='' in the environment is empty"),
        (changed(LAUNCHED, RANK="x"), r"^RANK='x' in the environment is not a number: .*, or unset RANK"),
        (changed(LAUNCHED, RANK="-1"), r"^RANK='-1' in the environment is not a number"),
        (changed(LAUNCHED, RANK="²"), r"^RANK='²' in the environment is not a number"),
        (changed(LAUNCHED, WORLD_SIZE="two"), r"^WORLD_SIZE='two' in the environment is not a number"),
        (changed(LAUNCHED, WORLD_SIZE="0", RANK="0"), r"^WORLD_SIZE=0 is below 1"),
        (changed(LAUNCHED, RANK="2"), r"^RANK=2 is not below WORLD_SIZE=2: check the launcher, or unset both"),
        ({"WORLD_SIZE": "4"}, r"^RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set .*\(WORLD_SIZE=4\)"),
        ({"RANK": "0"}, r"^WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set while .*\(RANK=0\)"),
        (
            changed(LAUNCHED, LOCAL_RANK=None),
            r"^LOCAL_RANK not set while .*\(RANK=1 and WORLD_SIZE=2\).*set it as well",
        ),
        (SRUN | {"WORLD_SIZE": "7"}, r"under srun its own variables serve without RANK and WORLD_SIZE"),
        (changed(LAUNCHED, LOCAL_RANK="3"), r"^local rank 3 of 2 on this host does not fit WORLD"),
        (LAUNCHED | {"LOCAL_WORLD_SIZE": "8"}, r"^local rank 1 of 8 on this host does not fit WORLD"),
        (LAUNCHED | {"LOCAL_WORLD_SIZE": "x"}, r"^LOCAL_WORLD_SIZE='x' in the environment is not a number"),
        (changed(LAUNCHED, MASTER_ADDR=" "), r"^MASTER_ADDR is empty: set it to the host of rank 0"),
        (
            changed(LAUNCHED, MASTER_PORT="http"),
            r"^MASTER_PORT='http' in the environment is not a number: set it",
        ),
        (changed(LAUNCHED, MASTER_PORT=""), r"^MASTER_PORT='' in the environment is empty: set it to a free port"),
        (changed(LAUNCHED, MASTER_PORT="0"), r"^MASTER_PORT=0 is no port: set it to a free one"),
        (changed(LAUNCHED, MASTER_PORT="70000"), r"^MASTER_PORT=70000 is no port"),
        (changed(SRUN, SLURM_PROCID="x"), r"^SLURM_PROCID='x' in the environment is not a number: start with srun"),
        (changed(SRUN, SLURM_PROCID="7"), r"^SLURM_PROCID=7 is not below SLURM_NTASKS=7"),
        (changed(SRUN, SLURM_STEP_NUM_TASKS="x"), r"^SLURM_STEP_NUM_TASKS='x' in the environment is not a number"),
        (
            changed(SRUN, SLURM_LOCALID=None),
            r"^SLURM_LOCALID is not set while SLURM_PROCID is: start with srun, or set",
        ),
        (
            changed(SRUN, SLURM_STEP_NODELIST=None, SLURM_JOB_NODELIST=None),
            r"^SLURM_STEP_NODELIST is not set, so the host of rank 0 is not known: set MASTER_ADDR to it",
        ),
        (changed(SRUN, SLURM_STEP_NODELIST="gpu[1-"), r"^SLURM_STEP_NODELIST='gpu\[1-' is no list .*: set MASTER_ADDR"),
        (
            changed(SRUN, SLURM_JOB_ID=None),
            r"^SLURM_JOB_ID is not set, so the ranks know no common port: set MAST",
        ),
        (changed(SRUN, MASTER_PORT="x"), r"^MASTER_PORT='x' in the environment is not a number"),
        (
            changed(OPEN_MPI, MASTER_ADDR=None, MASTER_PORT=None),
            r"^OMPI_COMM_WORLD_SIZE=4 ranks .*: set MASTER_ADDR \(the host of rank 0\) and MASTER_PORT \(a free port\)",
        ),
        (changed(HYDRA, MPI_LOCALRANKID=None), r"^PMI_SIZE=4 ranks .*: set LOCAL_RANK \(the rank on its host\)"),
        (changed(OPEN_MPI, OMPI_COMM_WORLD_RANK="4"), r"^OMPI_COMM_WORLD_RANK=4 is not below OMPI_COMM_WORLD_SIZE=4"),
    ],
)
def test_contradictory_variables_are_named_with_their_remedy(env: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        read_place(env)
    assert "\n" not in str(refusal.value)
    assert is_first(env)


def test_a_shell_in_one_task_of_several_is_no_rank() -> None:
    with pytest.raises(ValueError, match=r"SLURM_NTASKS=7, but this process runs in the terminal of one task .*srun"):
        read_place(SRUN, terminal=True)
    assert read_place(SBATCH, terminal=True) == ALONE


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("gpu7", ["gpu7"]),
        ("a,b", ["a", "b"]),
        ("node[01-04,7],gpu3", ["node01", "node02", "node03", "node04", "node7", "gpu3"]),
        ("node[008-011]", ["node008", "node009", "node010", "node011"]),
        ("r[1-2]n[1-2]-ib.local", ["r1n1-ib.local", "r1n2-ib.local", "r2n1-ib.local", "r2n2-ib.local"]),
        ("gpu-a-[1,3]", ["gpu-a-1", "gpu-a-3"]),
    ],
)
def test_node_lists(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["", ",", "a,", ",a", "n[1-", "n1]", "n[]", "n[a-b]", "n[1-2", "n[[1]]", "n[1,]"])
def test_what_is_no_node_list(text: str) -> None:
    with pytest.raises(ValueError, match="is no list of Slurm nodes"):
        expand_hosts(text)


RANK = """
import json, os, torch
from seam_dist.cluster.distributed import all_reduce_sum, init_world, shutdown
from seam_dist.config.schema import Config, RunConfig
cfg = Config(run=RunConfig(device="cpu", timeout_s=60, threads=1))
world = init_world(cfg)
again = init_world(cfg)
total = all_reduce_sum(torch.tensor([10 ** world.rank]), world)
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
print(json.dumps([world.rank, world.size, world.local_rank, world.local_size, int(total), world == again,
    [os.environ[name] for name in names]]))
shutdown(world)
"""


def clean() -> dict[str, str]:
    ours = ("SLURM_", "OMPI_", "PMI_", "MPI_", "MASTER_", "LOCAL_")
    return {n: v for n, v in os.environ.items() if not n.startswith(ours) and n not in ("RANK", "WORLD_SIZE")}


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_two_tasks_form_one_world(launcher: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A job whose port is free on this machine.
    srun = changed(
        SRUN,
        SLURM_JOB_ID="1",
        SLURM_NTASKS="2",
        SLURM_STEP_NUM_TASKS="2",
        SLURM_STEP_NODELIST="a-name-that-does-not-resolve",
        SLURM_STEP_TASKS_PER_NODE="2",
        SLURM_NODEID="0",
        MASTER_PORT=str(port),
    )
    mpirun = OPEN_MPI | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMPI_COMM_WORLD_SIZE": "2"}
    processes = []
    for rank in range(2):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        if launcher == "mpirun":
            own = {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}
        env = clean() | (srun if launcher == "srun" else mpirun) | own
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen([sys.executable, "-c", RANK], env=env, stdout=pipe, stderr=pipe, text=True))
    for rank, process in enumerate(processes):
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert json.loads(out.splitlines()[-1]) == [rank, 2, rank, 2, 11, True, [str(rank), "2", str(rank)]]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": ""}, "RANK='' in the environment is empty"),
        ({"RANK": "x"}, "RANK='x' in the environment is not a number"),
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"),
        (changed(LAUNCHED, MASTER_PORT="http"), "MASTER_PORT='http' in the environment is not a number"),
        (changed(SRUN, SLURM_JOB_ID=None), "SLURM_JOB_ID is not set"),
        (changed(OPEN_MPI, MASTER_ADDR=None), "set MASTER_ADDR (the host of rank 0)"),
    ],
)
def test_the_command_says_it_in_one_line(
    env: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "environ", clean() | env)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["source.kind=synthetic", "run.device=cpu", "--only", "shard"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("rank", ["0", "3"])
def test_only_the_first_task_prints_a_wrong_setting(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", clean() | SRUN | {"SLURM_PROCID": rank})
    assert cli.main(["source.kind=nothing"]) == 2
    assert ("source.kind='nothing'" in capsys.readouterr().err) == (rank == "0")


@pytest.mark.parametrize("env", [SRUN, OPEN_MPI, LAUNCHED], ids=["srun", "mpirun", "torchrun"])
def test_ranks_are_not_started_on_every_rank(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", clean() | env)
    with pytest.raises(ValueError, match=r"--ranks=2 in a process that is rank \d of \d already: leave --ranks out"):
        count_ranks("2")
    monkeypatch.setattr(os, "environ", clean() | {"RANK": "x"})
    assert count_ranks("2", "cpu") == 2


@pytest.mark.parametrize("ranks", ["0", "-1", "x", "", "1.5", "²", "٣", "00", "9" * 30, " 2", "all"])
def test_what_is_no_number_of_ranks(ranks: str) -> None:
    with pytest.raises(ValueError, match=r"is not a number of ranks: give auto or a number from 1"):
        count_ranks(ranks)


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(
        ValueError, match=r"--ranks=3 is more than the 2 GPU\(s\) .*: give auto or a number up to 2, or"
    ):
        count_ranks("3")
    assert (count_ranks("2"), count_ranks("auto"), count_ranks("3", "cpu")) == (2, 2, 3)


def test_the_sbatch_script_leaves_the_ranks_to_srun() -> None:
    text = (Path(__file__).parents[2] / "launch" / "slurm.sbatch").read_text()
    assert "exec srun --kill-on-bad-exit=1 python -m seam_dist.cli" in text
    line = next(line for line in text.splitlines() if line.startswith("unset "))
    assert set(place._EXPLICIT) <= set(line.split())


def test_the_place_is_read_without_torch() -> None:
    """`--help` and a wrong setting need not wait for torch."""
    tree = ast.parse(Path(place.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(str(module).startswith(("torch", "seam_dist")) for module in modules)
