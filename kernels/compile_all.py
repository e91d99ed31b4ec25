"""Compile every Triton kernel and configuration ahead of time, on a machine without a GPU, and print what it needs.

    python kernels/compile_all.py [--targets sm_80 sm_90 sm_100 gfx942] [--quick] [--only pcm] [--csv FILE]

A row: kernel, target, data type, shape, configuration, shared memory (KiB), registers, spilled bytes (stack) of a
thread, and the matrix instructions found in the assembly. Exit code 1 when a kernel does not compile, a product of
16-bit operands has not the target's own matrix instruction (a product of float32: any), no configuration of a kernel
fits in the target's memories, or one that fits spills more than 64 bytes (float32 in full: 512).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
if __package__ in (None, "") and str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

import triton
from result_files import check_options, replace_rows
from seam_kernels import crf_kernels, edges_kernels, pcm_kernels, walk_kernels
from seam_kernels.tuning import family
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory of a program in KiB.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163),
    "sm_90": (GPUTarget("cuda", 90, 32), 227),
    "sm_100": (GPUTarget("cuda", 100, 32), 227),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64),
}
MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma)")
OWN_MATRIX = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "v_mfma"}
TENSOR_MEMORY_COLUMNS = 512
SPILL_LIMIT, FULL_SPILL_LIMIT = 64, 512
FULL = "fp32 full"
FIELDS = ("kernel", "target", "dtype", "shape", "config", "shared_kib", "registers", "spilled_bytes", "matrix", "fits")


@dataclass(frozen=True)
class Job:
    """One kernel with one set of argument types and constants."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    dtype: str
    shape: str
    warps: int = 4
    stages: int = 1
    has_product: bool = False
    tile: dict[str, int] = field(default_factory=dict)


def _configured(configs: list[Any], quick: bool) -> Iterator[tuple[dict[str, int], int, int]]:
    for config in configs[-1:] if quick else configs:
        yield config.kwargs, config.num_warps, config.num_stages


def pcm_jobs(quick: bool, family: str) -> Iterator[Job]:
    """Yield the kernels of pcm_attention at D = 192, C = 21 and 81."""
    full = "ieee" if family == "amd" else "tf32x3"
    operands = [("bf16", "16", "tf32"), ("fp16", "16", "tf32"), ("fp32", "tf32", "tf32"), (FULL, "x3", full)]
    d0, d1 = pcm_kernels.pieces(192)
    for dtype, operand, precision in operands[:1] if quick else operands:
        element = dtype.split()[0]
        if dtype != FULL:
            unit = dict.fromkeys(("feature_ptr", "unit_ptr"), f"*{element}") | {"norm_ptr": "*fp32", "eps": "fp32"}
            sizes = {"D_PADDED": d0 + d1, "DEPTH": 16, "BLOCK": 64}
            yield Job("pcm_unit", pcm_kernels._unit_kernel, unit, sizes, dtype, "D192")
        for classes in (21,) if quick else (21, 81):
            shape = f"D192 C{classes}"
            v0, v1 = pcm_kernels.pieces(classes + 1)
            forward = dict.fromkeys(("unit_ptr", "rows_ptr", "out_ptr"), f"*{element}")
            forward |= {"colsum_ptr": "*fp32", "eps": "fp32"}
            sizes = {"D0": d0, "D1": d1, "V0": v0, "V1": v1, "NORMALIZE": True, "PRECISION": precision}
            for tile, warps, stages in _configured(pcm_kernels.FORWARD_CONFIGS[family][operand], quick):
                yield Job(
                    "pcm_forward", pcm_kernels._pcm_fwd_kernel, forward, sizes, dtype, shape, warps, stages, True, tile
                )
            w0, w1 = pcm_kernels.pieces(2 * (classes + 1))
            backward = dict.fromkeys(("unit_ptr", "left_ptr", "right_ptr", "out_ptr"), f"*{element}")
            backward |= {"norm_ptr": "*fp32", "scale_ptr": "*fp32", "eps": "fp32"}
            sizes = {"D0": d0, "D1": d1, "W0": w0, "W1": w1, "PRECISION": precision}
            for tile, warps, stages in _configured(pcm_kernels.BACKWARD_CONFIGS[family][operand], quick):
                yield Job(
                    "pcm_backward", pcm_kernels._pcm_bwd_kernel, backward, sizes, dtype, shape, warps, stages, True,
                    tile,
                )  # fmt: skip


