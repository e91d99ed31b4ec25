"""Sections of networks and the stages that train them: augmentation, model, losses and schedules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from seam_dist.config.base import STRICT
from seam_dist.config.paths import NameOrPath

BACKBONES = r"^(resnet38d|lite0|timm:[A-Za-z0-9_.-]+)$"
# A value of the command line arrives as text, which a Literal of numbers does not take.
Stride = Annotated[Literal[8, 16], BeforeValidator(lambda value: {"8": 8, "16": 16}.get(str(value), value))]
Ablation = Literal["cam", "er", "pcm", "ecr", "full"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
    """Shift drawn from [-x, x], a fraction of the color circle."""

    @model_validator(mode="after")
    def _check(self) -> AugmentConfig:
        if not 1 <= self.resize_long[0] <= self.resize_long[1]:
            raise ValueError(f"augment.resize_long={list(self.resize_long)} is not a range: give [smallest, largest]")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The network (PARITY.md section 1)."""

    backbone: str = Field(default="resnet38d", pattern=BACKBONES)
    """resnet38d, lite0 (extra `lite`) or timm:<name> (extra `timm`)."""
    width: float = Field(default=1.0, gt=0, le=4)
    """resnet38d: factor on every channel count."""
    output_stride: Stride = 8
    """Input pixels a cell of the CAM, 8 or 16."""
    pretrained: NameOrPath | None = None
    """Weights: a .pth, .params (MXNet) or .safetensors file, `package` (the weights that the backbone's package
    ships) or unset for random initialization."""
    freeze_batchnorm: bool = True
    """Keep BatchNorm in eval mode without gradient, as published."""
    freeze_stem: bool = True
    """Give no gradient to the first layers (resnet38d: conv1a, b2, b2_1, b2_2)."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Probability of dropping a channel before the classifier; resnet38d's own dropout is fixed."""
    pcm_channels: tuple[PositiveInt, PositiveInt] = (64, 128)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
    lr_multipliers: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (
        1.0,
        2.0,
        10.0,
        20.0,
    )
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
    resume: NameOrPath = "auto"
    """auto: the newest whole checkpoint, if any; never: start from step 0; or the folder of a checkpoint."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainSeamConfig:
    """Training of SEAM from image-level labels; network, losses and augmentation have sections of their own."""

    schedule: ScheduleConfig = ScheduleConfig()
    pictures_every: int = Field(default=0, ge=0)
    """Steps between TensorBoard pictures of CAMs; 0: only at the end."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
    channels: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 128, 256)
    """Channels that f8_3, f8_4 and f8_5 reduce the three feature maps to."""
    output_stride: Stride | None = None
    """Input pixels a cell of the affinity grid, 8 or 16; unset: model.output_stride."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainSegConfig:
    """The final segmentation network and its training on pseudo-labels (PARITY.md section 7)."""

    schedule: ScheduleConfig = ScheduleConfig(global_batch_size=10, max_steps=20_000)
    network: Literal["deeplabv1", "deeplabv3plus"] = "deeplabv1"
    """deeplabv1: LargeFOV, published; deeplabv3plus: atrous pyramid and a decoder on a finer feature map."""
    backbone: str | None = Field(default=None, pattern=BACKBONES)
    """Backbone of the network; unset: model.backbone."""
    pretrained: NameOrPath | None = None
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
