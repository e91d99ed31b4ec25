"""The one driver of the inference stages: shards in, shards of the same name out, shared among the ranks.

Each rank takes every R-th of the unfinished shards. An output shard appears by rename, so it is whole or absent, and
that of the stage's marker folder is written last: it says that the input shard is done. An interrupted stage resumes
with the shards that have no marker.

Ranks finish up to a shard apart, longer than a collective may take, so they wait for each other's markers on disk. A
rank that owes shards and shows neither a new one nor a heartbeat, which comes with each image, for run.timeout_s
seconds is taken for dead. A slow rank is waited for, whatever a whole shard takes.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.cam_file import StoredCam, write_cams
from seam_dist.artifacts.label_file import write_labels
from seam_dist.artifacts.stage import StageError, StageRun
from seam_dist.cluster.distributed import World, all_gather_object, on_main
from seam_dist.cluster.progress import progress_bar
from seam_dist.config.schema import Config, Stage
from seam_dist.data.manifest import Manifest, Shard, Split
from seam_dist.data.shards import Sample, read_shard
from seam_dist.inference.crf_pool import CrfPool, crf_device, crf_workers
from seam_dist.inference.pseudo_labels import Pixels

CAMS = "cams"
"""The folder that holds CAMs; every other one holds labels."""

_HEARTBEATS = ".heartbeats"
_BEAT_S = 1.0  # between two changes of a heartbeat at least: a thousand ranks may share the file system
_POLL_S = 0.2
_NAMED = 5  # bad samples that are printed; the manifest has all of them


class Work(NamedTuple):
    """An input shard and the folders that get its output shards, in the order of writing; the last is the marker."""

    shard: Shard
    folders: tuple[str, ...]

    @property
    def marker(self) -> str:
        """Path of the output, below the stage's folder, that says that the shard is done."""
        return f"{self.folders[-1]}/{self.shard.file}"


class ShardOutput:
    """What one input shard becomes: items by folder, some still being made, and the messages of its bad samples."""

    def __init__(self) -> None:
        self.bad: list[str] = []
        self._items: dict[str, list[tuple[int, str, Callable[[], Any]]]] = {}

    def add(self, folder: str, index: int, key: str, value: Callable[[], Pixels | StoredCam | None]) -> None:
        """Take the labels or maps of sample `key`, number `index` of the shard; `value` is called for writing."""
        self._items.setdefault(folder, []).append((index, key, value))

    def write(self, folder: str, path: Path, beat: Callable[[], object]) -> None:
        """Write the tar of a folder in the order of the shard's samples; call `beat` after each."""

        def values() -> Iterator[tuple[str, Any]]:
            for _, key, value in sorted(self._items.pop(folder, [])):
                yield key, value()
                beat()

        if folder == CAMS:
            write_cams(path, (cam for _, cam in values()))
        else:
            write_labels(path, values())


ShardProcess = Callable[[Work, ShardOutput], Iterator[None]]
"""Fills the output with what a shard becomes, and yields once after each image."""


def run_shards(
    cfg: Config,
    world: World,
    name: str,
    *,
    open_stage: Callable[[], tuple[StageRun, Sequence[Work]]],
    start: Callable[[StageRun, CrfPool | None], ShardProcess],
    crf: bool,
    metadata: Mapping[str, Any] | None = None,
    complete: Callable[[StageRun], None] = lambda stage: None,
) -> None:
    """Write the output shards of an inference stage that are not there yet, and its manifest. Every rank calls it.

    Args:
        open_stage: opens the stage and returns all its shards; called on the main rank.
        start: loads the network and returns what is done with a shard; called when there is something to do.
        crf: give `start` a pool of CRF processes.
        metadata: entries of the manifest, beside num_images, images_per_s, device_peak_gib and bad_samples.
        complete: called on the main rank once the manifest is there, also when nothing was left to do.

    Raises ValueError when more than data.max_bad_fraction of the images cannot be used, and StageError when another
    rank owes shards and makes no progress for run.timeout_s seconds.
    """
    stage, works, todo = on_main(lambda: _open(*open_stage()), world)
    if not todo:
        on_main(lambda: complete(stage), world)
        if world.is_main:
            print(f"{name}: done already, see {stage.dir}", flush=True)
        return
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(world.device)
    own = todo[world.rank :: world.size]
    beat = Heartbeat(stage.dir, world)
    unwritten: tuple[Work, ShardOutput] | None = None
    with ExitStack() as stack:
        pool = stack.enter_context(CrfPool(cfg.crf, crf_workers(cfg), device=crf_device(cfg))) if crf else None
        process = start(stage, pool)
        began = time.perf_counter()
        num_own = sum(work.shard.num_samples for work in own)
        bar = stack.enter_context(progress_bar(name, num_own, "image", world=world))
        for work in own:
            output = ShardOutput()
            for _ in process(work, output):
                bar.update(1)
                beat()
            # The last CRFs of a shard are computed while the next one is in the network.
            if unwritten is not None:
                _write(stage.dir, *unwritten, beat)
            unwritten = work, output
        if unwritten is not None:
            _write(stage.dir, *unwritten, beat)
    owed = {rank: [work.marker for work in todo[rank :: world.size]] for rank in range(world.size)}
    wait_for_ranks(stage.dir, owed, cfg.run.timeout_s)
    took = time.perf_counter() - began
    peaks = all_gather_object(torch.cuda.max_memory_allocated(world.device) / 2**30 if on_gpu else 0.0, world)

    def finish() -> None:
        bad = _read_bad(stage.dir, [work.shard for work in works], cfg.data.max_bad_fraction)
        shutil.rmtree(stage.dir / _HEARTBEATS, ignore_errors=True)
        # Files of the stage itself lie in its folder, outputs in folders below it.
        files = (path for path in stage.dir.glob("*/**/[!.]*") if path.is_file())
        num_images = sum(work.shard.num_samples for work in todo)
        stage.finish(
            files,
            num_images=sum(work.shard.num_samples for work in works),
            images_per_s=round(num_images / took, 3),
            device_peak_gib=round(max(peaks), 3) if on_gpu else None,
            bad_samples=bad,
            **(metadata or {}),
        )
        complete(stage)
        note = f", {len(bad)} bad ones left out" if bad else ""
        print(f"{name}: {num_images} images{note}, {num_images / took:.2f} a second, in {stage.dir}", flush=True)
        for message in bad[:_NAMED]:
            print(f"{name}: left out: {message}", flush=True)

    on_main(finish, world)


