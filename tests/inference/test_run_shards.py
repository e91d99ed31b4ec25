"""The driver of the inference stages: order of writing, resume, bad samples, several ranks, and a rank that dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import run_config

from seam_dist.artifacts.atomic import read_json
from seam_dist.artifacts.label_file import read_label_shard
from seam_dist.artifacts.stage import StageError, StageRun, open_stage
from seam_dist.cluster.distributed import World
from seam_dist.config.schema import Config
from seam_dist.data.manifest import Shard
from seam_dist.inference import run_shards as driver
from seam_dist.inference.run_shards import Heartbeat, ShardOutput, Work, run_shards, wait_for_ranks

FOLDERS = ("labels_crf", "labels")
NUM_SHARDS = 5
ALONE = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))


def rank_of_two(rank: int) -> World:
    return World(rank=rank, size=2, local_rank=rank, local_size=2, device=torch.device("cpu"))


class Stage:
    """A stage whose labels are the number of their shard; `events` has what happened, in order."""

    def __init__(self, root: Path, **sections: Mapping[str, Any]) -> None:
        self.cfg: Config = run_config(root, **sections)
        self.works = [Work(Shard(f"s{n}.tar", 2, 1, ""), FOLDERS) for n in range(NUM_SHARDS)]
        self.events: list[str] = []
        self.before: Callable[[str], object] = lambda shard: None
        self.bad: dict[str, list[str]] = {}

    @property
    def folder(self) -> Path:
        return self.cfg.stage_dir("infer_seg")

    def run(self, world: World = ALONE) -> None:
        run_shards(
            self.cfg,
            world,
            "infer_seg",
            open_stage=lambda: (open_stage(self.cfg, "infer_seg", settings=("infer_seg",)), self.works),
            start=self.start,
            crf=False,
            metadata={"checkpoint": "weights"},
            complete=lambda stage: self.events.append("complete"),
        )

    def start(self, stage: StageRun, pool: object) -> driver.ShardProcess:
        assert pool is None
        self.events.append("start")
        return self.process

    def process(self, work: Work, output: ShardOutput) -> Iterator[None]:
        shard = work.shard.file
        self.before(shard)
        self.events.append(f"process {shard}")
        output.bad += self.bad.get(shard, [])
        for index in (1, 0):  # as images of one size come together, in an order of their own
            output.add("labels", index, f"image-{index}", lambda: np.full((2, 3), int(shard[1]), np.uint8))
            output.add("labels_crf", index, f"image-{index}", lambda: self.refine(shard))
            yield

    def refine(self, shard: str) -> Any:
        self.events.append(f"refine {shard}")
        return np.full((2, 3), 9, np.uint8)

    def processed(self) -> list[int]:
        """The numbers of the shards in the order of their processing."""
        return [int(event[-5]) for event in self.events if event.startswith("process")]

    def files(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in sorted(self.folder.rglob("*.tar"))}

    def manifest(self) -> dict[str, Any]:
        return dict(read_json(self.folder / "manifest.json"))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_every_shard_is_written_with_metadata_and_then_left_alone(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.run()
    names = {f"{folder}/s{n}.tar" for folder in FOLDERS for n in range(NUM_SHARDS)}
    assert set(stage.files()) == set(stage.manifest()["outputs"]) == names
    assert list(read_label_shard(stage.folder / "labels" / "s3.tar")) == ["image-0", "image-1"]
    manifest = stage.manifest()
    assert (manifest["num_images"], manifest["bad_samples"], manifest["checkpoint"]) == (10, [], "weights")
    assert manifest["images_per_s"] > 0
    assert manifest["device_peak_gib"] is None
    assert "infer_seg: 10 images, " in capsys.readouterr().out
    assert stage.events[-1] == "complete"
    stage.events.clear()
    stage.run()
    assert stage.events == ["complete"]
    assert "infer_seg: done already" in capsys.readouterr().out


def test_a_shard_is_written_while_the_next_is_in_the_network_and_its_marker_last(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = driver.write_labels

    def write(path: Path, items: Any) -> None:
        stage.events.append(f"write {path.parent.name}/{path.name}")
        original(path, items)

    monkeypatch.setattr(driver, "write_labels", write)
    stage.works = stage.works[:3]
    stage.run()
    written = {n: [f"write labels_crf/s{n}.tar", *[f"refine s{n}.tar"] * 2, f"write labels/s{n}.tar"] for n in range(3)}
    processed = [f"process s{n}.tar" for n in range(3)]
    assert stage.events == [
        *("start", processed[0], processed[1], *written[0], processed[2], *written[1], *written[2], "complete"),
    ]


def test_an_interrupted_stage_resumes_with_the_missing_shards(stage: Stage, tmp_path: Path) -> None:
    whole = Stage(tmp_path / "whole")
    whole.run()

    def interrupt(shard: str) -> None:
        if shard == "s3.tar":
            raise KeyboardInterrupt

    stage.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    assert {name for name in stage.files() if name.startswith("labels/")} == {"labels/s0.tar", "labels/s1.tar"}
    (stage.folder / "labels_crf" / "s0.tar").unlink()  # a marker alone is no finished shard
    assert not (stage.folder / "manifest.json").exists()
    stage.before = lambda shard: None
    stage.events.clear()
    stage.run()
    assert [event for event in stage.events if event.startswith("process")] == [
        f"process s{n}.tar" for n in (0, 2, 3, 4)
    ]
    assert stage.files() == whole.files()
    assert stage.manifest()["num_images"] == 10


def test_a_shard_has_no_marker_while_it_is_rerun(stage: Stage) -> None:
    stage.run()
    (stage.folder / "labels_crf" / "s1.tar").unlink()
    (stage.folder / "manifest.json").unlink()
    seen: list[bool] = []
    stage.before = lambda shard: seen.append((stage.folder / "labels" / shard).exists())
    stage.run()
    assert seen == [False]


def test_a_stage_interrupted_before_its_manifest_reruns_its_last_shard(stage: Stage) -> None:
    stage.run()
    outputs = stage.manifest()["outputs"]
    (stage.folder / "manifest.json").unlink()
    stage.events.clear()
    stage.run()
    assert stage.processed() == [4]
    assert stage.manifest()["outputs"] == outputs


def test_bad_samples_of_every_call_count(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.bad = {"s0.tar": ["image a: cut"], "s3.tar": ["image b: cut"]}
    stage.cfg = replace(stage.cfg, data=replace(stage.cfg.data, max_bad_fraction=0.1))
    for _ in range(2):  # the second call processes the last shard alone, which has none
        with pytest.raises(ValueError, match=r"2 of 10 images cannot be used, .*=0\.1; the first: image a: cut"):
            stage.run()
        assert not (stage.folder / "manifest.json").exists()
    stage.cfg = replace(
        stage.cfg, data=replace(stage.cfg.data, max_bad_fraction=0.11)
    )  # of 10: 1.1, rounded up as in training
    stage.run()
    assert stage.manifest()["bad_samples"] == ["image a: cut", "image b: cut"]
    out = capsys.readouterr().out
    assert ", 2 bad ones left out, " in out
    assert "left out: image a: cut\n" in out
    assert "left out: image b: cut\n" in out
    # A shard that is rerun and has none any more.
    stage.bad = {}
    (stage.folder / "manifest.json").unlink()
    (stage.folder / "labels" / "s0.tar").unlink()
    stage.run()
    assert stage.manifest()["bad_samples"] == ["image b: cut"]


class Ranks:
    """The collectives of two ranks that are threads of this process."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.result: Any = None
        self.gathered: dict[int, Any] = {}

    def on_main(self, function: Callable[[], Any], world: World) -> Any:
        if world.is_main:
            self.result = function()
        return self._meet(lambda: self.result)

    def all_gather_object(self, obj: Any, world: World) -> Any:
        self.gathered[world.rank] = obj
        return self._meet(lambda: [self.gathered[rank] for rank in range(2)])

    def _meet(self, read: Callable[[], Any]) -> Any:
        self.barrier.wait()
        value = read()
        self.barrier.wait()
        return value


