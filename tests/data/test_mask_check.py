"""Masks against labels: each fault by name with its counts, and both sides of every threshold."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import kit
import pytest

from seam_dist.config.findings import Findings
from seam_dist.data.mask_check import MIN_CLASS_IMAGES
from seam_dist.data.mask_labels import MaskRow

CLASSES = ("cat", "dog", "horse")
Labels = Sequence[int]


def mask(*values: int, pixels: int = 100) -> dict[int, int]:
    return {0: 1000, **dict.fromkeys(values, pixels)}


def rows(labels: Sequence[Labels], held: Callable[[Labels], dict[int, int] | None], first: int = 0) -> list[MaskRow]:
    return [MaskRow(f"{i}.jpg", classes, held(classes)) for i, classes in enumerate(labels, start=first)]


def good(labels: Sequence[Labels], first: int = 0) -> list[MaskRow]:
    return rows(labels, lambda classes: mask(*classes), first)


def check(*parts: Sequence[MaskRow], refuse: bool = True) -> Findings:
    return kit.check_masks(CLASSES, [row for part in parts for row in part], refuse=refuse)


def only(findings: Findings, severity: str) -> str:
    """The text of the one finding there is."""
    assert [finding.severity for finding in findings] == [severity], [str(finding) for finding in findings]
    return str(next(iter(findings)))


SINGLE = [(i % 3 + 1,) for i in range(30)]
MULTIPLE = [((1, 2), (3,), (2,), (1,), (2, 3), (1, 3))[i % 6] for i in range(30)]


@pytest.mark.parametrize("labels", [SINGLE, MULTIPLE, [()] * 4, [(1,), ()]])
def test_masks_that_agree_give_nothing(labels: Sequence[Labels]) -> None:
    assert not len(check(good(labels)))


@pytest.mark.parametrize("labels", [SINGLE, MULTIPLE])
def test_classes_in_another_order_are_refused_with_what_each_value_means(labels: Sequence[Labels]) -> None:
    order = {1: 2, 2: 3, 3: 1}
    text = only(check(rows(labels, lambda classes: mask(*(order[c] for c in classes)))), "error")
    assert "split 'train': masks contradict the image-level labels in 30 of 30 labeled images" in text
    number = sum(2 in classes for classes in labels)
    assert f"the masks' value 3 lies in images labeled 'dog' (2) in {number} of {number} cases" in text
    assert "list the classes in the order of the masks' values" in text
    assert "or set source.check_masks=warn" in text


def test_a_few_exceptions_do_not_hide_the_order() -> None:
    order = {1: 2, 2: 1, 3: 3}
    swapped = rows([(1,), (2,)] * 24, lambda classes: mask(*(order[c] for c in classes)))
    text = only(check(swapped, [MaskRow("odd.jpg", (3,), mask(2))] * 2), "error")
    assert "the masks' value 2 lies in images labeled 'cat' (1) in 24 of 26 cases" in text


@pytest.mark.parametrize(("shift", "remedy"), [(-1, "add 1 to"), (1, "subtract 1 from")])
def test_shifted_values_are_refused_as_such(shift: int, remedy: str) -> None:
    labels = [(i % 2 + 1,) for i in range(20)] if shift > 0 else SINGLE
    text = only(check(rows(labels, lambda classes: mask(*(c + shift for c in classes if c + shift)))), "error")
    assert f"all values are shifted, expected 0 = background, 1 = 'cat' to 3 = 'horse': {remedy} the values" in text


def test_masks_of_0_and_255_are_refused_with_what_255_means() -> None:
    text = only(check(rows([(1,)] * 6, lambda classes: {0: 5, 255: 5})), "error")
    assert "in 6 of 6 labeled images: the masks hold only 0 and 255 (6 of 6, first 0.jpg, 1.jpg" in text
    assert "255 means ignored: write class indices, 1 = 'cat' to 3 = 'horse'" in text


def test_images_without_objects_do_not_dilute_masks_of_0_and_255() -> None:
    assert check(rows([(1,)] * 3, lambda classes: {0: 5, 255: 5}), good([()] * 50)).errors


def test_masks_of_0_and_255_of_an_unlabeled_split_give_a_warning() -> None:
    unlabeled = [MaskRow(f"{i}", None, {0: 5, 255: 5}) for i in range(3)]
    assert "all 3 masks hold only 0 and 255, expected class indices" in only(check(unlabeled), "warning")
    assert not len(check(unlabeled, [MaskRow("a", None, mask(1))]))


def test_masks_without_any_object_are_refused() -> None:
    text = only(check(rows(SINGLE, lambda classes: {0: 5})), "error")
    assert "in 30 of 30 labeled images: no mask holds an object, first 0.jpg" in text
    assert "or remove the masks" in text


def test_one_value_for_all_classes_is_refused() -> None:
    text = only(check(rows(SINGLE, lambda classes: mask(1))), "error")
    assert "in 20 of 30 labeled images: the masks hold no value but 1, in images of 3 classes" in text


def test_labels_that_fit_no_order_are_refused_with_the_first_images() -> None:
    labels = [(i % 3 + 1,) for i in range(60)]
    text = only(check([MaskRow(f"{i}.jpg", c, mask((i * i + i // 3) % 3 + 1)) for i, c in enumerate(labels)]), "error")
    assert re.search(r"first .*\d\.jpg.* \(labeled '\w+' \(\d\), the mask holds '\w+' \(\d\)\)", text)


def test_objects_in_most_images_that_are_labeled_as_empty_are_refused() -> None:
    text = only(check(rows([()] * 6, lambda classes: mask(2)), good(SINGLE[:3])), "error")
    assert "in 6 of 9 images: 6 images have no label but objects in their mask, first 0.jpg" in text


def test_half_of_the_images_is_a_warning_and_more_is_an_error() -> None:
    wrong = rows([(1,)] * 5, lambda classes: mask(2))
    right = good([(1,), (2,), (1,), (1,), (1,)], 5)
    text = only(check(wrong, right), "warning")
    assert (
        "in 5 of 10 images the mask contradicts the labels: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg (labeled 'cat' (1)"
        in text
    )
    assert check(wrong, right[1:]).errors


def test_a_single_image_is_a_warning_and_two_are_an_error() -> None:
    assert not check(rows([(1,)], lambda classes: {0: 1, 255: 1})).errors
    assert check(rows([(1,)] * 2, lambda classes: {0: 1, 255: 1})).errors


def test_warn_turns_errors_into_warnings() -> None:
    findings = check(rows(SINGLE, lambda classes: {0: 5}), refuse=False)
    assert "no mask holds an object" in only(findings, "warning")


def test_stray_pixels_of_an_unlabeled_class_are_no_contradiction() -> None:
    def held(strays: int) -> Findings:
        # Without pixels of the labeled class: 1 in 100 object pixels is where a stray becomes an object.
        return check(
            [MaskRow(f"{i}", (1, 2), {0: 50, 1: 1000 - strays, 3: strays}) for i in range(4)], good(SINGLE[:3])
        )

    assert not held(9).errors
    assert held(10).errors


def test_labeled_class_without_mask_is_named_with_its_images() -> None:
    held = rows([(1, 3)] * 2 + [(2,)] * 3, lambda classes: mask(*(c for c in classes if c != 3)))
    text = only(check(held, good([(1,), (2,)], 5)), "warning")
    assert "no mask holds the labeled 'horse' (3) in 2 images" in text
    single = only(check(good([(1,)] * 4), [MaskRow("x", (1, 3), mask(1))]), "warning")
    assert "no mask holds the labeled 'horse' (3) in 1 image:" in single


@pytest.mark.parametrize(("number", "others", "severity"), [(4, 0, "warning"), (5, 0, "error"), (5, 5, "warning")])
def test_class_of_most_images_that_no_mask_holds_is_refused(number: int, others: int, severity: str) -> None:
    assert MIN_CLASS_IMAGES == 5
    held = rows([(1, 3)] * number, lambda classes: mask(1))
    assert "no mask holds the labeled 'horse' (3)" in only(check(held, good([(1,)] * others)), severity)


@pytest.mark.parametrize(("number", "others", "severity"), [(4, 0, "warning"), (5, 0, "error"), (5, 5, "warning")])
def test_value_in_most_masks_that_no_label_names_is_refused(number: int, others: int, severity: str) -> None:
    held = rows([(1,)] * number, lambda classes: mask(1, 2))
    text = only(check(held, good([(1,)] * others)), severity)
    assert f"no label names what masks hold, 'dog' (2) in {number} masks" in text


def test_renumbered_class_is_named_from_both_sides() -> None:
    held = rows([(3,)] * 4, lambda classes: mask(2))
    texts = [str(finding) for finding in check(held, good([(1,)] * 8, 4)).warnings]
    assert len(texts) == 2
    assert "no mask holds the labeled 'horse' (3) in 4 images" in texts[0]
    assert "'dog' (2) in 4 masks; the masks' value 2 lies in images labeled 'horse' (3) in 4 of 4 cases" in texts[1]


def test_two_classes_of_many_that_are_swapped_are_named_in_the_warning() -> None:
    order = {1: 2, 2: 1}
    text = only(check(rows([(1,), (2,)] * 4, lambda c: mask(order[c[0]])), good([(3,)] * 12, 8)), "warning")
    assert "in 8 of 20 images the mask contradicts the labels" in text
    assert "the masks' value 1 lies in images labeled 'dog' (2) in 4 of 4 cases" in text


def test_single_images_that_disagree_are_named_by_what_they_lack() -> None:
    odd = [
        MaskRow("hidden", (1, 2), mask(1)),
        MaskRow("extra", (1,), mask(1, 2)),
        MaskRow("blank", (3,), {0: 9}),
        MaskRow("empty", (), mask(3)),
    ]
    findings = check(good(SINGLE), odd)
    assert not findings.errors
    texts = {finding.topic: finding.text for finding in findings}
    assert "1 of 34 images are labeled, but their mask holds no object: blank" in texts["masks-without-objects-train"]
    assert "1 of 34 images have no label, but their mask holds objects: empty" in texts["objects-without-labels-train"]
    assert "'dog' (2) in 1 (hidden) of 34" in texts["labels-without-pixels-train"]
    assert "'dog' (2) in 1 (extra) of 34" in texts["pixels-without-label-train"]
    assert len(texts) == 4


def test_wholly_ignored_mask_and_image_without_mask_say_nothing() -> None:
    silent = [MaskRow("ignored", (1,), {255: 100}), MaskRow("none", (1,), None)] * 5
    assert not len(check(silent))


def test_every_split_has_a_line_of_its_own() -> None:
    wrong = rows(SINGLE, lambda classes: {0: 5})
    for split in ("train", "val"):
        (finding,) = kit.check_masks(CLASSES, wrong, split)
        assert re.findall(r"split '(\w+)'", finding.text) == [split]
