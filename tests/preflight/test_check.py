"""The preflight as a whole: all problems at once, nothing of what is done, and not a word on a good run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import kit
import pytest

from seam_dist.commands.check import check_stages
from seam_dist.config.findings import Findings
from seam_dist.config.load import load_config
from seam_dist.config.schema import STAGES, Config
from seam_dist.data.sources.base import Listing, Record
from seam_dist.preflight import data_set
from seam_dist.preflight.check import check_run
from seam_dist.preflight.data_set import read_data_set
from seam_dist.preflight.inputs import inputs_of
from seam_dist.stages import shard


def texts(findings: Findings) -> list[str]:
    return [str(finding) for finding in findings]


def memory_config(folder: Path) -> Config:
    return kit.run_config(folder, source={"kind": "folder"})


def use_source(monkeypatch: pytest.MonkeyPatch, **splits: Listing) -> None:
    source = kit.MemorySource()
    source.listing = splits.__getitem__  # type: ignore[method-assign]
    monkeypatch.setattr(data_set, "open_source", lambda cfg, names: source)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    cfg = kit.run_config(
        tmp_path,
        run={"world_size": 2},
        model={"width": 0.05, "pretrained": "/nope.params"},
        train_seg={"pretrained": "/nope.pth"},
        infer_seg={"splits": ["test"]},
        report={"compare": ["/nope"]},
        deepspeed={"zero": 1},
    )
    found = texts(check_run(cfg, STAGES, 3))
    for part in ("run.world_size=2", "deepspeed.zero is unknown", "data.streams=1", "model.pretrained: /nope.params"):
        assert any(part in text for text in found), part
    for part in ("train_seg.pretrained: /nope.pth", "infer_seg.splits: split 'test'", "report.compare: run folder"):
        assert any(part in text for text in found), part
    for stage in ("train_seam", "train_affinity", "train_seg"):
        assert any(f"{stage}.schedule.global_batch_size" in text for text in found), stage


@pytest.mark.parametrize("config", ["demo", "folder", "voc12"])
@pytest.mark.parametrize("preset", ["default", "paper", "small"])
def test_the_installed_configs_are_in_order(config: str, preset: str, tmp_path: Path) -> None:
    """On ranks that divide all batches, and on data drawn here, no line comes."""
    settings = [f"run.dir={tmp_path}", f"data.shards={tmp_path / 'shards'}", "source.kind=synthetic", "run.threads=1"]
    settings += ["data.splits=[train,val]", "data.train_split=train"]
    cfg = load_config(config, settings, preset).config
    found = texts(check_run(cfg, STAGES, 2))
    assert not found


def test_finished_stages_need_nothing(tmp_path: Path) -> None:
    cfg = kit.run_config(
        tmp_path, model={"width": 0.05, "pretrained": "/nope.params"}, train_seam={"schedule": {"max_steps": 1}}
    )
    assert any("model.pretrained" in text for text in texts(check_run(cfg, ["shard", "train_seam"])))
    shard.run(cfg)
    assert not texts(check_run(cfg, ["shard", "train_seam"], done=["shard", "train_seam"]))


def test_shards_that_are_there_are_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = kit.run_config(tmp_path)
    shard.run(cfg)
    monkeypatch.setattr(data_set, "open_source", lambda *arguments: pytest.fail("the source was opened"))
    assert not texts(check_stages(cfg, ["shard"], 1))


def test_findings_of_the_reader_are_passed_on_by_topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listings = {}
    for name in ("train", "val"):
        findings = Findings()
        findings.error("class", f"labels.csv: class 'kat' of {name}")
        findings.warning("spaces", f"a name with a space in {name}")
        listings[name] = Listing(kit.records(3), findings)
    use_source(monkeypatch, **listings)
    assert texts(check_run(memory_config(tmp_path), ["shard"])) == [
        "labels.csv: class 'kat' of train (2 such cases)",
        "a name with a space in train (2 such cases)",
    ]


def test_masks_of_some_images_alone_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = [*kit.records(2), *kit.records(1, masks=False, first=2)]
    use_source(monkeypatch, train=Listing(mixed), val=Listing(kit.records(2)))
    (text,) = texts(check_run(memory_config(tmp_path), ["shard"]))
    assert text.startswith("split 'train': image image 2 has no mask (1 of 3 images), others have")


def test_no_image_is_decoded_and_few_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand records cost as many looks at their files and not one decoded image."""
    (tmp_path / "one.jpg").write_bytes(b"x" * 1000)
    load = kit.Bytes(kit.encode(kit.pixels(0)))
    records = [Record(f"k{i}", f"k{i}", (1,), load, files=(tmp_path / "one.jpg",)) for i in range(10_000)]
    use_source(monkeypatch, train=Listing(records), val=Listing(records[:10]))
    data, findings = read_data_set(memory_config(tmp_path), ["shard"])
    assert data is not None
    assert not texts(findings)
    assert load.calls <= 8
    assert data.num_bytes == 10_010 * 1000
    assert data.image_pixels == 30 * 40


def test_a_file_that_is_gone_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: Sequence[Record] = [Record("a", "a.jpg", (1,), bytes, files=(tmp_path / "data/gone.jpg",))]
    use_source(monkeypatch, train=Listing(records), val=Listing(kit.records(2, masks=False)))
    (text,) = texts(check_run(memory_config(tmp_path), ["shard"]))
    assert text == f"{tmp_path / 'data/gone.jpg'} of image a.jpg cannot be read: No such file or directory"


def test_inputs_come_before_the_stages_that_read_them(tmp_path: Path) -> None:
    cfg = kit.run_config(tmp_path, train_seg={"pretrained": "train_seam"})
    for stage, labels in itertools.product(STAGES, ("walk", "cam_crf", "masks")):
        cfg = kit.run_config(tmp_path, train_seg={"pretrained": "train_seam", "labels": labels})
        for name in inputs_of(cfg, stage):
            assert STAGES.index(name) < STAGES.index(stage)
