from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from kit import changed
from torch import nn

from seam_dist.cluster.distributed import World
from seam_dist.config.schema import Config, ModelConfig, RunConfig, TrainSegConfig
from seam_dist.data.augment.color import IDENTITY
from seam_dist.models import build_deeplab
from seam_dist.training.seg_task import SegModule, segmentation_sums, synchronize_batchnorm

SIDE = 24
CLASSES = 3


def settings(**seg: Any) -> Config:
    cfg = Config(
        run=RunConfig(threads=1),
        model=ModelConfig(width=1 / 16, freeze_stem=False),
        train_seg=changed(
            TrainSegConfig(), width=8, crop_size=SIDE, **{"global_batch_size": 8, "freeze_batchnorm": True, **seg}
        ),
    )
    return replace(cfg, train_seam=replace(cfg.train_seam, schedule=cfg.train_seg.schedule))


def batch_of(numbers: Sequence[int]) -> dict[str, Any]:
    images, targets = [], []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        images.append(torch.randint(0, 256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8))
        target = torch.randint(0, CLASSES + 1, (SIDE, SIDE), generator=generator).to(torch.uint8)
        # A part of each image, a different one for each, is ignored.
        target[: number * 3 % SIDE] = 255
        targets.append(target)
    return {
        "image": torch.stack(images),
        "target": torch.stack(targets),
        "valid": torch.tensor([[0, 0, SIDE, SIDE]], dtype=torch.int32).repeat(len(numbers), 1),
        "color": torch.tensor(IDENTITY).repeat(len(numbers), 1),
        "sample_number": torch.tensor(list(numbers)),
    }


def world(size: int = 1) -> World:
    return World(rank=0, size=size, local_rank=0, local_size=size, device=torch.device("cpu"))


def make(cfg: Config) -> SegModule:
    torch.manual_seed(0)
    model = build_deeplab(cfg, CLASSES)[0]
    nn.init.normal_(model.head.classifier.weight, std=1.0)  # logits that differ
    return SegModule(model, cfg).train()


