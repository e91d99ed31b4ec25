"""Images a second from shards to batches on one core: `python -m seam_dist.bench.data_loading`.

Rows: the published order in Pillow; the loader of training, which leaves color to the device; decoding alone. Images
are 500 x 375 JPEGs of about 100 KB like those of PASCAL VOC: noise with the spectrum of photographs, or the photographs
of a folder scaled to that size (--photos). Processor time depends less than wall time on what else the machine does.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from seam_dist.bench.published_augmentation import augment_exact
from seam_dist.config.schema import AugmentConfig, Config, DataConfig
from seam_dist.data.augment.geometry import draw
from seam_dist.data.conversion_plan import plan_conversion
from seam_dist.data.convert import write_shards
from seam_dist.data.images import decode_image, single_thread
from seam_dist.data.loader import make_classification_loader
from seam_dist.data.manifest import Manifest
from seam_dist.data.order import sample_generator
from seam_dist.data.shards import RawSample, read_raw
from seam_dist.data.sources.base import Record
from seam_dist.models.backbones.base import IMAGENET_MEAN, IMAGENET_STD

SIZE = (500, 375)
_BATCH = 16
_MAX_PIXELS = 10**7


def synthetic_photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return color noise whose amplitude falls with frequency as in photographs, with a few hard edges."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / (np.hypot(fy, fx) + 1 / max(width, height)) ** 1.1
    layers = []
    for _ in range(4):
        noise = np.fft.irfft2(fall * np.exp(2j * np.pi * rng.random(fall.shape)), (height, width))
        layers.append(noise / noise.std())
    gray, *colors = layers
    gray = gray + 0.8 * np.sign(np.roll(gray, (height // 3, width // 3), (0, 1)))
    image = np.stack([128 + 45 * gray + 18 * color for color in colors], axis=-1) + rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def make_jpegs(count: int, photos: Path | None, quality: int = 85) -> tuple[bytes, ...]:
    """Return `count` JPEGs of SIZE; fewer different ones when the folder of photographs holds fewer."""
    rng = np.random.default_rng(0)
    paths = sorted(photos.rglob("*.jpg")) if photos is not None else []
    if photos is not None and not paths:
        raise ValueError(f"--photos {photos} holds no .jpg files: give a folder of photographs")
    jpegs = []
    for index in range(min(count, len(paths) or 64)):
        photo = Image.open(paths[index]).convert("RGB") if paths else synthetic_photo(rng, *SIZE)
        out = io.BytesIO()
        photo.resize(SIZE, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
        jpegs.append(out.getvalue())
    return tuple(jpegs[index % len(jpegs)] for index in range(count))


def _raw(folder: Path, manifest: Manifest) -> Iterator[tuple[int, RawSample]]:
    shards = cycle(manifest.split("train").shards)
    return enumerate(raw for shard in shards for raw in read_raw(folder / shard.file, shard))


def _exact(folder: Path, manifest: Manifest, cfg: AugmentConfig) -> Iterator[int]:
    mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
    batch: list[np.ndarray] = []
    for number, raw in _raw(folder, manifest):
        image = Image.open(io.BytesIO(raw.members["jpg"])).convert("RGB")
        batch.append(augment_exact(image, draw(sample_generator(0, number), cfg), cfg.crop_size, mean, std))
        if len(batch) == _BATCH:
            np.stack(batch)
            batch.clear()
            yield _BATCH


def _decode(folder: Path, manifest: Manifest) -> Iterator[int]:
    for _, raw in _raw(folder, manifest):
        decode_image(raw.members["jpg"], max_pixels=_MAX_PIXELS)
        yield 1


def _load(folder: Path, manifest: Manifest, cfg: AugmentConfig, workers: int) -> Iterator[int]:
    data = DataConfig(shards=folder, streams=max(4, workers), num_workers=workers)
    loader = make_classification_loader(Config(data=data, augment=cfg), manifest, 0, 1, 0, _BATCH)
    for batch in loader:
        yield len(batch["key"])


def measure(images: Iterator[int], count: int, repeats: int) -> tuple[list[float], list[float]]:
    """Return images a second of wall and of processor time for `repeats` runs over at least `count` images each."""
    next(images)  # opens the first shards
    wall, processor = [], []
    for _ in range(repeats):
        done, start, start_cpu = 0, time.perf_counter(), time.process_time()
        while done < count:
            done += next(images)
        wall.append(done / (time.perf_counter() - start))
        processor.append(done / (time.process_time() - start_cpu))
    return wall, processor


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--photos", type=Path, help="folder of photographs instead of noise")
    parser.add_argument("--num-images", type=int, default=512, help="images a run (the slow row: an eighth)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="loader processes, fast rows; their CPU is not seen")
    args = parser.parse_args()
    single_thread()
    jpegs = make_jpegs(args.num_images, args.photos)
    size = statistics.mean(len(jpeg) for jpeg in jpegs) / 1000
    print(f"{SIZE[0]} x {SIZE[1]} JPEG, {size:.0f} KB on average, batch {_BATCH}, {os.cpu_count()} cores, one used")
    cfg = AugmentConfig()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = plan_conversion(
            ["thing"],
            {"train": [Record(f"{i:06d}", str(i), (1,), partial(bytes, jpeg)) for i, jpeg in enumerate(jpegs)]},
            folder,
            settings={"kind": "bench"},
            samples_per_shard=64,
            streams=max(4, args.workers),
            max_pixels=_MAX_PIXELS,
        )
        manifest, _ = write_shards(plan, check_masks="warn")
        rows = (
            ("Pillow, published order", _exact(folder, manifest, cfg), args.num_images // 8),
            ("loader of training", _load(folder, manifest, cfg, args.workers), args.num_images),
            ("decoding alone", _decode(folder, manifest), args.num_images),
        )
        print(f"{'':26}{'images/s':>10}{'a CPU second':>14}{'lowest':>9}{'highest':>9}")
        for label, images, count in rows:
            wall, cpu = measure(images, count, args.repeats)
            middle = f"{statistics.median(wall):10.0f}{statistics.median(cpu):14.0f}"
            print(f"{label:26}{middle}{min(cpu):9.0f}{max(cpu):9.0f}", flush=True)


if __name__ == "__main__":
    main()
