"""Every command and snippet of the READMEs.

Python snippets are run. Commands that need nothing are run; those of blocks marked ```bash needs=... (data, a run, a
cluster), of scripts and of benchmarks are checked: files, options, names of configs and settings.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import kit
import pytest
import stage_kit
from PIL import Image

from seam_dist import cli
from seam_dist.config.load import load_config
from seam_dist.models import build_deeplab, build_seam, deeplab_architecture, seam_architecture
from seam_dist.stages import shard

ROOT = Path(__file__).parent.parent
READMES = (
    *("README.md", "configs/README.md", "configs/PARITY.md", "configs/presets/small.md", "launch/README.md"),
    *("seam_dist/README.md", "tests/README.md", "kernels/README.md", "kernels/results/README.md"),
)
PROGRAMS = ("seam-dist", "bash", "python", "deepspeed", "torchrun", "sbatch", "pip", "pytest")
FENCE = re.compile(r"^```(\w*)(?: needs=(\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    """A command line of a README; `needs` is what a reader must have to run it."""

    readme: str
    line: str
    needs: str


def commands() -> Iterator[Command]:
    for readme in READMES:
        text = (ROOT / readme).read_text()
        for language, needs, body in FENCE.findall(text):
            if language == "bash":
                for line in body.replace("\\\n", " ").splitlines():
                    if line.strip():
                        yield Command(readme, line.split(" #")[0].strip(), needs)
        for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
            argv = code.split()
            while argv and re.fullmatch(r"[A-Z_]+=\S*", argv[0]):
                argv.pop(0)
            if len(argv) > 1 and argv[0] in PROGRAMS and "..." not in code and "[" not in code:
                yield Command(readme, " ".join(argv), "reading")


def snippets() -> Iterator[tuple[str, str]]:
    for readme in READMES:
        for language, _, body in FENCE.findall((ROOT / readme).read_text()):
            if language == "python":
                yield readme, body


def check_seam_dist(argv: list[str], folder: Path) -> None:
    """Check the arguments of seam-dist: a command's options, or stages, config, preset and settings of a run."""
    if argv and argv[0] in ("status", "predict"):
        from seam_dist.commands import predict, status

        parser = {"status": status, "predict": predict}[argv[0]].build_parser()
        parser.parse_args([word for word in argv[1:] if word not in ("|", "head")])
        return
    parser = cli.build_parser()
    if argv and argv[0] == "check":
        from seam_dist.commands import check

        parser, argv = check.build_parser(), argv[1:]
    arguments = parser.parse_intermixed_args([word for word in argv if word != "RUN-OPTIONS"])
    if arguments.config is not None and str(arguments.config).endswith(".yaml"):
        path = folder / arguments.config
        path.write_text((ROOT / "configs" / path.name).read_text())
        arguments.config = str(path)
    load_config(arguments.config, arguments.settings, arguments.preset)


def check_script(argv: list[str], folder: Path) -> None:
    """Check that a shell script exists and knows its options; what it passes on to seam-dist is checked as such."""
    path = ROOT / argv[0]
    text = path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)
    if path.name in ("demo.sh", "pipeline.sh", "ablation.sh", "slurm.sbatch"):
        check_seam_dist(argv[1:], folder)
        return
    for word in argv[1:]:
        if word.startswith("--"):
            assert word in text, f"{path.name} does not know {word}"
        elif word.startswith("tests/"):
            assert (ROOT / word.split("::")[0]).exists(), word


def check_python(argv: list[str]) -> None:
    """Check that a module or script prints its help and knows the options."""
    start = argv[:2] if argv[0] == "-m" else argv[:1]
    if start == ["-m", "pytest"]:
        return
    result = subprocess.run([sys.executable, *start, "--help"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    for word in argv:
        if word.startswith("--"):
            assert word in result.stdout, f"{' '.join(start)} has no option {word}"


def check(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *argv = shlex.split(command.line)
    if program == "seam-dist":
        check_seam_dist(argv, folder)
        if not command.needs:
            monkeypatch.chdir(folder)
            assert cli.main(argv) == 0
    elif program in ("bash", "sbatch"):
        check_script(argv, folder)
    elif program == "python":
        check_python(argv)
    elif program == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        arguments = parse_args(argv)
        assert arguments.user_script == "seam_dist.cli"
        check_seam_dist(arguments.user_args, folder)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        arguments = get_args_parser().parse_args(argv)
        check_seam_dist(arguments.training_script_args, folder)
    elif program == "pip":
        extras = set(re.findall(r"[\w-]+(?=[,\]])", command.line))
        known = re.search(r"extras_require=\{(.*)\}", (ROOT / "setup.py").read_text())
        assert known is not None
        assert extras <= set(re.findall(r'"(\w+)":', known[1])), extras
    elif program == "pytest":
        for word in argv:
            if word.startswith("tests/"):
                assert (ROOT / word.split("::")[0]).exists(), word
    else:
        raise AssertionError(f"{command.readme}: {program} is not known here: add it to the check")


@pytest.mark.parametrize("command", list(commands()), ids=lambda c: f"{c.readme}: {c.line}"[:120])
def test_command(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, tmp_path, monkeypatch)


def test_commands_are_noticed_when_they_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = (
        *(
            "seam-dist --config nope",
            "seam-dist check --config demo --no-such-option",
            "seam-dist --config demo train.lr=1",
            "bash launch/nope.sh",
            "sbatch launch/no.sbatch",
        ),
        *(
            "python kernels/bench.py --no-such-option 3",
            "seam-dist predict --no-such x",
            "bash launch/gpu_check.sh --nope",
        ),
    )
    for line in wrong:
        command = Command("README.md", line, "reading")
        with pytest.raises((ValueError, OSError, AssertionError, SystemExit)):
            check(command, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the snippets use: runs/pets with shards and two trained networks, cat.jpg."""
    root = tmp_path_factory.mktemp("readmes")
    cfg = kit.run_config(
        root,
        "pets",
        data={"shards": None},
        model={"width": 0.0625, "pcm_channels": [4, 4]},
        infer_cam={"scales": [1.0]},
        infer_seg={"scales": [1.0]},
        train_seg={"width": 8},
    )
    shard.run(cfg)
    names = ("cat", "dog", "bird")
    stage_kit.finish_training(cfg, "train_seam", build_seam(cfg, 3)[0], seam_architecture(cfg, names))
    stage_kit.finish_training(cfg, "train_seg", build_deeplab(cfg, 3)[0], deeplab_architecture(cfg, names))
    Image.fromarray(kit.pixels(0, 48, 64)).save(root / "cat.jpg")
    return root


@pytest.mark.parametrize(("readme", "code"), list(snippets()), ids=lambda v: v[:40].split("\n")[0])
def test_snippet(readme: str, code: str, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pets)
    exec(compile(code, readme, "exec"), {})


def test_files_that_the_readmes_name_exist() -> None:
    for readme in READMES:
        text = (ROOT / readme).read_text()
        for name in set(
            re.findall(
                r"\b((?:launch|configs|kernels|tests|seam_dist)/[\w./-]+\.(?:py|sh|md|yaml|csv|png|sbatch))", text
            )
        ):
            assert "NAME" in name or (ROOT / name).exists(), f"{readme} names {name}"
        folder = (ROOT / readme).parent
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            assert (folder / name).is_file(), f"{readme} shows {name}"


def test_readme_is_for_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
