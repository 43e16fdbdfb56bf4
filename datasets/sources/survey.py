"""Looking at a source: draws with a count of every refusal, and a walk that checks all of its files.

A refusal is counted under the start of its message, up to the colon.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from datasets.augment import AugmentationParams
from datasets.base import MAX_TRIES, UNREADABLE, Rejected, Source, reason
from datasets.inputs import PairOptions
from datasets.pairs import Pair, build_pair
from datasets.sources.readers import View, check_reference, check_target, read_target_depth
from datasets.sources.registry import RealSource
from ldm.files import write_atomic
from ldm.images import read_image

log = logging.getLogger(__name__)


@dataclass
class RejectionStats:
    """How many examples of a source were accepted, and why the others were not."""

    source: str
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    named: set[str] = field(default_factory=set)  # messages about files, each shown once

    def refuse(self, error: Exception) -> None:
        """Count a refusal; a message about a file is logged the first time."""
        self.refused[reason(error)] += 1
        if reason(error) == UNREADABLE and str(error) not in self.named:
            self.named.add(str(error))
            log.warning("%s, skipped: %s", self.source, error)

    def table(self) -> str:
        """A line per reason, the most frequent first."""
        total = self.accepted + sum(self.refused.values())
        rows = [("accepted", self.accepted), *self.refused.most_common()]
        lines = [f"  {name:28}{count:8}{count / max(total, 1):9.1%}" for name, count in rows]
        return "\n".join([f"{self.source}: {total} drawn", *lines])


@dataclass(frozen=True, eq=False)
class Draw:
    """One accepted example."""

    name: str
    pair: Pair
    choices: AugmentationParams
    dynamics: int


def draws(
    source: Source, tally: RejectionStats, options: PairOptions, count: int, seed: int
) -> Iterator[Draw]:
    """`count` examples of a source, in the order of its items; ValueError with the table when none comes."""
    for k in range(count):
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng((seed, k, attempt))
            index = k % len(source) if attempt == 0 else int(rng.integers(len(source)))
            try:
                inputs = source.example(index, rng)
                choices = AugmentationParams.sample(rng, options)
                pair = build_pair(inputs, options, choices)
            except (Rejected, ValueError) as error:
                tally.refuse(error)
                continue
            tally.accepted += 1
            name = source.name(index) if hasattr(source, "name") else f"item {index}"
            yield Draw(name, pair, choices, source.dynamics)
            break
        else:
            if not tally.accepted:
                raise ValueError(f"nothing was accepted in {MAX_TRIES} draws in a row; {tally.table()}")


@dataclass
class Report:
    """What a walk over a source found."""

    source: str
    sound: list[str] = field(default_factory=list)  # items without any problem
    problems: dict[str, list[str]] = field(default_factory=dict)  # by item
    objects: RejectionStats = field(
        default_factory=lambda: RejectionStats("objects")
    )  # by the rules of the source


def validate(source: RealSource, name: str, journal: Path, settings: str) -> Report:
    """Read every file of every item once: images, masks, ids, sizes, depth maps.

    journal: file with a line per finished item, so that an interrupted walk goes on; the caller removes it
    when the report is written. settings: text that must not change in between (ValueError if it did).
    """
    report = Report(name, objects=RejectionStats(f"{name}, objects as references and targets"))
    done = _read_journal(journal, settings)
    with journal.open("a", encoding="utf-8") as file:
        if not done and not file.tell():
            file.write(json.dumps({"settings": settings}) + "\n")
        for index in tqdm(range(len(source)), desc=name, disable=None):
            item = source.name(index)
            if item not in done:
                objects = RejectionStats(report.objects.source, named=report.objects.named)
                found = item_problems(source, index, objects)
                done[item] = {"problems": found, "accepted": objects.accepted, "refused": objects.refused}
                file.write(json.dumps({"item": item, **done[item]}) + "\n")
                file.flush()
                if found:
                    log.warning("%s: %s", item, found[0])
            _add(report, item, done[item])
    return report


def _read_journal(journal: Path, settings: str) -> dict[str, dict[str, Any]]:
    """Finished items of an earlier walk; a line that was cut short is done again."""
    if not journal.exists():
        return {}
    text = journal.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_atomic(journal, whole.encode())
    lines = [json.loads(line) for line in whole.splitlines()]
    if lines and lines[0]["settings"] != settings:
        raise ValueError(
            f"{journal} is of an unfinished walk with other settings; "
            "remove it to start again, or use another --out"
        )
    return {line.pop("item"): line for line in lines[1:]}


def _add(report: Report, item: str, found: dict[str, Any]) -> None:
    report.objects.accepted += found["accepted"]
    report.objects.refused.update(found["refused"])
    if found["problems"]:
        report.problems[item] = found["problems"]
    else:
        report.sound.append(item)


def item_problems(source: RealSource, index: int, objects: RejectionStats) -> list[str]:
    """Everything wrong with the files of an item, each message once."""
    found: dict[str, None] = {}
    sizes: dict[Path, tuple[int, int] | None] = {}
    try:
        views = list(source.views(index))
    except (Rejected, ValueError) as error:
        return [str(error)]
    for view in views:
        if view.image not in sizes:
            sizes[view.image] = _image_size(view, found)
        size, mask = sizes[view.image], _mask_of(view, found, objects)
        if size is not None and mask is not None and mask.shape != size:
            shown = f"{mask.shape[1]} x {mask.shape[0]}"
            found[f"{view.image} is {size[1]} x {size[0]} pixels, its mask is {shown}"] = None
        elif mask is not None:
            _judge(view, mask, source, objects)
    return list(found)


def _image_size(view: View, found: dict[str, None]) -> tuple[int, int] | None:
    """(h, w) of a readable image; its depth map is checked too."""
    try:
        image = read_image(view.image)
    except ValueError as error:
        found[str(error)] = None
        return None
    try:
        if view.tree is not None:
            read_target_depth(view, image.rgb_u8)
    except ValueError as error:
        found[str(error)] = None
    return image.size


def _mask_of(view: View, found: dict[str, None], objects: RejectionStats) -> np.ndarray | None:
    """The mask (h, w) of a view; an object that is absent from a frame is counted, not a problem."""
    try:
        return view.mask()
    except Rejected as error:
        objects.refuse(error)
    except ValueError as error:
        found[str(error)] = None
    return None


def _judge(view: View, mask: np.ndarray, source: RealSource, objects: RejectionStats) -> None:
    """Count whether the rules of the source accept an object: as a target where it can be one."""
    try:
        (check_reference if view.tree is None else check_target)(mask, source.rules)
        objects.accepted += 1
    except Rejected as error:
        objects.refuse(error)