def read_images(cfg: Config, manifest: Manifest, shard: Shard, output: ShardOutput) -> Iterator[Sample]:
    """Yield the images of an input shard; those that cannot be used become `output.bad`."""
    return read_shard(
        cfg.shards_dir / shard.file,
        masks=False,
        max_pixels=cfg.data.max_pixels,
        on_bad=lambda _, error: output.bad.append(str(error)),
        num_classes=manifest.num_classes,
    )


def check_has_labels(cfg: Config, split: Split, stage: Stage) -> None:
    """Raise StageError when a split of a stage that uses image-level labels has none."""
    if not split.has_labels:
        others = [name for name in cfg.splits_of(stage) if name != split.name]
        raise StageError(
            f"split {split.name!r} has no image-level labels, which {stage} needs: leave it out of {stage}.splits "
            f"({stage}.splits=[{','.join(others)}]); the final network can predict it (infer_seg.splits)"
        )


def _open(stage: StageRun, works: Sequence[Work]) -> tuple[StageRun, Sequence[Work], Sequence[Work]]:
    """Return the stage with all its shards and with those whose outputs are not there yet."""
    shutil.rmtree(stage.dir / _HEARTBEATS, ignore_errors=True)
    todo = [work for work in works if not all((stage.dir / f / work.shard.file).is_file() for f in work.folders)]
    if not todo and not stage.is_done():
        # Interrupted between the last shard and the manifest: rerun the last one, which needs no second way to finish.
        todo = list(works[-1:])
    for work in todo:
        # The ranks wait for it, so it must not be there from before.
        (stage.dir / work.marker).unlink(missing_ok=True)
    return stage, works, todo


def _write(folder: Path, work: Work, output: ShardOutput, beat: Callable[[], object]) -> None:
    record = _bad_file(folder, work.shard)
    record.unlink(missing_ok=True)
    if output.bad:
        write_json(record, output.bad)
    for name in work.folders:
        output.write(name, folder / name / work.shard.file, beat)


def _bad_file(folder: Path, shard: Shard) -> Path:
    return folder / "bad" / f"{shard.file.removesuffix('.tar')}.json"


def _read_bad(folder: Path, shards: Sequence[Shard], max_bad_fraction: float) -> list[str]:
    """Return the messages of the bad samples of all shards, whichever call met them; ValueError for too many."""
    records = [_bad_file(folder, shard) for shard in shards]
    bad = [message for record in records if record.is_file() for message in read_json(record)]
    num_images = sum(shard.num_samples for shard in shards)
    # Rounded up, as in training: what a training got over must not end the stage after it.
    if len(bad) > math.ceil(max_bad_fraction * num_images):
        raise ValueError(
            f"{len(bad)} of {num_images} images cannot be used, more than data.max_bad_fraction={max_bad_fraction:g}; "
            f"the first: {bad[0]}: fix them and convert the data set again, or raise the limit"
        )
    return bad


class Heartbeat:
    """A file that this rank changes when it is called, at most once a second: it is alive. One rank alone has none."""

    def __init__(self, folder: Path, world: World) -> None:
        self._path = folder / _HEARTBEATS / str(world.rank) if world.size > 1 else None
        self._last = -_BEAT_S

    def __call__(self) -> None:
        """Change the file."""
        now = time.monotonic()
        if self._path is not None and now - self._last >= _BEAT_S:
            self._last = now
            self._path.parent.mkdir(exist_ok=True)
            self._path.write_text(f"{now}\n")


def wait_for_ranks(folder: Path, owed: Mapping[int, Sequence[str]], timeout_s: float) -> None:
    """Wait until every file that a rank owes is in the stage's folder; `owed` has their paths below it, by rank.

    Raises StageError, naming ranks and files, when a rank that owes files neither wrote one nor changed its heartbeat
    for `timeout_s` seconds. Changes are what counts, not times, so the hosts' clocks may differ.
    """
    seen: dict[int, tuple[tuple[int, str], float]] = {}

    def absent(names: Sequence[str]) -> list[str]:
        return [name for name in names if not (folder / name).is_file()]

    while missing := {rank: names for rank in owed if (names := absent(owed[rank]))}:
        now = time.monotonic()
        for rank, names in missing.items():
            progress = len(names), _heartbeat(folder / _HEARTBEATS / str(rank))
            if rank not in seen or seen[rank][0] != progress:
                seen[rank] = progress, now
        silent = [rank for rank in missing if now - seen[rank][1] > timeout_s]
        if silent:
            owes = "; ".join(f"rank {rank} owes {', '.join(missing[rank])}" for rank in silent)
            raise StageError(
                f"no progress in {folder} for run.timeout_s={timeout_s:g} s: {owes}: see why it ended and "
                "rerun the stage, which keeps the finished shards; or raise run.timeout_s where one batch takes longer"
            )
        time.sleep(_POLL_S)


def _heartbeat(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not there yet, or exchanged at this moment on a network file system
        return ""
