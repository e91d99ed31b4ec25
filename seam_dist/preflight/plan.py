"""What a command is about to do: the stages that will really run, on how many ranks, with which data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from seam_dist.artifacts.layout import stage_folder
from seam_dist.artifacts.stage import MANIFEST
from seam_dist.config.findings import Findings, error_text
from seam_dist.config.schema import Config, Stage
from seam_dist.data.sources.base import Record

TRAINING: tuple[Stage, ...] = ("train_seam", "train_affinity", "train_seg")


@dataclass(frozen=True)
class SplitOutline:
    """What is known of a split before it is read; `records` are those of a data set that is about to be converted."""

    name: str
    num_samples: int
    num_shards: int
    has_masks: bool
    has_labels: bool
    records: Sequence[Record] = ()


@dataclass(frozen=True)
class DataSet:
    """Classes and readable splits of the data set that the stages will see.

    `num_bytes` is what its conversion will write, 0 where the shards are there. `image_pixels` is the mean over a few
    images, `image_classes` the mean number of classes an image.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, SplitOutline]
    num_bytes: int = 0
    image_pixels: float = 0.0
    image_classes: float = 1.5


@dataclass(frozen=True)
class RunPlan:
    """The stages of a command that are not finished, in their order; `data` is None where it cannot be read."""

    cfg: Config
    stages: tuple[Stage, ...]
    world_size: int = 1
    data: DataSet | None = None

    @property
    def trainings(self) -> list[Stage]:
        """Return the stages that will train."""
        return [stage for stage in TRAINING if stage in self.stages]

    def splits(self, names: Sequence[str]) -> list[SplitOutline]:
        """Return those of the named splits that are known."""
        return [] if self.data is None else [self.data.splits[name] for name in names if name in self.data.splits]

    def is_finished(self, stage: Stage) -> bool:
        """Return whether a stage that will not run now has finished before."""
        return stage not in self.stages and (stage_folder(self.cfg, stage) / MANIFEST).is_file()


@contextmanager
def reported(findings: Findings, topic: str, *, setting: str | None = None) -> Iterator[None]:
    """Turn a ValueError or OSError of the body into an error finding; `setting` is put before its text."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = "; ".join(error_text(error).splitlines())  # several errors at once
        findings.error(topic, text if setting is None else f"{setting}: {text}")
