"""Random access to a split of shards as a map-style data set for torch's DataLoader.

For notebooks and training code of one's own; the stages stream shards in the canonical order of `data.loader` instead.
A shard's headers are walked when its first sample is asked for, each process by itself; a sample is then read at its
place in the tar.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from seam_dist.artifacts.tar_file import Member
from seam_dist.config.paths import user_path
from seam_dist.config.schema import DataConfig
from seam_dist.data.images import BadSampleError, Pixels
from seam_dist.data.manifest import ShardError, load_manifest
from seam_dist.data.shards import decode_sample, index_shard, read_indexed


class ShardDataset(Dataset[dict[str, Any]]):
    """The samples of a split, in the order of its shards.

    A sample is a dict: `image` (H, W, 3) uint8 RGB in display order, or what `transform` returns for it; `label` (C,)
    float32 multi-hot, absent when the split has no image-level labels; `key`; `size` (H, W) of the stored image; and
    with `masks` `mask` (H, W) uint8, 0 background, 255 ignored. Column c of `label` and value c + 1 of `mask` belong to
    `classes[c]`. `transform` sees the image alone: bring masks to its size in a collate function.

    Raises ShardError (a ValueError) for a folder without a manifest, an unknown split, a split without masks and a
    damaged shard, BadSampleError (a ValueError) for a sample that cannot be used; both give the file.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        transform: Callable[[Pixels], Any] | None = None,
        masks: bool = False,
    ) -> None:
        manifest = load_manifest(user_path(folder))
        self.folder, self.transform, self.masks = user_path(folder), transform, masks
        self.classes = manifest.classes
        self.split = split
        self._split = manifest.split(split)
        if masks and not self._split.has_masks:
            raise ShardError(f"split {split!r} of {folder} has no masks: leave masks=False or choose another split")
        self._ends = list(accumulate(shard.num_samples for shard in self._split.shards))
        self._members: dict[int, list[tuple[Member, ...]]] = {}

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._split.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read and decode sample `index`; negative ones count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples of split {self.split!r}")
        index %= len(self)
        number = bisect_right(self._ends, index)
        shard = self._split.shards[number]
        path = self.folder / shard.file
        if number not in self._members:
            self._members[number] = index_shard(path, shard)
        raw = read_indexed(path, self._members[number][index - self._ends[number]])  # from the end: negative
        num_classes = len(self.classes)
        try:
            sample = decode_sample(raw, masks=self.masks, max_pixels=DataConfig.max_pixels, num_classes=num_classes)
        except BadSampleError as error:
            text = f"sample {raw.key} in {path}: {error}"
            raise BadSampleError(f"{text}: correct it and convert the data set again") from None
        item: dict[str, Any] = {
            "image": sample.image if self.transform is None else self.transform(sample.image),
            "key": sample.key,
            "size": sample.image.shape[:2],
        }
        if self._split.has_labels:
            item["label"] = np.isin(np.arange(1, num_classes + 1), sample.classes).astype(np.float32)
        if sample.mask is not None:
            item["mask"] = sample.mask
        return item
