"""Measures of many answers -> numbers with intervals, a text table, a sheet of images."""

from collections.abc import Sequence

import numpy as np

from ldm.images import encode_png
from ldm.metrics.intervals import Estimate
from ldm.sheet import grid
from llava_bifrost.draw import draw_candidates
from llava_bifrost.evaluate.measures import LocatorCase, Measures
from llava_bifrost.language.answer import Candidate, Location
from llava_bifrost.language.instruction import make_instruction

Table = dict[str, dict[str, Estimate]]  # row -> measure -> number

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


def format_table(title: str, table: Table) -> str:
    """A table of the main measures, the intervals of its first row, one of single relations, and the three
    numbers of the paper's Table 2, as its code computes them."""
    lines = [f"{title:44}{'n':>6}" + "".join(f"{short:>9}" for short in COLUMNS.values())]
    for name, measures in table.items():
        cells = "".join(_cell(measures.get(key)) for key in COLUMNS)
        lines.append(f"{name:44}{measures['parsed']['n']:>6}{cells}")
    first = next(iter(table.values()))
    ends = [
        (first[key]["low"], first[key]["high"]) if "high" in first.get(key, {}) else None for key in COLUMNS
    ]
    spread = "".join(f"{(end[1] - end[0]) / 2:9.3f}" if end else f"{'-':>9}" for end in ends)
    lines.append(f"{'  half width of the 95 % interval, first row':50}{spread}")
    for key in sorted(key for key in first if key.startswith("relation: ")):
        number = first[key]
        interval = f"[{number['low']:.3f}, {number['high']:.3f}]" if "low" in number else ""
        lines.append(f"  {key:42}{number['n']:>6}{_cell(number)}  {interval}")
    lines.append("as published (Table 2; the IoU adds 1 to sides in [0, 1] and says little)")
    for name, measures in table.items():
        parts = ", ".join(f"{title} {measures[key]['mean']:.4f}" for key, title in PUBLISHED.items())
        lines.append(f"  {name:42}{parts}")
    return "\n".join(lines)


def _cell(number: Estimate | None) -> str:
    return f"{number['mean']:9.3f}" if number else f"{'-':>9}"


def answer_sheet(
    cases: Sequence[LocatorCase], answers: Sequence[Location | None], rows: Sequence[Measures], seed: int = 0
) -> bytes:
    """PNG: eight answers that are right and four that are wrong, drawn with the anchors."""
    rng = np.random.default_rng(seed)
    right = [bool(row.get("valid", row["iou"] > 0.5)) for row in rows]
    good, bad = (np.flatnonzero(np.array(right) == value) for value in (True, False))
    cells, labels = [], []
    for i in (*rng.permutation(good)[:8], *rng.permutation(bad)[:4]):
        case, answer = cases[i], answers[i]
        anchors = {name: case.anchors[name] for name in case.request.anchors}
        candidates = [] if answer is None else [Candidate(answer, 0.0, "")]
        cells.append(draw_candidates(case.image_u8, candidates, anchors))
        labels.append(("right: " if right[i] else "WRONG: ") + make_instruction(case.request))
    strips = [grid([cells[i : i + ROW]], labels[i : i + ROW], cell=CELL) for i in range(0, len(cells), ROW)]
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    return encode_png(np.concatenate(padded))
