"""The losses of SEAM against numbers worked out by hand in each test."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch

from seam_dist.losses import seam as losses

EPS = 1e-5


class Maps(NamedTuple):
    cam: torch.Tensor
    cam_refined: torch.Tensor | None


def maps(values, dtype=torch.float64):
    """Nested lists (C + 1, H, W) of one sample as a (1, C + 1, H, W) tensor."""
    return torch.tensor(values, dtype=dtype).unsqueeze(0)


def random_maps(seed, size, num_classes=3, batch=2):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, num_classes + 1, *size)
    return Maps(*(torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)))


def foregrounds(cam1, cam2, label):
    """The scaled foreground maps of both views at the second view's size."""
    size = tuple(cam2.shape[2:])
    return losses.scaled_foreground(cam1, label, size), losses.scaled_foreground(cam2, label, size)


LABEL = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)


def test_max_norm_scales_each_channel_between_its_extremes():
    cam = maps([[[-1.0, 1.0], [2.0, 3.0]], [[4.0, 4.0], [4.0, 4.0]], [[-2.0, -1.0], [-3.0, -4.0]]])
    out = losses.max_norm(cam)
    # Channel 0: relu gives 0, 1, 2, 3 with extremes 0 and 3. A flat or a negative channel is 0 everywhere.
    first = [[0.0, (1 - EPS) / (3 + EPS)], [(2 - EPS) / (3 + EPS), (3 - EPS) / (3 + EPS)]]
    torch.testing.assert_close(out, maps([first, [[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2]), rtol=0, atol=1e-14)


def test_max_norm_subtracts_a_positive_minimum():
    out = losses.max_norm(maps([[[1.0, 2.0, 3.0]]]))
    expected = maps([[[0.0, (1 - EPS) / (2 + EPS), (2 - EPS) / (2 + EPS)]]])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)


def test_max_norm_scales_before_it_resizes():
    # 0, 4, 8 scaled, then brought to two pixels with align_corners=True: the two ends stay.
    out = losses.max_norm(maps([[[0.0, 4.0, 8.0]]]), (1, 2))
    torch.testing.assert_close(out, maps([[[0.0, (8 - EPS) / (8 + EPS)]]]), rtol=0, atol=1e-14)


def test_max_norm_gradient_flows_through_the_extremes():
    cam = maps([[[1.0, 2.0, 4.0]]]).requires_grad_()
    losses.max_norm(cam)[0, 0, 0, 1].backward()
    # (x - m - e) / (M - m + e) at x = 2, m = 1, M = 4, differentiated in m, x and M.
    a, d = 1 - EPS, 3 + EPS
    expected = maps([[[-1 / d + a / d**2, 1 / d, -a / d**2]]])
    torch.testing.assert_close(cam.grad, expected)


def test_max_onehot_keeps_soft_maxima_and_ties():
    cam = maps([[[0.3, 0.9]], [[0.5, 0.2]], [[0.5, 0.1]], [[0.4, 0.0]]])
    expected = maps([[[0.3, 0.9]], [[0.5, 0.2]], [[0.5, 0.0]], [[0.0, 0.0]]])
    assert torch.equal(losses.max_onehot(cam), expected)


def test_max_onehot_leaves_its_input_unchanged():
    cam = torch.rand(2, 4, 3, 3)
    before = cam.clone()
    losses.max_onehot(cam)
    assert torch.equal(cam, before)


def test_classification_uses_the_mean_of_foreground_channels():
    cam = maps([[[100.0, 100.0]], [[0.0, 2.0]], [[-1.0, -3.0]]])
    out = losses.classification_loss(cam, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    # -log s(1) = log(1 + e^-1); -log s(2) = log(1 + e^-2).
    assert out.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2)


def test_min_pooling_averages_the_lowest_quarter_of_the_strongest_present_score():
    background = [[9.0] * 4] * 2
    present = [[0.8, 0.1, 0.7, 0.6], [0.5, 0.3, 0.9, 0.4]]
    absent = [[5.0] * 4] * 2
    out = losses.min_pooling_loss(maps([background, present, absent]), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert out.item() == pytest.approx((0.1 + 0.3) / 2)  # k = 8 // 4


def test_min_pooling_counts_negative_scores_as_zero():
    cam = maps([[[0.0] * 4] * 2, [[-0.8, 0.2, 0.7, 0.6], [0.5, 0.3, 0.9, 0.4]]])
    out = losses.min_pooling_loss(cam, torch.ones(1, 1, dtype=torch.float64))
    assert out.item() == pytest.approx(0.2 / 2)


def test_min_pooling_of_a_single_pixel_is_its_score():
    assert losses.min_pooling_loss(maps([[[0.0]], [[0.25]]]), torch.ones(1, 1)).item() == pytest.approx(0.25)


def test_er_compares_scaled_maps_at_the_second_size():
    cam1 = maps([[[7.0] * 3], [[0.0, 4.0, 8.0]], [[1.0, 0.0, 0.0]]])
    cam2 = maps([[[0.0] * 2], [[2.0, 0.0]], [[0.0, 5.0]]])
    label = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    high1, high2 = (8 - EPS) / (8 + EPS), (2 - EPS) / (2 + EPS)
    # Resized first view 0, high1; second high2, 0; the absent class counts as equal: 4 elements.
    er = losses.seam_loss((cam1, None), (cam2, None), label, ablation="er")["er"]
    assert er.item() == pytest.approx((high1 + high2) / 4)


def test_ecr_averages_the_largest_differences_in_both_directions():
    # One class, four pixels; maxima of 1 make the scaled value x within 2e-5.
    cam1 = maps([[[0.0] * 4], [[0.0, 0.2, 0.6, 1.0]]])
    cam2 = maps([[[0.0] * 4], [[0.0, 0.5, 0.5, 1.0]]])
    refined1 = maps([[[1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]])
    refined2 = maps([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]])
    label = torch.ones(1, 1, dtype=torch.float64)
    # Direction 1, target of view 2: background 1, .5, .5, 0; differences to refined1: 0 .5 .5 0 | 0 .5 .5 0.
    # Direction 2, target of view 1: background 1, .8, .4, 0; to refined2: 0 .2 .4 0 | 0 .2 .6 0.
    # top = 0.25 of 8 elements is 2: .5 and .5; .6 and .4.
    planes = foregrounds(cam1, cam2, label)
    out = losses.ecr_loss(*planes, refined1, refined2, label, top=0.25)
    assert out.item() == pytest.approx(0.5 + 0.5, abs=1e-4)
    assert losses.ecr_loss(*planes, refined1, refined2, label, top=0.4).item() == pytest.approx(
        0.5 + (0.6 + 0.4 + 0.2) / 3, abs=1e-4
    )


def test_an_image_without_objects_teaches_the_absence_of_all_classes_and_a_background_everywhere():
    cam = maps([[[7.0] * 4], [[1.0, 2.0, 3.0, 6.0]], [[-4.0, 0.0, 0.0, 0.0]]]).requires_grad_()
    refined = maps([[[0.0, 0.25, 0.5, 1.0]], [[3.0] * 4], [[0.0, 1.0, 0.0, 2.0]]]).requires_grad_()
    out = losses.seam_loss((cam, refined), (cam, refined), torch.zeros(1, 2, dtype=torch.float64), ecr_top=0.25)
    # -log s(-x) of the means 3 and -1.
    assert out["cls"].item() == pytest.approx((math.log1p(math.exp(3)) + math.log1p(math.exp(-1))) / 2)
    assert (out["min_pool"].item(), out["er"].item()) == (0, 0)
    # The target is a background of 1: differences 1, .75, .5, 0; top = 0.25 of 12 elements is 3; two directions.
    assert out["ecr"].item() == pytest.approx(2 * (1 + 0.75 + 0.5) / 3, abs=1e-4)
    gradients = torch.autograd.grad(out["loss"], (cam, refined))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert gradients[0][:, 1:].gt(0).all()  # every score goes down
    assert not gradients[1][:, 1:].any()


def test_ecr_takes_the_top_of_each_sample():
    label = torch.ones(2, 1, dtype=torch.float64)
    cam = maps([[[0.0] * 2], [[0.0, 1.0]]]).repeat(2, 1, 1, 1)
    agrees = maps([[[1.0, 0.0]], [[0.0, 1.0]]])
    differs = maps([[[0.0, 1.0]], [[1.0, 0.0]]])
    refined = torch.cat([agrees, differs])
    # A joint top quarter of the 8 elements would be 1; sample by sample it is 0 and 1.
    out = losses.ecr_loss(*foregrounds(cam, cam, label), refined, refined, label, top=0.25)
    assert out.item() == pytest.approx(2 * 0.5, abs=1e-4)


def test_ecr_gives_no_gradient_to_the_plain_maps():
    view1, view2 = random_maps(0, (6, 6)), random_maps(1, (4, 4))
    planes = foregrounds(view1.cam, view2.cam, LABEL)
    total = losses.ecr_loss(*planes, view1.cam_refined, view2.cam_refined, LABEL)
    grads = torch.autograd.grad(total, (*view1, *view2), allow_unused=True)
    assert [g is not None and bool(g.abs().sum() > 0) for g in grads] == [False, True, False, True]


@pytest.mark.parametrize(
    "function",
    [
        lambda v1, v2: losses.max_norm(v1.cam),
        lambda v1, v2: losses.max_norm(v1.cam, (3, 4)),
        lambda v1, v2: losses.classification_loss(v1.cam, LABEL),
        lambda v1, v2: losses.min_pooling_loss(v1.cam_refined, LABEL),
        lambda v1, v2: losses.seam_loss(v1, v2, LABEL, ablation="er")["er"],
        lambda v1, v2: losses.seam_loss(v1, v2, LABEL, ablation="pcm")["loss"],
    ],
    ids=["max_norm", "max_norm_resized", "classification", "min_pooling", "equivariant", "total"],
)
def test_gradients_match_finite_differences(function):
    inputs = (*random_maps(2, (5, 6)), *random_maps(3, (3, 4)))
    assert torch.autograd.gradcheck(lambda a, b, c, d: function(Maps(a, b), Maps(c, d)), inputs)


def test_ecr_gradient_of_the_refined_maps_matches_finite_differences():
    view1, view2 = random_maps(4, (5, 6)), random_maps(5, (3, 4))
    planes = foregrounds(view1.cam.detach(), view2.cam.detach(), LABEL)
    refined = (view1.cam_refined, view2.cam_refined)
    assert torch.autograd.gradcheck(lambda a, b: losses.ecr_loss(*planes, a, b, LABEL), refined)


TERMS = {
    "cam": {"cls"},
    "er": {"cls", "er"},
    "pcm": {"cls", "min_pool", "er"},
    "ecr": {"cls", "min_pool", "ecr"},
    "full": {"cls", "min_pool", "er", "ecr"},
}


@pytest.mark.parametrize("ablation", list(TERMS))
def test_ablation_uses_its_terms_and_weights(ablation):
    view1, view2 = random_maps(6, (8, 8)), random_maps(7, (4, 4))
    chosen = {"er_weight": 2.0, "ecr_weight": 3.0, "min_pool_weight": 5.0}
    out = losses.seam_loss(view1, None if ablation == "cam" else view2, LABEL, ablation=ablation, **chosen)
    assert set(out) == TERMS[ablation] | {"loss"}
    weights = {"cls": 1.0, "min_pool": 5.0, "er": 2.0, "ecr": 3.0}
    assert out["loss"].item() == pytest.approx(sum(weights[name] * out[name].item() for name in TERMS[ablation]))


def test_terms_equal_the_single_losses():
    view1, view2 = random_maps(8, (8, 8)), random_maps(9, (4, 4))
    out = losses.seam_loss(view1, view2, LABEL)
    planes, refined1, refined2 = foregrounds(view1.cam, view2.cam, LABEL), view1.cam_refined, view2.cam_refined
    cls = losses.classification_loss(view1.cam, LABEL) + losses.classification_loss(view2.cam, LABEL)
    pooled = losses.min_pooling_loss(refined1, LABEL) + losses.min_pooling_loss(refined2, LABEL)
    torch.testing.assert_close(out["cls"], cls / 2)
    torch.testing.assert_close(out["min_pool"], pooled / 2)
    torch.testing.assert_close(out["er"], (planes[0] - planes[1]).abs().mean())
    torch.testing.assert_close(out["ecr"], losses.ecr_loss(*planes, refined1, refined2, LABEL))


def test_classification_of_one_view_ignores_the_second():
    view1 = random_maps(10, (4, 4))
    out = losses.seam_loss(Maps(view1.cam, None), None, LABEL, ablation="cam")
    torch.testing.assert_close(out["loss"], losses.classification_loss(view1.cam, LABEL))


def test_loss_of_a_batch_is_the_mean_over_its_samples():
    view1, view2 = random_maps(13, (8, 8)), random_maps(14, (4, 4))
    whole = losses.seam_loss(view1, view2, LABEL)
    halves = [
        losses.seam_loss(*(Maps(*(x[i : i + 1] for x in view)) for view in (view1, view2)), LABEL[i : i + 1])
        for i in range(2)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2)


def test_inputs_are_not_written():
    view1, view2 = (Maps(*(x.detach().clone() for x in random_maps(s, (6, 6)))) for s in (15, 16))
    label = LABEL.clone()
    before = [x.clone() for x in (*view1, *view2, label)]
    losses.seam_loss(view1, view2, label)
    assert all(torch.equal(a, b) for a, b in zip(before, (*view1, *view2, label), strict=True))


@pytest.mark.parametrize(
    ("view2", "label", "ablation", "message"),
    [
        (random_maps(1, (4, 4)), LABEL[:, :2], "full", r"label has shape \(2, 2\), expected \(2, 3\)"),
        (None, LABEL, "er", r"view2=None, but ablation=er compares two views: pass the second"),
        (Maps(random_maps(1, (4, 4)).cam, None), LABEL, "full", r"ablation=full needs the refined maps.*pcm=True"),
        (None, LABEL, "camm", r"ablation='camm' is unknown: use one of cam, er, pcm, ecr, full"),
    ],
)
def test_bad_input_is_refused_with_its_remedy(view2, label, ablation, message):
    with pytest.raises(ValueError, match=message):
        losses.seam_loss(random_maps(0, (4, 4)), view2, label, ablation=ablation)
