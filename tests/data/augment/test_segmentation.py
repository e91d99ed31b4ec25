"""Crops of images with label maps: scaled, flipped and shifted in color, each pixel with its label."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from kit import CROP, HEIGHT, WIDTH, coded_image, label_map_config, label_map_loader, lossless_shards, pixel_labels
from numpy.typing import NDArray

from seam_dist.data.augment.segmentation import shift_hsv


@pytest.mark.parametrize(("crop", "scale"), [(48, (1.0, 1.0)), (96, (1.0, 1.0)), (64, (0.5, 1.5)), (160, (1.2, 1.6))])
def test_seg_label_of_every_pixel_is_that_of_its_image(tmp_path: Path, crop: int, scale: tuple[float, float]) -> None:
    """The image holds its label in all channels, in large smooth areas: it can be read off a scaled crop."""

    def smooth(index: int) -> NDArray[np.uint8]:
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        return np.repeat((30 + rows + columns).astype(np.uint8)[..., None], 3, axis=-1)

    shards = lossless_shards(tmp_path / "shards", smooth, smooth(0)[..., 0])
    loader = label_map_loader(label_map_config(shards, crop=crop, scale=scale), None, "train_seg", batch=12)
    flips, sizes = set(), set()
    for _ in range(3):
        batch = next(loader)
        assert (batch["target"].shape, batch["target"].dtype) == ((12, crop, crop), torch.uint8)
        for image, target, (y0, x0, y1, x1) in zip(
            batch["image"], batch["target"], batch["valid"].tolist(), strict=True
        ):
            outside = torch.ones(crop, crop, dtype=torch.bool)
            outside[y0:y1, x0:x1] = False
            assert (image[:, outside] == 0).all()
            assert (target[outside] == 255).all()
            shown, label = image[1, y0:y1, x0:x1].int(), target[y0:y1, x0:x1].int()
            # A pixel of a scaled image differs from the nearest original by half a step in each direction at most.
            error = (shown - label).abs()[2:-2, 2:-2]
            assert error.max() <= (0 if scale == (1.0, 1.0) else 2), error.max()
            assert (label != 255).all()
            flips.add(bool(label[0, 0] > label[0, -1]))
            sizes.add((y1 - y0, x1 - x0))
    assert flips == {True, False}
    assert len(sizes) == 1 if scale == (1.0, 1.0) else len(sizes) > 3


def test_seg_scales_are_drawn_from_the_range(coded_shards: Path) -> None:
    batch = next(
        label_map_loader(label_map_config(coded_shards, crop=256, scale=(0.5, 1.5)), None, "train_seg", batch=200)
    )
    scales = (batch["valid"][:, 2] - batch["valid"][:, 0]).double() / HEIGHT
    assert 0.5 <= scales.min() < 0.55
    assert 1.45 < scales.max() <= 1.5
    assert abs(float(scales.mean()) - 1) < 0.07
    free = 256 - batch["valid"][:, 2] + batch["valid"][:, 0]
    shares = batch["valid"][:, 0].double() / free
    assert abs(float(shares.mean()) - 0.5) < 0.07  # a small image lies anywhere in the crop


def test_mask_with_ignored_pixels_keeps_them(tmp_path: Path) -> None:
    mask = pixel_labels()
    mask[::2] = 255
    shards = lossless_shards(tmp_path / "shards", coded_image, mask)
    batch = next(label_map_loader(label_map_config(shards, scale=(1.0, 1.0)), None, "train_seg"))
    rows = (batch["target"] == 255).all(dim=2)
    assert torch.equal(rows.sum(dim=1), torch.full((4,), CROP // 2))


def test_hsv_shift_stays_in_its_range_and_turns_hue_around() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
    expected = np.stack([(hsv[..., 0] - 7) % 180, (hsv[..., 1] + 10).clip(0, 255), (hsv[..., 2] - 10).clip(0, 255)], -1)
    wanted = cv2.cvtColor(expected.astype(np.uint8), cv2.COLOR_HSV2RGB)
    np.testing.assert_array_equal(shift_hsv(image, [-7, 10, -10]), wanted)
    np.testing.assert_array_equal(shift_hsv(image, [0, 0, 0]), image)


def test_hsv_shifts_reach_both_ends(tmp_path: Path) -> None:
    gray = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    shards = lossless_shards(tmp_path / "shards", lambda _: gray, np.zeros((HEIGHT, WIDTH), np.uint8))
    cfg = label_map_config(shards, crop=16, hsv_jitter=3, scale=(1.0, 1.0))
    values = next(label_map_loader(cfg, None, "train_seg", batch=100))["image"].amax((1, 2, 3))
    assert set(values.tolist()) == set(range(97, 104))
