"""The fast augmentation has the published distribution: same draws, nearly the same pixels as the slow exact order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from seam_dist.bench.data_loading import make_jpegs, synthetic_photo
from seam_dist.bench.published import augment_exact, jitter_exact
from seam_dist.config.schema import AugmentConfig
from seam_dist.data.augment.color import IDENTITY, jitter_device, jitter_host, turns, with_gray_mean
from seam_dist.data.augment.geometry import Draw, augment, draw, normalize_images, place, resize_region
from seam_dist.data.images import decode_image
from seam_dist.data.order import sample_generator

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
PUBLISHED = AugmentConfig()
MAX = 10**8


def normalized(data: bytes, choice: Draw, cfg: AugmentConfig, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The fast way from a JPEG to a normalized crop, and the mask of its valid pixels."""
    out = np.full((cfg.crop_size, cfg.crop_size, 3), 77, np.uint8)
    valid, color = augment(data, choice, cfg, out, size=size, orientation=1, max_pixels=MAX)
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


@pytest.mark.parametrize("color_on", ["device", "host"])
def test_augmentation_is_the_published_one_within_a_twentieth_of_a_unit(
    jpegs: tuple[bytes, ...], color_on: Literal["device", "host"]
) -> None:
    cfg = replace(PUBLISHED, color_on=color_on)
    differences, biases = [], []
    for number in range(8):
        data, choice = jpegs[number % len(jpegs)], draw(sample_generator(7, number), cfg)
        fast, inside = normalized(data, choice, cfg, (375, 500))
        slow = exact(data, choice, cfg)
        assert (fast[:, ~inside] == 0).all()
        assert (slow[:, ~inside] == 0).all()
        differences.append(np.abs(fast - slow)[:, inside].mean())
        biases.append((fast - slow)[:, inside].mean())
    assert np.mean(differences) < 0.05
    assert max(differences) < 0.1
    assert abs(np.mean(biases)) < 0.02


def test_large_images_are_reduced_while_decoding_and_still_match(kit: SimpleNamespace) -> None:
    cfg = replace(PUBLISHED, crop_size=64, resize_long=(70, 90), brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    image = synthetic_photo(np.random.default_rng(0), 400, 300)
    data = kit.encode(image, quality=95)
    for number in range(4):
        choice = draw(sample_generator(3, number), cfg)
        fast, inside = normalized(data, choice, cfg, (300, 400))
        assert np.abs(fast - exact(data, choice, cfg))[:, inside].mean() < 0.12


def test_draws_have_the_published_distribution() -> None:
    draws = [draw(sample_generator(0, number), PUBLISHED) for number in range(4000)]
    sides = np.array([d.long_side for d in draws])
    assert (sides.min(), sides.max()) == (448, 768)
    assert abs(sides.mean() - 608) < 4 * 92.7 / np.sqrt(4000)
    assert abs(np.mean([d.flip for d in draws]) - 0.5) < 0.04
    color = np.stack([d.color for d in draws])
    for column, low, high in ((0, 0.7, 1.3), (1, 0.7, 1.3), (2, 0.7, 1.3), (3, -0.1, 0.1)):
        values = color[:, column]
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high + 1e-6
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * 4000)
    orders = {tuple(turns(row)) for row in color}
    assert len(orders) == 24
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_crop_position_is_uniform_for_large_and_small_images() -> None:
    cfg = replace(PUBLISHED, resize_long=(6, 6))
    places = [place(3, 6, draw(sample_generator(0, n), cfg), 4) for n in range(600)]
    assert {found.resized for found in places} == {(3, 6)}
    starts, offsets = Counter(found.start for found in places), Counter(found.offset for found in places)
    assert set(starts) == {(0, x) for x in range(3)}
    assert set(offsets) == {(y, 0) for y in range(2)}
    assert min(starts.values()) > 150
    assert min(offsets.values()) > 250


def test_settings_switch_single_parts_off() -> None:
    cfg = replace(PUBLISHED, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, hflip=0.0, resize_long=(500, 500))
    for number in range(20):
        choice = draw(sample_generator(0, number), cfg)
        assert (choice.long_side, choice.flip) == (500, False)
        assert tuple(choice.color[:4]) == IDENTITY[:4]


