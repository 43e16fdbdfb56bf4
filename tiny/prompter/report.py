"""Numbers and table of the small prompt writer's evaluation, with 95 % intervals over whole scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm.metrics.intervals import percentile_interval
from tiny.words import COLOUR_WORDS, SHAPE_WORDS

MEASURES = ("colour", "shape", "both", "root")
PRIOR = {"colour": 1 / len(COLOUR_WORDS), "shape": 1 / len(SHAPE_WORDS), "root": 1 / len(SHAPE_WORDS)}
PRIOR["both"] = PRIOR["colour"] * PRIOR["shape"]
MODEL = "prompter"
RESAMPLES = 1000
Number = dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """What was judged of one mask. root: the published rule, the noun's root anywhere in the text.

    law_*: whether the best guess of the law is right; ceiling_*: how often it is, given what is visible
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


def report(found: Mapping[str, Mapping[str, Sequence[Verdict]]]) -> dict[str, Any]:
    """Task -> reader -> verdicts becomes task -> numbers."""
    tasks = {task: dict(by) for task, by in found.items()}
    if "multimask" in tasks:
        tasks["multimask last"] = {
            reader: [one for one in some if one.last] for reader, some in tasks["multimask"].items()
        }
    return {"tasks": {task: task_numbers(by) for task, by in tasks.items()}}


def task_numbers(by: Mapping[str, Sequence[Verdict]]) -> dict[str, Any]:
    """Accuracies of every reader, ceiling, prior, gap, and the model's accuracy by what is visible."""
    mine = by[MODEL]
    rows: dict[str, Any] = {
        reader: {measure: mean(some, measure) for measure in MEASURES} for reader, some in by.items()
    }
    rows["ceiling"] = {measure: mean(mine, f"ceiling_{measure}") for measure in MEASURES}
    rows["prior"] = {measure: {"mean": round(PRIOR[measure], 4)} for measure in MEASURES}
    seen = {
        name: {str(n): both_means(some, of) for n, some in grouped(mine, key).items()}
        for name, key, of in (("colour by visible mates", "mates", "colour"),
                              ("shape by visible solids", "shapes", "shape"))
    }  # fmt: skip
    wrong = {of: [one for one in mine if not getattr(one, f"law_{of}")] for of in ("colour", "shape")}
    return {
        "masks": len(mine),
        "images": len({one.scene for one in mine}),
        "accuracy": rows,
        "gap": {measure: gap(mine, measure) for measure in MEASURES},
        **seen,
        "right where the law is wrong": {of: mean(some, of) for of, some in wrong.items() if some},
    }


def grouped(verdicts: Sequence[Verdict], key: str) -> dict[int, list[Verdict]]:
    """Verdicts by a number that each has."""
    values = sorted({getattr(one, key) for one in verdicts})
    return {value: [one for one in verdicts if getattr(one, key) == value] for value in values}


def both_means(verdicts: Sequence[Verdict], measure: str) -> dict[str, Any]:
    return {"masks": len(verdicts), "model": mean(verdicts, measure),
            "ceiling": mean(verdicts, f"ceiling_{measure}")["mean"]}  # fmt: skip


def mean(verdicts: Sequence[Verdict], measure: str) -> Number:
    """Mean over masks with its interval."""
    return _interval(verdicts, (measure,), lambda sums: sums[1] / sums[0])


def gap(verdicts: Sequence[Verdict], measure: str) -> Number:
    """Share of the way from the prior to the ceiling, with its interval."""
    prior = PRIOR[measure]

    def share(sums: np.ndarray) -> float:
        return (sums[1] - prior * sums[0]) / (sums[2] - prior * sums[0])

    return _interval(verdicts, (measure, f"ceiling_{measure}"), share)


def _interval(verdicts: Sequence[Verdict], names: Sequence[str], of: Callable[[np.ndarray], float]) -> Number:
    """A function of (number of masks, sum of each named value); whole scenes are resampled."""
    scenes = {scene: row for row, scene in enumerate(dict.fromkeys(one.scene for one in verdicts))}
    sums = np.zeros((len(scenes), 1 + len(names)))
    for one in verdicts:
        sums[scenes[one.scene]] += (1, *(getattr(one, name) for name in names))
    low, high = percentile_interval(lambda chosen: of(sums[chosen].sum(0)), len(sums), resamples=RESAMPLES)
    value = {"mean": of(sums.sum(0)), "low": low, "high": high}
    return {name: round(float(number), 4) for name, number in value.items()}


def table(result: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = []
    for task, numbers in result["tasks"].items():
        lines.append(f"{task}: {numbers['masks']} masks in {numbers['images']} images [95 % interval]")
        lines.append(f"{'':<18}" + "".join(f"{measure:>23}" for measure in MEASURES))
        rows = {**numbers["accuracy"], "gap": numbers["gap"]}
        for reader, row in rows.items():
            lines.append(f"{reader:<18}" + "".join(f"{_cell(row[measure]):>23}" for measure in MEASURES))
        for name in ("colour by visible mates", "shape by visible solids"):
            cells = [f"{n}: {one['model']['mean']:.3f} of {one['ceiling']:.3f} ({one['masks']})"
                     for n, one in numbers[name].items()]  # fmt: skip
            lines.append(f"{name}: " + ", ".join(cells))
        leak = numbers["right where the law is wrong"].items()
        lines += ["right where the law is wrong: " + ", ".join(f"{of} {_cell(n)}" for of, n in leak), ""]
    return "\n".join(lines).rstrip()


def _cell(number: Mapping[str, float]) -> str:
    if "low" not in number:
        return f"{number['mean']:.3f}"
    return f"{number['mean']:.3f} [{number['low']:.3f} {number['high']:.3f}]"
