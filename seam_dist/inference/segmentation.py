"""Labels from the final network: its trained weights, and the mean of its logits over scales and mirror images.

PARITY.md section 7: each scale's logits are brought to the scaled image and from there to the original one, bilinear
with align_corners=True; their mean over scales and mirror images goes through the softmax. No image-level label is
used, unlike by CAMs and the random walk: every class competes everywhere. Only the oracle gets them: compared with the
plain labels it tells wrong classes from wrong outlines, compared with the random walk's what retraining changed.

Mirroring, resizing and the mean are linear, so a scale is kept at the network's grid, 1/64 to 1/256 of its pixels, with
its mirror image folded in. The two resizings of all scales are then one matrix product for rows and one for columns,
made in strips: logits at full size never exist for more than one image and 64 MB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.stage import StageError
from seam_dist.config.schema import InferSegConfig
from seam_dist.data.augment.normalize import normalize_images
from seam_dist.data.shards import Sample
from seam_dist.inference.batching import PIXELS_AT_ONCE, by_size, one_ahead, scaled_images
from seam_dist.models import DeepLab, load_deeplab

Pixels = NDArray[np.uint8]
Scores = NDArray[np.float32]

_STRIP = 1 << 24  # logits at full size that exist at once, unless they are asked for
_BATCH_PIXELS = {"cpu": 1 << 22, "cuda": 1 << 24}  # of the images in a batch, which are held at all scales


class Crf(Protocol):
    """What refines scores: seam_dist.inference.crf_pool.CrfPool, or anything with its `submit_labels`.

    It waits, rather than take more images than it can hold.
    """

    def submit_labels(
        self, image: Pixels, scores: Scores, classes: Sequence[int], num_iters: int, bilateral_sxy: float
    ) -> Future[Pixels]:
        """Return the labels (H, W) to come, of scores (C + 1, H, W)."""


@dataclass(frozen=True)
class SegWeights:
    """Weights of a final network, what it looks like, and the settings of its training."""

    weights: Path
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the foreground classes, the first has id 1."""
        return tuple(str(name) for name in self.facts["classes"])


@dataclass(frozen=True)
class Prediction:
    """Class ids (H, W) of one image, 0 the background.

    `refined` are those after the CRF, if there is one; `oracle` those of the network alone among background and the
    classes in the image's label, if they were asked for.
    """

    index: int
    sample: Sample
    labels: Pixels
    refined: Pixels | None = None
    oracle: Pixels | None = None


def find_seg_weights(source: Path) -> SegWeights:
    """Return the weights that `source` names: a run, its train_seg stage, the folder `final` of it, or the file there.

    Raises StageError when there are none, or no model.json beside them that describes a final network.
    """
    folders = [source / "train_seg" / "final", source / "final", source]
    if source.is_file():
        weights = source
    else:
        weights = next((f for f in folders if (f / "model.safetensors").is_file()), source) / "model.safetensors"
    if not weights.is_file():
        raise StageError(
            f"{weights} is missing: run `--stage train_seg` to the end, or give the folder of a finished run or of its "
            "train_seg/final"
        )
    description = weights.with_name("model.json")
    if not description.is_file():
        raise StageError(f"{description} is missing, which says what network {weights.name} is of: copy both together")
    value = read_json(description)
    facts = value.get("architecture") if isinstance(value, Mapping) else None
    if not isinstance(facts, Mapping) or "network" not in facts or "classes" not in facts:
        raise StageError(f"{description} describes no final network: give the weights of train_seg")
    settings = value.get("config")
    return SegWeights(weights, facts, settings if isinstance(settings, Mapping) else {})


def load_network(found: SegWeights, device: torch.device) -> DeepLab:
    """Return the trained network on a device, in eval mode."""
    return load_deeplab(found.weights, found.facts).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def alignment(found: SegWeights, model: DeepLab) -> int | None:
    """Return the stride that sizes of scaled images fit (model.align_grid), None for any size."""
    return model.backbone.output_stride if found.facts.get("align_grid") else None


def predict_samples(
    model: DeepLab,
    samples: Iterable[Sample],
    cfg: InferSegConfig,
    *,
    align: int | None = None,
    longest: int | None = None,
    crf: Crf | None = None,
    oracle: bool = False,
) -> Iterator[Prediction]:
    """Yield the prediction of every sample, as they are finished; `index` is the sample's place.

    Images of one size go through the network together, cfg.batch_size of them. Scales of images longer than `longest`
    are relative to that length; labels have the image's own size always. `oracle` needs samples with labels.
    """
    device = next(model.parameters()).device
    classes = range(1, model.num_classes + 1)
    waiting: deque[tuple[Prediction, Future[Pixels]]] = deque()
    prepared = (
        (part, scaled_images([s.image for _, s in part], _scales(part[0][1].image, cfg.scales, longest), align=align))
        for batch in by_size(samples, cfg.batch_size)
        for part in _parts(batch, _BATCH_PIXELS[device.type])
    )
    for batch, images in one_ahead(prepared):
        grids = grid_logits(model, images, flip=cfg.flip)
        scaled = [(image.shape[2], image.shape[3]) for image in images]
        for place, (index, sample) in enumerate(batch):
            size = (sample.image.shape[0], sample.image.shape[1])
            own = [grid[place] for grid in grids]
            among = None
            if oracle:
                allowed = [0, *sample.classes]
                among = np.array(allowed, np.uint8)[label_image([grid[allowed] for grid in own], scaled, size)]
            if crf is None:
                yield Prediction(index, sample, label_image(own, scaled, size), oracle=among)
                continue
            scores = probabilities(own, scaled, size)
            future = crf.submit_labels(sample.image, scores.numpy(), classes, cfg.crf_num_iters, cfg.crf_bilateral_sxy)
            waiting.append((Prediction(index, sample, _argmax(scores), oracle=among), future))
            while waiting and waiting[0][1].done():
                yield _refined(*waiting.popleft())
    for item in waiting:
        yield _refined(*item)


