from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest

from seam_dist.report.pictures import class_colors, data_uri, heat_map, label_map, shrink


def test_class_colors_are_those_of_pascal_voc() -> None:
    colors = class_colors()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    for index, color in known.items():
        assert tuple(colors[index]) == color
    assert tuple(colors[255]) == (224, 224, 192)
    assert len({tuple(color) for color in colors}) == 256


def test_heat_map_grows_brighter_with_the_score_and_takes_any_number() -> None:
    image = np.full((4, 6, 3), 128, np.uint8)
    score = np.linspace(0, 1, 6, dtype=np.float32)[None].repeat(4, axis=0)
    brightness = heat_map(image, score).astype(int).sum(axis=2)[0]
    assert (np.diff(brightness) > 0).all()
    odd = score.copy()
    odd[0, 0], odd[0, 1], odd[0, 2] = np.nan, -3, 7
    picture = heat_map(image, odd)
    assert (picture[0, 0] == picture[0, 1]).all()
    assert (picture[0, 2] == heat_map(image, np.ones_like(score))[0, 2]).all()


def test_label_map_paints_classes_and_darkens_the_background() -> None:
    image = np.full((20, 20, 3), 200, np.uint8)
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 2
    picture = label_map(image, mask)
    assert picture[0, 0].max() < 100
    inside = picture[10, 10].astype(int)
    assert inside[1] > inside[0] + 50
    assert (picture[5, 10] == 255).all()
    assert (image == 200).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 999), (700, 3), (240, 320)])
def test_pictures_are_embedded_small(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    prefix, _, data = data_uri(image).partition(",")
    assert prefix == "data:image/jpeg;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == shrink(image).shape
    assert max(decoded.shape) <= 320


def test_embedded_colors_are_not_swapped() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0] = 250
    data = data_uri(image).partition(",")[2]
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded[8, 8, 0] > 230
    assert decoded[8, 8, 2] < 20
