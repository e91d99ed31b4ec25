"""Stage infer_cam on a small procedural set with an untrained network, against the published order of operations."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from seam_dist.artifacts import StageError, input_fingerprint, open_stage
from seam_dist.cam import read_cams, store_cam
from seam_dist.cam_maps import find_checkpoint, infer_samples, load_model
from seam_dist.config import Config
from seam_dist.data.manifest import load_manifest
from seam_dist.data.shards import RawSample, Sample, read_raw, read_shard, write_shard
from seam_dist.files import read_json, write_json
from seam_dist.inference import by_size
from seam_dist.models import authors_state_dict, build_seam
from seam_dist.settings import dump_yaml, from_tree
from seam_dist.stages import infer_cam, shard
from seam_dist.stages.train_seam import architecture

SCALES = [0.5, 1.0]


def make_config(root: Path, name: str = "run", **sections: dict[str, object]) -> Config:
    tree: dict[str, dict[str, object]] = {
        "run": {"name": name, "dir": str(root / "runs"), "device": "cpu"},
        "source": {"kind": "procedural", "num_images": [5, 3], "num_classes": 3, "image_size": [64, 48]},
        "data": {"shards": str(root / "shards"), "samples_per_shard": 2, "streams": 1},
        "model": {"backbone": "resnet38d", "width": 0.05, "pcm_channels": [8, 8]},
        "infer": {"scales": SCALES, "batch_size": 2, "crf": False},
    }
    for section, values in sections.items():
        tree[section] = {**tree.get(section, {}), **values}
    return from_tree(tree)


def finish_training(cfg: Config, seed: int = 0) -> None:
    """Leave what train_seam leaves, with random weights."""
    manifest = load_manifest(cfg.shards_dir)
    torch.manual_seed(seed)
    model, _ = build_seam(cfg, manifest.num_classes)
    torch.nn.init.normal_(model.fc8.weight, std=5)
    stage = open_stage(cfg, "train_seam", settings=("model", "loss"))
    final = stage.dir / "final"
    final.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, final / "model.safetensors")
    write_json(final / "model.json", {"architecture": architecture(cfg, manifest)})
    stage.finish(final.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("infer")
    cfg = make_config(root)
    shard.run(cfg)
    finish_training(cfg)
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy of shards and training, for tests that write."""
    shutil.copytree(trained, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture(scope="module")
def finished(trained: Path) -> Config:
    """A run whose CAMs are made, with the authors' files."""
    root = trained.parent / "finished"
    shutil.copytree(trained, root)
    cfg = make_config(root, infer={"interop": True, "scales": SCALES, "batch_size": 2})
    infer_cam.run(cfg)
    return cfg


def samples_of(cfg: Config, split: str) -> list[Sample]:
    return [
        sample
        for part in load_manifest(cfg.shards_dir).split(split).shards
        for sample in read_shard(cfg.shards_dir / part.file, masks=False, max_pixels=10**6)
    ]


def stored_of(cfg: Config, split: str) -> dict[str, object]:
    parts = load_manifest(cfg.shards_dir).split(split).shards
    return {cam.key: cam for part in parts for cam in read_cams(cfg.stage_dir("infer_cam") / "cams" / part.file)}


def published_map(cfg: Config, sample: Sample, kind: str) -> np.ndarray:
    """One image, one scale and one direction at a time, every map at full size before it is added, in float64."""
    manifest = load_manifest(cfg.shards_dir)
    model = load_model(cfg, manifest, find_checkpoint(cfg)).eval().double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (model.backbone.mean, model.backbone.std))
    height, width = sample.image.shape[:2]
    total = np.zeros((manifest.num_classes, height, width))
    for scale in cfg.infer.scales:
        size = (round(width * scale), round(height * scale))
        pixels = np.array(Image.fromarray(sample.image).resize(size, Image.Resampling.BICUBIC))
        image = (torch.from_numpy(pixels).permute(2, 0, 1).double() / 255 - mean) / std
        for turned in (False, True):
            with torch.no_grad():
                out = model((image.flip(-1) if turned else image)[None])
            cam = out.cam_refined if kind == "refined" else out.cam
            full = interpolate(cam[:, 1:].double(), (height, width), mode="bilinear", align_corners=False)[0].numpy()
            total += np.flip(full, -1) if turned else full
    total = total[[index - 1 for index in sample.classes]]
    total[total < 0] = 0
    high, low = total.max((1, 2), keepdims=True), total.min((1, 2), keepdims=True)
    total[total < low + 1e-5] = 0
    return (total - low - 1e-5) / (high - low + 1e-5)


