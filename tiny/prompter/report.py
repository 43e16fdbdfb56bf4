"""Numbers and table of the small prompt writer's evaluation, with 95 % intervals over whole scenes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiny.report import cell, scene_interval, scene_mean
from tiny.words import COLOUR_WORDS, SHAPE_WORDS

MEASURES = ("colour", "shape", "both", "root")
PRIOR = {"colour": 1 / len(COLOUR_WORDS), "shape": 1 / len(SHAPE_WORDS), "root": 1 / len(SHAPE_WORDS)}
PRIOR["both"] = PRIOR["colour"] * PRIOR["shape"]
MODEL = "prompter"
VISIBLE = ("colour by visible mates", "shape by visible solids")


@dataclass(frozen=True)
class CaptionResult:
    """What is right about one caption. root: the published rule, the noun's root anywhere in the text.

    law_*: whether the Bayes-optimal guess is right; ceiling_*: how often it is, given what is visible
    """

    scene: int
    last: bool
    mates: int  # visible solids in the same half
    shapes: int  # visible solids
    colour: bool
    shape: bool
    root: bool
    ceiling_colour: float
    ceiling_shape: float
    law_colour: bool
    law_shape: bool

    @property
    def both(self) -> bool:
        return self.colour and self.shape

    @property
    def ceiling_both(self) -> float:
        return self.ceiling_colour * self.ceiling_shape

    @property
    def ceiling_root(self) -> float:
        return self.ceiling_shape


def task_numbers(by_reader: Mapping[str, Sequence[CaptionResult]]) -> dict[str, Any]:
    """Accuracies of every reader, ceiling, prior, gap, and the model's accuracy by what is visible."""
    mine = by_reader[MODEL]
    rows: dict[str, Any] = {
        reader: {measure: scene_mean(results, measure) for measure in MEASURES}
        for reader, results in by_reader.items()
    }
    rows["ceiling"] = {measure: scene_mean(mine, f"ceiling_{measure}") for measure in MEASURES}
    rows["prior"] = {measure: {"mean": round(PRIOR[measure], 4)} for measure in MEASURES}
    by_visible: dict[str, dict[str, Any]] = {}
    for title, key, measure in zip(VISIBLE, ("mates", "shapes"), ("colour", "shape"), strict=True):
        by_visible[title] = {}
        for count in sorted({getattr(result, key) for result in mine}):
            group = [result for result in mine if getattr(result, key) == count]
            ceiling = scene_mean(group, f"ceiling_{measure}")["mean"]
            numbers = {"masks": len(group), "model": scene_mean(group, measure), "ceiling": ceiling}
            by_visible[title][str(count)] = numbers
    wrong = {
        of: [result for result in mine if not getattr(result, f"law_{of}")] for of in ("colour", "shape")
    }
    return {
        "masks": len(mine),
        "images": len({result.scene for result in mine}),
        "accuracy": rows,
        "gap": {measure: gap_to_ceiling(mine, measure) for measure in MEASURES},
        **by_visible,
        "right where the law is wrong": {of: scene_mean(group, of) for of, group in wrong.items() if group},
    }


def gap_to_ceiling(results: Sequence[CaptionResult], measure: str) -> dict[str, float]:
    """Fraction of the way from the prior to the ceiling, with its interval."""
    prior = PRIOR[measure]

    def fraction(sums: np.ndarray) -> float:
        return (sums[1] - prior * sums[0]) / (sums[2] - prior * sums[0])

    return scene_interval(results, (measure, f"ceiling_{measure}"), fraction)


def prompter_table(result: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = []
    for task, numbers in result["tasks"].items():
        lines.append(f"{task}: {numbers['masks']} masks in {numbers['images']} images [95 % interval]")
        lines.append(f"{'':<18}" + "".join(f"{measure:>23}" for measure in MEASURES))
        rows = {**numbers["accuracy"], "gap": numbers["gap"]}
        for reader, row in rows.items():
            lines.append(f"{reader:<18}" + "".join(f"{cell(row[measure]):>23}" for measure in MEASURES))
        for name in VISIBLE:
            cells = [f"{n}: {row['model']['mean']:.3f} of {row['ceiling']:.3f} ({row['masks']})"
                     for n, row in numbers[name].items()]  # fmt: skip
            lines.append(f"{name}: " + ", ".join(cells))
        leak = numbers["right where the law is wrong"].items()
        lines += ["right where the law is wrong: " + ", ".join(f"{of} {cell(n)}" for of, n in leak), ""]
    return "\n".join(lines).rstrip()
