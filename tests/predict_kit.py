"""What tests of `seam-dist predict` share: a small final network as a training leaves it, images, the command."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from kit import changed
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from seam_dist.commands import predict
from seam_dist.config.schema import Config, ModelConfig, TrainSegConfig
from seam_dist.data.masks import decode_labels
from seam_dist.models import DeepLab, build_deeplab, deeplab_architecture

CLASSES = ("cat", "dog", "hen")


def network(name: Any = "deeplabv1") -> tuple[Config, DeepLab]:
    """A network of random weights whose labels have all classes."""
    cfg = Config(
        model=ModelConfig(width=1 / 16, output_stride=16), train_seg=changed(TrainSegConfig(), network=name, width=8)
    )
    torch.manual_seed(0)
    model = build_deeplab(cfg, len(CLASSES))[0].eval()
    nn.init.normal_(model.head.classifier.weight, std=2.0)
    return cfg, model


@lru_cache(maxsize=1)
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory()


@lru_cache(maxsize=1)
def trained_run() -> Path:
    """A run folder, made once, with a network that was trained to be used at two scales without mirror images."""
    cfg, model = network()
    run = Path(_folder().name) / "run"
    folder = run / "train_seg" / "final"
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    trained = {"infer_seg.scales": [0.5, 1.0], "infer_seg.flip": False, "crf.impl": "torch", "crf.source_stride": 2}
    value = {"architecture": deeplab_architecture(cfg, CLASSES), "config": trained}
    (folder / "model.json").write_text(json.dumps(value))
    return run


def picture(height: int = 40, width: int = 56, seed: int = 0) -> Image.Image:
    """A colorful image."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image | None = None, format: str | None = None) -> Path:
    """Save a picture, by default one of 8 x 8 pixels, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(8, 8)).save(path, format)
    return path


def run(images: Path, out: Path, *options: str) -> int:
    """The exit code of the command."""
    required = ["--weights", str(trained_run()), "--images", str(images), "--out", str(out)]
    return predict.main([*required, "--device", "cpu", *options])


def labels_at(path: Path) -> np.ndarray:
    """The labels that the command wrote."""
    return decode_labels(path.read_bytes(), max_pixels=10**6, num_classes=len(CLASSES))


def files_in(folder: Path) -> list[str]:
    """The files below a folder, but for the journal of outputs."""
    paths = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return sorted(p.relative_to(folder).as_posix() for p in paths if p.name != ".seam-dist-outputs.jsonl")