def test_two_ranks_share_the_shards_and_write_the_same_files(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Stage(tmp_path / "whole")
    whole.run()
    ranks = Ranks()
    monkeypatch.setattr(driver, "on_main", ranks.on_main)
    monkeypatch.setattr(driver, "all_gather_object", ranks.all_gather_object)
    second = Stage(tmp_path)
    alive: list[bool] = []
    second.before = lambda shard: alive.append((stage.folder / ".heartbeats" / "1").is_file())
    thread = threading.Thread(target=second.run, args=(rank_of_two(1),))
    thread.start()
    stage.run(rank_of_two(0))
    thread.join(timeout=60)
    assert (stage.processed(), second.processed()) == ([0, 2, 4], [1, 3])
    assert stage.files() == whole.files()
    assert stage.manifest()["outputs"] == whole.manifest()["outputs"]
    assert alive == [False, True]
    assert not (stage.folder / ".heartbeats").exists()


def test_a_rank_that_never_comes_ends_the_stage(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "on_main", lambda function, world: function())
    monkeypatch.setattr(driver, "_POLL_S", 0.001)
    stage.cfg = replace(stage.cfg, run=replace(stage.cfg.run, timeout_s=0.01))
    message = r"no progress in .*infer_seg for run\.timeout_s=0\.01 s: rank 1 owes labels/s1\.tar, labels/s3\.tar: see"
    with pytest.raises(StageError, match=message):
        stage.run(rank_of_two(0))
    assert {f"labels/s{n}.tar" for n in (0, 2, 4)} <= set(stage.files())


class Clock:
    """Time that passes by sleeping; `at` has what happens at a second."""

    def __init__(self, at: Mapping[int, Callable[[], object]]) -> None:
        self.now, self.at = 0, at

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += 1
        assert self.now < 1000, "the wait has no end"
        self.at.get(self.now, lambda: None)()


def wait(folder: Path, owed: Mapping[int, Sequence[str]], at: Mapping[int, Callable[[], object]]) -> float:
    """Wait with a time limit of 10 s; return when it ended."""
    clock = Clock(at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "time", clock)
        try:
            wait_for_ranks(folder, owed, 10)
        except StageError as error:
            raise StageError(f"after {clock.now} s: {error}") from None
    return clock.now


def beats(folder: Path, rank: int, seconds: Sequence[int]) -> dict[int, Callable[[], object]]:
    path = folder / ".heartbeats" / str(rank)
    path.parent.mkdir(exist_ok=True)
    return {second: lambda second=second: path.write_text(f"{second}") for second in seconds}  # type: ignore[misc]


def test_a_slow_rank_is_waited_for_while_its_heart_beats(tmp_path: Path) -> None:
    at = beats(tmp_path, 1, range(9, 91, 9)) | {95: (tmp_path / "a.tar").touch}
    assert wait(tmp_path, {0: [], 1: ["a.tar"]}, at) == 95


def test_a_shard_that_appears_is_progress(tmp_path: Path) -> None:
    at = {9: (tmp_path / "a.tar").touch, 18: (tmp_path / "b.tar").touch}
    assert wait(tmp_path, {1: ["a.tar", "b.tar"]}, at) == 18


def test_only_the_silent_rank_is_named_whatever_the_others_do(tmp_path: Path) -> None:
    at = beats(tmp_path, 2, range(1, 90)) | {4: (tmp_path / "a.tar").touch}
    with pytest.raises(StageError, match=r"after 15 s: .*timeout_s=10 s: rank 1 owes b\.tar: see why it ended"):
        wait(tmp_path, {1: ["a.tar", "b.tar"], 2: ["c.tar"]}, at)


def test_heartbeat_changes_its_file_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(driver.time, "monotonic", lambda: now)
    beat, path = Heartbeat(tmp_path, rank_of_two(1)), tmp_path / ".heartbeats" / "1"
    seen = []
    for now in (100.0, 100.5, 101.2):  # noqa: B007, read by the clock
        beat()
        seen.append(path.read_text())
    assert seen[0] == seen[1] != seen[2]
    Heartbeat(tmp_path / "alone", ALONE)()
    assert not (tmp_path / "alone").exists()