def freeze_head(module: SegModule) -> None:
    for layer in module.model.head.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def gradients(module: SegModule, parts: Sequence[Sequence[int]]) -> tuple[float, float, dict[str, torch.Tensor]]:
    """One optimizer step's loss, accuracy and gradient, averaged over the parts as DeepSpeed does."""
    batches = [batch_of(part) for part in parts]
    module.zero_grad()
    module.begin_step(batches, world())
    loss = accuracy = 0.0
    for batch in batches:
        losses = module(batch, 1.0)
        (losses["loss"] / len(batches)).backward()
        loss += float(losses["loss"].detach()) / len(batches)
        accuracy += float(losses["accuracy"]) / len(batches)
    return loss, accuracy, {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def slow_loss(
    logits: torch.Tensor, target: torch.Tensor, smoothing: float, confidence: bool, background: float = 1.0
) -> tuple[float, int, int]:
    """Pixel by pixel, in Python."""
    total, hits, count = 0.0, 0, 0
    for b in range(target.shape[0]):
        for y in range(target.shape[1]):
            for x in range(target.shape[2]):
                label = int(target[b, y, x])
                if label == 255:
                    continue
                scores = [float(v) for v in logits[b, :, y, x]]
                high = max(scores)
                norm = high + math.log(sum(math.exp(v - high) for v in scores))
                shares = [smoothing / len(scores) + (1 - smoothing) * (k == label) for k in range(len(scores))]
                loss = sum(share * (norm - score) for share, score in zip(shares, scores, strict=True))
                weight = background if label == 0 else 1
                total += weight * loss * (math.exp(scores[label] - norm) if confidence else 1)
                hits += scores.index(high) == label
                count += 1
    return total, hits, count


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("background", [1.0, 0.3])
def test_sums_match_a_pixel_by_pixel_reading(smoothing: float, confidence: bool, background: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(2, CLASSES + 1, 5, 7, generator=generator)
    target = torch.randint(0, CLASSES + 1, (2, 5, 7), generator=generator)
    target[0, :2] = 255
    weights: dict[str, Any] = {"confidence": confidence, "background_weight": background}
    loss, hits = segmentation_sums(logits, target, label_smoothing=smoothing, **weights)
    expected, expected_hits, _ = slow_loss(logits.double(), target, smoothing, confidence, background)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert int(hits) == expected_hits


def test_confidence_carries_no_gradient() -> None:
    logits = torch.randn(1, 4, 2, 2, requires_grad=True)
    target = torch.tensor([[[0, 3], [2, 255]]])
    loss, _ = segmentation_sums(logits, target, confidence=True)
    (found,) = torch.autograd.grad(loss, logits)
    probability = logits.detach().softmax(dim=1)
    onehot = torch.nn.functional.one_hot(target.clamp(max=3), 4).permute(0, 3, 1, 2)
    weight = (probability * onehot).sum(dim=1, keepdim=True) * (target != 255)[:, None]
    torch.testing.assert_close(found, weight * (probability - onehot))


def test_loss_is_the_mean_over_all_labeled_pixels() -> None:
    module = make(settings(dropout=0.0))
    module.eval()
    batch = batch_of(range(1, 4))
    module.begin_step([batch], world())
    found = module(batch, 1.0)
    image = (batch["image"].float() / 255 - module.mean[:, None, None]) / module.std[:, None, None]
    with torch.no_grad():
        logits = module.model(image)
    total, hits, count = slow_loss(logits.double(), batch["target"].long(), 0.0, False)
    assert count < batch["target"].numel()
    assert float(found["loss"].detach()) == pytest.approx(total / count, rel=1e-5)
    assert float(found["accuracy"]) == pytest.approx(hits / count, rel=1e-6)
    assert found["loss"].dtype == torch.float32


def test_one_batch_of_eight_equals_two_of_four_with_frozen_batchnorm() -> None:
    # Dropout is on: its masks belong to the samples.
    module = make(settings(confidence=True, label_smoothing=0.1, background_weight=0.3))
    freeze_head(module)
    whole = gradients(module, [range(8)])
    parted = gradients(module, [range(4), range(4, 8)])
    assert parted[0] == pytest.approx(whole[0], rel=1e-5)
    assert parted[1] == pytest.approx(whole[1], rel=1e-6)
    assert whole[2].keys() == parted[2].keys()
    for name, gradient in whole[2].items():
        torch.testing.assert_close(parted[2][name], gradient, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    # The parts have different counts, so the mean of their own means would be another number.
    naive = [gradients(module, [part])[0] for part in (range(4), range(4, 8))]
    assert abs(sum(naive) / 2 - whole[0]) > 1e-4


def test_dropout_masks_belong_to_samples() -> None:
    module = make(settings(dropout=0.9))
    freeze_head(module)
    first, second = batch_of([1, 2]), batch_of([2, 5])
    outputs = []
    for batch in (first, second):
        module.begin_step([batch], world())
        seen: list[torch.Tensor] = []
        handle = module.model.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.detach()))
        module(batch, 1.0)
        handle.remove()
        outputs.append(seen[0])
    torch.testing.assert_close(outputs[0][1], outputs[1][0])
    assert not torch.allclose(outputs[0][0], outputs[0][1])


def test_ignored_batch_has_zero_loss_and_gradient() -> None:
    module = make(settings())
    batch = batch_of([0, 1])
    batch["target"].fill_(255)
    module.begin_step([batch], world())
    losses = module(batch, 1.0)
    losses["loss"].backward()
    assert float(losses["loss"].detach()) == 0
    assert all(float(p.grad.abs().max()) == 0 for p in module.parameters() if p.grad is not None)


def test_bfloat16_gives_a_float32_loss_near_the_full_one() -> None:
    cfg = settings(dropout=0.0)
    low = settings(dropout=0.0, precision="bf16")
    found = []
    for each in (cfg, low):
        module = make(each)
        freeze_head(module)
        batch = batch_of(range(2))
        module.begin_step([batch], world())
        found.append(module(batch, 1.0)["loss"].detach())
    assert found[1].dtype == torch.float32
    assert float(found[1]) == pytest.approx(float(found[0]), rel=0.05)
    assert float(found[1]) != float(found[0])


def test_batchnorm_is_synchronized_on_several_gpus_only() -> None:
    cfg = settings()
    model = build_deeplab(cfg, CLASSES)[0].train()
    assert synchronize_batchnorm(model, world(4)) == 0
    gpus = replace(world(2), device=torch.device("cuda", 0))
    assert synchronize_batchnorm(model, replace(gpus, size=1)) == 0
    names = set(model.state_dict())
    frozen = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert synchronize_batchnorm(model, gpus) == 2
    assert set(model.state_dict()) == names
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) == 2
    assert not any(m.training for m in frozen)
    live = build_deeplab(settings(freeze_batchnorm=False), CLASSES)[0].train()
    assert synchronize_batchnorm(live, gpus) == 2 + len(frozen)
    assert synchronize_batchnorm(live, gpus) == 0


def test_batchnorm_of_another_kind_is_named() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    model = build_deeplab(settings(freeze_batchnorm=False), CLASSES)[0].train()
    model.backbone.bn7 = Odd(model.backbone.channels[2])
    with pytest.raises(ValueError, match=r"layers of kind Odd.*train_seg.freeze_batchnorm=true"):
        synchronize_batchnorm(model, replace(world(2), device=torch.device("cuda", 0)))
