"""Machines: variables of launchers, paths, values of settings and empty tensors, an input of each sort.

More of them are in tests/cluster/test_place.py, tests/config and tests/kernels/test_autocast.py, packages in
cases_preflight_files.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from case import Case, Outcome
from seam_kernels import dense_crf

from seam_dist.cluster.launcher import count_ranks
from seam_dist.cluster.place import read_place
from seam_dist.config.load import load_config
from seam_dist.config.paths import user_path

SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
SRUN |= {"SLURM_NODEID": "1", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "gpu[08-09]"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
ALONE = (0, 1, 0, 1, "")
BATCH_STEP = {"SLURM_STEP_ID": "4294967291", "SLURM_PROCID": "0"}


def place(*variables: Mapping[str, str]) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        found = read_place({name: value for part in variables for name, value in part.items()})
        return Outcome((found.rank, found.size, found.local_rank, found.local_size, found.master_addr))

    return run


def path(text: str, *, make: str | None = None) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        if make is not None:
            (folder / make).mkdir(parents=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", "/home/me")
            return Outcome(str(user_path(text)))

    return run


def setting(override: str) -> Callable[[Path], Outcome]:
    return lambda folder: Outcome(load_config(None, [override]))


def ranks(text: str) -> Callable[[Path], Outcome]:
    return lambda folder: Outcome(count_ranks(text))


def crf(*shape: int, autocast: torch.dtype | None = None) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            out = dense_crf(torch.full(shape, 0.5), torch.zeros(shape[0], 3, *shape[2:]), impl="torch")
        return Outcome((tuple(out.shape), out.dtype, bool((out == 0.5).all())))

    return run


CASES = [
    Case("launcher", "no variables at all", place({}), works=ALONE),
    Case("launcher", "srun without RANK", place(SRUN), works=(3, 4, 1, 2, "gpu08")),
    Case("launcher", "batch step of sbatch", place(SRUN, BATCH_STEP), works=ALONE),
    Case("launcher", "torchrun under srun", place(SRUN, TORCHRUN), works=(1, 2, 1, None, "a")),
    Case("launcher", "mpirun without an address", place(MPI), refused=r"set MASTER_ADDR .* MASTER_PORT"),
    Case("launcher", "RANK is empty", place({"RANK": ""}), refused=r"^RANK='' .* is empty.*unset RANK"),
    Case("launcher", "RANK is a word", place(TORCHRUN, {"RANK": "x"}), refused=r"^RANK='x' .*not a number"),
    Case("launcher", "WORLD_SIZE alone", place({"WORLD_SIZE": "8"}), refused=r"^RANK, LOCAL_RANK, .*not set"),
    Case("--ranks", "zero", ranks("0"), refused=r"^--ranks=0 is not a number of ranks: give auto or"),
    Case("--ranks", "negative", ranks("-1"), refused=r"^--ranks=-1 is not a number of ranks"),
    Case("--ranks", "a digit that int() does not take", ranks("²"), refused=r"^--ranks=² is not"),
    Case("path", "home folder", path("~/data"), works="/home/me/data"),
    Case("path", "variable in quotes", path("$SCRATCH/x"), refused=r"holds \$SCRATCH, which is not expanded"),
    Case("path", "folder with a dollar that exists", path("$x/new", make="$x"), works="$x/new"),
    Case("path", "object storage", path("s3://b/x"), refused=r"'s3://b/x' is remote, .* not supported yet"),
    Case("path", "Windows", path("C:\\voc\\2012"), refused=r"is a path of Windows: write it with /"),
    Case("path", "unknown user", path("~nobody9/x"), refused=r"\(~nobody9\) that this system does not know"),
    Case("setting", "variable that was not set", setting("data.shards="), refused=r"^data.shards= has no value: give"),
    Case("setting", "object storage", setting("model.pretrained=gs://b/w"), refused=r"\(command line\): .*is remote"),
    Case("setting", "NaN in a list", setting("infer_cam.scales=[1,.nan]"), refused=r"entry 2 \(nan\): expected a"),
    Case("setting", "decimal comma", setting("train_seam.schedule.lr=0,1"), refused=r"a number with a point, 0.1$"),
    Case("setting", "list without brackets", setting("data.splits=a,b"), refused=r"a list: write \[a,b\]$"),
    Case("setting", "null", setting("run.seed=null"), refused=r"^run.seed=null .*a whole number, not null"),
    *(
        Case("dense_crf", f"under {dtype}", crf(1, 2, 3, 4, autocast=dtype), works=((1, 2, 3, 4), torch.float32, True))
        for dtype in (torch.bfloat16, torch.float16)
    ),
    *(
        Case("dense_crf", fault, crf(*shape), works=(shape, torch.float32, True))
        for fault, shape in (("no images", (0, 2, 3, 4)), ("no rows", (1, 2, 0, 4)), ("no columns", (1, 2, 3, 0)))
    ),
]
