"""Numbers, table and image sheet of the small inpainter's evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from tiny.inpainter.examples import PaintCase
from tiny.report import alternating, cell, scene_mean, sheet_png

MEASURES = ("colour", "shape", "both", "other")
RIM = ((230, 60, 60), (60, 90, 235), (235, 200, 40), (50, 180, 80), (60, 200, 220))  # masks on the sheet


@dataclass(frozen=True)
class MaskResult:
    """What the classifier says of one mask. other: its colour is that of another mask's prompt (leakage)."""

    scene: int
    masks: int
    small: bool
    patterned: bool
    colour: bool
    shape: bool
    other: bool

    @property
    def both(self) -> bool:
        return self.colour and self.shape


GROUPS: dict[str, Callable[[MaskResult], bool]] = {
    "all": lambda mask: True,
    "1 mask": lambda mask: mask.masks == 1,
    "2 masks": lambda mask: mask.masks == 2,
    "3 masks": lambda mask: mask.masks == 3,
    "4 masks": lambda mask: mask.masks == 4,
    "5 masks": lambda mask: mask.masks == 5,
    "3 or more": lambda mask: mask.masks >= 3,
    "24-px masks": lambda mask: mask.small,
    "one colour": lambda mask: not mask.patterned,
    "with a pattern": lambda mask: mask.patterned,
}


def by_group(results: Sequence[MaskResult]) -> dict[str, dict[str, Any]]:
    """Group -> measure -> fraction of masks with its 95 % interval; groups without masks are left out."""
    groups = {name: [mask for mask in results if belongs(mask)] for name, belongs in GROUPS.items()}
    return {
        name: {"masks": len(masks), **{measure: scene_mean(masks, measure) for measure in MEASURES}}
        for name, masks in groups.items()
        if masks
    }


def inpainter_table(report: Mapping[str, Any]) -> str:
    """The report as text: one block per kind of prompts, one line per group."""
    lines = []
    for kind in report["images"]:
        models = {name: by[kind] for name, by in report["models"].items()}
        lines += [f"prompts: {kind}, {report['images'][kind]} images; fraction of masks [95 % interval]"]
        for measure in MEASURES:
            lines += ["", f"{measure:<16}{'masks':>7}" + "".join(f"{name:>22}" for name in models)]
            for group in next(iter(models.values())):
                count = next(iter(models.values()))[group]["masks"]
                cells = "".join(f"{cell(by[group][measure]):>22}" for by in models.values())
                lines.append(f"{group:<16}{count:>7}{cells}")
        lines.append("")
    lines.append("the classifier on the true renders, by what stood there (the ceiling)")
    for group, row in report["judge_on_true_renders"].items():
        cells = "".join(f"  {measure} {cell(row[measure])}" for measure in ("colour", "shape"))
        lines.append(f"{group:<16}{row['masks']:>7}{cells}")
    return "\n".join(lines)


def painted_sheet(cases: Sequence[PaintCase], painted: Mapping[str, np.ndarray], count: int = 10) -> bytes:
    """PNG: image with masks, then each model's result; the first cases, by number of masks in turn."""
    images, labels = [], []
    for row in alternating([len(case.wanted) for case in cases], descending=True)[:count]:
        outlined = cases[row].example.image_u8.copy()
        for (left, top, right, bottom), colour in zip(cases[row].example.boxes, RIM, strict=False):
            cv2.rectangle(outlined, (left, top), (right - 1, bottom - 1), colour, 1)
        images.append([outlined, *(results[row] for results in painted.values())])
        names = ["red", "blue", "yellow", "green", "cyan"]
        labels.append("; ".join(f"{a}: {b.text}" for a, b in zip(names, cases[row].wanted, strict=False)))
    return sheet_png(images, ["masks", *painted], labels, 192)
