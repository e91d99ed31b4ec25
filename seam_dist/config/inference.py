"""Sections of the stages that do not train: CAMs, CRFs, the random walk, predictions, scores and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveFloat, model_validator
from pydantic.dataclasses import dataclass

from seam_dist.config.base import STRICT
from seam_dist.config.paths import UserPath

LARGEST_SCALE = 16
"""The largest scale of predictions outside a run."""


def check_scales(scales: Sequence[float], name: str = "scales") -> None:
    """Raise ValueError unless there are scales, all of them finite and above 0; `name` is the setting's."""
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(
            f"{name}={list(scales)}: expected at least one number, all finite and above 0: give for example [0.5, 1.0]"
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InferCamConfig:
    """CAM inference (PARITY.md section 3)."""

    splits: tuple[str, ...] | None = None
    """Splits whose CAMs are made, from their image-level labels; unset: data.splits."""
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
    checkpoint: UserPath | None = None
    """Weights of another run or the authors' .pth; unset: this run's training."""
    crf: bool = True
    """Also refine the CAMs by two dense CRFs: labels of CAM + CRF, and affinity labels for train_affinity."""
    crf_alphas: tuple[PositiveFloat, PositiveFloat] = (4.0, 24.0)
    """Powers of the background score in the two CRFs: the larger it is, the less background."""
    from_interop: UserPath | None = None
    """Folder of the authors' CAM dicts, <source id or key>.npy, to take the maps from instead of a network."""
    crf_from_interop: UserPath | None = None
    """Start of the names of the authors' two folders of CRF dicts, to take the refined scores from instead of a CRF:
    out_crf stands for out_crf_4.0 and out_crf_24.0, with the numbers of infer_cam.crf_alphas."""

    @model_validator(mode="after")
    def _check(self) -> InferCamConfig:
        check_scales(self.scales, "infer_cam.scales")
        if self.from_interop is not None and self.checkpoint is not None:
            raise ValueError(
                f"infer_cam.from_interop={self.from_interop} leaves infer_cam.checkpoint={self.checkpoint} without "
                "effect: set one of them"
            )
        if self.crf_from_interop is not None and not self.crf:
            raise ValueError(
                f"infer_cam.crf=false leaves infer_cam.crf_from_interop={self.crf_from_interop} without effect: unset "
                "one of them"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
    checkpoint: UserPath | None = None
    """Weights of another run's train_seg; unset: this run's."""
    voc_server: str | None = None
    """Split whose predictions are packed for the PASCAL VOC evaluation server, with CRF where infer_seg.crf is set."""

    @model_validator(mode="after")
    def _check(self) -> InferSegConfig:
        check_scales(self.scales, "infer_seg.scales")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Evaluation of CAMs over all background thresholds at once (PARITY.md section 8)."""

    splits: tuple[str, ...] | None = None
    """Splits that are evaluated; those without masks are left out with a line; unset: data.splits."""
    num_thresholds: int = Field(default=100, ge=2)
    """Background thresholds k / num_thresholds, k = 0 .. num_thresholds - 1."""
    default_threshold: float = Field(default=0.26, ge=0, le=1)
    """Background threshold when none was chosen (the authors' default)."""
    threshold_split: str = "train"
    """Split whose masks choose the threshold that is applied to the other splits; without its masks none is chosen."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReportConfig:
    """The HTML report."""

    split: str | None = None
    """Split whose images are shown; unset: val if it is one of data.splits, else the last of them."""
    num_images: int = Field(default=4, ge=1)
    """Images shown for each of best, median and worst."""
    compare: tuple[UserPath, ...] = ()
    """Folders of other runs that the comparison table lists first."""
