"""Numbers, table and image sheet of the small inpainter's evaluation."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ldm.sheet import grid
from tiny.inpainter.cases import Case

MEASURES = ("colour", "shape", "both", "other")
RESAMPLES = 1000
RIM = ((230, 60, 60), (60, 90, 235), (235, 200, 40), (50, 180, 80), (60, 200, 220))  # masks on the sheet


@dataclass(frozen=True)
class Record:
    """What was judged of one mask. `other`: its colour is that of another mask's prompt (leakage)."""

    scene: int
    masks: int
    small: bool
    patterned: bool
    colour: bool
    shape: bool
    other: bool

    @classmethod
    def of(cls, case: Case, index: int, colour: str, shape: str) -> Record:
        """The verdict (colour, shape) on mask `index` of a case."""
        wanted = case.wanted[index]
        others = {name.colour for name in case.wanted} - {wanted.colour}
        return cls(
            scene=case.example.scene,
            masks=len(case.wanted),
            small=case.small[index],
            patterned=bool(wanted.pattern),
            colour=colour == wanted.colour,
            shape=shape == wanted.shape,
            other=colour in others,
        )

    @property
    def both(self) -> bool:
        return self.colour and self.shape


GROUPS: dict[str, Callable[[Record], bool]] = {
    "all": lambda one: True,
    "1 mask": lambda one: one.masks == 1,
    "2 masks": lambda one: one.masks == 2,
    "3 masks": lambda one: one.masks == 3,
    "4 masks": lambda one: one.masks == 4,
    "5 masks": lambda one: one.masks == 5,
    "3 or more": lambda one: one.masks >= 3,
    "24-px masks": lambda one: one.small,
    "one colour": lambda one: not one.patterned,
    "with a pattern": lambda one: one.patterned,
}


def rows(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Group -> measure -> share of masks with its 95 % interval; groups without masks are left out."""
    found = {}
    for name, belongs in GROUPS.items():
        some = [one for one in records if belongs(one)]
        if some:
            found[name] = {"masks": len(some), **{measure: share(some, measure) for measure in MEASURES}}
    return found


def share(records: Sequence[Record], measure: str) -> dict[str, float]:
    """Share of masks for which `measure` holds; whole scenes are resampled for the interval."""
    scenes = {scene: row for row, scene in enumerate(dict.fromkeys(one.scene for one in records))}
    sums = np.zeros((len(scenes), 2))
    for one in records:
        sums[scenes[one.scene]] += (getattr(one, measure), 1)

    chosen = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    hits, counts = np.moveaxis(sums[chosen].sum(1), -1, 0)
    low, high = np.percentile(hits / counts, (2.5, 97.5))
    mean = sums[:, 0].sum() / sums[:, 1].sum()
    return {name: round(float(value), 4) for name, value in (("mean", mean), ("low", low), ("high", high))}


def table(report: Mapping[str, Any]) -> str:
    """The report as text: one block per kind of prompts, one line per group."""
    lines = []
    for asked in report["images"]:
        models = {name: by[asked] for name, by in report["models"].items()}
        lines += [f"prompts: {asked}, {report['images'][asked]} images; share of masks [95 % interval]"]
        for measure in MEASURES:
            lines += ["", f"{measure:<16}{'masks':>7}" + "".join(f"{name:>22}" for name in models)]
            for group in next(iter(models.values())):
                count = next(iter(models.values()))[group]["masks"]
                cells = "".join(f"{_cell(by[group][measure]):>22}" for by in models.values())
                lines.append(f"{group:<16}{count:>7}{cells}")
        lines.append("")
    lines.append("the classifier on the true renders, by what stood there (the ceiling)")
    for group, row in report["judge_on_true_renders"].items():
        judged = "".join(f"  {measure} {_cell(row[measure])}" for measure in ("colour", "shape"))
        lines.append(f"{group:<16}{row['masks']:>7}{judged}")
    return "\n".join(lines)


def _cell(number: Mapping[str, float]) -> str:
    return f"{number['mean']:.3f} [{number['low']:.3f} {number['high']:.3f}]"


def outlined(case: Case) -> np.ndarray:
    """The image with the masks drawn, one colour for each."""
    image = case.example.image_u8.copy()
    for index, (left, top, right, bottom) in enumerate(case.example.boxes):
        cv2.rectangle(image, (left, top), (right - 1, bottom - 1), RIM[index % len(RIM)], 1)
    return image


def sheet(cases: Sequence[Case], painted: Mapping[str, np.ndarray], count: int = 10) -> bytes:
    """PNG: image with masks, then each model's result; the first cases, by number of masks in turn."""
    order = sorted(range(len(cases)), key=lambda row: (_rank(cases, row), -len(cases[row].wanted)))[:count]
    images, labels = [], []
    for row in order:
        images.append([outlined(cases[row]), *(some[row] for some in painted.values())])
        names = ["red", "blue", "yellow", "green", "cyan"]
        labels.append("; ".join(f"{a}: {b.text}" for a, b in zip(names, cases[row].wanted, strict=False)))
    drawn = grid(images, ["masks", *painted], labels, cell=192)
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _rank(cases: Sequence[Case], row: int) -> int:
    """How many cases with as many masks came before."""
    return sum(len(case.wanted) == len(cases[row].wanted) for case in cases[:row])
