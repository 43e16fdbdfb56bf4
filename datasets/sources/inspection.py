"""Inspection of a source: samples with a count of every rejection, and a check of all of its files."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from datasets.base import UNREADABLE, ExampleSource, Rejected, reason
from datasets.examples import ITEMS, draw_pair
from datasets.inputs import PairOptions
from datasets.pairs import Pair
from datasets.sources.image_source import ImageSource
from ldm.images import read_image
from ldm.journal import Journal

log = logging.getLogger(__name__)


@dataclass
class RejectionStats:
    source: str
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    named: set[str] = field(default_factory=set)  # messages about files, each shown once
    as_stored: int = 0  # images read against their EXIF orientation, as their annotations have that size

    def reject(self, error: Exception) -> None:
        """Count a rejection; a message about a file is logged the first time."""
        self.rejected[reason(error)] += 1
        if reason(error) == UNREADABLE and str(error) not in self.named:
            self.named.add(str(error))
            log.warning("%s, skipped: %s", self.source, error)

    def table(self) -> str:
        total = self.accepted + sum(self.rejected.values())
        rows = [("accepted", self.accepted), *self.rejected.most_common()]
        lines = [f"  {name:28}{count:8}{count / max(total, 1):9.1%}" for name, count in rows]
        if self.as_stored:
            lines.append(f"  images read as stored, not by their EXIF orientation: {self.as_stored}")
        return "\n".join([f"{self.source}: {total} drawn", *lines])


def accepted_samples(
    source: ExampleSource, stats: RejectionStats, options: PairOptions, count: int, seed: int
) -> Iterator[tuple[str, Pair]]:
    """Names and contents of `count` examples, in the order of the items; ValueError when none is accepted."""
    for k in range(count):
        index, pair, rejections = draw_pair(source, options, (seed, k), k % len(source))
        for _, error in rejections:
            stats.reject(error)
        stats.as_stored = len(getattr(source, "as_stored", ()))
        if pair is not None:
            stats.accepted += 1
            yield source.name(index) if hasattr(source, "name") else f"item {index}", pair
        elif not stats.accepted:
            raise ValueError(f"nothing was accepted in {ITEMS} draws in a row; {stats.table()}")


def validate(
    source: ImageSource, name: str, journal: Path, settings: dict[str, Any]
) -> tuple[RejectionStats, dict[str, list[str]]]:
    """Read every file of every item once: images, masks, ids, sizes, depth maps.

    journal: file with a line per finished item, so that an interrupted check continues; the caller removes it
    when the report is written. settings: what must not change in between (ValueError if it did).
    returns: what the rules of the source say of the objects; the problems of each item, none if it is sound
    """
    total, problems = RejectionStats(f"{name}, objects as references and targets"), dict[str, list[str]]()
    finished, stored = Journal(journal, settings, keep=True), set[str]()
    for index in tqdm(range(len(source)), desc=name, disable=None):
        item = source.name(index)
        if item not in finished.done:
            objects = RejectionStats(total.source, named=total.named)
            source.as_stored.clear()
            wrong = item_problems(source, index, objects)
            counts = {"accepted": objects.accepted, "refused": objects.rejected}
            finished.add(item, {"problems": wrong, "as_stored": sorted(map(str, source.as_stored)), **counts})
            if wrong:
                log.warning("%s: %s", item, wrong[0])
        record = finished.done[item]
        total.accepted += record["accepted"]
        total.rejected.update(record["refused"])
        stored.update(record.get("as_stored", ()))  # an image may belong to several items
        problems[item] = record["problems"]
    total.as_stored = len(stored)
    return total, problems


def item_problems(source: ImageSource, index: int, objects: RejectionStats) -> list[str]:
    """Everything wrong with the files of an item, each message once."""
    problems = dict[str, None]()  # in order
    readable = dict[tuple[Path, Any], bool]()  # image in the size of its mask; None: without a mask
    try:
        views = list(source.views(index))
    except (Rejected, ValueError) as error:
        return [str(error)]
    for view in views:
        mask = None
        try:
            mask = view.mask()
        except Rejected as error:  # also an object that is absent from a frame: counted, not a problem
            objects.reject(error)
        except ValueError as error:
            problems[str(error)] = None
        key = view.image, None if mask is None else mask.shape
        if key not in readable:
            readable[key] = False
            try:
                size_hw = read_image(view.image, view.data).size if mask is None else mask.shape
                turn = None if mask is None else source.read(view, mask)[1]
                readable[key] = True
                if view.tree is not None:
                    view.read_depth(size_hw, turn)
            except ValueError as error:
                problems[str(error)] = None
        if mask is not None and readable[key]:
            only_reference = view.tree is None or view.tree.depth is None
            try:
                (source.rules.check_reference if only_reference else source.rules.check_target)(mask)
                objects.accepted += 1
            except Rejected as error:
                objects.reject(error)
    return list(problems)