def edge_jobs(quick: bool, _family: str) -> Iterator[Job]:
    """Yield the kernels of edge_affinity."""
    for dtype in ("bf16",) if quick else ("bf16", "fp16", "fp32"):
        forward = {"feature_ptr": f"*{dtype}", "offsets_ptr": "*i32", "out_ptr": f"*{dtype}"}
        for tile, warps, stages in _configured(edges_kernels.FORWARD_CONFIGS, quick):
            yield Job("edge_forward", edges_kernels._edge_fwd_kernel, forward, {}, dtype, "", warps, stages, tile=tile)
        backward = forward | {"grad_ptr": f"*{dtype}", "affinity_ptr": f"*{dtype}"}
        for tile, warps, stages in _configured(edges_kernels.BACKWARD_CONFIGS, quick):
            yield Job(
                "edge_backward", edges_kernels._edge_bwd_kernel, backward, {}, dtype, "", warps, stages, tile=tile
            )


def walk_jobs(quick: bool, _family: str) -> Iterator[Job]:
    """Yield the kernels of random_walk with every combination of flags in use."""
    tables = {"offsets_ptr": "*i32", "images_ptr": "*i64", "table_ptr": "*i32", "counts_ptr": "*i32"}
    block = {"BLOCK": walk_kernels.PIXEL_BLOCK}
    for dtype in ("bf16",) if quick else ("bf16", "fp16", "fp32"):
        kept = "fp32" if dtype == "fp32" else "fp16"
        base = tables | {"affinity_ptr": f"*{dtype}", "weight_ptr": f"*{kept}", "colsum_ptr": "*fp32", "beta": "fp32"}
        yield Job("walk_weights", walk_kernels._weights_kernel, base, block, dtype, "")
        final = tables | {"affinity_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "beta": "fp32"}
        final |= {"dweight_ptr": "*fp32", "lost_ptr": "*fp32"}
        yield Job("walk_affinity_gradient", walk_kernels._affinity_gradient_kernel, final, block, dtype, "")
        names = ("slots_ptr", "colsum_ptr", "base_ptr", "coefficients_ptr", "out_ptr")
        steps = tables | dict.fromkeys(names, "*fp32") | {"weight_ptr": f"*{kept}", "alpha": "fp32"}
        flags = [(False, False, False), (True, False, True), (True, True, False), (True, False, False)]
        for subtract, add_base, summed in flags[:1] if quick else flags:
            for classes in (4,) if quick else (1, 2, 4):
                constants = {"SUBTRACT": subtract, "ADD_BASE": add_base, "SUM": summed, "CLASSES": classes}
                constants |= {"BLOCK": walk_kernels.STEP_BLOCK}
                yield Job(
                    "walk_steps", walk_kernels._steps_kernel, steps, constants, dtype,
                    f"classes{classes} flags{subtract:d}{add_base:d}{summed:d}", walk_kernels.STEP_WARPS,
                )  # fmt: skip
    pairs = tables | dict.fromkeys(("before_ptr", "after_ptr", "pull_ptr", "dweight_ptr", "lost_ptr"), "*fp32")
    yield Job(
        "walk_pairs",
        walk_kernels._pairs_kernel,
        pairs,
        block | {"PLANES": walk_kernels.PLANES_OF_A_PROGRAM},
        "fp32",
        "",
    )


def crf_jobs(quick: bool, _family: str) -> Iterator[Job]:
    """Yield the bilateral sum for few and many labels."""
    names = ("target_half_ptr", "source_half_ptr", "out_ptr")
    types = dict.fromkeys(("targets_ptr", "sources_ptr", "values_ptr"), "*fp16") | dict.fromkeys(names, "*fp32")
    for padded in (32,) if quick else (16, 32, 128):
        for tile, warps, stages in _configured(crf_kernels.CONFIGS, quick):
            yield Job(
                "crf_gaussian_sum", crf_kernels._gaussian_sum_kernel, types, {"MP": padded}, "fp16", f"M{padded}",
                warps, stages, True, tile,
            )  # fmt: skip


JOBS = {"pcm": pcm_jobs, "edges": edge_jobs, "walk": walk_jobs, "crf": crf_jobs}


def compiled(job: Job, target: GPUTarget) -> Any:
    """Return the compiled kernel: pointers aligned to 16 bytes, padded sizes to 16, the rest 32-bit integers."""
    constants = job.constants | job.tile
    signature, attributes = {}, {}
    for index, name in enumerate(job.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = job.types.get(name, "i32")
        if name.endswith("_ptr") or name.startswith("padded_"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(job.kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options={"num_warps": job.warps, "num_stages": job.stages})


def resources(binary: Any, target: GPUTarget) -> tuple[str, str]:
    """Return registers and spilled bytes of a thread, as far as the binary says."""
    if target.backend == "hip":
        text = binary.asm["amdgcn"]
        counts = [re.search(rf"\.{name}:\s+(\d+)", text) for name in ("vgpr_count", "vgpr_spill_count")]
        registers, spilled = (int(count.group(1)) if count else -1 for count in counts)
        return str(registers), str(4 * spilled)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    usage = re.search(r"REG:(\d+)\s+STACK:(\d+)", text)
    return usage.groups() if usage else ("?", "?")  # type: ignore[return-value]


def row(job: Job, name: str) -> dict[str, Any]:
    """Compile a job for a target and return its row."""
    target, limit = TARGETS[name]
    binary = compiled(job, target)
    registers, spilled = resources(binary, target)
    text = binary.asm["amdgcn"] if target.backend == "hip" else binary.asm["ptx"]
    matrix = "+".join(sorted(set(MATRIX.findall(text))))
    shared = binary.metadata.shared / 1024
    # Beyond the tensor memory Triton emits a trap and refuses to launch.
    fits = shared <= limit and (getattr(binary.metadata, "tmem_size", 0) or 0) <= TENSOR_MEMORY_COLUMNS
    tile = " ".join(f"{key}{value}" for key, value in job.tile.items()) + f" warps{job.warps} stages{job.stages}"
    values = (job.name, name, job.dtype, job.shape, tile.strip(), f"{shared:.1f}", registers, spilled, matrix, fits)
    return dict(zip(FIELDS, values, strict=True))


def problems(rows: list[dict[str, Any]]) -> list[str]:
    """Return why rows are refused; see the module."""
    refused = []
    groups: dict[tuple[str, ...], list[bool]] = {}
    for entry in rows:
        label = tuple(str(entry[key]) for key in ("kernel", "target", "dtype", "shape"))
        groups.setdefault(label, []).append(bool(entry["fits"]))
        name = f"{' '.join(label)} {entry['config']}"
        if entry["kernel"] in ("pcm_forward", "pcm_backward", "crf_gaussian_sum") and entry["fits"]:
            own = OWN_MATRIX[entry["target"]]
            wrong = not entry["matrix"] if entry["dtype"].startswith("fp32") else own not in entry["matrix"]
            if wrong:
                refused.append(f"{name}: matrix instructions {entry['matrix'] or 'none'}, expected {own}")
        spilled = int(entry["spilled_bytes"]) if entry["spilled_bytes"].isdigit() else 0
        if entry["fits"] and spilled > (FULL_SPILL_LIMIT if entry["dtype"] == FULL else SPILL_LIMIT):
            refused.append(f"{name}: {spilled} bytes spilled")
    refused += [
        f"{' '.join(label)}: no configuration fits in shared memory" for label, fit in groups.items() if not any(fit)
    ]
    return refused


def main() -> int:
    """Compile, print, write the CSV; return 1 on a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--quick", action="store_true", help="one type, one shape, the last configuration")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    check_options(parser, args.csv, None, FIELDS)
    rows = []
    for target in args.targets:
        for op in args.only:
            for job in JOBS[op](args.quick, family(TARGETS[target][0].arch)):
                rows.append(row(job, target))
                print("  ".join(str(value) for value in rows[-1].values()), flush=True)
    if args.csv:
        replace_rows(args.csv, FIELDS, rows)
    refused = problems(rows)
    for problem in refused:
        print(problem, file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    raise SystemExit(main())
