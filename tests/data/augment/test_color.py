"""Color jitter: that of Pillow, in any order, each image by itself."""

from __future__ import annotations

import kit
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from seam_dist.bench.published_augmentation import jitter_exact
from seam_dist.config.schema import AugmentConfig
from seam_dist.data.augment.color import IDENTITY, complete_jitter, jitter, operation_order
from seam_dist.data.augment.geometry import draw
from seam_dist.data.order import sample_generator


def rows(count: int = 48, seed: int = 0) -> list[np.ndarray]:
    return [draw(sample_generator(seed, number), AugmentConfig()).color for number in range(count)]


def test_jitter_agrees_with_pillow_in_every_order() -> None:
    seen = set()
    for number, color in enumerate(rows()):
        image = kit.pixels(number)
        slow = np.array(jitter_exact(Image.fromarray(image), color), int)
        full = complete_jitter(color, image, AugmentConfig())
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        jittered = jitter(tensor, torch.from_numpy(full)[None])[0].permute(1, 2, 0).numpy()
        seen.add(tuple(operation_order(color)))
        assert np.abs(jittered - slow).mean() < 4
        assert np.array_equal(jittered, np.floor(jittered))
    assert len(seen) > 15


@pytest.mark.parametrize("operation", [0, 1, 2])
def test_single_blend_is_exactly_pillows(operation: int) -> None:
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
    for seed, factor in enumerate((0.7, 0.93, 1.3)):
        image = kit.pixels(seed)
        color = np.array(IDENTITY, np.float32)
        color[operation] = factor
        full = complete_jitter(color, image, AugmentConfig())
        slow = np.array(enhance(Image.fromarray(image)).enhance(factor), int)
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        jittered = jitter(tensor, torch.from_numpy(full)[None])[0].permute(1, 2, 0).numpy()
        assert np.abs(jittered - slow).max() <= 1
        assert np.mean(jittered != slow) < 0.05  # rounding instead of truncating would change half of the pixels


def test_hue_turns_red_to_green_and_back() -> None:
    red = torch.tensor([255.0, 0.0, 0.0]).view(1, 3, 1, 1)
    color = torch.tensor([IDENTITY])
    color[0, 3] = 1 / 3
    assert jitter(red, color).flatten().tolist() == [0, 255, 0]
    color[0, 3] = -1 / 3
    assert jitter(red, color).flatten().tolist() == [0, 0, 255]
    gray = torch.full((1, 3, 2, 2), 93.0)
    assert torch.equal(jitter(gray, color), gray)


def test_mean_gray_is_that_of_the_whole_image_just_before_contrast() -> None:
    image = kit.pixels(1, 200, 300)
    color = np.array([1.3, 0.7, 1, 0, 0, 0, 1, 2], np.float32)  # brightness first
    bright = np.minimum(image.astype(int) * 1.3, 255)
    expected = (bright @ np.array([0.299, 0.587, 0.114])).mean()
    assert abs(complete_jitter(color, image, AugmentConfig())[4] - expected) < 3
    color[5:8] = (1, 0, 2)  # contrast first
    expected = (image @ np.array([0.299, 0.587, 0.114])).mean()
    assert abs(complete_jitter(color, image, AugmentConfig())[4] - expected) < 3


def test_identity_row_changes_nothing() -> None:
    image = torch.from_numpy(kit.pixels(0)).permute(2, 0, 1)[None].float()
    assert torch.equal(jitter(image, torch.tensor([IDENTITY])), image)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    images = torch.stack([torch.from_numpy(kit.pixels(n)).permute(2, 0, 1).float() for n in range(6)])
    color = torch.from_numpy(
        np.stack([complete_jitter(row, kit.pixels(n), AugmentConfig()) for n, row in enumerate(rows(6))])
    )
    together = jitter(images, color)
    for n in range(6):
        assert torch.equal(together[n : n + 1], jitter(images[n : n + 1], color[n : n + 1]))