def test_one_setting_does_not_shift_the_draws_of_another() -> None:
    first = draw(sample_generator(0, 0), PUBLISHED)
    second = draw(sample_generator(0, 0), replace(PUBLISHED, hflip=0.0, hue=0.0))
    assert first.position == second.position
    assert first.long_side == second.long_side
    assert np.array_equal(first.color[:3], second.color[:3])


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)), st.integers(20, 700), st.integers(8, 300), st.floats(0, 0.999)
)
def test_region_of_a_resized_image_is_where_the_whole_one_has_it(
    size: tuple[int, int], long_side: int, crop: int, share: float
) -> None:
    where = place(*size, Draw(long_side, False, (share, share), np.array(IDENTITY, np.float32)), crop)
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.stack([y * 255 / size[0], x * 255 / size[1], np.zeros(size)], axis=-1).astype(np.uint8)
    whole = cv2.resize(image, where.resized[::-1], interpolation=cv2.INTER_LINEAR)
    region = resize_region(image, where.resized, where.start, where.size)
    assert region.shape[:2] == where.size
    (top, left), (height, width) = where.start, where.size
    expected = whole[top : top + height, left : left + width]
    assert np.abs(region.astype(int) - expected).max() <= 2 + 300 // min(*size, *where.resized)


@pytest.mark.parametrize("resized", [501, 499, 505, 448, 450, 617, 768, 1000])
def test_region_lies_exactly_where_the_whole_resized_image_has_it(resized: int) -> None:
    # Fine texture: a shift by half a pixel would change it by 30 and more.
    y, x = np.mgrid[:90, :500]
    image = np.repeat((128 + 100 * np.sin(x) * np.cos(y / 2))[..., None], 3, axis=2).astype(np.uint8)
    height = round(90 * resized / 500)
    whole = cv2.resize(image, (resized, height), interpolation=cv2.INTER_CUBIC).astype(int)
    for start in range(0, resized - 60, 37):
        region = resize_region(image, (height, resized), (0, start), (height, 60))
        assert np.abs(region - whole[:, start : start + 60]).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (375, 1), (24, 24)])
def test_smallest_and_longest_images_are_augmented(kit: SimpleNamespace, size: tuple[int, int]) -> None:
    cfg = replace(PUBLISHED, crop_size=24, resize_long=(24, 48))
    data = kit.encode(kit.pixels(0, 24, 24)) if size == (24, 24) else kit.encode(np.full((*size, 3), 90, np.uint8))
    for color_on in ("device", "host"):
        image, inside = normalized(data, draw(sample_generator(0, 1), cfg), replace(cfg, color_on=color_on), size)
        assert np.isfinite(image).all()
        assert inside.any()


def rows(count: int = 48, seed: int = 0) -> list[np.ndarray]:
    return [draw(sample_generator(seed, number), PUBLISHED).color for number in range(count)]


def test_host_and_device_jitter_agree_with_pillow_in_every_order(kit: SimpleNamespace) -> None:
    seen = set()
    for number, color in enumerate(rows()):
        image = kit.pixels(number)
        slow = np.array(jitter_exact(Image.fromarray(image), color), int)
        full = with_gray_mean(color, image)
        host = jitter_host(image, full).astype(int)
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        device = jitter_device(tensor, torch.from_numpy(full)[None])[0].permute(1, 2, 0).numpy()
        seen.add(tuple(turns(color)))
        assert np.abs(host - slow).mean() < 4
        assert np.abs(device - slow).mean() < 4
        assert np.array_equal(device, np.floor(device))
    assert len(seen) > 15


@pytest.mark.parametrize("operation", [0, 1, 2])
def test_single_blend_is_exactly_pillows(kit: SimpleNamespace, operation: int) -> None:
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
    for seed, factor in enumerate((0.7, 0.93, 1.3)):
        image = kit.pixels(seed)
        color = np.array(IDENTITY, np.float32)
        color[operation] = factor
        full = with_gray_mean(color, image)
        slow = np.array(enhance(Image.fromarray(image)).enhance(factor), int)
        host = jitter_host(image, full).astype(int)
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        device = jitter_device(tensor, torch.from_numpy(full)[None])[0].permute(1, 2, 0).numpy()
        assert np.abs(host - slow).max() <= 1
        assert abs((host - slow).mean()) < 0.2  # rounding instead of cutting would be half a step
        assert np.abs(device - slow).max() <= 1
        assert np.mean(device != slow) < 0.05


