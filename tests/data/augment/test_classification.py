"""The fast augmentation has the published distribution: nearly the same pixels as the slow exact order."""

from __future__ import annotations

from dataclasses import replace

import kit
import numpy as np
import pytest
import torch
from PIL import Image

from seam_dist.bench.data_loading import make_jpegs, synthetic_photo
from seam_dist.bench.published_augmentation import augment_exact
from seam_dist.config.schema import AugmentConfig
from seam_dist.data.augment.classification import ClassificationAugmentation
from seam_dist.data.augment.geometry import Draw, draw
from seam_dist.data.augment.normalize import normalize_images
from seam_dist.data.images import decode_image
from seam_dist.data.order import sample_generator
from seam_dist.data.shards import RawSample, SampleInfo

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
PUBLISHED = AugmentConfig()
MAX = 10**8


def normalized(
    data: bytes, rng: np.random.Generator, cfg: AugmentConfig, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The fast way from a JPEG to a normalized crop, and the mask of its valid pixels."""
    out = np.full((cfg.crop_size, cfg.crop_size, 3), 77, np.uint8)
    raw, info = RawSample("a", {"jpg": data}), SampleInfo((), size, 1, "a")
    valid, color = ClassificationAugmentation(cfg, MAX)(raw, info, rng, {"image": out})
    image = normalize_images(
        torch.from_numpy(out).permute(2, 0, 1)[None],
        torch.tensor([valid], dtype=torch.int32),
        torch.from_numpy(color)[None],
        torch.from_numpy(MEAN),
        torch.from_numpy(STD),
        channels_last=True,
    )
    inside = np.zeros((cfg.crop_size, cfg.crop_size), bool)
    inside[valid[0] : valid[2], valid[1] : valid[3]] = True
    return image[0].numpy(), inside


@pytest.fixture(scope="module")
def jpegs() -> tuple[bytes, ...]:
    return make_jpegs(4, None)


def exact(data: bytes, choice: Draw, cfg: AugmentConfig) -> np.ndarray:
    # The decoder is the same on both sides: what is compared is the augmentation.
    image = Image.fromarray(decode_image(data, max_pixels=MAX))
    return augment_exact(image, choice, cfg.crop_size, MEAN, STD)


def test_augmentation_is_the_published_one_within_a_twentieth_of_a_unit(jpegs: tuple[bytes, ...]) -> None:
    differences, biases = [], []
    for number in range(8):
        data = jpegs[number % len(jpegs)]
        fast, inside = normalized(data, sample_generator(7, number), PUBLISHED, (375, 500))
        slow = exact(data, draw(sample_generator(7, number), PUBLISHED), PUBLISHED)
        assert (fast[:, ~inside] == 0).all()
        assert (slow[:, ~inside] == 0).all()
        differences.append(np.abs(fast - slow)[:, inside].mean())
        biases.append((fast - slow)[:, inside].mean())
    assert np.mean(differences) < 0.05
    assert max(differences) < 0.1
    assert abs(np.mean(biases)) < 0.02


def test_large_images_are_reduced_while_decoding_and_still_match() -> None:
    cfg = replace(PUBLISHED, crop_size=64, resize_long=(70, 90), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    image = synthetic_photo(np.random.default_rng(0), 400, 300)
    data = kit.encode(image, quality=95)
    for number in range(4):
        fast, inside = normalized(data, sample_generator(3, number), cfg, (300, 400))
        slow = exact(data, draw(sample_generator(3, number), cfg), cfg)
        assert np.abs(fast - slow)[:, inside].mean() < 0.12


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (375, 1), (24, 24)])
def test_smallest_and_longest_images_are_augmented(size: tuple[int, int]) -> None:
    cfg = replace(PUBLISHED, crop_size=24, resize_long=(24, 48))
    data = kit.encode(kit.pixels(0, 24, 24)) if size == (24, 24) else kit.encode(np.full((*size, 3), 90, np.uint8))
    image, inside = normalized(data, sample_generator(0, 1), cfg, size)
    assert np.isfinite(image).all()
    assert inside.any()
