"""Labels from the final network: the mean of its logits over scales and mirror images.

PARITY.md section 7: each scale's logits are brought to the scaled image and from there to the original one, bilinear
with align_corners=True; their mean over scales and mirror images goes through the softmax. Every class competes
everywhere, but for the oracle, which gets the image-level labels: compared with the plain labels it separates wrong
classes from wrong outlines, compared with the random walk's it shows what retraining changed.

Mirroring, resizing and the mean are linear, so a scale is kept at the network's grid, 1/64 to 1/256 of its pixels, with
its mirror image folded in. The two resizings of all scales are then one matrix product for rows and one for columns,
made in strips: logits at full size never exist for more than one image and 64 MB.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from seam_dist.config.schema import InferSegConfig
from seam_dist.data.shards import Sample
from seam_dist.inference.batching import Pixels, by_size, network_maps, one_ahead, scaled_images
from seam_dist.inference.crf_pool import CrfPool, refine_labels
from seam_dist.inference.pseudo_labels import choose_classes
from seam_dist.inference.run_shards import ShardOutput
from seam_dist.models import DeepLab

_STRIP = 1 << 24  # logits at full size that exist at once, unless they are asked for
_BATCH_PIXELS = {"cpu": 1 << 22, "cuda": 1 << 24}  # of the images in a batch, which are held at all scales


@dataclass(frozen=True)
class Prediction:
    """Class ids (H, W) of one image, 0 the background; `index` is its place among the samples.

    `refined` are those after the CRF, if there is one; `oracle` those of the network alone among background and the
    classes in the image's label, if they were asked for.
    """

    index: int
    sample: Sample
    labels: Pixels
    refined: Future[Pixels] | None = None
    oracle: Pixels | None = None

    @property
    def final(self) -> Pixels:
        """The refined labels where there is a CRF, whose end is waited for, else the network's."""
        return self.labels if self.refined is None else self.refined.result()


def infer_labels(
    model: DeepLab,
    images: Sequence[Pixels],
    *,
    scales: Sequence[float],
    flip: bool = True,
    align: int | None = None,
    longest: int | None = None,
) -> list[Pixels]:
    """Return the class ids (H, W) of images (H, W, 3) of one size from a network in eval mode; 0 is the background.

    Scaled images have sizes that fit grids of stride `align` (Trained.align); scales of images longer than `longest`
    pixels are relative to that length. Raises ValueError without a scale.
    """
    scaled = scaled_images(images, scales, align=align, longest=longest)
    grids, sizes = grid_logits(model, scaled, flip=flip), _sizes(scaled)
    size = (images[0].shape[0], images[0].shape[1])
    return [label_image([grid[place] for grid in grids], sizes, size) for place in range(len(images))]


def predict_samples(
    model: DeepLab,
    samples: Iterable[Sample],
    cfg: InferSegConfig,
    *,
    align: int | None = None,
    longest: int | None = None,
    crf: CrfPool | None = None,
    oracle: bool = False,
) -> Iterator[Prediction]:
    """Yield the prediction of every sample, as they are finished, the labels of the CRF still being made.

    Images of one size go through the network together, cfg.batch_size of them. `align` and `longest` as in
    `infer_labels`. `oracle` needs samples with labels.
    """
    classes = range(1, model.num_classes + 1)
    pixels = _BATCH_PIXELS[next(model.parameters()).device.type]
    prepared = (
        (part, scaled_images([sample.image for _, sample in part], cfg.scales, align=align, longest=longest))
        for batch in by_size(samples, cfg.batch_size)
        for part in _parts(batch, pixels)
    )
    for batch, images in one_ahead(prepared):
        grids, scaled = grid_logits(model, images, flip=cfg.flip), _sizes(images)
        for place, (index, sample) in enumerate(batch):
            size = (sample.image.shape[0], sample.image.shape[1])
            own = [grid[place] for grid in grids]
            among = label_image(own, scaled, size, sample.classes) if oracle else None
            if crf is None:
                yield Prediction(index, sample, label_image(own, scaled, size), oracle=among)
                continue
            scores = probabilities(own, scaled, size)
            settings = cfg.crf_num_iters, cfg.crf_bilateral_sxy
            refined = crf.submit(refine_labels, sample.image, scores.numpy(), classes, *settings)
            yield Prediction(index, sample, choose_classes(scores, classes), refined, among)


