from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from kit import Bytes, MemorySource, encode, index_mask, pixels, records

from seam_dist.artifacts.outputs import JOURNAL
from seam_dist.data.sources.base import Record
from seam_dist.data.survey import Survey, survey_dataset
from seam_dist.report.dataset_charts import cooccurrence_chart, histogram
from seam_dist.report.dataset_page import dataset_page, write_dataset_page
from seam_dist.report.dataset_text import format_survey


def _survey(classes: Sequence[str] = ("cat", "dog", "horse"), **splits: Sequence[Record]) -> Survey:
    source = MemorySource(**splits)
    source.classes = tuple(classes)
    return survey_dataset(source, list(splits), max_pixels=10**6)


def _record(name: str, classes: tuple[int, ...] | None = (1,), image: bytes | None = None) -> Record:
    return Record(name, name, classes, Bytes(encode(pixels(len(name))) if image is None else image))


def _sized(name: str, class_id: int, height: int, width: int) -> Record:
    return Record(name, name, (class_id,), Bytes(encode(pixels(sum(name.encode()), height, width))))


class _Page(HTMLParser):
    """The text of a page, its addresses, and how many elements of each name it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.addresses, self.counts = "", [], {}
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "action") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def faulty() -> Survey:
    """Two splits with a broken image, a leak, a blank image, a mask of another size and hostile names."""
    names = ("<script>alert(1)</script>", 'dog & "cat"', "horse")
    train = [*records(6), _record("</figcaption><b>", (1, 2)), _record("broken", image=b"\xff\xd8")]
    train.append(
        replace(
            records(1, first=9)[0], key="odd", source_id="odd", mask=Bytes(encode(np.zeros((3, 4), np.uint8), "PNG"))
        )
    )
    train.append(_record("blank", (), encode(np.full((40, 40, 3), 9, np.uint8))))
    val = [replace(records(1, first=2)[0], source_id="leak"), *records(2, first=20)]
    return _survey(names, train=train, val=val)


def test_the_page_needs_nothing_but_itself(faulty: Survey, tmp_path: Path) -> None:
    write_dataset_page(faulty, tmp_path / "check" / "page.html")
    html = (tmp_path / "check" / "page.html").read_text()
    page = _Page(html)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "url(" not in html
    assert "script" not in page.counts
    assert "default-src 'none'" in html
    assert {path.name for path in (tmp_path / "check").iterdir()} == {"page.html", JOURNAL}


def test_hostile_names_are_text(faulty: Survey) -> None:
    html = dataset_page(faulty)
    assert "<script>" not in html
    assert "</figcaption><b>" not in html
    page = _Page(html)
    assert "<script>alert(1)</script>" in page.text
    assert 'dog & "cat"' in page.text
    assert "train/</figcaption><b>" in page.text


def test_findings_come_first_errors_before_warnings(faulty: Survey) -> None:
    html = dataset_page(faulty)
    severities = re.findall(r'<li class="(error|warning)">', html)
    assert severities == [finding.severity for finding in faulty.findings]
    assert severities == sorted(severities)
    assert set(severities) == {"error", "warning"}
    text = _Page(html).text
    for finding in faulty.findings:
        assert str(finding) in text
    assert f"{len(faulty.findings.errors)} errors, {len(faulty.findings.warnings)} warnings" in text


def test_images_that_cannot_be_shown_leave_a_place_with_the_reason(faulty: Survey) -> None:
    html = dataset_page(faulty)
    assert html.count('class="no-picture"') == 1
    text = _Page(html).text
    assert "train/broken" in text
    assert "one color all over" in text


def test_duplicates_stand_side_by_side() -> None:
    train, val = records(4), [replace(record, source_id=f"leak of {record.source_id}") for record in records(2)]
    page = _Page(dataset_page(_survey(train=train, val=val)).split('id="duplicates"')[1])
    names = [text for text in page.text.split("\n") if text.startswith(("train/", "val/"))]
    assert names == ["train/image 0cat", "val/leak of image 0cat", "train/image 1dog", "val/leak of image 1dog"]
    assert page.counts["img"] == 4
    assert page.text.count("Equal files") == 2


def test_a_sound_set_says_so() -> None:
    train, val = ([_sized(f"{split}-{k}", k % 3 + 1, 40, 50) for k in range(4)] for split in ("train", "val"))
    text = _Page(dataset_page(_survey(train=train, val=val))).text
    assert "None: every image can be used." in text
    assert "All images are 50 x 40 pixels." in text
    assert "No image of split train holds more than one class." in text
    assert "0 errors, 0 warnings" in text


def test_a_set_without_a_usable_image_or_a_label_has_a_page() -> None:
    text = _Page(dataset_page(_survey(train=[_record("a", None, b"")]))).text
    assert "No image could be opened." in text
    assert "No image can be shown." in text
    assert "Split train has no image-level labels." in text
    assert "train" in format_survey(_survey(train=[]))


def test_eighty_classes_stay_below_five_megabytes_and_forty_lines() -> None:
    rng = np.random.default_rng(0)
    noise = [encode(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8), quality=95) for _ in range(12)]
    mask = Bytes(encode(rng.integers(0, 3, (8, 12)).astype(np.uint8).repeat(25, 0).repeat(25, 1), "PNG"))
    classes = [f"a class with a name {k}" for k in range(80)]
    labels = [tuple(sorted({1 + k % 80, 1 + (k * k) % 80})) for k in range(240)]
    train = [Record(f"{k}", f"{k}", ids, Bytes(noise[k % 12]), mask) for k, ids in enumerate(labels)]
    survey = _survey(classes, train=train)
    assert len(dataset_page(survey)) < 5_000_000
    text = format_survey(survey)
    assert len(text.splitlines()) < 40
    assert "... 64 more ..." in text


def test_the_text_has_a_row_for_each_split_and_class() -> None:
    survey = _survey(train=[*records(4), _record("b", image=b"no")], val=records(2, first=5), test=[_record("t", None)])
    text = format_survey(survey)
    assert re.search(r"^train +5 +all +4 +0 +1 ", text, re.MULTILINE)
    assert re.search(r"^val +2 +all +all +0 +0 +all 40 x 30", text, re.MULTILINE)
    assert re.search(r"^test +1 +none +none +0 +0 ", text, re.MULTILINE)
    assert re.search(r"^cat +3 +60\.0 +1 +50\.0 +0 +", text, re.MULTILINE)
    assert "train: 1 image of 5 cannot be used\n  image b: " in text
    assert len(text.splitlines()) < 40


def test_rows_of_classes_are_ordered_by_images_in_training() -> None:
    train = [_record("a", (2,)), _record("b", (2, 3)), _record("c", (3,)), _record("d", (3,))]
    text = format_survey(_survey(train=train, val=[_record("e", (1,))]))
    assert [name for name in re.findall(r"^(\w+) +\d", text, re.MULTILINE) if name in ("cat", "dog", "horse")] == [
        "horse",
        "dog",
        "cat",
    ]


def test_the_chart_of_pairs_shades_by_the_share_of_the_row() -> None:
    (split,) = _survey(train=[_record("a", (1, 2)), _record("b", (2,)), _record("c", (2,)), _record("d", (3,))]).splits
    svg = ElementTree.fromstring(cooccurrence_chart(split, ("cat", "<dog>", "horse"), [0, 1, 2]))
    shades = {
        rect.findtext("title"): float(rect.attrib["fill-opacity"])
        for rect in svg.iter("rect")
        if "fill-opacity" in rect.attrib
    }
    assert shades == {
        "1 of 1 with cat hold <dog>": 1.0,
        "1 of 3 with <dog> hold cat": 0.33,
    }


def test_bars_of_a_histogram_stand_for_the_share_of_each_split() -> None:
    values = [("train", np.array([1.0, 1.0, 1.0, 9.0])), ("val", np.array([9.0]))]
    svg = ElementTree.fromstring(histogram(values, title="t", x_label="pixels"))
    bars = [(rect.findtext("title") or "", float(rect.attrib["height"])) for rect in svg.iter("rect")]
    assert [title.split(" from")[0] for title, _ in bars] == ["train: 75.0 %", "train: 25.0 %", "val: 100.0 %"]
    assert bars[0][1] == pytest.approx(3 * bars[1][1], abs=0.3)
    assert bars[2][1] == pytest.approx(4 * bars[1][1], abs=0.3)


@pytest.mark.parametrize("numbers", [[5.0], [5.0, 5.0], [1.0, 1e5], [0.1, 0.1001]])
def test_any_numbers_make_a_histogram(numbers: list[float]) -> None:
    svg = ElementTree.fromstring(histogram([("train", np.array(numbers))], title="t", x_label="x"))
    shares = [float((rect.findtext("title") or "").split()[1]) for rect in svg.iter("rect")]
    assert sum(shares) == pytest.approx(100)
    assert all(float(rect.attrib["x"]) > 0 for rect in svg.iter("rect"))


def test_masks_are_drawn_over_the_pictures() -> None:
    image = encode(np.full((60, 80, 3), 128, np.uint8) + np.arange(80, dtype=np.uint8)[:, None])
    plain = _survey(train=[Record("a", "a", (1,), Bytes(image))])
    masked = _survey(train=[Record("a", "a", (1,), Bytes(image), Bytes(index_mask(1, 60, 80)))])
    sizes = [len(re.findall(r"data:image/jpeg;base64,([^\"]+)", dataset_page(survey))[0]) for survey in (plain, masked)]
    assert sizes[1] > sizes[0]


def test_the_chart_of_pairs_of_a_hundred_classes_shows_the_most_frequent_eighty() -> None:
    train = [Record(f"{k}", f"{k}", tuple(range(1, k + 2)), Bytes(encode(pixels(0)))) for k in range(100)]
    html = dataset_page(_survey([f"c{k}" for k in range(100)], train=train))
    assert html.count("fill-opacity") == 80 * 79
    assert "The 80 most frequent of 100 classes." in html
    assert len(html) < 5_000_000
