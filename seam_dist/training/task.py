"""What differs between the stages that train: a `TrainTask` describes the stage, its `TrainModule` takes the steps.

`seam_dist.training.run` trains any task; `seam_dist.training.engine` knows its module alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from seam_dist.artifacts.stage import StageError
from seam_dist.cluster.distributed import World
from seam_dist.config.schema import Config
from seam_dist.data.augment.normalize import normalize_images
from seam_dist.data.manifest import Split
from seam_dist.models import SEAM, AffinityNet, DeepLab, LoadReport
from seam_dist.models.dropout import DropoutKeys, key_dropout

Batch = Mapping[str, Any]
Network = TypeVar("Network", bound=SEAM | AffinityNet | DeepLab)
TrainStage = Literal["train_seam", "train_affinity", "train_seg"]
SAMPLE_SETTINGS = ("run.seed", "data.train_split", "data.streams", "data.shuffle_shards")
"""Settings that every training depends on: they give the order of the samples."""


class TrainModule(nn.Module, ABC, Generic[Network]):
    """What deepspeed.initialize gets: batch in, named losses out.

    Dropout is keyed by the sample: a mask is a function of (seed, sample number, layer, grid, channel). A resumed run,
    another number of ranks or another split into micro-batches therefore draws the same masks for the same images.
    """

    stage: ClassVar[TrainStage]
    pictures_every: int | None = None
    """Steps between pictures, 0 for those at the end alone; None: there are no pictures."""

    def __init__(self, model: Network, cfg: Config) -> None:
        super().__init__()
        self.model = model
        self.cfg = cfg
        self.schedule = cfg.schedule_of(self.stage)
        self.keys = DropoutKeys(cfg.run.seed)
        key_dropout(model, self.keys)
        # Buffers that move with the module and stay out of its state dict: they belong to the backbone, not to the run.
        self.register_buffer("mean", torch.tensor(model.backbone.mean), persistent=False)
        self.register_buffer("std", torch.tensor(model.backbone.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @abstractmethod
    def begin_step(self, batches: Sequence[MutableMapping[str, Any]], step: int, world: World) -> None:
        """Prepare optimizer step `step`, counted from 0, from all its micro-batches of this rank, still on the CPU.

        Every rank calls it: a loss that is divided by a count over the global batch needs the labels of all its parts.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the float32 losses of a micro-batch on the device by name; "loss" is the total and alone trained.

        Their means over the micro-batches and ranks of the step are the losses of the global batch.
        """

    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images (B, 3, S, S) in 0..1, their CAMs and refined CAMs; in eval mode, on every rank."""
        raise NotImplementedError(f"{self.stage} has no pictures")

    def normalized(self, batch: Batch, color: Tensor | None, *, padding: Literal["mean", "black"] = "mean") -> Tensor:
        """Return the normalized crops (B, 3, S, S), float32, with the jitter `color` where it is given."""
        image, valid, channels_last = batch["image"], batch["valid"], self.cfg.model.channels_last
        return normalize_images(image, valid, color, self.mean, self.std, channels_last=channels_last, padding=padding)

    def network_precision(self, device: torch.device) -> torch.autocast:
        """Return the context of the network's forward pass; the losses are computed outside, in float32."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.schedule.precision == "bf16")


class Loader(Iterator[Batch], Protocol):
    """Batches of one rank, without end."""

    def close(self) -> None:
        """End the loader's processes."""


@dataclass(frozen=True, kw_only=True)
class TrainTask(Generic[Network]):
    """One training stage of one run: what is trained, from what, and what its weights depend on."""

    cfg: Config
    stage: TrainStage
    split: Split
    """The split that trains."""
    architecture: Mapping[str, Any]
    """What weights belong to: a checkpoint of another one is refused. It has "classes", their names."""
    settings: Sequence[str]
    """Dotted keys or sections that the trained weights depend on, apart from rounding."""
    ignored: Sequence[str] = ()
    """Keys below `settings` that change nothing in the weights, besides those of every schedule."""
    inputs: Callable[[], Mapping[str, str]]
    """Name -> fingerprint of each input; called on the main rank. Raises StageError for what is missing."""
    build: Callable[[], tuple[Network, LoadReport]]
    """The network whose weights are kept; random weights come from torch's global generator."""
    module: Callable[[Network, World], TrainModule[Network]]
    """What takes the training steps of the network."""
    loader: Callable[[int, int, int, int], Loader]
    """(rank, number of ranks, first global sample, images a micro-batch) -> batches of that rank."""


def check_labels(folder: Path, split: Split, remedy: str) -> None:
    """Raise StageError with the first label tar of the split that `folder` lacks."""
    for shard in split.shards:
        if not (folder / shard.file).is_file():
            raise StageError(f"{folder / shard.file} is missing: {remedy} that include {split.name!r}")
