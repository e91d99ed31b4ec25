"""The scripts beside the kernels: what the compile check refuses, the benchmark's table, plots, soft scores."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

KERNELS = Path(__file__).parents[2] / "kernels"


def script(name, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    spec = importlib.util.spec_from_file_location(f"kernels_{name}", KERNELS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


ROW = {
    "kernel": "pcm_forward", "target": "sm_90", "dtype": "bf16", "shape": "D192 C21", "config": "ROWS64",
    "shared_kib": "80.0", "registers": "78", "spilled_bytes": "0", "matrix": "wgmma.mma_async", "fits": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": "mma.sync"}, "matrix instructions mma.sync, expected wgmma.mma_async"),
        ({"matrix": "", "dtype": "fp32"}, "matrix instructions none"),
        ({"spilled_bytes": "65"}, "65 bytes spilled"),
        ({"fits": False}, "no configuration fits"),
    ],
)
def test_compile_check_refuses(change, message, monkeypatch):
    pytest.importorskip("triton")
    problems = script("compile_all", monkeypatch).problems
    assert problems([ROW]) == []
    (refused,) = problems([ROW | change])
    assert message in refused


def test_compile_check_lets_misfits_pass_beside_one_that_fits(monkeypatch):
    pytest.importorskip("triton")
    compile_all = script("compile_all", monkeypatch)
    assert compile_all.problems([ROW, ROW | {"fits": False, "spilled_bytes": "900", "matrix": ""}]) == []
    assert compile_all.problems([ROW | {"dtype": "fp32 full", "spilled_bytes": "500", "matrix": "mma.sync"}]) == []


def test_every_target_has_tiles_for_every_operand():
    pytest.importorskip("triton")
    from seam_kernels import pcm_kernels
    from seam_kernels.tuning import family

    assert [family(arch) for arch in (80, 89, 90, 100, 103, 120, "gfx942")] == [
        *("mma", "mma", "wgmma", "wgmma", "wgmma", "mma", "amd")
    ]
    for configs in (pcm_kernels.FORWARD_CONFIGS, pcm_kernels.BACKWARD_CONFIGS):
        assert set(configs) == {"wgmma", "mma", "amd"}
        for operands in configs.values():
            assert set(operands) == {"16", "tf32", "x3"}
            for config in [config for entries in operands.values() for config in entries]:
                assert pcm_kernels._PAD % config.kwargs["ROWS"] == pcm_kernels._PAD % config.kwargs["COLUMNS"] == 0


def test_ratios_compare_with_the_published_rows_of_the_same_shape(tmp_path, monkeypatch):
    bench = script("bench", monkeypatch)
    table = tmp_path / "rows.csv"
    lines = [",".join(bench.FIELDS)]
    for impl, direction, ms, mib in [
        ("published", "forward", 100, 50), ("torch", "forward", 999, 5), ("published", "backward", 300, 80),
        ("torch", "backward", 30, 8), ("torch", "forward", 10, 5),
    ]:  # fmt: skip
        lines.append(f"pcm,{impl},{direction},float32,tiny B1,256,{ms},1,1,3,{mib},0.5,cpu,2,3,abc")
    table.write_text("\n".join(lines))
    text = bench.ratios(table).splitlines()
    assert "| pcm | tiny B1 | forward | torch | 10 | 10 | 5 | 10 | 0.5 |" in text  # measured twice: the last counts
    assert "| pcm | tiny B1 | both | torch | 40 | 10 | 8 | 10 |  |" in text


def test_soft_scores_find_the_classes_of_the_mask(monkeypatch):
    scores = script("crf_curve", monkeypatch).soft_scores
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[5:35, 30:55] = 7
    prob = scores(mask, (20, 30))
    assert prob.shape == (1, 2, 20, 30)
    assert prob.min() >= 0
    assert prob.max() <= 1
    assert (prob.argmax(dim=1)[0] == (mask[::2, ::2] > 0)).double().mean() > 0.8


@pytest.mark.parametrize("name", ["bench", "crf_curve"])
def test_plot_without_matplotlib_names_the_extra(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"--plot needs matplotlib.*pip install 'seam-dist\[bench\]'"):
        script(name, monkeypatch).plot(tmp_path / "rows.csv", tmp_path / "rows.png")


def test_bench_plots_its_rows(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    bench = script("bench", monkeypatch)
    table = tmp_path / "rows.csv"
    row = "pcm,torch,forward,float32,tiny B1,256,10,1,1,3,5,0.5,cpu,2,3,abc"
    table.write_text("\n".join([",".join(bench.FIELDS), row]))
    bench.plot(table, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_tables_of_others_are_refused_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    pytest.importorskip("triton")
    table = tmp_path / "results.csv"
    table.write_text("patient,age\n1,70\n")
    for name in ("bench", "crf_curve", "compile_all"):
        module = script(name, monkeypatch)
        monkeypatch.setattr(
            sys, "argv", [name, "--csv", str(table), *(["--plot", "x.png"] if name == "crf_curve" else [])]
        )
        with pytest.raises(SystemExit) as stop:
            module.main()
        assert stop.value.code == 2
        assert f"{table} is no table of this script: expected the columns" in capsys.readouterr().err
    assert table.read_text() == "patient,age\n1,70\n"


def test_rows_are_added_to_and_replaced_in_own_tables(monkeypatch, tmp_path):
    files = script("result_files", monkeypatch)
    table = tmp_path / "new" / "rows.csv"
    for _ in range(2):
        files.add_rows(table, ("a", "b"), [{"a": 1, "b": 2}])
    assert table.read_text().split() == ["a,b", "1,2", "1,2"]
    files.replace_rows(table, ("a", "b"), [{"a": 3, "b": 4}])
    assert table.read_text().split() == ["a,b", "3,4"]
    for write in (files.add_rows, files.replace_rows):
        with pytest.raises(ValueError, match="expected the columns a,c, found 'a,b': give another --csv"):
            write(table, ("a", "c"), [])
    with pytest.raises(ValueError, match="is no file"):
        files.check_table(tmp_path, ("a",))


def test_plots_replace_plots_of_the_scripts_alone(monkeypatch, tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    files = script("result_files", monkeypatch)
    for _ in range(2):
        files.save_plot(figure, tmp_path / "own.png")
    for name in ("cpu.png", "crf_curve.png"):
        files.check_plot(KERNELS / "results" / name)
    figure.savefig(tmp_path / "others.png")
    with pytest.raises(ValueError, match=r"others\.png is there and is no plot of these scripts: move it away"):
        files.save_plot(figure, tmp_path / "others.png")
    with pytest.raises(ValueError, match=r"suffix '\.svg', expected \.png"):
        files.check_plot(tmp_path / "new.svg")


def test_gpu_check_refuses_a_folder_of_others(tmp_path):
    (tmp_path / "machine.txt").write_text("mine")
    command = ["bash", str(KERNELS.parent / "launch" / "gpu_check.sh"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "holds other files, which would be overwritten: give a new or an empty folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["machine.txt"]
    assert (tmp_path / "machine.txt").read_text() == "mine"
