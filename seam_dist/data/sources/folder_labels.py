"""Which row of the label table belongs to which image of a plain folder data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from seam_dist.config.findings import Findings
from seam_dist.data.sources.label_table import Row, read_label_table
from seam_dist.data.sources.names import ClassNames, ImageNames, Names, normal_form, split_path

Ids = tuple[int, ...]


class LabelTable:
    """The rows of a table by the split that they mean; `folders` are the names that splits have on disk.

    Raises SourceError when the table cannot be read; `findings` are about its lines.
    """

    def __init__(self, path: Path, folders: Iterable[str]) -> None:
        self.path = path
        self.findings = Findings()
        self._folders = Names(folders)
        self._rows: dict[str, list[Row]] = {}
        for row in read_label_table(path, self.findings):
            matched = self._folders.matches(row.split)
            self._rows.setdefault(matched[0] if len(matched) == 1 else row.split, []).append(row)

    def rows(self, split: str) -> Sequence[Row]:
        """Return the rows of a split."""
        return self._rows.get(split, ())

    def rows_of_no_folder(self) -> list[Row]:
        """Return the rows whose split is not on disk."""
        return [row for split, rows in self._rows.items() if split not in self._folders for row in rows]

    def row_elsewhere(self, image: str, split: str) -> Row | None:
        """Return the first row of an image in another split."""
        others = (row for name, rows in self._rows.items() if name != split for row in rows)
        return next((row for row in others if split_path(row.image)[-1] == image), None)


def match_labels(
    table: LabelTable, split: str, images: Sequence[Path], classes: ClassNames, findings: Findings
) -> dict[str, Ids | None] | None:
    """Return the class ids of each image with a readable row, None for those with an unknown class.

    None for a split without any row.
    """
    names = ImageNames(path.name for path in images)
    rows = table.rows(split)
    if not rows:
        if table.findings.errors:
            return {}
        _report_unlabelled(table, split, names, findings)
        return None
    labels: dict[str, Ids | None] = {}
    first: dict[str, Row] = {}
    lost: list[Row] = []
    ambiguous: list[tuple[Row, Sequence[str]]] = []
    for row in rows:
        matched = names.matches(row.image) if _is_in(row.image, split) else []
        if not matched:
            if row.classes is not None:
                lost.append(row)
        elif len(matched) > 1:
            ambiguous.append((row, matched))
        elif row.classes is None:
            first.setdefault(matched[0], row)
        else:
            ids = classes.ids(row.classes, where=f"{table.path}, line {row.line}")
            earlier = first.setdefault(matched[0], row)
            if matched[0] in labels:
                _report_twice(table, earlier, row, labels[matched[0]] == ids, findings)
            labels[matched[0]] = ids
    classes.report_unknown(findings)
    if ambiguous:
        row, matched = ambiguous[0]
        text = f"{table.path}, line {row.line}: {row.image!r} may be {' or '.join(map(repr, matched))}"
        findings.error("label-ambiguous", f"{text}: write the name of the file", count=len(ambiguous))
    if lost:
        _report_lost(table, split, lost, names, images[0].parent, findings)
    answered = {*first, *(row.image for row in table.rows("")), *(name for _, matched in ambiguous for name in matched)}
    if missing := [path for path in images if path.name not in answered]:
        _report_missing(table, split, missing, findings)
    return labels


def _is_in(written: str, split: str) -> bool:
    """Return whether a name is written without a folder, or with one that is that of the split's images."""
    folders = [normal_form(part) for part in split_path(written)[:-1] if part != "/"]
    return not folders or folders[-1] == normal_form(split) or folders == ["images"]


def _report_unlabelled(table: LabelTable, split: str, names: ImageNames, findings: Findings) -> None:
    if strays := [row for row in table.rows_of_no_folder() if names.matches(row.image)]:
        row = strays[0]
        text = f"{table.path}, line {row.line}: split {row.split!r} has no folder of images, but {split!r} has"
        text = f"{text} the image {row.image!r} and no line: write {split} there, or rename the folder"
        findings.error("unknown-split", text, count=len(strays))
    elif not split.startswith("test"):
        text = f"{table.path} has no line of split {split!r}: its {len(names.names)} images count as unlabelled"
        findings.warning("unlabelled-split", f"{text}, which serves inference alone")


def _report_twice(table: LabelTable, earlier: Row, row: Row, same: bool, findings: Findings) -> None:
    spelled = "" if earlier.image == row.image else f" as {earlier.image!r}"
    text = f"{table.path}, line {row.line}: image {row.image!r} is listed twice, first in line {earlier.line}{spelled}"
    if same:
        findings.warning("label-twice", f"{text} with the same classes: remove one of the two lines")
        return
    merged = ";".join(dict.fromkeys((*(earlier.classes or ()), *(row.classes or ()))))
    findings.error("label-twice", f"{text}, with other classes: merge the two lines, for example into {merged}")


def _report_lost(
    table: LabelTable, split: str, rows: Sequence[Row], names: ImageNames, folder: Path, findings: Findings
) -> None:
    near = names.nearest(split_path(rows[0].image)[-1])
    hint = f" (did you mean {near!r}?)" if near else ""
    text = f"{table.path}, line {rows[0].line}: it lists {rows[0].image!r} in split {split!r}, but {folder} has no such"
    findings.error("label-without-image", f"{text} file{hint}: add the image or correct the line", count=len(rows))


def _report_missing(table: LabelTable, split: str, images: Sequence[Path], findings: Findings) -> None:
    name = images[0].name
    other = table.row_elsewhere(name, split)
    hint = f" (line {other.line} lists it in split {other.split!r})" if other else ""
    text = f"{images[0]} has no labels{hint}: add the line {name},{split},CLASS;CLASS to {table.path}, without any"
    findings.error("image-without-labels", f"{text} class where there is no object, or remove it", count=len(images))
