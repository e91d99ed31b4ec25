"""Images through a network: batches of one size, scales, parts that fit the memory, mirror images, padding."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seam_dist.data.shards import Sample
from seam_dist.inference import batching
from seam_dist.inference.batching import by_size, network_maps, one_ahead, scaled_images


def sample_of_size(index: int, size: tuple[int, int]) -> Sample:
    return Sample(f"s{index}", np.zeros((*size, 3), np.uint8), (1,), None, "")


def test_images_of_one_size_are_batched_and_few_wait() -> None:
    sizes = [(2, 3), (3, 2), (2, 3), (2, 3), (3, 2), (2, 3)]
    batches = list(by_size((sample_of_size(i, s) for i, s in enumerate(sizes)), 2))
    assert [[index for index, _ in batch] for batch in batches] == [[0, 2], [1, 4], [3, 5]]


def test_at_most_eight_batches_of_images_wait() -> None:
    drawn = []

    def stream() -> Iterator[Sample]:
        for index in range(40):
            drawn.append(index)
            yield sample_of_size(index, (1, index + 1))

    first = next(by_size(stream(), 2))
    assert len(drawn) == 16
    assert len(first) == 1


def test_scales_are_relative_to_the_longest_side_and_aligned() -> None:
    images = [np.full((20, 40, 3), value, np.uint8) for value in (3, 200)]

    def sizes(**settings: int) -> list[tuple[int, ...]]:
        scaled = scaled_images(images, [0.5, 1.0], **settings)
        assert all((image[0] == 3).all() and (image[1] == 200).all() for image in scaled)
        return [tuple(image.shape) for image in scaled]

    assert sizes() == [(2, 3, 10, 20), (2, 3, 20, 40)]
    assert sizes(longest=20) == [(2, 3, 5, 10), (2, 3, 10, 20)]
    assert sizes(longest=100) == sizes()
    assert sizes(align=8) == [(2, 3, 9, 17), (2, 3, 17, 41)]
    with pytest.raises(ValueError, match=r"scales=\[\]: expected at least one number, all finite and above 0"):
        scaled_images(images, [])


MEAN, STD = (0.5, 0.25, 0.0), (0.5, 0.5, 2.0)


class Edges(nn.Module):
    """A network that responds to vertical edges, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, (1, 3), padding=(0, 1))
        self.backbone: Any = SimpleNamespace(mean=MEAN, std=STD)
        self.given: list[Tensor] = []

    def maps(self, pixels: Tensor) -> list[Tensor]:
        self.given.append(pixels)
        return [self.conv(pixels), pixels[:, :1]]


def test_parts_mirror_images_and_padding_give_the_maps_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Edges()
    images = torch.randint(0, 256, (5, 3, 6, 10), dtype=torch.uint8)
    monkeypatch.setitem(batching.PIXELS_AT_ONCE, "cpu", 2 * 8 * 12)
    both, red = network_maps(network, images, network.maps, flip=True, stride=4)
    assert [len(given) for given in network.given] == [2, 2, 2, 2, 1, 1]
    normal = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    padded = torch.zeros(5, 3, 8, 12)
    padded[:, :, :6, :10] = normal
    with torch.no_grad():
        expected = network.conv(padded) + network.conv(padded.flip(-1)).flip(-1)
    torch.testing.assert_close(both, expected)
    torch.testing.assert_close(red, 2 * padded[:, :1])
    alone, _ = network_maps(network, images, network.maps)
    with torch.no_grad():
        torch.testing.assert_close(alone, network.conv(normal))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_images_come_in_the_memory_format_of_the_network(memory_format: torch.memory_format) -> None:
    network = Edges().to(memory_format=memory_format)  # type: ignore[call-overload]
    network_maps(network, torch.zeros(1, 3, 6, 10, dtype=torch.uint8), network.maps)
    assert network.given[0].is_contiguous(memory_format=memory_format)


def test_items_are_made_one_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number

    assert list(one_ahead(items())) == [0, 1, 2, 3]
    assert made == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        list(one_ahead(1 // number for number in (1, 0)))