def _refined(found: Prediction, future: Future[Pixels]) -> Prediction:
    return replace(found, refined=future.result())


def _scales(image: Pixels, scales: Sequence[float], longest: int | None) -> list[float]:
    factor = 1.0 if longest is None else min(1.0, longest / max(image.shape[:2]))
    return [scale * factor for scale in scales]


def _parts(batch: list[tuple[int, Sample]], pixels: int) -> Iterator[list[tuple[int, Sample]]]:
    """Cut a batch of images of one size to at most `pixels` pixels, at least one image each."""
    height, width = batch[0][1].image.shape[:2]
    count = max(1, pixels // (height * width))
    yield from (batch[start : start + count] for start in range(0, len(batch), count))


@torch.inference_mode()
def grid_logits(model: DeepLab, images: Sequence[Tensor], *, flip: bool) -> list[Tensor]:
    """Return for each scale the logits (B, C + 1, h, w) at the network's grid, the mean with the mirror image's.

    images: uint8 (B, 3, H, W) at each scale.
    """
    device = next(model.parameters()).device
    mean, std = torch.tensor(model.backbone.mean), torch.tensor(model.backbone.std)
    found = []
    for scaled in images:
        height, width = scaled.shape[2:]
        parts = []
        for part in torch.split(scaled, max(1, PIXELS_AT_ONCE[device.type] // (height * width))):
            valid = torch.tensor([[0, 0, height, width]], dtype=torch.int32).expand(len(part), 4)
            pixels = normalize_images(part.to(device), valid, None, mean, std, channels_last=True)
            logits = model.forward_grid(pixels)
            if flip:
                logits = (logits + model.forward_grid(pixels.flip(-1)).flip(-1)) / 2
            parts.append(logits)
        found.append(torch.cat(parts))
    return found


def mean_logits(
    grids: Sequence[Tensor], scaled: Sequence[tuple[int, int]], size: tuple[int, int], rows: slice = slice(None)
) -> Tensor:
    """Return the mean logits (C + 1, H, W) of one image at `size`, or some of their rows.

    grids: (C + 1, h, w) at each scale; scaled: (height, width) of the image at each scale.
    """
    device = grids[0].device
    columns, stretched = [], []
    for grid, at in zip(grids, scaled, strict=True):
        upright = _resizing(grid.shape[1], at[0], size[0])[rows].to(device)
        stretched.append(upright @ grid)  # [C + 1, rows, w]
        columns.append(_resizing(grid.shape[2], at[1], size[1]).to(device))
    return torch.cat(stretched, dim=2) @ (torch.cat(columns, dim=1).T / len(grids))


def label_image(grids: Sequence[Tensor], scaled: Sequence[tuple[int, int]], size: tuple[int, int]) -> Pixels:
    """Return the class ids (H, W) of the largest mean logit; arguments as of `mean_logits`."""
    return np.concatenate([_argmax(mean_logits(grids, scaled, size, rows)) for rows in _strips(grids, size)])


def probabilities(grids: Sequence[Tensor], scaled: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Return the softmax (C + 1, H, W) of the mean logits on the host; arguments as of `mean_logits`."""
    result = torch.empty(len(grids[0]), *size)
    for rows in _strips(grids, size):
        result[:, rows] = mean_logits(grids, scaled, size, rows).softmax(dim=0).cpu()
    return result


def _strips(grids: Sequence[Tensor], size: tuple[int, int]) -> list[slice]:
    count = max(1, _STRIP // (len(grids[0]) * size[1]))
    return [slice(start, min(start + count, size[0])) for start in range(0, size[0], count)]


def _argmax(scores: Tensor) -> Pixels:
    return scores.argmax(dim=0).to(torch.uint8).cpu().numpy()


@lru_cache(maxsize=64)
def _resizing(points: int, scaled: int, pixels: int) -> Tensor:
    """Return the matrix (pixels, points) of a line resized from points to scaled to pixels, align_corners=True."""
    line = torch.eye(points, dtype=torch.float64)[None]
    for length in (scaled, pixels):
        line = interpolate(line, length, mode="linear", align_corners=True)
    return line[0].T.float().contiguous()
