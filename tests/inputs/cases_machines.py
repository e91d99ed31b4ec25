"""Machines: variables of launchers, paths, optional packages and values of settings, as people have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from case import Case, Outcome
from kit import hide_package, plant_module
from seam_kernels import dense_crf

from seam_dist.artifacts.layout import read_run_config
from seam_dist.cluster.launcher import count_ranks
from seam_dist.cluster.place import expand_hosts, read_place
from seam_dist.config.load import load_config
from seam_dist.config.paths import user_path
from seam_dist.config.schema import CrfConfig
from seam_dist.inference.crf_pool import check_crf

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


def place(*variables: Mapping[str, str | None]) -> Callable[[Path], Outcome]:
    env = {name: value for part in variables for name, value in part.items()}

    def run(folder: Path) -> Outcome:
        found = read_place({name: value for name, value in env.items() if value is not None})
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


def setting(*overrides: str, get: Callable[[Any], Any] = lambda cfg: None) -> Callable[[Path], Outcome]:
    return lambda folder: Outcome(get(load_config(None, overrides).config))


def settings_file(text: str) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        (folder / "a.yaml").write_text(text)
        return Outcome(load_config("a.yaml").config)

    return run


def package(text: str | None) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        with pytest.MonkeyPatch.context() as patch:
            if text is None:
                hide_package(patch, "pydensecrf")
            else:
                plant_module(patch, folder, "pydensecrf.densecrf", text)
            return Outcome(check_crf(CrfConfig()))

    return run


def ranks(text: str) -> Callable[[Path], Outcome]:
    return lambda folder: Outcome(count_ranks(text))


def crf(*shape: int, autocast: torch.dtype | None = None) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            out = dense_crf(torch.full(shape, 0.5), torch.zeros(shape[0], 3, *shape[2:]), impl="torch")
        return Outcome((tuple(out.shape), out.dtype, bool((out == 0.5).all())))

    return run


def run_folder(name: str, text: str | None) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            target.mkdir()
        else:
            target.write_text(text)
        return Outcome(read_run_config(folder / name.split(os.sep)[0]))

    return run


_RANKS = [
    Case("launcher", "no variables at all", place({}), works=(0, 1, 0, 1, "")),
    Case("launcher", "srun without RANK", place(SRUN), works=(3, 4, 1, 2, "gpu08")),
    Case(
        "launcher",
        "srun with a MASTER_ADDR of the user",
        place(SRUN, {"MASTER_ADDR": "10.1.1.1"}),
        works=(3, 4, 1, 2, "10.1.1.1"),
    ),
    Case(
        "launcher",
        "script of sbatch",
        place(SRUN, {"SLURM_STEP_ID": None, "SLURM_PROCID": "0"}),
        works=(0, 1, 0, 1, ""),
    ),
    Case(
        "launcher",
        "batch step of sbatch",
        place(SRUN, {"SLURM_STEP_ID": "4294967291", "SLURM_PROCID": "0"}),
        works=(0, 1, 0, 1, ""),
    ),
    Case(
        "launcher",
        "shell of salloc",
        place(SRUN, {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}),
        works=(0, 1, 0, 1, ""),
    ),
    Case("launcher", "srun -n 1", place(SRUN, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}), works=(0, 1, 0, 1, "")),
    Case(
        "launcher",
        "mpirun with an address",
        place(MPI, {"MASTER_ADDR": "a", "MASTER_PORT": "1234"}),
        works=(1, 2, 1, None, "a"),
    ),
    Case("launcher", "torchrun under srun", place(SRUN, TORCHRUN), works=(1, 2, 1, None, "a")),
    Case("launcher", "mpirun without an address", place(MPI), refused=r"set MASTER_ADDR .* MASTER_PORT"),
    Case("launcher", "RANK is empty", place({"RANK": ""}), refused=r"^RANK='' .* is empty.*unset RANK"),
    Case("launcher", "RANK is a word", place(TORCHRUN, {"RANK": "x"}), refused=r"^RANK='x' .*not a number"),
    Case("launcher", "RANK too large", place(TORCHRUN, {"RANK": "2"}), refused=r"^RANK=2 is not below"),
    Case("launcher", "WORLD_SIZE alone", place({"WORLD_SIZE": "8"}), refused=r"^RANK, LOCAL_RANK, .*not set"),
    Case(
        "launcher",
        "LOCAL_RANK missing",
        place(TORCHRUN, {"LOCAL_RANK": None}),
        refused=r"^LOCAL_RANK not set .*set it as well",
    ),
    Case(
        "launcher",
        "MASTER_PORT is a word",
        place(TORCHRUN, {"MASTER_PORT": "http"}),
        refused=r"^MASTER_PORT='http' .*set it to a free port",
    ),
    Case(
        "launcher",
        "SLURM_PROCID is a word",
        place(SRUN, {"SLURM_PROCID": "a"}),
        refused=r"^SLURM_PROCID='a' .*not a number",
    ),
    Case(
        "launcher",
        "node list cut off",
        place(SRUN, {"SLURM_STEP_NODELIST": "gpu[08"}),
        refused=r"^SLURM_STEP_NODELIST='gpu\[08' is no list",
    ),
    Case(
        "node list",
        "ranges with zeros, and a plain name",
        lambda folder: Outcome(expand_hosts("n[08-10,2],login")),
        works=["n08", "n09", "n10", "n2", "login"],
    ),
    Case("--ranks", "zero", ranks("0"), refused=r"^--ranks=0 is not a number of ranks: give auto or"),
    Case("--ranks", "negative", ranks("-1"), refused=r"^--ranks=-1 is not a number of ranks"),
    Case("--ranks", "a digit that int() does not take", ranks("²"), refused=r"^--ranks=² is not"),
]

_PATHS = [
    Case("path", "home folder", path("~/data"), works="/home/me/data"),
    Case("path", "variable in quotes", path("$SCRATCH/x"), refused=r"holds \$SCRATCH, which is not expanded"),
    Case("path", "folder with a dollar that exists", path("$x/new", make="$x"), works="$x/new"),
    Case("path", "object storage", path("s3://b/x"), refused=r"'s3://b/x' is remote, .* not supported yet"),
    Case("path", "URL of a file", path("file:///data"), refused=r"is a URL: write the path alone"),
    Case("path", "Windows", path("C:\\voc\\2012"), refused=r"is a path of Windows: write it with /"),
    Case("path", "empty", path(""), refused=r"is empty: give a path"),
    Case("path", "space at the end", path("data "), refused=r"begins or ends with a space"),
    Case("path", "space at the end that exists", path("data ", make="data "), works="data "),
    Case("path", "unknown user", path("~nobody9/x"), refused=r"\(~nobody9\) that this system does not know"),
    Case("path", "line break", path("da\nta"), refused=r"holds a line break"),
    Case(
        "setting",
        "home folder",
        lambda folder: setting(
            f"source.root={Path.home()}", "data.shards=~", get=lambda c: c.data.shards == c.source.root
        )(folder),
        works=True,
    ),
    Case(
        "setting",
        "variable of the shell that was not set",
        setting("data.shards="),
        refused=r"^data.shards= has no value: give one, or null",
    ),
    Case(
        "setting",
        "weights in object storage",
        setting("model.pretrained=gs://b/w.pth"),
        refused=r"^model.pretrained='gs://b/w.pth' \(command line\): .*is remote",
    ),
]

_VALUES = [
    Case(
        "setting",
        "not a number among scales",
        setting("infer_cam.scales=[1,.nan]"),
        refused=r"^infer_cam.scales=\[1, nan\] \(command line\): entry 2 \(nan\): expected a finite number$",
    ),
    Case(
        "setting",
        "infinity",
        setting("train_seam.schedule.lr=.inf"),
        refused=r"^train_seam.schedule.lr='.inf' \(command line\): expected a",
    ),
    Case(
        "setting",
        "decimal comma",
        setting("train_seam.schedule.lr=0,1"),
        refused=r"expected a number with a point, 0.1$",
    ),
    Case(
        "setting",
        "choice in another case",
        setting("source.kind=VOC"),
        refused=r"^source.kind='VOC' .*expected one of voc, .*did you mean voc\?\)$",
    ),
    Case("setting", "list without brackets", setting("data.splits=a,b"), refused=r"a list: write \[a,b\]$"),
    Case(
        "setting",
        "too many entries",
        setting("train_seg.scale=[1,2,3]"),
        refused=r"^train_seg.scale=\[1, 2, 3\] .*: expected 2 entries, not 3$",
    ),
    Case("setting", "null", setting("run.seed=null"), refused=r"^run.seed=null .*a whole number, not null"),
    Case(
        "setting",
        "words for true of YAML",
        setting("run.overwrite=yes", "infer_cam.flip=off", get=lambda c: (c.run.overwrite, c.infer_cam.flip)),
        works=(True, False),
    ),
    Case(
        "settings file",
        "yes where a number is expected",
        settings_file("run:\n  seed: yes\n"),
        refused=r"^run.seed=true \(a.yaml:2\): expected a number, not true or false$",
    ),
    Case(
        "settings file",
        "name that is a number",
        settings_file("run: {name: 007}\n"),
        refused=r"^run.name=7 \(a.yaml:1\): expected text: put it in quotes, '7'$",
    ),
    Case("run folder", "a file", run_folder("run", ""), refused=r"run is a file, not the folder of a run"),
    Case("run folder", "empty", run_folder("run", None), refused=r"holds no stage of a run"),
    Case(
        "run folder",
        "config.yaml cut off",
        run_folder("run/shard/config.yaml", "run: {name"),
        refused=r"run/shard/config.yaml.*(cannot be read|not valid YAML)",
    ),
]

_PACKAGES = [
    Case("package", "absent", package(None), refused=r"pydensecrf, which is not installed: pip install '"),
    Case(
        "package",
        "built for another numpy",
        package("raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')"),
        refused=r"^crf.impl=lattice needs .* pydensecrf, which is installed but broken .*another version of numpy",
    ),
    Case(
        "package",
        "shared library missing",
        package("raise ImportError('libgomp.so.1: cannot open shared object file')"),
        refused=r"installed but broken \(ImportError: libgomp.so.1: cannot open .*pip install --no-cache-dir",
    ),
    Case("package", "whole", package(""), works=None),
]

_CRF = [
    Case("dense_crf", f"autocast to {name}", crf(1, 2, 3, 4, autocast=dtype), works=((1, 2, 3, 4), torch.float32, True))
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16))
]
_CRF += [
    Case("dense_crf", fault, crf(*shape), works=(shape, torch.float32, True))
    for fault, shape in (("no images", (0, 2, 3, 4)), ("no rows", (1, 2, 0, 4)), ("no columns", (1, 2, 3, 0)))
]

CASES = [*_RANKS, *_PATHS, *_VALUES, *_PACKAGES, *_CRF]