def refine_in_order(predictions: Iterable[Prediction]) -> Iterator[tuple[Prediction, Pixels]]:
    """Yield predictions in their order with their labels, those of the CRF where there is one, as they are finished."""
    waiting: deque[Prediction] = deque()
    for prediction in predictions:
        waiting.append(prediction)
        while waiting and (waiting[0].refined is None or waiting[0].refined.done()):
            yield waiting[0], waiting.popleft().final
    for prediction in waiting:
        yield prediction, prediction.final


def add_prediction(output: ShardOutput, prediction: Prediction) -> None:
    """Give the labels of a sample to those folders of its shard's output that there are."""
    index, key = prediction.index, prediction.sample.key
    labels, refined, oracle = prediction.labels, prediction.refined, prediction.oracle
    output.add("labels", index, key, lambda: labels)
    if refined is not None:
        output.add("labels_crf", index, key, refined.result)
    if oracle is not None:
        output.add("labels_oracle", index, key, lambda: oracle)


def _sizes(images: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(image.shape[2], image.shape[3]) for image in images]


def _parts(batch: list[tuple[int, Sample]], pixels: int) -> Iterator[list[tuple[int, Sample]]]:
    """Cut a batch of images of one size to at most `pixels` pixels, at least one image each."""
    height, width = batch[0][1].image.shape[:2]
    count = max(1, pixels // (height * width))
    yield from (batch[start : start + count] for start in range(0, len(batch), count))


def grid_logits(model: DeepLab, images: Sequence[Tensor], *, flip: bool) -> list[Tensor]:
    """Return for each scale the logits (B, C + 1, h, w) at the network's grid, the mean with the mirror image's.

    images: uint8 (B, 3, H, W) at each scale.
    """
    sums = [network_maps(model, scaled, lambda pixels: [model.forward_grid(pixels)], flip=flip)[0] for scaled in images]
    return [logits / 2 for logits in sums] if flip else sums


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


def label_image(
    grids: Sequence[Tensor],
    scaled: Sequence[tuple[int, int]],
    size: tuple[int, int],
    classes: Sequence[int] | None = None,
) -> Pixels:
    """Return the class ids (H, W) of the largest mean logit; arguments as of `mean_logits`.

    `classes` are the only ones that may be chosen, beside the background; unset: all.
    """
    if classes is None:
        classes = range(1, len(grids[0]))
    else:
        grids = [grid[[0, *classes]] for grid in grids]
    strips = (mean_logits(grids, scaled, size, rows) for rows in _strips(grids, size))
    return np.concatenate([choose_classes(strip, classes) for strip in strips])


def probabilities(grids: Sequence[Tensor], scaled: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Return the softmax (C + 1, H, W) of the mean logits on the host; arguments as of `mean_logits`."""
    result = torch.empty(len(grids[0]), *size)
    for rows in _strips(grids, size):
        result[:, rows] = mean_logits(grids, scaled, size, rows).softmax(dim=0).cpu()
    return result


def _strips(grids: Sequence[Tensor], size: tuple[int, int]) -> list[slice]:
    count = max(1, _STRIP // (len(grids[0]) * size[1]))
    return [slice(start, min(start + count, size[0])) for start in range(0, size[0], count)]


@lru_cache(maxsize=64)
def _resizing(points: int, scaled: int, pixels: int) -> Tensor:
    """Return the matrix (pixels, points) of a line resized from points to scaled to pixels, align_corners=True."""
    line = torch.eye(points, dtype=torch.float64)[None]
    for length in (scaled, pixels):
        line = interpolate(line, length, mode="linear", align_corners=True)
    return line[0].T.float().contiguous()
