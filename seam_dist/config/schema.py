"""The configuration: one frozen dataclass a concern, checked as a whole before any work starts.

A field's unit stands in the line under it; `seam-dist --help-config` prints those lines. Values come, weakest
first, from the defaults here, a preset, a YAML file and `section.key=value` overrides (`seam_dist.config.load`).
Sections that steer a stage have the stage's name. Numbers of the published pipeline are in configs/presets/paper.yaml,
each with its source. Sections of networks and stages are in training.py and inference.py; all are imported from here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from seam_dist.config.base import STRICT
from seam_dist.config.inference import (
    CrfConfig,
    EvaluateConfig,
    InferCamConfig,
    InferSegConfig,
    RandomWalkConfig,
    ReportConfig,
)
from seam_dist.config.paths import NameOrPath, UserPath
from seam_dist.config.training import (
    AugmentConfig,
    LossConfig,
    ModelConfig,
    ScheduleConfig,
    TrainAffinityConfig,
    TrainSeamConfig,
    TrainSegConfig,
)

Stage = Literal[
    "shard",
    "train_seam",
    "infer_cam",
    "train_affinity",
    "random_walk",
    "train_seg",
    "infer_seg",
    "evaluate",
    "report",
]
STAGES: tuple[Stage, ...] = get_args(Stage)
IGNORE_INDEX = 255
"""Class index of pixels without a label, in masks, pseudo-labels and affinity labels."""
MAX_CLASSES = 254
"""Foreground classes that fit into 8 bits beside the background and IGNORE_INDEX."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """What the run is called, where it lives and what all ranks must agree on."""

    name: str = Field(default="seam", pattern=r"^[A-Za-z0-9_.-]+$")
    """Name of the run; its outputs go to <dir>/<name>/<stage>."""
    dir: UserPath = Path("runs")
    """Folder that holds all runs."""
    seed: int = Field(default=0, ge=0)
    """Seed of sample order, augmentation, initialization and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; auto takes a GPU when there is one."""
    world_size: int | None = Field(default=None, ge=1)
    """Expected number of ranks; a launch with another number stops. Unset: any."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads a rank; unset: the machine's cores divided by its local ranks."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds a training step, a batch of inference or a collective may take before the job ends."""
    overwrite: bool = False
    """Replace the outputs of a stage that was run with other settings."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SourceConfig:
    """The data set as it lies on disk, before conversion to shards."""

    kind: Literal["voc", "coco", "folder", "synthetic"] = "folder"
    """Reader: PASCAL VOC 2012 or COCO layout, a plain folder with labels.csv, or seeded synthetic scenes."""
    root: UserPath | None = None
    """Folder of the data set; not used by synthetic. Unset, or absent: shards that are there are taken as they are."""
    check_masks: Literal["refuse", "warn"] = "refuse"
    """What happens when masks and image-level labels contradict each other in most images."""
    empty_images: Literal["keep", "drop"] = "keep"
    """Images without any object in data.train_split: kept, they teach the absence of all classes; drop as published."""
    image_list: NameOrPath = "annotated"
    """coco: images with at least one annotation (annotated), all, or a file of names, in which {split} is replaced."""
    overlap: Literal["area", "order"] = "area"
    """coco: the smaller annotation is on top (coco2voc), or the later one (ReCAM)."""
    crowd: Literal["class", "background", "ignore"] = "class"
    """coco: pixels of crowd annotations get their class (coco2voc), background (ReCAM) or 255."""
    masks: UserPath | None = None
    """coco: folder of ready-made masks with 91 ids or 81 class indices; unset: masks are drawn from the annotations."""
    num_images: tuple[NonNegativeInt, ...] = (240, 60)
    """synthetic: images in each of data.splits."""
    num_classes: int = Field(default=4, ge=1, le=MAX_CLASSES)
    """synthetic: foreground classes."""
    image_size: tuple[PositiveInt, PositiveInt] = (256, 192)
    """synthetic: median width and height, pixels."""
    seed: int = Field(default=0, ge=0)
    """synthetic: seed of the scenes."""
    pixel_range: tuple[float, float] | None = None
    """Values that become black and white in images of more than 8 bits or of float pixels; unset: 16 bits use 0..65535,
    float and 32-bit images are refused."""

    @model_validator(mode="after")
    def _check_pixel_range(self) -> SourceConfig:
        if self.pixel_range is not None:
            low, high = self.pixel_range
            if low >= high:
                raise ValueError(
                    f"source.pixel_range={list(self.pixel_range)} is not [black, white] with black below white: for "
                    "12-bit images, for example, set it to [0, 4095]"
                )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """The shards and how they are streamed."""

    shards: UserPath | None = None
    """Folder of the shards and their manifest.json; unset: the run's own shard stage."""
    samples_per_shard: int = Field(default=256, ge=1)
    """Conversion: samples a shard, at most."""
    streams: int = Field(default=4, ge=1)
    """Canonical streams; ranks times workers divides it, and every training split has at least that many shards."""
    splits: tuple[str, ...] = Field(default=("train", "val"), min_length=1)
    """Splits that are converted and go through every stage, by the names the data set uses; stages may override it."""
    train_split: str = "train"
    """Split that trains."""
    shuffle_shards: int = Field(default=4, ge=1)
    """Shards of a stream whose samples are shuffled together."""
    num_workers: int = Field(default=0, ge=0)
    """Loader processes a rank; 0 decodes in the training process."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Largest image, pixels; a larger one counts as a bad sample and is never decoded."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of bad samples that is skipped and reported; beyond it the job stops."""
    verify: Literal["size", "checksum"] = "size"
    """How shards are checked against the manifest when a job starts."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """Everything a run needs; one object for all stages."""

    run: RunConfig = RunConfig()
    source: SourceConfig = SourceConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train_seam: TrainSeamConfig = TrainSeamConfig()
    infer_cam: InferCamConfig = InferCamConfig()
    crf: CrfConfig = CrfConfig()
    train_affinity: TrainAffinityConfig = TrainAffinityConfig()
    random_walk: RandomWalkConfig = RandomWalkConfig()
    train_seg: TrainSegConfig = TrainSegConfig()
    infer_seg: InferSegConfig = InferSegConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed's own settings (zero_optimization, ...), passed on as they are; see seam_dist.config.deepspeed."""

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return self.run.dir / self.run.name

    def stage_dir(self, stage: str) -> Path:
        """Folder of one stage's outputs."""
        return self.run_dir / stage

    @property
    def shards_dir(self) -> Path:
        """Folder of the shards: data.shards, else the run's own shard stage."""
        return self.data.shards or self.stage_dir("shard")

    def splits_of(self, stage: Stage) -> tuple[str, ...]:
        """Return the splits of a stage, each once: its own, for random_walk those of infer_cam, else data.splits."""
        own: tuple[str, ...] | None = getattr(getattr(self, stage, None), "splits", None)
        if own is None and stage == "random_walk":
            return self.splits_of("infer_cam")
        return tuple(dict.fromkeys(self.data.splits if own is None else own))

    @property
    def report_split(self) -> str:
        """Split whose images the report shows: report.split, else val if there is one, else the last split."""
        if self.report.split is not None:
            return self.report.split
        splits = self.splits_of("shard")
        return "val" if "val" in splits else splits[-1]

    def schedule_of(self, stage: str) -> ScheduleConfig:
        """Return the schedule of a stage that trains."""
        schedule: ScheduleConfig = getattr(self, stage).schedule
        return schedule

    @model_validator(mode="after")
    def _check(self) -> Config:
        for stage in ("train_seam", "train_affinity", "train_seg"):
            schedule = self.schedule_of(stage)
            if schedule.micro_batch_size is not None and schedule.global_batch_size % schedule.micro_batch_size:
                raise ValueError(
                    f"{stage}.schedule.global_batch_size={schedule.global_batch_size} is not a multiple of "
                    f"{stage}.schedule.micro_batch_size={schedule.micro_batch_size}: change one of them"
                )
        crop, stride = self.augment.crop_size, self.model.output_stride
        view = crop * self.loss.second_view_scale / stride
        if self.loss.ablation != "cam" and view < 2:
            raise ValueError(
                f"loss.second_view_scale={self.loss.second_view_scale} leaves a grid of {view:.1f} cells at "
                f"augment.crop_size={crop} and model.output_stride={stride}, expected at least 2: enlarge the crop or "
                "the scale"
            )
        if self.model.align_grid and crop % stride != 1:
            raise ValueError(
                f"augment.crop_size={crop} is not k * model.output_stride + 1, as model.align_grid asks for: set it to "
                f"{crop // stride * stride + 1}, or model.align_grid=false"
            )
        crop, stride = self.train_affinity.crop_size, self.train_affinity.output_stride or stride
        if crop % stride:
            raise ValueError(
                f"train_affinity.crop_size={crop} is not a multiple of the stride {stride} of its labels: set it to "
                f"{crop // stride * stride or stride}"
            )
        if crop // stride < 5:
            raise ValueError(
                f"train_affinity.crop_size={crop} is {crop // stride} cells of {stride} pixels, which hold no pair of "
                f"neighbors to learn from: set it to at least {5 * stride}"
            )
        source = self.source
        if source.kind == "synthetic" and len(source.num_images) != len(self.data.splits):
            raise ValueError(
                f"source.num_images={list(source.num_images)} has {len(source.num_images)} entries for "
                f"{len(self.data.splits)} splits {list(self.data.splits)}: give one number a split"
            )
        return self
