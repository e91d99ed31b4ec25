"""Crops of images with affinity labels: blocks stay whole and stay with their pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kit import CROP, HEIGHT, WIDTH, block_labels, label_map_config, label_map_loader, label_tars


@pytest.mark.parametrize("crop", [48, 72, 96])
def test_affinity_label_of_every_block_is_that_of_its_pixels(coded_shards: Path, tmp_path: Path, crop: int) -> None:
    """Crops inside the image, larger than it on one side, and on both; decoded from the pixels alone."""
    cfg = label_map_config(coded_shards, crop=crop)
    loader = label_map_loader(
        cfg, label_tars(coded_shards, tmp_path / "labels", block_labels()), "train_affinity", batch=16
    )
    boxes, mirrored = set(), set()
    for _ in range(4):
        batch = next(loader)
        assert batch["image"].shape == (16, 3, crop, crop)
        assert (batch["target"].shape, batch["target"].dtype) == ((16, crop // 8, crop // 8), torch.uint8)
        for image, target, (y0, x0, y1, x1) in zip(
            batch["image"], batch["target"], batch["valid"].tolist(), strict=True
        ):
            inside = torch.zeros(crop, crop, dtype=torch.bool)
            inside[y0:y1, x0:x1] = True
            assert torch.equal(image.amax(0) > 0, inside)  # black outside, never inside
            assert (y1 - y0, x1 - x0) == (min(HEIGHT, crop), min(WIDTH, crop))
            red, green = (image[c].long().view(crop // 8, 8, crop // 8, 8).amax((1, 3)) for c in (0, 1))
            expected = torch.where(red > 0, (red - 1) // 3 * 11 + (green - 1) // 3, 255)
            assert torch.equal(target.long(), expected)
            # A block never mixes pixels of two stored blocks.
            blocks = image[1].view(crop // 8, 8, crop // 8, 8)
            least = torch.where(blocks == 0, 255, blocks).amin((1, 3))
            assert torch.equal(least[red > 0], blocks.amax((1, 3))[red > 0])
            boxes.add((y0, x0, int(red.amax()), int(green.amax())))
            columns = green[red.amax(1).argmax()]
            mirrored.add(bool(columns[columns > 0][0] > columns[columns > 0][-1]))
    assert mirrored == {True, False}
    assert len(boxes) > 3


def test_affinity_crops_reach_every_offset_of_the_stride(coded_shards: Path, tmp_path: Path) -> None:
    labels = label_tars(coded_shards, tmp_path / "labels", block_labels())
    loader = label_map_loader(label_map_config(coded_shards, hflip=0.0), labels, "train_affinity", batch=200)
    corners = {(int(value) // 11, int(value) % 11) for value in next(loader)["target"][:, 0, 0]}
    assert corners == {(y, x) for y in range((HEIGHT - CROP) // 8 + 1) for x in range((WIDTH - CROP) // 8 + 1)}


def test_affinity_jitter_leaves_padding_black(coded_shards: Path, tmp_path: Path) -> None:
    labels = label_tars(coded_shards, tmp_path / "labels", block_labels())
    plain = next(label_map_loader(label_map_config(coded_shards, crop=96), labels, "train_affinity"))
    batch = next(label_map_loader(label_map_config(coded_shards, crop=96, jitter=True), labels, "train_affinity"))
    assert torch.equal(batch["target"], plain["target"])
    assert torch.equal(batch["image"], plain["image"])  # the colors change on the device
    assert not torch.equal(batch["color"], plain["color"])
    for image, (y0, x0, y1, x1) in zip(batch["image"], batch["valid"].tolist(), strict=True):
        assert image.sum() == image[:, y0:y1, x0:x1].sum()