def test_every_input_shard_has_its_cams_and_both_maps(finished):
    manifest = load_manifest(finished.shards_dir)
    for split in ("train", "val"):
        samples = samples_of(finished, split)
        stored = stored_of(finished, split)
        assert list(stored) == [sample.key for sample in samples]
        for sample in samples:
            cam = stored[sample.key]
            height, width = sample.image.shape[:2]
            assert cam.classes == sample.classes
            assert cam.size == (height, width)
            assert cam.cam.shape == cam.plain.shape == (len(sample.classes), -(-height // 8), -(-width // 8))
            assert not np.array_equal(cam.cam, cam.plain)
            assert cam.cam.min() >= 0
            assert cam.cam.max() <= 1
    record = read_json(finished.stage_dir("infer_cam") / "manifest.json")
    assert record["cam"] == "refined"
    shards = {f"cams/{part.file}" for split in manifest.splits.values() for part in split.shards}
    assert shards <= set(record["outputs"])


def test_interop_files_equal_the_published_computation(finished):
    for sample in samples_of(finished, "val"):
        path = finished.stage_dir("infer_cam") / "interop" / f"{sample.key}.npy"
        maps = np.load(path, allow_pickle=True).item()
        assert list(maps) == [index - 1 for index in sample.classes]
        assert all(cam.dtype == np.float32 for cam in maps.values())
        # float32 against float64 through a network: ulps of the sums, divided by the range.
        np.testing.assert_allclose(np.stack(list(maps.values())), published_map(finished, sample, "refined"), atol=2e-4)


def test_stored_maps_are_the_published_ones_on_the_grid(finished):
    sample = samples_of(finished, "val")[0]
    stored = stored_of(finished, "val")[sample.key]
    for kind, cam in (("refined", stored.cam), ("plain", stored.plain)):
        expected = store_cam(torch.from_numpy(published_map(finished, sample, kind)), 8)
        np.testing.assert_allclose(cam.astype(np.float32), expected.astype(np.float32), atol=2e-3)


def test_a_finished_stage_is_left_alone(finished, capsys):
    folder = finished.stage_dir("infer_cam") / "cams"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    infer_cam.run(finished)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert "done already" in capsys.readouterr().out


def test_a_stage_cut_short_makes_the_missing_shards_only(root):
    cfg = make_config(root)
    infer_cam.run(cfg)
    folder = cfg.stage_dir("infer_cam")
    files = sorted((folder / "cams").iterdir())
    contents = [path.read_bytes() for path in files]
    (folder / "manifest.json").unlink()
    files[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    infer_cam.run(cfg)
    assert [path.read_bytes() for path in files] == contents
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (folder / "manifest.json").is_file()


def test_a_stage_cut_before_its_manifest_is_finished(root):
    cfg = make_config(root)
    infer_cam.run(cfg)
    manifest = cfg.stage_dir("infer_cam") / "manifest.json"
    outputs = read_json(manifest)["outputs"]
    manifest.unlink()
    infer_cam.run(cfg)
    assert read_json(manifest)["outputs"] == outputs


def test_another_split_is_added_to_those_there_are(root):
    infer_cam.run(make_config(root, infer={"scales": SCALES, "splits": ["train"]}))
    cfg = make_config(root, infer={"scales": SCALES, "splits": ["train", "val"]})
    first = cfg.stage_dir("infer_cam") / "cams" / "train-00000.tar"
    before = first.stat().st_mtime_ns
    infer_cam.run(cfg)
    assert first.stat().st_mtime_ns == before
    assert len(stored_of(cfg, "val")) == 3


def test_other_weights_make_all_cams_anew(root):
    cfg = make_config(root)
    infer_cam.run(cfg)
    before = stored_of(cfg, "val")
    shutil.rmtree(cfg.stage_dir("train_seam"))
    finish_training(cfg, seed=1)
    infer_cam.run(cfg)
    assert all(not np.array_equal(cam.cam, before[key].cam) for key, cam in stored_of(cfg, "val").items())


def test_batches_do_not_change_the_maps(trained):
    cfg = make_config(trained)
    manifest = load_manifest(cfg.shards_dir)
    model = load_model(cfg, manifest, find_checkpoint(cfg)).eval()
    rng = np.random.default_rng(0)
    sizes = [(32, 40), (40, 32), (32, 40), (32, 40), (24, 24)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    samples = [Sample(f"s{i}", image, (1, 1 + i % 3)[i % 3 == 0 :], None, "") for i, image in enumerate(images)]
    several = infer_samples(model, samples, cfg.infer)
    alone = [infer_samples(model, [sample], cfg.infer)[0] for sample in samples]
    assert [cam.key for cam in several] == ["s0", "s1", "s2", "s3", "s4"]
    for one, other in zip(several, alone, strict=True):
        np.testing.assert_allclose(one.cam.astype(np.float32), other.cam.astype(np.float32), atol=2e-3)


def sample_of_size(index, size):
    return Sample(f"s{index}", np.zeros((*size, 3), np.uint8), (1,), None, "")


def test_images_of_one_size_are_batched_and_few_wait():
    sizes = [(2, 3), (3, 2), (2, 3), (2, 3), (3, 2), (2, 3)]
    batches = list(by_size((sample_of_size(i, s) for i, s in enumerate(sizes)), 2))
    assert [[index for index, _ in batch] for batch in batches] == [[0, 2], [1, 4], [3, 5]]


def test_at_most_eight_batches_of_images_wait():
    drawn = []

    def stream():
        for index in range(40):
            drawn.append(index)
            yield sample_of_size(index, (1, index + 1))

    first = next(by_size(stream(), 2))
    assert len(drawn) == 16
    assert len(first) == 1


def test_an_image_without_classes_gets_an_empty_map(trained):
    cfg = make_config(trained)
    model = load_model(cfg, load_manifest(cfg.shards_dir), find_checkpoint(cfg)).eval()
    sample = Sample("s", np.zeros((24, 32, 3), np.uint8), (), None, "")
    (stored,) = infer_samples(model, [sample], cfg.infer)
    assert stored.cam.shape == stored.plain.shape == (0, 3, 4)


@pytest.mark.parametrize(
    "sections",
    [{"infer": {"scales": SCALES, "cam": "plain"}}, {"loss": {"ablation": "cam"}}],
    ids=["asked for", "no PCM"],
)
def test_plain_map_alone_is_stored_first_hand(root, finished, sections):
    cfg = make_config(root, **sections)
    if "loss" in sections:
        shutil.rmtree(cfg.stage_dir("train_seam"))
        finish_training(cfg)
    infer_cam.run(cfg)
    assert read_json(cfg.stage_dir("infer_cam") / "manifest.json")["cam"] == "plain"
    for key, cam in stored_of(cfg, "val").items():
        assert cam.plain is None
        if "infer" in sections:
            assert np.array_equal(cam.cam, stored_of(finished, "val")[key].plain)


def test_weights_of_another_run_bring_their_network(root, finished):
    other = make_config(
        root,
        name="other",
        model={"backbone": "lite0", "width": 1.0},
        infer={"scales": SCALES, "checkpoint": str(finished.run_dir)},
    )
    infer_cam.run(other)
    expected = stored_of(finished, "val")
    assert all(np.array_equal(cam.cam, expected[key].cam) for key, cam in stored_of(other, "val").items())


def test_authors_weight_file_gives_the_same_cams(root, finished, tmp_path):
    manifest = load_manifest(finished.shards_dir)
    model = load_model(finished, manifest, find_checkpoint(finished))
    torch.save(authors_state_dict(model), tmp_path / "authors.pth")
    cfg = make_config(root, name="authors", infer={"scales": SCALES, "checkpoint": str(tmp_path / "authors.pth")})
    infer_cam.run(cfg)
    expected = stored_of(finished, "val")
    assert all(np.array_equal(cam.cam, expected[key].cam) for key, cam in stored_of(cfg, "val").items())


def rewrite_shard(cfg: Config, name: str, change) -> None:
    """Pass the samples of one shard through `change` and correct the manifest."""
    path = cfg.shards_dir / name
    samples = [change(sample) for sample in read_raw(path)]
    with open(path, "wb") as file:
        write_shard(file, samples)
    record = read_json(cfg.shards_dir / "manifest.json")
    for split in record["splits"].values():
        for part in split["shards"]:
            if part["file"] == name:
                part["num_bytes"] = path.stat().st_size
    write_json(cfg.shards_dir / "manifest.json", record)


def break_jpeg(sample: RawSample) -> RawSample:
    return RawSample(sample.key, {**sample.members, "jpg": sample.members["jpg"][:40]})


def test_a_bad_image_is_left_out_and_reported(root, capsys):
    cfg = make_config(root, data={"max_bad_fraction": 0.5, "shards": str(root / "shards")})
    spoilt = samples_of(cfg, "val")[-1].key
    rewrite_shard(cfg, "val-00001.tar", lambda s: break_jpeg(s) if s.key == spoilt else s)
    infer_cam.run(cfg)
    assert spoilt not in stored_of(cfg, "val")
    assert len(stored_of(cfg, "val")) == 2
    (message,) = read_json(cfg.stage_dir("infer_cam") / "manifest.json")["bad_samples"]
    assert spoilt in message
    assert "1 bad ones left out" in capsys.readouterr().out


def test_too_many_bad_images_stop_the_stage(root):
    cfg = make_config(root)
    rewrite_shard(cfg, "val-00001.tar", break_jpeg)
    with pytest.raises(ValueError, match=r"1 of 8 images cannot be used, more than data\.max_bad_fraction=0\.01"):
        infer_cam.run(cfg)
    assert not (cfg.stage_dir("infer_cam") / "manifest.json").exists()


def test_training_must_be_finished(root):
    cfg = make_config(root, name="untrained")
    with pytest.raises(StageError, match=r"stage train_seam is not finished there: run `--stage train_seam` first"):
        infer_cam.run(cfg)


def test_a_checkpoint_without_weights_is_refused(root, tmp_path):
    cfg = make_config(root, infer={"checkpoint": str(tmp_path)})
    with pytest.raises(StageError, match=r"model\.safetensors is missing: run .* or set infer\.checkpoint"):
        infer_cam.run(cfg)


def test_weights_of_other_classes_are_refused(root):
    cfg = make_config(root)
    path = cfg.stage_dir("train_seam") / "final" / "model.json"
    record = read_json(path)
    record["architecture"]["classes"][0] = "unicorn"
    path.write_text(json.dumps(record))
    with pytest.raises(
        StageError, match=r"was trained for 3 classes \(unicorn, .*use the data set that it was trained"
    ):
        infer_cam.run(cfg)


def test_a_split_without_labels_is_refused(root):
    cfg = make_config(root)
    record = read_json(cfg.shards_dir / "manifest.json")
    record["splits"]["val"]["has_labels"] = False
    write_json(cfg.shards_dir / "manifest.json", record)
    with pytest.raises(StageError, match=r"split 'val' has no image-level labels"):
        infer_cam.run(cfg)


@pytest.mark.slow
def test_two_ranks_share_the_shards_and_write_the_same_files(root):
    alone = make_config(root)
    infer_cam.run(alone)
    expected = {path.name: path.read_bytes() for path in (alone.stage_dir("infer_cam") / "cams").iterdir()}
    shutil.rmtree(alone.stage_dir("infer_cam"))
    code = (
        "import sys; from pathlib import Path; from seam_dist.settings import load_config;"
        "from seam_dist.stages import infer_cam;"
        "infer_cam.run(load_config(Path(sys.argv[1]), [], None).config)"
    )
    config = root / "config.yaml"
    config.write_text(dump_yaml(alone))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(config)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors.decode()
    assert {p.name: p.read_bytes() for p in (alone.stage_dir("infer_cam") / "cams").iterdir()} == expected
    assert input_fingerprint(alone.stage_dir("infer_cam"), "infer_cam")
