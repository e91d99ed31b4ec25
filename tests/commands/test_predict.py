"""The command `seam-dist predict`, and the export of a network."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predict_kit import CLASSES, files_in, labels_at, network, picture, run, trained_run
from torch import nn

from seam_dist.artifacts.label_file import voc_palette
from seam_dist.commands import predict
from seam_dist.inference import export
from seam_dist.inference.segmentation import infer_labels
from seam_dist.models import find_trained, load_deeplab
from seam_dist.report.overlay import draw_overlay


def expected_labels(image: Image.Image, scales: tuple[float, ...], flip: bool) -> np.ndarray:
    model = load_deeplab(find_trained(trained_run(), "train_seg"))
    (labels,) = infer_labels(model, [np.array(image)], scales=scales, flip=flip)
    return labels


def test_folder_of_odd_images_keeps_its_structure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    (images / "deep" / "er").mkdir(parents=True)
    plain = picture()
    plain.save(images / "plain.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    plain.save(images / "turned.jpg", exif=turned)
    plain.convert("L").save(images / "deep" / "gray.JPG")
    plain.convert("CMYK").save(images / "deep" / "er" / "ink.jpeg", "JPEG")
    plain.convert("RGBA").save(images / "deep" / "glass.webp", lossless=True)
    (images / "deep" / "plain.txt").write_text("no image")
    assert run(images, out) == 0
    expected = ["deep/er/ink", "deep/glass", "deep/gray", "plain", "turned"]
    assert files_in(out) == sorted([f"{n}.png" for n in expected] + [f"{n}_overlay.jpg" for n in expected])
    assert labels_at(out / "turned.png").shape == (56, 40)
    # As it was trained for: two scales, no mirror image.
    assert np.array_equal(labels_at(out / "plain.png"), expected_labels(plain, (0.5, 1.0), False))
    assert np.array_equal(labels_at(out / "deep" / "glass.png"), labels_at(out / "plain.png"))
    written = Image.open(out / "plain.png")
    assert written.mode == "P"
    assert bytes(written.getpalette() or [])[:9] == voc_palette()[:9]
    assert Image.open(out / "plain_overlay.jpg").size[0] == 56
    assert "5 of 5 images done" in capsys.readouterr().out


def test_options_go_before_what_the_network_was_trained_for(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", tmp_path / "out", "--scales", "1.5", "--flip", "--no-overlay") == 0
    assert files_in(tmp_path / "out") == ["a.png"]
    labels = labels_at(tmp_path / "out" / "a.png")
    assert np.array_equal(labels, expected_labels(picture(), (1.5,), True))
    assert not np.array_equal(labels, expected_labels(picture(), (0.5, 1.0), False))
    assert run(tmp_path / "a.png", tmp_path / "small", "--max-side", "28", "--scales", "1") == 0
    assert np.array_equal(labels_at(tmp_path / "small" / "a.png"), expected_labels(picture(), (0.5,), False))


def test_images_of_12_bits_are_scaled_as_in_the_training(tmp_path: Path) -> None:
    gray = np.array(picture().convert("L"))
    Image.fromarray(gray.astype(np.uint16) * 16).save(tmp_path / "deep.png")
    shutil.copytree(trained_run(), tmp_path / "run")
    description = tmp_path / "run" / "train_seg" / "final" / "model.json"
    value = json.loads(description.read_text())
    value["config"]["source.pixel_range"] = [0, 4080]
    description.write_text(json.dumps(value))
    assert run(tmp_path / "deep.png", tmp_path / "out", "--weights", str(tmp_path / "run")) == 0
    expected = expected_labels(Image.fromarray(gray).convert("RGB"), (0.5, 1.0), False)
    assert np.array_equal(labels_at(tmp_path / "out" / "deep.png"), expected)


def test_crf_labels_are_written_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(24, 32).save(tmp_path / "a.png")
    monkeypatch.setattr(predict, "crf_workers", lambda cfg: 0)
    assert run(tmp_path / "a.png", tmp_path / "plain") == 0
    assert run(tmp_path / "a.png", tmp_path / "crf", "--crf") == 0
    plain, refined = labels_at(tmp_path / "plain" / "a.png"), labels_at(tmp_path / "crf" / "a.png")
    assert plain.shape == refined.shape
    assert not np.array_equal(plain, refined)


def test_damaged_images_are_named_left_out_and_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    picture().save(images / "good.png")
    data = io.BytesIO()
    picture().save(data, "JPEG")
    (images / "cut.jpg").write_bytes(data.getvalue()[:300])
    (images / "text.png").write_text("no image")
    picture(100, 100).save(images / "huge.png")
    assert run(images, tmp_path / "out", "--max-pixels", "5000") == 1
    printed = capsys.readouterr()
    for name in ("cut.jpg", "text.png", "huge.png"):
        assert f"warning: {images / name} is left out: " in printed.err
    assert "3 images could not be read or written" in printed.err
    assert "1 of 4 images done" in printed.out
    assert files_in(tmp_path / "out") == ["good.png", "good_overlay.jpg"]


def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (["--weights", str(trained_run())], "neither --images nor --export"),
        (["--weights", str(trained_run()), "--images", "x"], "go together"),
        (["--weights", str(tmp_path), "--images", "x", "--out", "y"], "model.safetensors is missing"),
        (["--weights", str(trained_run()), "--images", str(tmp_path / "x"), "--out", "y"], "is not there"),
        (
            ["--weights", str(trained_run()), "--images", "x", "--out", "y", "--scales", "0"],
            "expected at least one number, all finite and above 0",
        ),
        (["--weights", str(trained_run()), "--export", "net.bin"], "has suffix '.bin', expected .pt2 or .onnx"),
    ]
    for arguments, message in cases:
        assert predict.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_masks_give_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        picture(seed=seed).save(images / f"{name}.png")
    assert run(images, tmp_path / "out") == 0
    labels = labels_at(tmp_path / "out" / "a.png")
    other = np.where(labels_at(tmp_path / "out" / "b.png") == 1, 2, 1).astype(np.uint8)
    Image.fromarray(labels).save(masks / "a.png")
    Image.fromarray(other).save(masks / "b.png")
    assert run(images, tmp_path / "again", "--masks", str(masks)) == 0
    printed = capsys.readouterr().out
    truth = np.concatenate([labels.ravel(), other.ravel()])
    predicted = np.concatenate([labels.ravel(), labels_at(tmp_path / "out" / "b.png").ravel()])
    ious = [
        np.logical_and(truth == c, predicted == c).sum() / union
        for c in range(4)
        if (union := np.logical_or(truth == c, predicted == c).sum())
    ]
    assert f"mIoU {100 * np.mean(ious):.2f} over 2 images with masks" in printed
    Image.fromarray(labels[:5]).save(masks / "c.png")
    assert run(images, tmp_path / "again", "--masks", str(masks)) == 1
    assert f"{masks / 'c.png'} is left out of the scores: the labels have" in capsys.readouterr().err


def test_legend_names_the_classes_that_are_there() -> None:
    image = np.full((30, 200, 3), 128, np.uint8)
    labels = np.zeros((30, 200), np.uint8)
    assert draw_overlay(image, labels, CLASSES).shape == (30, 200, 3)
    labels[:5] = 2
    one = draw_overlay(image, labels, CLASSES)
    labels[5:9] = 3
    two = draw_overlay(image, labels, CLASSES)
    assert one.shape[0] == two.shape[0] > 30
    assert (one[10:30] == image[10:30]).all()
    assert (one[2, 100] != image[2, 100]).any()
    green = np.array([0, 128, 0])
    assert (one[30:] == green).all(axis=-1).sum() > 50  # the square of class 2 in its color
    assert not np.array_equal(one[30:], two[30:])
    # A narrow image has a line for each.
    assert draw_overlay(image[:, :40], labels[:, :40], CLASSES).shape[0] > two.shape[0]


@pytest.mark.slow
def test_exported_program_gives_the_networks_labels_at_any_size(tmp_path: Path) -> None:
    _, model = network("deeplabv3plus")
    sizes = export.export_network(model, tmp_path / "net.pt2", (48, 64))
    assert sizes == "images of any size from 32 to 8192 pixels a side"
    program = torch.export.load(tmp_path / "net.pt2").module()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.backbone.mean, model.backbone.std))
    for size in ((48, 64), (37, 91)):
        image = torch.from_numpy(np.array(picture(*size))).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = model((image / 255 - mean) / std)
        torch.testing.assert_close(program(image), logits, rtol=1e-4, atol=1e-4)
    assert files_in(tmp_path) == ["net.pt2"]


@pytest.mark.slow
def test_onnx_model_gives_the_networks_labels_at_any_size(tmp_path: Path) -> None:
    reference = pytest.importorskip("onnx.reference")
    pytest.importorskip("onnxscript")
    _, model = network("deeplabv3plus")
    sizes = export.export_network(model, tmp_path / "net.onnx", (48, 64))
    assert sizes == "images of any size from 32 to 8192 pixels a side"
    assert files_in(tmp_path) == ["net.onnx"]
    session = reference.ReferenceEvaluator(str(tmp_path / "net.onnx"))
    for size in ((48, 64), (37, 91)):
        image = torch.from_numpy(np.array(picture(*size))).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = export.ExportNetwork(model)(image)
        exported = session.run(None, {"image": image.numpy()})[0]
        np.testing.assert_allclose(exported, logits.numpy(), rtol=1e-3, atol=1e-4)


def test_network_without_a_program_for_any_size_gets_one_for_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.export.export

    def fixed(*arguments: Any, **settings: Any) -> Any:
        if "dynamic_shapes" in settings:
            raise RuntimeError("this network has no dynamic shapes")
        return original(*arguments, **settings)

    monkeypatch.setattr(torch.export, "export", fixed)
    arguments = ["--weights", str(trained_run()), "--export", str(tmp_path / "net.pt2"), "--export-size", "48", "64"]
    assert predict.main(arguments) == 0
    assert "images of 48 x 64 pixels only" in (printed := capsys.readouterr().out)
    assert "this network has no dynamic shapes" in printed
    assert torch.export.load(tmp_path / "net.pt2").module()(torch.zeros(1, 3, 48, 64, dtype=torch.uint8)).shape[1] == 4


def test_wrong_program_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = network()

    class Wrong(nn.Module):
        def module(self) -> Any:
            return lambda image: -export.ExportNetwork(model)(image)

    monkeypatch.setattr(export, "_trace", lambda network, size: (Wrong(), ""))
    with pytest.raises(ValueError, match="labels that differ from the network's"):
        export.export_network(model, tmp_path / "net.pt2", (48, 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("onnx") is not None, reason="onnx is installed")
def test_onnx_needs_its_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--weights", str(trained_run()), "--export", str(tmp_path / "net.onnx")]) == 2
    assert "pip install 'seam-dist[onnx]', or export " in capsys.readouterr().err
