"""A survey of a data set: every image opened once, counted and compared, nothing converted or kept.

What comes out are numbers for each split, findings, and the records of a few images that are worth a look. An image
that cannot be read is counted and named; it does not stop the survey.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import numpy as np

from seam_dist.cluster.processes import follow_parent, main_hidden
from seam_dist.config.findings import Findings
from seam_dist.data.duplicates import Duplicate, duplicate_findings, find_duplicates, picture_frequencies
from seam_dist.data.images import Pixels, decode_image, single_thread
from seam_dist.data.inspection import Inspection, inspect_record
from seam_dist.data.mask_check import mask_findings
from seam_dist.data.masks import decode_mask
from seam_dist.data.shards import RawSample, parse_info
from seam_dist.data.sources.base import Record, Source, SourceError
from seam_dist.data.survey_findings import balance_findings, size_findings
from seam_dist.data.survey_split import OddImage, OpenedRecord, SplitSurvey, SplitTally

POOL_START_S = 5.0
"""Time that other processes take to start, for each imports torch: what is done sooner is done in this one."""

_CHUNK = 16  # records a process opens at a time
_COMPARED_AT = (128, 128)  # smallest size (height, width) at which a JPEG is decoded to be compared
_MAX_EXAMPLES = 250  # of all classes together


@dataclass(frozen=True)
class Example:
    """A usable image of a class (id from 1; 0: an image without any object)."""

    split: str
    record: Record
    class_id: int


@dataclass(frozen=True)
class Inspector:
    """Opens records of one data set with its settings."""

    num_classes: int
    max_pixels: int
    pixel_range: tuple[float, float] | None = None

    def inspect(self, record: Record) -> Inspection:
        """Return what opening a record shows."""
        return inspect_record(
            record, num_classes=self.num_classes, max_pixels=self.max_pixels, pixel_range=self.pixel_range
        )

    def picture(self, record: Record) -> tuple[Pixels, Pixels | None] | None:
        """Return image and mask of a record (of a pair the first image), None when the image cannot be used.

        A mask that cannot be used, or has another size, is left out.
        """
        sample = self.inspect(record).sample or self.inspect(replace(record, mask=None)).sample
        if sample is None:
            return None
        mask = sample.members.get("png")
        image = self.first_image(sample)
        return image, None if mask is None else decode_mask(mask, max_pixels=self.max_pixels)

    def first_image(self, sample: RawSample, smallest: tuple[int, int] | None = None) -> Pixels:
        """Return the first image of a sample, in display order; `smallest` as in `decode_image`."""
        orientation = parse_info(sample.members["json"]).orientation
        data = next(data for extension, data in sample.members.items() if extension not in ("json", "png"))
        return decode_image(data, max_pixels=self.max_pixels, orientation=orientation, min_size=smallest)


@dataclass(frozen=True, eq=False)
class Survey:
    """All that was seen: numbers of each split, findings, and images worth a look."""

    name: str
    classes: tuple[str, ...]
    train_split: str
    splits: tuple[SplitSurvey, ...]
    findings: Findings
    inspector: Inspector
    """Opens records as the survey did, to show their pictures."""
    duplicates: tuple[Duplicate, ...] = ()
    odd_images: tuple[OddImage, ...] = ()
    examples: tuple[Example, ...] = ()

    @property
    def num_samples(self) -> int:
        """Return the images of all splits."""
        return sum(split.num_samples for split in self.splits)


def survey_dataset(
    source: Source,
    splits: Sequence[str],
    *,
    max_pixels: int,
    pixel_range: tuple[float, float] | None = None,
    train_split: str | None = None,
    refuse_masks: bool = True,
    num_processes: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Survey:
    """Return the survey of some splits of a data set.

    train_split: the split that is trained on (None: the first one); it must know all classes, and images of other
    splits that it holds too are leaks. refuse_masks: masks that contradict the labels in most images are errors, as in
    conversion, not warnings. progress is called with the number of images opened since its last call. Raises
    SourceError when the data set has no classes, ChildProcessError when a process that opened images has died.
    """
    classes, names = tuple(source.classes), tuple(dict.fromkeys(splits))
    train_split = names[0] if train_split is None else train_split
    findings = Findings()
    records = {name: _list_records(source, name, findings) for name in names}
    inspector = Inspector(len(classes), max_pixels, pixel_range)
    tallies: list[SplitTally] = []
    opened = _open_all([record for name in names for record in records[name]], inspector, num_processes, progress)
    for name in names:
        tally = SplitTally(name, classes)
        for record in records[name]:
            tally.add(record, next(opened))
        findings.merge(tally.findings)
        findings.merge(mask_findings(tally.mask_labels, name, classes, refuse=refuse_masks))
        tallies.append(tally)

    def is_training(split: str) -> bool:
        return split == train_split or split.startswith("train")

    surveys = tuple(tally.result() for tally in tallies)
    duplicates = find_duplicates([entry for tally in tallies for entry in tally.entries], is_training=is_training)
    findings.merge(balance_findings(classes, surveys, train_split))
    findings.merge(size_findings(surveys, train_split))
    findings.merge(duplicate_findings(duplicates, classes, is_training=is_training))
    return Survey(
        name=str(getattr(source, "root", type(source).__name__)),
        classes=classes,
        train_split=train_split,
        splits=surveys,
        findings=findings,
        duplicates=tuple(duplicates),
        odd_images=tuple(image for tally in tallies for image in tally.odd),
        examples=tuple(_choose_examples(tallies, len(classes), train_split)),
        inspector=inspector,
    )


def _list_records(source: Source, split: str, findings: Findings) -> Sequence[Record]:
    try:
        listing = source.listing(split)
    except SourceError as error:
        findings.error("source", str(error))
        return ()
    findings.merge(listing.findings)
    return listing.records


def _open_all(
    records: Sequence[Record],
    inspector: Inspector,
    num_processes: int,
    progress: Callable[[int], None] | None,
) -> Iterator[OpenedRecord]:
    """Yield what each record shows, in order."""
    chunks = [records[i : i + _CHUNK] for i in range(0, len(records), _CHUNK)]
    for chunk in _open_chunks(chunks, inspector, num_processes):
        if progress is not None:
            progress(len(chunk))
        yield from chunk


def _open_chunks(
    chunks: Sequence[Sequence[Record]], inspector: Inspector, num_processes: int
) -> Iterator[Sequence[OpenedRecord]]:
    start, num_done = time.monotonic(), 0
    for chunk in chunks:
        left_s = (time.monotonic() - start) * (len(chunks) - num_done) / max(num_done, 1)
        if num_processes > 1 and left_s >= POOL_START_S:
            break
        yield _open_chunk(inspector, chunk)
        num_done += 1
    if not (chunks := chunks[num_done:]):
        return
    # A fork server, not fork: the check may be called beside threads of torch, whose locks a fork would copy.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(num_processes, len(chunks)), context, initializer=_start_worker) as pool:
        try:
            with main_hidden():
                results = pool.map(_open_chunk, [inspector] * len(chunks), chunks)
            yield from results
        except BrokenProcessPool:
            text = "a process that opened images has died, most likely for want of memory"
            raise ChildProcessError(f"{text}: free some, or lower data.max_pixels") from None


def _start_worker() -> None:
    single_thread()
    follow_parent()


def _open_chunk(inspector: Inspector, records: Sequence[Record]) -> list[OpenedRecord]:
    return [_open(inspector, record) for record in records]


def _open(inspector: Inspector, record: Record) -> OpenedRecord:
    shown = inspector.inspect(record)
    sample = shown.sample
    frequencies = None if sample is None else picture_frequencies(inspector.first_image(sample, _COMPARED_AT))
    return OpenedRecord(replace(shown, sample=None), sample is not None, frequencies)


def _choose_examples(tallies: Sequence[SplitTally], num_classes: int, train_split: str) -> Iterable[Example]:
    """Yield a few images of each class, spread over the first split that has any, the training split before others."""
    num_each = max(1, min(4, _MAX_EXAMPLES // (num_classes + 1)))
    in_order = sorted(tallies, key=lambda tally: tally.name != train_split)
    for index in (*range(1, num_classes + 1), 0):
        for tally in in_order:
            if of_class := tally.usable_of_class[index]:
                places = np.unique(np.linspace(0, len(of_class) - 1, num_each).round().astype(int))
                yield from (Example(tally.name, of_class[place], index) for place in places)
                break
