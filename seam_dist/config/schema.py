"""The configuration: one frozen dataclass a concern, checked as a whole before any work starts.

A field's unit stands in the line under it; `seam-dist --help-config` prints those lines. Values come, weakest
first, from the defaults here, a preset, a YAML file and `section.key=value` overrides (`seam_dist.config.load`).
Sections that steer a stage have the stage's name. Numbers of the published pipeline are in configs/presets/paper.yaml,
each with its source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)

# A value of the command line arrives as text, which a Literal of numbers does not take.
Stride = Annotated[Literal[8, 16], BeforeValidator(lambda value: {"8": 8, "16": 16}.get(str(value), value))]

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
Ablation = Literal["cam", "er", "pcm", "ecr", "full"]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunConfig:
    """What the run is called, where it lives and what all ranks must agree on."""

    name: str = Field(default="seam", pattern=r"^[A-Za-z0-9_.-]+$")
    """Name of the run; its outputs go to <dir>/<name>/<stage>."""
    dir: Path = Path("runs")
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
    """Seconds a training step or a collective may take before the watchdog ends the job."""
    overwrite: bool = False
    """Replace the outputs of a stage that was run with other settings."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SourceConfig:
    """The data set as it lies on disk, before conversion to shards."""

    kind: Literal["voc", "folder", "synthetic"] = "folder"
    """Reader: PASCAL VOC 2012 layout, a plain folder with labels.csv, or seeded synthetic scenes."""
    root: Path | None = None
    """Folder of the data set; not used by synthetic."""
    num_images: tuple[int, ...] = (240, 60)
    """synthetic: images in each of data.splits."""
    num_classes: int = Field(default=4, ge=1, le=MAX_CLASSES)
    """synthetic: foreground classes."""
    image_size: tuple[int, int] = (256, 192)
    """synthetic: median width and height, pixels."""
    seed: int = Field(default=0, ge=0)
    """synthetic: seed of the scenes."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """The shards and how they are streamed."""

    shards: Path | None = None
    """Folder of the shards and their manifest.json; unset: the run's own shard stage."""
    samples_per_shard: int = Field(default=256, ge=1)
    """Conversion: samples a shard, at most."""
    streams: int = Field(default=4, ge=1)
    """Canonical streams; ranks times workers divides it, and every training split has at least that many shards."""
    splits: tuple[str, ...] = ("train", "val")
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AugmentConfig:
    """Training augmentation (PARITY.md section 2)."""

    resize_long: tuple[int, int] = (448, 768)
    """Range of the long side after resizing, pixels, drawn uniformly, both ends included."""
    crop_size: int = Field(default=448, ge=16)
    """Side of the square crop, pixels."""
    hflip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    brightness: float = Field(default=0.3, ge=0, le=1)
    """Factor drawn from [1 - x, 1 + x]."""
    contrast: float = Field(default=0.3, ge=0, le=1)
    """Factor drawn from [1 - x, 1 + x]."""
    saturation: float = Field(default=0.3, ge=0, le=1)
    """Factor drawn from [1 - x, 1 + x]."""
    hue: float = Field(default=0.1, ge=0, le=0.5)
    """Shift drawn from [-x, x], in rounds of the color circle."""

    @model_validator(mode="after")
    def _check(self) -> AugmentConfig:
        if not 1 <= self.resize_long[0] <= self.resize_long[1]:
            raise ValueError(
                f"augment.resize_long={list(self.resize_long)} is not a range: give [smallest, largest], in pixels"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig:
    """The network (PARITY.md section 1)."""

    backbone: str = Field(default="resnet38d", pattern=r"^(resnet38d|lite0|timm:[A-Za-z0-9_.-]+)$")
    """resnet38d, lite0 (extra `lite`) or timm:<name> (extra `timm`)."""
    width: float = Field(default=1.0, gt=0, le=4)
    """resnet38d: factor on every channel count."""
    output_stride: Stride = 8
    """Input pixels a cell of the CAM, 8 or 16."""
    pretrained: str | None = None
    """Weights: a .pth, .params (MXNet) or .safetensors file, `package` (the weights that the backbone's package
    ships) or unset for random initialization."""
    freeze_batchnorm: bool = True
    """Keep BatchNorm in eval mode without gradient, as published."""
    freeze_stem: bool = True
    """Give no gradient to the first layers (resnet38d: conv1a, b2, b2_1, b2_2)."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Probability of dropping a channel before the classifier; resnet38d's own dropout is fixed."""
    pcm_channels: tuple[int, int] = (64, 128)
    """Channels that f8_3 and f8_4 reduce the two feature maps to."""
    pcm_center: bool = False
    """Subtract each feature's spatial mean before the cosine of PCM; published: no."""
    pcm_grid: Literal["output", "conv4"] = "output"
    """Grid on which PCM works: the CAM's (published), or that of the finer feature map conv4."""
    align_grid: bool = False
    """Give the second view and the images of inference sizes of k * output_stride + 1, at which the cells of the CAM
    and the pixels of align_corners=True coincide; published: no."""
    pcm_impl: Literal["auto", "triton", "torch", "reference"] = "auto"
    """Implementation of PCM's attention."""
    activation_checkpointing: bool = False
    """Recompute the backbone's blocks in the backward pass instead of storing them."""
    channels_last: bool = True
    """Memory format of images and convolutions."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LossConfig:
    """The losses of SEAM (PARITY.md section 2)."""

    ablation: Ablation = "full"
    """cam: classification of one view; er: + equivariant regularization; pcm: er + PCM and its min-pooling loss;
    ecr: PCM and ECR without ER; full: all of them."""
    er_weight: float = Field(default=1.0, ge=0)
    """Weight of equivariant regularization."""
    ecr_weight: float = Field(default=1.0, ge=0)
    """Weight of equivariant cross regularization."""
    min_pool_weight: float = Field(default=1.0, ge=0)
    """Weight of the min-pooling loss on the refined CAM."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the ER and ECR weights rise linearly from 0; published: 0."""
    ecr_top: float = Field(default=0.2, gt=0, le=1)
    """Share of the elements, largest first, that ECR averages."""
    second_view_scale: float = Field(default=0.3, gt=0, le=2)
    """Size of the second view relative to the first."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ScheduleConfig:
    """Steps, batches, optimizer, log and checkpoints of a training stage."""

    global_batch_size: int = Field(default=8, ge=1)
    """Images an optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Images a rank and forward pass; unset: global_batch_size / ranks, without accumulation."""
    epochs: float = Field(default=8.0, gt=0)
    """Passes over the training split; not used when max_steps is set."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of the whole schedule; unset: floor(images / global_batch_size) * epochs."""
    lr: float = Field(default=0.001, gt=0)
    """Learning rate of pretrained weights at step 0."""
    lr_multipliers: tuple[float, float, float, float] = (1.0, 2.0, 10.0, 20.0)
    """Factors on lr for pretrained weights, pretrained biases, new weights, new biases."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD; the published code ran with 5e-4 by accident, and ten times this lr (PARITY.md section 2)."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty of weights; biases have none."""
    poly_power: float = Field(default=0.9, ge=0)
    """lr = lr0 (1 - step / max_steps)^poly_power, set before each step."""
    lr_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly to the schedule; published: 0."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the network; the losses are float32 always."""
    gradient_clip: float = Field(default=0.0, ge=0)
    """Largest gradient norm; 0: no clipping."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl and TensorBoard scalars."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    resume: str = "auto"
    """auto: the newest whole checkpoint, if any; never: start from step 0; or the folder of a checkpoint."""

    def check_micro_batch(self, stage: str) -> None:
        """Raise ValueError when the global batch is no multiple of the micro-batch; `stage` names the section."""
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"{stage}.schedule.global_batch_size={self.global_batch_size} is not a multiple of "
                f"{stage}.schedule.micro_batch_size={self.micro_batch_size}: change one of them"
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainSeamConfig:
    """Training of SEAM from image-level labels; network, losses and augmentation have sections of their own."""

    schedule: ScheduleConfig = ScheduleConfig()
    pictures_every: int = Field(default=0, ge=0)
    """Steps between TensorBoard pictures of CAMs; 0: only at the end."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class InferCamConfig:
    """CAM inference (PARITY.md section 3)."""

    splits: tuple[str, ...] | None = None
    """Splits whose CAMs are made; unset: data.splits."""
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Sizes of the image relative to the original; the maps are summed."""
    flip: bool = True
    """Add the mirrored image at each scale."""
    batch_size: int = Field(default=4, ge=1)
    """Images of equal size that go through the network together."""
    cam: Literal["refined", "plain"] = "refined"
    """Main map: PCM's output (published) or the classifier's, which is also the one of ablations without PCM."""
    cam_stride: int = Field(default=8, ge=1)
    """Image pixels a cell of a stored CAM."""
    interop: bool = False
    """Also write the authors' files: one .npy dict {class id from 0: float32 map at full size} an image."""
    checkpoint: Path | None = None
    """Weights of another run or the authors' .pth; unset: this run's training."""
    crf: bool = True
    """Also refine the CAMs by two dense CRFs: labels of CAM + CRF, and affinity labels for train_affinity."""
    crf_alphas: tuple[float, float] = (4.0, 24.0)
    """Powers of the background score in the two CRFs: the larger it is, the less background."""
    from_interop: Path | None = None
    """Folder of the authors' CAM dicts, <source id or key>.npy, to take the maps from instead of a network."""
    crf_from_interop: Path | None = None
    """Start of the names of the authors' two folders of CRF dicts, to take the refined scores from instead of a CRF:
    out_crf stands for out_crf_4.0 and out_crf_24.0, with the numbers of infer_cam.crf_alphas."""

    @model_validator(mode="after")
    def _check(self) -> InferCamConfig:
        if self.from_interop is not None and self.checkpoint is not None:
            raise ValueError(
                f"infer_cam.from_interop={self.from_interop} takes the maps from files, so infer_cam.checkpoint="
                f"{self.checkpoint} would have no effect: set one of them"
            )
        if self.crf_from_interop is not None and not self.crf:
            raise ValueError(
                f"infer_cam.crf=false leaves the CRF out, so infer_cam.crf_from_interop={self.crf_from_interop} would have no "
                "effect: unset one of them"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CrfConfig:
    """Dense CRF of CAMs and of the random walk (PARITY.md section 4)."""

    impl: Literal["auto", "lattice", "torch", "triton"] = "lattice"
    """lattice: pydensecrf (extra `crf`), an approximation on the CPU, published; torch, triton: the exact sum."""
    num_iters: int = Field(default=10, ge=0)
    """Mean-field iterations for CAMs."""
    gaussian_sxy: float = Field(default=3.0, gt=0)
    """Width of the Gaussian kernel, pixels."""
    gaussian_compat: float = Field(default=3.0, ge=0)
    """Weight of the Gaussian kernel."""
    bilateral_sxy: float = Field(default=80.0, gt=0)
    """Width of the bilateral kernel in space, pixels."""
    bilateral_srgb: float = Field(default=13.0, gt=0)
    """Width of the bilateral kernel in color, gray levels."""
    bilateral_compat: float = Field(default=10.0, ge=0)
    """Weight of the bilateral kernel."""
    source_stride: int = Field(default=1, ge=1)
    """Exact sum: only every s-th pixel of every s-th row sends bilateral messages."""
    num_workers: int | None = Field(default=None, ge=0)
    """Processes a rank that compute CRFs beside the network; unset: run.threads; 0: none, in the rank itself."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainAffinityConfig:
    """AffinityNet and its training on the affinity labels of infer_cam (PARITY.md sections 1 and 5)."""

    schedule: ScheduleConfig = ScheduleConfig()
    crop_size: int = Field(default=448, ge=16)
    """Side of the square crop, pixels, a multiple of output_stride; images are not resized."""
    hflip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    jitter: bool = True
    """Color jitter with the strengths of `augment`."""
    radius: int = Field(default=5, ge=2)
    """Pairs of grid cells nearer than this, in cells, have an affinity."""
    border: Literal["paper", "full"] = "full"
    """paper: cells near the left, right and bottom edge are never the first of a pair; full: all pairs."""
    channels: tuple[int, int, int] = (64, 128, 256)
    """Channels that f8_3, f8_4 and f8_5 reduce the three feature maps to."""
    output_stride: Stride | None = None
    """Input pixels a cell of the affinity grid, 8 or 16; unset: model.output_stride."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RandomWalkConfig:
    """Random walk of the CAMs over the affinities, which makes pseudo-labels (PARITY.md section 6)."""

    splits: tuple[str, ...] | None = None
    """Splits that get pseudo-labels; each has CAMs; unset: those of infer_cam."""
    alpha: float = Field(default=6.0, gt=0)
    """Power of the background score 1 - max over foreground."""
    beta: float = Field(default=8.0, gt=0)
    """Power of the affinities."""
    num_steps: int = Field(default=64, ge=0)
    """Steps of the walk; published: 2^6, in psa 2^8."""
    method: Literal["exact", "chebyshev"] = "exact"
    """exact: every step; chebyshev: a polynomial of lower degree, within 1e-5."""
    batch_size: int = Field(default=16, ge=1)
    """Images, of whatever sizes, that walk together."""
    crf: bool = True
    """Also write labels refined by a dense CRF."""
    crf_num_iters: int = Field(default=1, ge=0)
    """Mean-field iterations of that CRF; its other settings are those of `crf`."""
    files: bool = False
    """Also write the pseudo-labels as one palette PNG an image."""
    impl: Literal["auto", "triton", "torch", "reference"] = "auto"
    """Implementation of the walk."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainSegConfig:
    """The final segmentation network and its training on pseudo-labels (PARITY.md section 7)."""

    schedule: ScheduleConfig = ScheduleConfig(global_batch_size=10, max_steps=20_000)
    network: Literal["deeplabv1", "deeplabv3plus"] = "deeplabv1"
    """deeplabv1: LargeFOV, published; deeplabv3plus: atrous pyramid and a decoder on a finer feature map."""
    backbone: str | None = Field(default=None, pattern=r"^(resnet38d|lite0|timm:[A-Za-z0-9_.-]+)$")
    """Backbone of the network; unset: model.backbone."""
    pretrained: str | None = None
    """Weights that it starts from, as in model.pretrained, or `train_seam`: the backbone of this run's SEAM; unset:
    those of model.pretrained."""
    output_stride: Stride | None = None
    """Input pixels a cell of the logits, 8 or 16; unset: model.output_stride."""
    width: int = Field(default=512, ge=1)
    """Channels of the head (deeplabv3plus uses half of it)."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Probability of dropping a channel before the last layer."""
    freeze_batchnorm: bool = False
    """Keep the backbone's BatchNorm in eval mode; published: no."""
    freeze_stem: bool = False
    """Give no gradient to the backbone's first layers; published: no."""
    labels: Literal["walk", "walk_crf", "cam_crf", "masks"] = "walk"
    """What it trains on: pseudo-labels of random_walk without or with CRF, those of CAM + CRF, or the true masks."""
    crop_size: int = Field(default=448, ge=16)
    """Side of the square crop, pixels."""
    scale: tuple[float, float] = (0.5, 1.5)
    """Range of the factor on the image's size."""
    hflip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    hsv_jitter: int = Field(default=10, ge=0, le=127)
    """Largest shift of hue, saturation and value, gray levels of OpenCV's HSV."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes; published: 0."""
    confidence: bool = False
    """Weight each pixel's loss by the network's own probability of its label (detached); published: no."""
    background_weight: float = Field(default=1.0, gt=0)
    """Weight of the loss of pixels whose label is background; published: 1. Less helps where objects are small."""

    @model_validator(mode="after")
    def _check_scale(self) -> TrainSegConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"train_seg.scale={list(self.scale)} is not a range: give [smallest, largest], above 0")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class InferSegConfig:
    """Predictions of the final network, in the stage and in `seam-dist predict` (PARITY.md section 7)."""

    splits: tuple[str, ...] | None = None
    """Splits that are predicted; they need no labels; unset: data.splits."""
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Sizes of the image relative to the original; the mean of the logits is taken."""
    flip: bool = True
    """Add the mirrored image at each scale."""
    batch_size: int = Field(default=4, ge=1)
    """Images of equal size that go through the network together."""
    crf: bool = True
    """Also write labels refined by a dense CRF."""
    crf_num_iters: int = Field(default=1, ge=0)
    """Mean-field iterations of that CRF."""
    crf_bilateral_sxy: float = Field(default=32.0, gt=0)
    """Width of its bilateral kernel in space, pixels; its other settings are those of `crf`."""
    oracle: bool = False
    """Also write what infer_seg predicts when it may choose only background and the classes in the image's label."""
    checkpoint: Path | None = None
    """Weights of another run's train_seg; unset: this run's."""
    voc_server: str | None = None
    """Split whose predictions are packed for the PASCAL VOC evaluation server, with CRF where infer_seg.crf is set."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluateConfig:
    """Evaluation of CAMs over all background thresholds at once (PARITY.md section 8)."""

    splits: tuple[str, ...] | None = None
    """Splits that are evaluated; each needs masks; unset: data.splits."""
    num_thresholds: int = Field(default=100, ge=2)
    """Background thresholds k / num_thresholds, k = 0 .. num_thresholds - 1."""
    default_threshold: float = Field(default=0.26, ge=0, le=1)
    """Background threshold when none was chosen (the authors' default)."""
    threshold_split: str = "train"
    """Split whose masks choose the threshold that is applied to the other splits."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ReportConfig:
    """The HTML report."""

    split: str = "val"
    """Split whose images are shown."""
    num_images: int = Field(default=4, ge=1)
    """Images shown for each of best, median and worst."""
    compare: tuple[Path, ...] = ()
    """Folders of other runs that the comparison table lists first."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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
        """Return the splits that a stage works on, each once: its own setting, else data.splits.

        random_walk follows infer_cam, whose CAMs it needs.
        """
        own: tuple[str, ...] | None = getattr(getattr(self, stage, None), "splits", None)
        if own is None and stage == "random_walk":
            return self.splits_of("infer_cam")
        return tuple(dict.fromkeys(self.data.splits if own is None else own))

    @model_validator(mode="after")
    def _check(self) -> Config:
        for stage in ("train_seam", "train_affinity", "train_seg"):
            getattr(self, stage).schedule.check_micro_batch(stage)
        view = self.augment.crop_size * self.loss.second_view_scale / self.model.output_stride
        if self.loss.ablation != "cam" and view < 2:
            raise ValueError(
                f"loss.second_view_scale={self.loss.second_view_scale} leaves a grid of {view:.1f} cells at "
                f"augment.crop_size={self.augment.crop_size} and model.output_stride={self.model.output_stride}, "
                "expected at least 2: enlarge the crop or the scale"
            )
        if self.model.align_grid and self.augment.crop_size % self.model.output_stride != 1:
            near = self.augment.crop_size // self.model.output_stride * self.model.output_stride + 1
            raise ValueError(
                f"augment.crop_size={self.augment.crop_size} is not k * model.output_stride + 1, as model.align_grid "
                f"asks for: set it to {near}, or model.align_grid=false"
            )
        stride = self.train_affinity.output_stride or self.model.output_stride
        if self.train_affinity.crop_size % stride:
            raise ValueError(
                f"train_affinity.crop_size={self.train_affinity.crop_size} is not a multiple of the stride {stride} of its labels: "
                f"set it to {self.train_affinity.crop_size // stride * stride or stride}"
            )
        source = self.source
        if source.kind == "synthetic" and len(source.num_images) != len(self.data.splits):
            raise ValueError(
                f"source.num_images={list(source.num_images)} has {len(source.num_images)} entries for "
                f"{len(self.data.splits)} splits {list(self.data.splits)}: give one number a split"
            )
        return self
