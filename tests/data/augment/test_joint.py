"""The stream of images with label maps: both keep their alignment, in the same order on any ranks and workers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from kit import changed
from numpy.typing import NDArray

from seam_dist.artifacts.label_file import read_label_shard, write_labels
from seam_dist.config.schema import Config, TrainAffinityConfig, TrainSegConfig
from seam_dist.data.augment.joint import JointBatch, JointLoader, make_joint_loader, shift_hsv
from seam_dist.data.convert import convert
from seam_dist.data.manifest import ShardError, load_manifest
from seam_dist.data.shards import read_raw
from seam_dist.data.sources.base import Record

HEIGHT, WIDTH = 60, 84  # no multiples of the stride
STRIDE = 8
CROP = 48
NUM = 12
CLASSES = [f"c{index}" for index in range(200)]


def coded(index: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """An image whose pixels tell their block: red 3 * block row + 1, green 3 * block column + 1, blue the image."""
    rows, columns = np.mgrid[:height, :width] // STRIDE
    blue = np.full_like(rows, 10 * index + 5)
    return np.stack([3 * rows + 1, 3 * columns + 1, blue], axis=-1).astype(np.uint8)


def block_labels(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """What belongs to `coded` on the grid of blocks: 11 * block row + block column."""
    rows, columns = np.mgrid[: -(-height // STRIDE), : -(-width // STRIDE)]
    return (11 * rows + columns).astype(np.uint8)


def pixel_labels(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    return np.kron(block_labels(height, width), np.ones((STRIDE, STRIDE), np.uint8))[:height, :width]


def shards_of(
    folder: Path, kit: SimpleNamespace, image: Callable[[int], NDArray[np.uint8]], mask: NDArray[np.uint8]
) -> Path:
    """Lossless images with their masks, 12 samples in 4 shards."""
    records = [
        Record(
            f"image-{i:03d}", f"{i}", (1,), kit.Bytes(kit.encode(image(i), "PNG")), kit.Bytes(kit.encode(mask, "PNG"))
        )
        for i in range(NUM)
    ]
    convert(CLASSES, {"train": records}, folder, settings={"kind": "memory"}, samples_per_shard=3, streams=4,
            max_pixels=10**6)  # fmt: skip
    return folder


@pytest.fixture
def coded_shards(tmp_path: Path, kit: SimpleNamespace) -> Path:
    return shards_of(tmp_path / "shards", kit, coded, pixel_labels())


def write_tars(shards: Path, folder: Path, label: NDArray[np.uint8], *, without: Sequence[str] = ()) -> Path:
    """One label tar for each shard, named like it."""
    for shard in load_manifest(shards).split("train").shards:
        keys = [raw.key for raw in read_raw(shards / shard.file) if raw.key not in without]
        write_labels(folder / shard.file, [(key, label) for key in keys])
    return folder


def settings(kit: SimpleNamespace, shards: Path, *, crop: int = CROP, color_on: Any = "device", **more: Any) -> Config:
    affinity = {name: more.pop(name) for name in ("jitter", "hflip") if name in more}
    seg = {name: more.pop(name) for name in ("scale", "hsv_jitter") if name in more}
    return replace(
        kit.stream_config(shards, color_on=color_on, **more),
        train_affinity=changed(TrainAffinityConfig(), crop_size=crop, **{"jitter": False, **affinity}),
        train_seg=changed(TrainSegConfig(), crop_size=crop, **{"hsv_jitter": 0, **seg}),
    )


def open_loader(cfg: Config, labels: Path | None, kind: Any, *, rank: int = 0, ranks: int = 1, start: int = 0,
                batch: int = 4) -> JointLoader:  # fmt: skip
    manifest = load_manifest(cfg.shards_dir)
    return make_joint_loader(cfg, manifest, rank, ranks, start, batch, labels=labels, kind=kind)


def digest(batches: Sequence[JointBatch]) -> list[tuple[int, str, str]]:
    rows = []
    for batch in batches:
        for i, (key, number) in enumerate(zip(batch["key"], batch["sample_number"].tolist(), strict=True)):
            parts = [batch["image"][i], batch["target"][i], batch["valid"][i], batch["color"][i]]
            data = b"".join(part.contiguous().numpy().tobytes() for part in parts)
            rows.append((number, key, hashlib.sha256(data).hexdigest()))
    return sorted(rows)


def global_steps(cfg: Config, labels: Path, kind: Any, ranks: int, steps: int, start: int = 0) -> Any:
    loaders = [open_loader(cfg, labels, kind, rank=r, ranks=ranks, start=start, batch=4 // ranks) for r in range(ranks)]
    try:
        return [digest([next(one) for one in loaders]) for _ in range(steps)]
    finally:
        for one in loaders:
            one.close()


@pytest.mark.parametrize("crop", [48, 72, 96])
def test_affinity_label_of_every_block_is_that_of_its_pixels(
    coded_shards: Path, tmp_path: Path, kit: SimpleNamespace, crop: int
) -> None:
    """Crops inside the image, larger than it on one side, and on both; decoded from the pixels alone."""
    cfg = settings(kit, coded_shards, crop=crop)
    loader = open_loader(cfg, write_tars(coded_shards, tmp_path / "labels", block_labels()), "affinity", batch=16)
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


def test_affinity_crops_reach_every_offset_of_the_stride(
    coded_shards: Path, tmp_path: Path, kit: SimpleNamespace
) -> None:
    labels = write_tars(coded_shards, tmp_path / "labels", block_labels())
    loader = open_loader(settings(kit, coded_shards, hflip=0.0), labels, "affinity", batch=200)
    corners = {(int(value) // 11, int(value) % 11) for value in next(loader)["target"][:, 0, 0]}
    assert corners == {(y, x) for y in range((HEIGHT - CROP) // 8 + 1) for x in range((WIDTH - CROP) // 8 + 1)}


@pytest.mark.parametrize(("crop", "scale"), [(48, (1.0, 1.0)), (96, (1.0, 1.0)), (64, (0.5, 1.5)), (160, (1.2, 1.6))])
def test_seg_label_of_every_pixel_is_that_of_its_image(
    tmp_path: Path, kit: SimpleNamespace, crop: int, scale: tuple[float, float]
) -> None:
    """The image holds its label in all channels, in large smooth areas: it can be read off a scaled crop."""

    def smooth(index: int) -> NDArray[np.uint8]:
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        return np.repeat((30 + rows + columns).astype(np.uint8)[..., None], 3, axis=-1)

    shards = shards_of(tmp_path / "shards", kit, smooth, smooth(0)[..., 0])
    loader = open_loader(settings(kit, shards, crop=crop, scale=scale), None, "seg", batch=12)
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


def test_seg_scales_are_drawn_from_the_range(coded_shards: Path, kit: SimpleNamespace) -> None:
    batch = next(open_loader(settings(kit, coded_shards, crop=256, scale=(0.5, 1.5)), None, "seg", batch=200))
    scales = (batch["valid"][:, 2] - batch["valid"][:, 0]).double() / HEIGHT
    assert 0.5 <= scales.min() < 0.55
    assert 1.45 < scales.max() <= 1.5
    assert abs(float(scales.mean()) - 1) < 0.07
    free = 256 - batch["valid"][:, 2] + batch["valid"][:, 0]
    shares = batch["valid"][:, 0].double() / free
    assert abs(float(shares.mean()) - 0.5) < 0.07  # a small image lies anywhere in the crop


def test_hsv_shift_stays_in_its_range_and_turns_hue_around() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
    expected = np.stack([(hsv[..., 0] - 7) % 180, (hsv[..., 1] + 10).clip(0, 255), (hsv[..., 2] - 10).clip(0, 255)], -1)
    wanted = cv2.cvtColor(expected.astype(np.uint8), cv2.COLOR_HSV2RGB)
    np.testing.assert_array_equal(shift_hsv(image, [-7, 10, -10]), wanted)
    np.testing.assert_array_equal(shift_hsv(image, [0, 0, 0]), image)


def test_hsv_shifts_reach_both_ends(tmp_path: Path, kit: SimpleNamespace) -> None:
    gray = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    shards = shards_of(tmp_path / "shards", kit, lambda _: gray, np.zeros((HEIGHT, WIDTH), np.uint8))
    cfg = settings(kit, shards, crop=16, hsv_jitter=3, scale=(1.0, 1.0))
    values = next(open_loader(cfg, None, "seg", batch=100))["image"].amax((1, 2, 3))
    assert set(values.tolist()) == set(range(97, 104))


@pytest.mark.parametrize("color_on", ["device", "host"])
def test_affinity_jitter_leaves_padding_black(
    coded_shards: Path, tmp_path: Path, kit: SimpleNamespace, color_on: str
) -> None:
    labels = write_tars(coded_shards, tmp_path / "labels", block_labels())
    plain = next(open_loader(settings(kit, coded_shards, crop=96), labels, "affinity"))
    batch = next(open_loader(settings(kit, coded_shards, crop=96, jitter=True, color_on=color_on), labels, "affinity"))
    assert torch.equal(batch["target"], plain["target"])
    assert torch.equal(batch["image"], plain["image"]) == (color_on == "device")
    assert torch.equal(batch["color"], plain["color"]) == (color_on == "host")
    for image, (y0, x0, y1, x1) in zip(batch["image"], batch["valid"].tolist(), strict=True):
        assert image.sum() == image[:, y0:y1, x0:x1].sum()


@pytest.mark.parametrize("kind", ["affinity", "seg"])
def test_global_batches_are_identical_for_any_ranks_workers_and_starts(
    coded_shards: Path, tmp_path: Path, kit: SimpleNamespace, kind: str
) -> None:
    label = block_labels() if kind == "affinity" else pixel_labels()
    labels = write_tars(coded_shards, tmp_path / "labels", label, without=["image-004"])

    def cfg(**data: Any) -> Config:
        return settings(kit, coded_shards, jitter=True, hsv_jitter=9, max_bad_fraction=0.5, **data)

    expected = global_steps(cfg(), labels, kind, 1, steps=6)
    for n, step in enumerate(expected):
        assert [number for number, _, _ in step] == list(range(4 * n, 4 * n + 4))
    assert len({row for step in expected for _, _, row in step}) == 24
    for ranks, workers in ((2, 2), (4, 1), (1, 4)):
        found = global_steps(cfg(num_workers=workers), labels, kind, ranks, steps=4, start=8)
        assert found == expected[2:], f"{ranks} ranks x {workers} workers"


def test_sample_without_a_label_is_replaced_and_reported(
    coded_shards: Path, tmp_path: Path, kit: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = settings(kit, coded_shards, max_bad_fraction=0.4)
    labels = write_tars(coded_shards, tmp_path / "labels", block_labels(), without=["image-004"])
    loader = open_loader(cfg, labels, "affinity")
    with caplog.at_level(logging.WARNING):
        keys = [key for _ in range(6) for key in next(loader)["key"]]
    assert "image-004" not in keys
    assert loader.num_replaced == 2
    assert "bad sample image-004" in caplog.text
    assert "it has no label in" in caplog.text
    strict = open_loader(settings(kit, coded_shards, max_bad_fraction=0.0), labels, "affinity")
    with pytest.raises(ShardError, match="no label in"):
        list(islice(strict, 3))


def test_the_mask_in_a_shard_never_stands_in_for_a_label(
    coded_shards: Path, tmp_path: Path, kit: SimpleNamespace
) -> None:
    labels = write_tars(coded_shards, tmp_path / "labels", np.full((HEIGHT, WIDTH), 7, np.uint8), without=["image-004"])
    loader = open_loader(settings(kit, coded_shards, max_bad_fraction=1.0), labels, "seg", batch=12)
    assert set(next(loader)["target"].unique().tolist()) <= {7, 255}


@pytest.mark.parametrize(("kind", "label"), [("affinity", pixel_labels()), ("seg", block_labels())])
def test_labels_of_another_size_end_the_job_by_name(
    coded_shards: Path, tmp_path: Path, kit: SimpleNamespace, kind: str, label: NDArray[np.uint8]
) -> None:
    labels = write_tars(coded_shards, tmp_path / "labels", label)
    with pytest.raises(ShardError, match=r"the label of image-0\d\d in .* cells \(height, width\), expected \("):
        next(open_loader(settings(kit, coded_shards, max_bad_fraction=1.0), labels, kind))


def test_missing_label_tar_is_found_at_the_start(coded_shards: Path, tmp_path: Path, kit: SimpleNamespace) -> None:
    labels = write_tars(coded_shards, tmp_path / "labels", block_labels())
    (labels / "train-00002.tar").unlink()
    cfg = settings(kit, coded_shards)
    with pytest.raises(ShardError, match=r"train-00002\.tar is missing: run the stage"):
        open_loader(cfg, labels, "affinity", rank=0, ranks=2, batch=2)
    open_loader(cfg, labels, "affinity", rank=1, ranks=2, batch=2)  # does not read that one


def test_damaged_label_is_a_bad_sample_and_a_damaged_tar_ends_the_job(
    coded_shards: Path, tmp_path: Path, kit: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    labels = write_tars(coded_shards, tmp_path / "labels", block_labels())
    path = labels / "train-00001.tar"
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT") + 6
    data[start : start + 4] = b"\xff" * 4
    path.write_bytes(data)
    cfg = settings(kit, coded_shards, max_bad_fraction=1.0)
    loader = open_loader(cfg, labels, "affinity", batch=12)
    assert next(loader)["target"].shape == (12, 6, 6)
    assert loader.num_replaced == 1
    assert "the label image cannot be used" in caplog.text
    path.write_bytes(data[:700])
    with pytest.raises(ValueError, match=r"train-00001\.tar is not a whole tar of labels"):
        next(open_loader(cfg, labels, "affinity", batch=12))


def test_masks_are_read_when_no_labels_are_given(coded_shards: Path, kit: SimpleNamespace) -> None:
    cfg = settings(kit, coded_shards, crop=96, scale=(1.0, 1.0))
    batch = next(open_loader(cfg, None, "seg"))
    for target, (y0, x0, y1, x1) in zip(batch["target"], batch["valid"].tolist(), strict=True):
        found = target[y0:y1, x0:x1].numpy()
        assert any(np.array_equal(found, turned) for turned in (pixel_labels(), pixel_labels()[:, ::-1]))
    manifest = load_manifest(coded_shards)
    unmasked = replace(manifest, splits={"train": replace(manifest.split("train"), has_masks=False)})
    with pytest.raises(ShardError, match="split 'train' has no masks to train on"):
        make_joint_loader(cfg, unmasked, 0, 1, 0, 1, labels=None, kind="seg")


def test_mask_with_ignored_pixels_keeps_them(tmp_path: Path, kit: SimpleNamespace) -> None:
    mask = pixel_labels()
    mask[::2] = 255
    shards = shards_of(tmp_path / "shards", kit, coded, mask)
    batch = next(open_loader(settings(kit, shards, scale=(1.0, 1.0)), None, "seg"))
    rows = (batch["target"] == 255).all(dim=2)
    assert torch.equal(rows.sum(dim=1), torch.full((4,), CROP // 2))


def test_label_tars_of_the_test_hold_what_they_should(coded_shards: Path, tmp_path: Path) -> None:
    labels = write_tars(coded_shards, tmp_path / "labels", block_labels(), without=["image-004"])
    found = {key for path in labels.iterdir() for key in read_label_shard(path)}
    assert found == {f"image-{i:03d}" for i in range(NUM) if i != 4}
