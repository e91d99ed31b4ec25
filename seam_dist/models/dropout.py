"""Dropout whose masks belong to samples: each is a function of (seed, sample number, layer, grid, channel)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# splitmix64 (Steele, Lea, Flood 2014): its multipliers as signed 64-bit numbers; products wrap around.
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)


def hash64(x: Tensor) -> Tensor:
    """Return a well-mixed int64 for every int64: the finalizer of splitmix64."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _MIX_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _MIX_2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class DropoutKeys:
    """The seed, and the numbers of the samples that are in the network now; shared by all dropout layers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sample_number: Tensor | None = None


class SampleDropout2d(nn.Module):
    """Drops whole channels like nn.Dropout2d, with masks that belong to the sample and not to its place in a batch."""

    def __init__(self, p: float, layer: int, keys: DropoutKeys) -> None:
        super().__init__()
        self.p = p
        self.layer = layer
        self.keys = keys

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, H, W) with channels zeroed with probability p and the rest divided by 1 - p."""
        if not self.training or self.p == 0:
            return x
        number = self.keys.sample_number
        assert number is not None, "sample numbers are set before the forward pass"
        # The grid distinguishes the two views, and is still known when a block is recomputed in the backward pass.
        place = (self.layer << 40) + (x.shape[2] << 20) + x.shape[3]
        seed = (self.keys.seed * _STEP + (1 << 63)) % (1 << 64) - (1 << 63)  # wrapped around: torch takes 64 bits
        key = hash64(hash64(number.to(x.device) + seed) + place)  # [B]
        channel = torch.arange(x.shape[1], device=x.device, dtype=torch.int64) * _STEP
        draw = (hash64(key[:, None] + channel) >> 11) & ((1 << 53) - 1)  # [B, C], uniform in 53 bits
        keep = (draw >= int(self.p * (1 << 53))).to(x.dtype) / (1 - self.p)
        return x * keep[:, :, None, None]


def key_dropout(model: nn.Module, keys: DropoutKeys) -> None:
    """Replace every nn.Dropout2d in `model`, in place; dropout has no parameters, so checkpoints do not change."""
    layer = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout2d):
                setattr(module, name, SampleDropout2d(child.p, layer, keys))
                layer += 1
