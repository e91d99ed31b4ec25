"""Stage infer_seg on a small procedural set with an untrained network."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit import hide_package, run_config
from PIL import Image
from stage_kit import cut_jpeg, finish_training, finished_copy, prepared_run, rewrite_shard, samples_of
from torch.nn.functional import interpolate

from seam_dist.artifacts.atomic import read_json, write_json
from seam_dist.artifacts.label_file import read_label_shard, voc_palette
from seam_dist.artifacts.provenance import sha256_file
from seam_dist.artifacts.stage import StageError
from seam_dist.cluster.distributed import init_world, shutdown
from seam_dist.config.schema import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.data.masks import decode_labels
from seam_dist.data.shards import RawSample, read_raw, read_shard
from seam_dist.inference import run_shards
from seam_dist.models import DeepLab, build_deeplab, deeplab_architecture, find_trained, load_deeplab
from seam_dist.stages import infer_seg, shard

SCALES = [0.5, 1.0]


BASE: dict[str, dict[str, Any]] = {
    "source": {"image_size": [48, 36]},
    "model": {"width": 0.0625, "output_stride": 16},
    "train_seg": {"width": 8},
    "crf": {"impl": "torch", "num_workers": 0, "source_stride": 2},
    "infer_seg": {"scales": SCALES, "batch_size": 2},
}


def config(root: Path, name: str = "run", **sections: dict[str, Any]) -> Config:
    return run_config(root, name, BASE, **sections)


def finish_seg(cfg: Config, seed: int = 0, classes: tuple[str, ...] | None = None) -> None:
    """Leave what train_seg leaves, with random weights."""
    classes = classes or load_manifest(cfg.shards_dir).classes
    torch.manual_seed(seed)
    model, _ = build_deeplab(cfg, len(classes))
    torch.nn.init.normal_(model.head.classifier.weight, std=2)
    finish_training(cfg, "train_seg", model, deeplab_architecture(cfg, classes))


def network_of(cfg: Config) -> DeepLab:
    return load_deeplab(find_trained(cfg.run_dir, "train_seg"))


prepared, root = prepared_run(config, shard.run, finish_seg)


@pytest.fixture(scope="module")
def finished(prepared: Path) -> Config:
    return finished_copy(prepared, config, infer_seg.run)


def files_of(cfg: Config) -> list[str]:
    manifest = load_manifest(cfg.shards_dir)
    return [part.file for split in cfg.splits_of("infer_seg") for part in manifest.split(split).shards]


def digests(cfg: Config) -> dict[str, str]:
    folder = cfg.stage_dir("infer_seg")
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.glob("labels*/*.tar"))}


def test_labels_are_those_of_the_slow_order(finished: Config) -> None:
    model = network_of(finished)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.backbone.mean, model.backbone.std))
    for file in files_of(finished):
        stored = read_label_shard(finished.stage_dir("infer_seg") / "labels" / file)
        samples = list(read_shard(finished.shards_dir / file, masks=False, max_pixels=10**6))
        assert list(stored) == [sample.key for sample in samples]
        for sample in samples:
            height, width = sample.image.shape[:2]
            total = torch.zeros(1, 4, height, width)
            for scale in SCALES:
                size = (round(width * scale), round(height * scale))
                pixels = np.array(Image.fromarray(sample.image).resize(size, Image.Resampling.BICUBIC))
                image = ((torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std)[None]
                with torch.no_grad():
                    both = [model(image), model(image.flip(-1)).flip(-1)]
                for logits in both:
                    total += interpolate(logits, (height, width), mode="bilinear", align_corners=True)
            labels = decode_labels(stored[sample.key], max_pixels=10**6, num_classes=3)
            top = total[0].topk(2, dim=0).values
            clear = (top[0] - top[1] > 1e-3).numpy()
            assert clear.mean() > 0.98
            assert np.array_equal(labels[clear], total[0].argmax(dim=0).numpy()[clear])


def test_stage_leaves_labels_without_and_with_crf_and_metadata_and_is_skipped(
    finished: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_json(finished.stage_dir("infer_seg") / "manifest.json")
    files = files_of(finished)
    assert set(record["outputs"]) == {f"{folder}/{file}" for folder in ("labels", "labels_crf") for file in files}
    assert record["num_images"] == 8
    assert record["images_per_s"] > 0
    assert record["bad_samples"] == []
    assert set(record["inputs"]) == {"shards", "network", "train_seg"}
    refined = read_label_shard(finished.stage_dir("infer_seg") / "labels_crf" / files[0])
    plain = read_label_shard(finished.stage_dir("infer_seg") / "labels" / files[0])
    assert list(refined) == list(plain)
    assert refined != plain
    monkeypatch.setattr(infer_seg, "load_deeplab", None)
    infer_seg.run(finished)
    assert "done already" in capsys.readouterr().out


def test_oracle_chooses_among_the_classes_of_the_label_where_there_is_one(root: Path) -> None:
    tree = read_json(root / "shards" / "manifest.json")
    tree["splits"]["val"]["has_labels"] = False
    write_json(root / "shards" / "manifest.json", tree)
    cfg = config(root, infer_seg={"oracle": True, "scales": [1.0], "flip": False})
    finish_seg(cfg)
    infer_seg.run(cfg)
    folder = cfg.stage_dir("infer_seg")
    assert {path.name[:5] for path in (folder / "labels").glob("*.tar")} == {"train", "val-0"}
    model = network_of(cfg)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.backbone.mean, model.backbone.std))
    corrected = 0
    for path in sorted((folder / "labels_oracle").glob("*.tar")):
        assert path.name.startswith("train")
        stored, plain = read_label_shard(path), read_label_shard(folder / "labels" / path.name)
        samples = list(read_shard(cfg.shards_dir / path.name, masks=False, max_pixels=10**6))
        assert list(stored) == list(plain) == [sample.key for sample in samples]
        for sample in samples:
            labels = decode_labels(stored[sample.key], max_pixels=10**6, num_classes=3)
            assert set(np.unique(labels)) <= {0, *sample.classes}
            with torch.no_grad():
                logits = model(((torch.from_numpy(sample.image).permute(2, 0, 1) / 255 - mean) / std)[None])[0]
            forbidden = [index for index in (1, 2, 3) if index not in sample.classes]
            logits[forbidden] = -torch.inf
            top = logits.topk(2, dim=0).values
            clear = (top[0] - top[1] > 1e-3).numpy()
            assert clear.mean() > 0.98
            assert np.array_equal(labels[clear], logits.argmax(dim=0).numpy()[clear])
            corrected += int((labels != decode_labels(plain[sample.key], max_pixels=10**6, num_classes=3)).sum())
    assert corrected > 0


def test_killed_stage_resumes_and_leaves_the_same_bytes(
    root: Path, finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(root)
    written: list[str] = []
    original = run_shards.write_labels

    def killed(path: Path, items: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        original(path, items)
        written.append(f"{path.parent.name}/{path.name}")

    with monkeypatch.context() as patch:
        patch.setattr(run_shards, "write_labels", killed)
        with pytest.raises(KeyboardInterrupt):
            infer_seg.run(cfg)
    # The second shard has the labels of the CRF, but not those that mark it as done.
    assert sorted(digests(cfg)) == sorted(written)
    assert not (cfg.stage_dir("infer_seg") / "manifest.json").exists()
    kept = (cfg.stage_dir("infer_seg") / written[0]).stat().st_mtime_ns
    infer_seg.run(cfg)
    assert digests(cfg) == digests(finished)
    assert (cfg.stage_dir("infer_seg") / written[0]).stat().st_mtime_ns == kept
    # Interrupted between the last shard and the manifest.
    (cfg.stage_dir("infer_seg") / "manifest.json").unlink()
    infer_seg.run(cfg)
    assert digests(cfg) == digests(finished)


def test_labels_are_rerun_with_other_weights_or_scales(root: Path) -> None:
    cfg = config(root, infer_seg={"crf": False})
    infer_seg.run(cfg)
    before = digests(cfg)
    assert all(name.startswith("labels/") for name in before)
    infer_seg.run(replace(cfg, infer_seg=replace(cfg.infer_seg, scales=(1.5,))))
    after = digests(cfg)
    assert before.keys() == after.keys()
    assert before != after
    # CRF settings do not matter without the CRF.
    stamp = (cfg.stage_dir("infer_seg") / "manifest.json").stat().st_mtime_ns
    infer_seg.run(replace(cfg, infer_seg=replace(cfg.infer_seg, scales=(1.5,)), crf=replace(cfg.crf, gaussian_sxy=1.0)))
    assert (cfg.stage_dir("infer_seg") / "manifest.json").stat().st_mtime_ns == stamp
    other = config(root, name="other", infer_seg={"crf": False})
    finish_seg(other, seed=5)
    infer_seg.run(config(root, infer_seg={"crf": False, "checkpoint": str(other.run_dir)}))
    assert digests(cfg) != before
    record = read_json(cfg.stage_dir("infer_seg") / "manifest.json")
    assert set(record["inputs"]) == {"shards", "network"}
    assert record["checkpoint"].startswith(str(other.run_dir))


def test_voc_server_archive_has_the_layout_the_names_and_stable_bytes(
    root: Path, finished: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.stage_dir("infer_seg"), root / "runs" / "run" / "infer_seg")
    cfg = config(root, infer_seg={"voc_server": "val"})
    # Asked for after the labels were made: nothing else is written again.
    before = digests(cfg)
    infer_seg.run(cfg)
    archive = cfg.stage_dir("infer_seg") / "voc_server.tar.gz"
    assert str(archive) in capsys.readouterr().out
    assert digests(cfg) == before
    record = read_json(cfg.stage_dir("infer_seg") / "manifest.json")
    assert record["outputs"]["voc_server.tar.gz"] == archive.stat().st_size
    expected = {}
    for part in load_manifest(cfg.shards_dir).split("val").shards:
        stored = read_label_shard(cfg.stage_dir("infer_seg") / "labels_crf" / part.file)
        for raw in read_raw(cfg.shards_dir / part.file):
            name = json.loads(raw.members["json"])["source_id"]
            expected[f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png"] = stored[raw.key]
    with tarfile.open(archive, "r:gz") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert all(member.isreg() and member.mtime == 0 and member.uname == "" for member in tar.getmembers())
    assert files == expected
    image = Image.open(io.BytesIO(next(iter(files.values()))))
    assert image.mode == "P"
    assert bytes(image.getpalette() or [])[:63] == voc_palette()[:63]
    first = archive.read_bytes()
    assert first[4:8] == bytes(4)  # gzip's own time
    archive.unlink()
    infer_seg.run(cfg)
    assert archive.read_bytes() == first
    # It is done now, and without the wish it stays.
    stamp = archive.stat().st_mtime_ns
    infer_seg.run(cfg)
    infer_seg.run(config(root))
    assert archive.stat().st_mtime_ns == stamp


def test_server_archive_needs_all_images_of_a_predicted_split(root: Path) -> None:
    with pytest.raises(StageError, match=r"infer_seg.voc_server=val is not one of infer_seg.splits=\['train'\]"):
        infer_seg.run(config(root, infer_seg={"voc_server": "val", "splits": ["train"]}))


def test_damaged_image_is_left_out_within_the_limit(root: Path) -> None:
    cfg = config(root, infer_seg={"crf": False, "voc_server": "val"}, data={"max_bad_fraction": 0.0})
    key = samples_of(cfg, "val")[0].key
    rewrite_shard(cfg, "val-00000.tar", lambda raw: cut_jpeg(raw) if raw.key == key else raw)
    with pytest.raises(ValueError, match="1 of 8 images cannot be used"):
        infer_seg.run(cfg)
    shutil.rmtree(cfg.stage_dir("infer_seg"))
    lenient = replace(cfg, data=replace(cfg.data, max_bad_fraction=0.5))
    with pytest.raises(StageError, match="could not be read and has no labels, and the server wants all"):
        infer_seg.run(lenient)
    infer_seg.run(replace(lenient, infer_seg=replace(cfg.infer_seg, voc_server=None)))
    record = read_json(cfg.stage_dir("infer_seg") / "manifest.json")
    assert len(record["bad_samples"]) == 1
    labels = read_label_shard(cfg.stage_dir("infer_seg") / "labels" / "val-00000.tar")
    assert len(labels) == len(list(read_raw(cfg.shards_dir / "val-00000.tar"))) - 1


def test_name_that_the_server_cannot_know_is_refused(root: Path) -> None:
    cfg = config(root, infer_seg={"crf": False, "voc_server": "val"})

    def rename(raw: RawSample) -> RawSample:
        info = {**json.loads(raw.members["json"]), "source_id": "../x"}
        return RawSample(raw.key, {**raw.members, "json": json.dumps(info).encode()})

    rewrite_shard(cfg, "val-00000.tar", rename)
    with pytest.raises(StageError, match=r"is called '\.\./x' in its data set"):
        infer_seg.run(cfg)


def test_unfinished_training_and_other_classes_name_the_remedy(root: Path) -> None:
    with pytest.raises(StageError, match=r"stage train_seg is not finished"):
        infer_seg.run(config(root, name="new"))
    other = config(root, name="other")
    finish_seg(other, classes=("a", "b"))
    with pytest.raises(StageError, match=r"trained for 2 classes \(a, b\), the shards in .* have 3"):
        infer_seg.run(other)


def test_missing_crf_package_is_reported_before_any_work(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_package(monkeypatch, "pydensecrf")
    monkeypatch.setattr(infer_seg, "load_deeplab", None)
    with pytest.raises(ValueError, match=r"pip install 'seam-dist\[crf\]'"):
        infer_seg.run(config(root, crf={"impl": "lattice", "source_stride": 1}))


@pytest.fixture(autouse=True, scope="module")
def _leave_the_world() -> Iterator[None]:
    yield
    shutdown(init_world(Config()))
