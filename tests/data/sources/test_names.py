"""What a written name may mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from seam_dist.config.findings import Findings
from seam_dist.data.sources.names import ClassNames, ImageNames, Names, is_hidden, likely_mask, list_folder


def test_the_same_spelling_comes_before_all_others() -> None:
    names = Names(["Cardigan", "cardigan", "cafe\u0301"])
    assert names.matches("cardigan") == ["cardigan"]
    assert names.matches("CARDIGAN") == ["Cardigan", "cardigan"]
    assert names.matches("CAF\u00c9") == ["cafe\u0301"]
    assert names.matches("cafe") == []
    assert names.nearest("cafe") == "cafe\u0301"


def test_the_whole_name_comes_before_the_stem() -> None:
    names = ImageNames(["a.v2.jpg", "a.jpg", "a.v2"])
    assert names.matches("a.v2") == ["a.v2"]
    assert names.matches("A.V2") == ["a.v2"]
    assert names.matches("x/a.v2.png") == ["a.v2.jpg", "a.v2"]
    assert names.matches("a") == ["a.jpg"]


def test_unknown_classes_are_one_error_and_two_unicode_forms_are_one_class() -> None:
    classes, findings = ClassNames(["caf\u00e9", "bar"]), Findings()
    assert classes.ids(["cafe\u0301", "bar", "BAR"], where="line 1") == (1, 2)
    classes.report_unknown(findings)
    assert not len(findings)
    assert classes.ids(["cafe", "bra", "cafe"], where="line 2") is None
    classes.report_unknown(findings)
    (error,) = findings
    assert (error.topic, error.count) == ("unknown-class", 3)
    assert error.text.endswith(
        "line 2: class 'cafe' is not one of the 2 classes: did you mean 'café'?; unknown as well: 'bra'"
    )


@pytest.mark.parametrize(
    ("mask", "expected"),
    [("a_mask.png", True), ("A.png", True), ("a-GT.PNG", True), ("a_labelIds.png", True), ("ab.png", False)],
)
def test_likely_mask(mask: str, expected: bool) -> None:
    assert likely_mask("a", ["x.png", mask]) == (mask if expected else None)


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg", "._a.jpg", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    assert list_folder(tmp_path) == ["a.jpg", "b.jpg"]
    assert list_folder(tmp_path / "gone") == []
    assert is_hidden("__MACOSX")
