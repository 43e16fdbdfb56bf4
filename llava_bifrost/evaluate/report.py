"""Measures of many answers -> numbers with intervals, a text table, a sheet of images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from ldm.metrics.intervals import Number, summary
from ldm.sheet import grid
from llava_bifrost.draw import draw_candidates
from llava_bifrost.evaluate.measures import Case, Measures
from llava_bifrost.language.answer import Candidate, Location, make_instruction

Table = dict[str, dict[str, Number]]  # row -> measure -> number

COLUMNS = {
    "valid": "valid", "relations": "relation", "in_frame": "frame", "free": "free", "ground": "ground",
    "size": "size", "order": "order", "iou": "IoU", "box_l1": "L1", "centre": "centre",
    "depth_error": "d MAE", "parsed": "parsed",
}  # fmt: skip
PUBLISHED = {
    "published_box_mse": "BBox MSE", "published_iou": "BBox IoU (+1 convention, share above 0.5)",
    "published_depth_mse": "Depth MSE",
}  # fmt: skip
CELL, ROW = 300, 4  # pixels, images in a row of the sheet


def summarised(rows: Mapping[str, Sequence[Measures]]) -> Table:
    """Every measure of every row of answers, with its 95 % bootstrap interval."""
    table: Table = {}
    for name, measures in rows.items():
        keys = dict.fromkeys(key for one in measures for key in one)
        table[name] = {key: summary([one[key] for one in measures if key in one]) for key in keys}
    return table


def gap(first: Sequence[Measures], second: Sequence[Measures], key: str = "valid") -> Number:
    """Mean difference of one measure between two sets of answers to the same questions."""
    pairs = [one[key] - other[key] for one, other in zip(first, second, strict=True) if key in one]
    return summary(pairs)


def show(title: str, table: Table) -> str:
    """A table of the main measures, then one of single relations, then intervals of the first row."""
    if not table:
        return ""
    lines = [f"{title:44}{'n':>6}" + "".join(f"{short:>9}" for short in COLUMNS.values())]
    for name, measures in table.items():
        cells = "".join(_cell(measures.get(key)) for key in COLUMNS)
        lines.append(f"{name:44}{measures['parsed']['n']:>6}{cells}")
    first = next(iter(table.values()))
    spread = "".join(_half(first.get(key)) for key in COLUMNS)
    lines.append(f"{'  half width of the 95 % interval, first row':50}{spread}")
    words = [key for key in first if key.startswith("relation: ")]
    for key in sorted(words):
        number = first[key]
        spread = f"[{number['low']:.3f}, {number['high']:.3f}]" if "low" in number else ""
        lines.append(f"  {key:42}{number['n']:>6}{_cell(number)}  {spread}")
    return "\n".join(lines)


def show_published(table: Table) -> str:
    """The three numbers of the paper's Table 2, as its code computes them."""
    lines = ["as published (Table 2; the IoU adds 1 to sides in [0, 1] and says little)"]
    for name, measures in table.items():
        parts = ", ".join(f"{title} {measures[key]['mean']:.4f}" for key, title in PUBLISHED.items())
        lines.append(f"  {name:42}{parts}")
    return "\n".join(lines)


def _cell(number: Number | None) -> str:
    return f"{number['mean']:9.3f}" if number else f"{'-':>9}"


def _half(number: Number | None) -> str:
    return f"{(number['high'] - number['low']) / 2:9.3f}" if number and "high" in number else f"{'-':>9}"


def sheet(
    cases: Sequence[Case], answers: Sequence[Location | None], rows: Sequence[Measures], seed: int = 0
) -> bytes:
    """PNG: eight answers that are right and four that are wrong, drawn with the anchors."""
    rng = np.random.default_rng(seed)
    good = [i for i, row in enumerate(rows) if row.get("valid", row["iou"] > 0.5)]
    bad = [i for i in range(len(rows)) if i not in set(good)]
    chosen = [*rng.permutation(good)[:8], *rng.permutation(bad)[:4]]
    cells = [_drawn(cases[i], answers[i]) for i in chosen]
    labels = [_label(cases[i], bool(rows[i].get("valid", rows[i]["iou"] > 0.5))) for i in chosen]
    strips = [grid([cells[i : i + ROW]], labels[i : i + ROW], cell=CELL) for i in range(0, len(cells), ROW)]
    width = max(strip.shape[1] for strip in strips)
    whole = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(whole)).save(buffer, "PNG")
    return buffer.getvalue()


def _drawn(case: Case, answer: Location | None) -> np.ndarray:
    anchors = {name: case.anchors[name] for name in case.request.anchors}
    found = [] if answer is None else [Candidate(answer, 0.0, "")]
    return draw_candidates(case.image_u8, found, anchors)


def _label(case: Case, right: bool) -> str:
    return ("right: " if right else "WRONG: ") + make_instruction(case.request)
