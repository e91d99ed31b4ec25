"""Notes of what shards were made from: what is written again, what belongs to the user, masks against labels."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import kit
import numpy as np
import pytest
from PIL import Image

from seam_dist.artifacts.provenance import sha256_file
from seam_dist.config.findings import Findings
from seam_dist.data.conversion_plan import plan_conversion
from seam_dist.data.convert import foreign_files, mark_unfinished, remove_shards, write_shards
from seam_dist.data.manifest import ShardError, load_manifest, verify_shards
from seam_dist.data.mask_labels import MaskRow
from seam_dist.data.shard_notes import FileState, read_note
from seam_dist.data.sources.base import Record, SourceError


def run(records: Sequence[Record], folder: Path, check_masks: Literal["refuse", "warn"] = "warn") -> Findings:
    plan = plan_conversion(
        kit.CLASSES, {"train": records}, folder, settings={}, samples_per_shard=3, streams=4, max_pixels=10**6
    )
    return write_shards(plan, check_masks=check_masks)[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_user_s_file_with_the_name_of_a_shard_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "train-00002.tar"
    mine.write_bytes(b"holiday pictures")
    with pytest.raises(ShardError, match=r"train-00002\.tar has the name of a shard .* not written by a conversion"):
        run(kit.records(12), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train-00002.tar"]
    assert mine.read_bytes() == b"holiday pictures"


def test_shards_of_a_manifest_without_notes_may_be_replaced_and_nothing_else(tmp_path: Path) -> None:
    run(kit.records(12), tmp_path)
    shutil.rmtree(tmp_path / "sources")
    (tmp_path / "notes.txt").write_text("mine")
    assert foreign_files(tmp_path) == ["notes.txt"]
    mark_unfinished(tmp_path)  # a kill at this point must not make the user's what is not
    assert foreign_files(tmp_path) == ["notes.txt"]
    run(kit.records(9), tmp_path)
    assert load_manifest(tmp_path).split("train").num_samples == 9
    remove_shards(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]


def test_note_keeps_what_the_check_of_masks_needs_and_the_warnings(tmp_path: Path) -> None:
    records = kit.records(4)
    path = tmp_path / "a.jpg"
    path.write_bytes(records[0].image())
    records[0] = replace(records[0], files=(path,))
    run(records, tmp_path / "shards")
    note = read_note(tmp_path / "shards" / "train-00000.tar")
    assert note is not None
    (noted,) = note.records
    assert noted.files == (FileState(path.stat().st_size, path.stat().st_mtime_ns, sha256_file(path)),)
    values = np.unique(np.array(Image.open(io.BytesIO(kit.index_mask(0)))), return_counts=True)
    assert noted.mask_row() == MaskRow("image 0", (1,), dict(zip(*(part.tolist() for part in values), strict=True)))


def test_damaged_note_costs_its_shard_and_no_other(tmp_path: Path) -> None:
    run(kit.records(12), tmp_path)
    before = contents(tmp_path)
    (tmp_path / "sources" / "train-00001.json").write_text("{")
    records = kit.records(12)
    run(records, tmp_path)
    assert [record.image.calls for record in records] == [0, 1, 0, 0] * 3
    assert contents(tmp_path) == before


def test_shard_that_was_damaged_is_written_with_the_others_that_changed(tmp_path: Path) -> None:
    run(kit.records(12), tmp_path)
    (tmp_path / "train-00003.tar").write_bytes(b"")
    records = kit.records(12)
    records[0] = replace(records[0], classes=(2,))
    run(records, tmp_path)
    assert [record.image.calls for record in records] == [1, 0, 0, 1] * 3
    verify_shards(tmp_path, load_manifest(tmp_path), "train", "checksum")


def test_masks_that_contradict_the_labels_are_refused_when_all_are_converted(tmp_path: Path) -> None:
    void = kit.encode(np.pad(np.full((5, 5), 255, np.uint8), 3), "PNG")
    small = kit.encode(kit.pixels(0, 11, 11))
    records = [replace(r, image=kit.Bytes(small), mask=kit.Bytes(void)) for r in kit.records(12)]
    records[3] = replace(records[3], image=kit.Bytes(b"hello"))
    with pytest.raises(SourceError, match=r"(?s)1 image cannot .*masks contradict .* in 11 of 11 labeled images"):
        run(records, tmp_path, check_masks="refuse")
    assert not (tmp_path / "manifest.json").exists()
    # Resumed, the check needs the counts of shards that are not opened again.
    records[3] = replace(records[3], image=kit.Bytes(small))
    with pytest.raises(SourceError, match=r"masks contradict .* in 12 of 12 labeled images: the masks hold only 0 and"):
        run(records, tmp_path, check_masks="refuse")
    assert [record.image.calls for record in records[:4]] == [1, 1, 1, 1]
    findings = run(records, tmp_path)
    assert "in 12 of 12 labeled images" in str(findings.warnings[0])
    assert [record.image.calls for record in records[:4]] == [1, 1, 1, 1]
