from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from kit import changed
from torch import nn
from training_kit import one_rank

from seam_dist.config.schema import Config, ModelConfig, RunConfig, TrainSegConfig
from seam_dist.data.augment.color import IDENTITY
from seam_dist.models import build_deeplab
from seam_dist.training.seg_task import SegModule, synchronize_batchnorm

SIDE = 24
CLASSES = 3


def settings(**seg: Any) -> Config:
    return Config(
        run=RunConfig(threads=1),
        model=ModelConfig(width=1 / 16, freeze_stem=False),
        train_seg=changed(
            TrainSegConfig(), width=8, crop_size=SIDE, **{"global_batch_size": 8, "freeze_batchnorm": True, **seg}
        ),
    )


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
    module.begin_step(batches, 0, one_rank())
    loss = accuracy = 0.0
    for batch in batches:
        losses = module(batch)
        (losses["loss"] / len(batches)).backward()
        loss += float(losses["loss"].detach()) / len(batches)
        accuracy += float(losses["accuracy"]) / len(batches)
    return loss, accuracy, {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def test_loss_is_the_mean_over_all_labeled_pixels() -> None:
    module = make(settings(dropout=0.0))
    module.eval()
    batch = batch_of(range(1, 4))
    module.begin_step([batch], 0, one_rank())
    losses = module(batch)
    image = (batch["image"].float() / 255 - module.mean[:, None, None]) / module.std[:, None, None]
    with torch.no_grad():
        logits = module.model(image)
    target = batch["target"].long()
    mean = torch.nn.functional.cross_entropy(logits.double(), target, ignore_index=255)
    known = target != 255
    assert not known.all()
    assert float(losses["loss"].detach()) == pytest.approx(float(mean), rel=1e-5)
    hits = (logits.argmax(dim=1) == target)[known]
    assert float(losses["accuracy"]) == pytest.approx(float(hits.double().mean()), rel=1e-6)
    assert losses["loss"].dtype == torch.float32


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
        module.begin_step([batch], 0, one_rank())
        seen: list[torch.Tensor] = []
        handle = module.model.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out.detach()))
        module(batch)
        handle.remove()
        outputs.append(seen[0])
    torch.testing.assert_close(outputs[0][1], outputs[1][0])
    assert not torch.allclose(outputs[0][0], outputs[0][1])


def test_ignored_batch_has_zero_loss_and_gradient() -> None:
    module = make(settings())
    batch = batch_of([0, 1])
    batch["target"].fill_(255)
    module.begin_step([batch], 0, one_rank())
    losses = module(batch)
    losses["loss"].backward()
    assert float(losses["loss"].detach()) == 0
    assert all(float(p.grad.abs().max()) == 0 for p in module.parameters() if p.grad is not None)


def test_bfloat16_gives_a_float32_loss_near_the_full_one() -> None:
    cfg = settings(dropout=0.0)
    low = settings(dropout=0.0, precision="bf16")
    losses = []
    for each in (cfg, low):
        module = make(each)
        freeze_head(module)
        batch = batch_of(range(2))
        module.begin_step([batch], 0, one_rank())
        losses.append(module(batch)["loss"].detach())
    assert losses[1].dtype == torch.float32
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=0.05)
    assert float(losses[1]) != float(losses[0])


def test_batchnorm_is_synchronized_on_several_gpus_only() -> None:
    cfg = settings()
    model = build_deeplab(cfg, CLASSES)[0].train()
    assert synchronize_batchnorm(model, one_rank(4)) == 0
    gpus = replace(one_rank(2), device=torch.device("cuda", 0))
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


def test_batchnorm_of_another_type_is_named() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    model = build_deeplab(settings(freeze_batchnorm=False), CLASSES)[0].train()
    model.backbone.bn7 = Odd(model.backbone.channels[2])
    with pytest.raises(ValueError, match=r"layers of type Odd.*train_seg.freeze_batchnorm=true"):
        synchronize_batchnorm(model, replace(one_rank(2), device=torch.device("cuda", 0)))