def test_hue_turns_red_to_green_and_back() -> None:
    red = torch.tensor([255.0, 0.0, 0.0]).view(1, 3, 1, 1)
    color = torch.tensor([IDENTITY])
    color[0, 3] = 1 / 3
    assert jitter_device(red, color).flatten().tolist() == [0, 255, 0]
    color[0, 3] = -1 / 3
    assert jitter_device(red, color).flatten().tolist() == [0, 0, 255]
    gray = torch.full((1, 3, 2, 2), 93.0)
    assert torch.equal(jitter_device(gray, color), gray)


def test_mean_gray_is_that_of_the_whole_image_at_contrasts_turn(kit: SimpleNamespace) -> None:
    image = kit.pixels(1, 200, 300)
    color = np.array([1.3, 0.7, 1, 0, 0, 0, 1, 2], np.float32)  # brightness first
    bright = np.minimum(image.astype(int) * 1.3, 255)
    expected = (bright @ np.array([0.299, 0.587, 0.114])).mean()
    assert abs(with_gray_mean(color, image)[4] - expected) < 3
    color[5:8] = (1, 0, 2)  # contrast first
    expected = (image @ np.array([0.299, 0.587, 0.114])).mean()
    assert abs(with_gray_mean(color, image)[4] - expected) < 3


def test_identity_row_changes_nothing(kit: SimpleNamespace) -> None:
    image = torch.from_numpy(kit.pixels(0)).permute(2, 0, 1)[None].float()
    assert torch.equal(jitter_device(image, torch.tensor([IDENTITY])), image)
    assert np.array_equal(jitter_host(kit.pixels(0), np.array(IDENTITY, np.float32)), kit.pixels(0))


def test_images_of_a_batch_do_not_touch_each_other(kit: SimpleNamespace) -> None:
    images = torch.stack([torch.from_numpy(kit.pixels(n)).permute(2, 0, 1).float() for n in range(6)])
    color = torch.from_numpy(np.stack([with_gray_mean(row, kit.pixels(n)) for n, row in enumerate(rows(6))]))
    together = jitter_device(images, color)
    for n in range(6):
        assert torch.equal(together[n : n + 1], jitter_device(images[n : n + 1], color[n : n + 1]))


def normalize(image: torch.Tensor, valid: torch.Tensor, color: torch.Tensor | None, last: bool) -> torch.Tensor:
    return normalize_images(image, valid, color, torch.from_numpy(MEAN), torch.from_numpy(STD), channels_last=last)


@pytest.mark.parametrize("last", [True, False])
def test_padding_is_zero_after_normalization_and_pixels_are_normalized(kit: SimpleNamespace, last: bool) -> None:
    image = torch.from_numpy(np.stack([kit.pixels(n) for n in range(2)])).permute(0, 3, 1, 2)
    valid = torch.tensor([[3, 5, 20, 33], [0, 0, 30, 40]], dtype=torch.int32)
    found = normalize(image, valid, torch.tensor([IDENTITY] * 2), last)
    expected = (image.numpy() / 255 - MEAN[:, None, None]) / STD[:, None, None]
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    inside = found[0, :, 3:20, 5:33].numpy()
    assert np.allclose(inside, expected[0, :, 3:20, 5:33], atol=1e-5)
    assert np.allclose(found[1].numpy(), expected[1], atol=1e-5)
    outside = found[0].clone()
    outside[:, 3:20, 5:33] = 0
    assert not outside.any()
    assert torch.equal(found, normalize(image, valid, None, last))


@pytest.mark.slow
def test_normalization_traces_without_a_break(kit: SimpleNamespace) -> None:
    image = torch.from_numpy(np.stack([kit.pixels(n) for n in range(2)])).permute(0, 3, 1, 2)
    valid = torch.tensor([[3, 5, 20, 33], [0, 0, 30, 40]], dtype=torch.int32)
    color = torch.from_numpy(np.stack(rows(2)))
    compiled = torch.compile(partial(normalize, last=True), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(image, valid, color), normalize(image, valid, color, True))
