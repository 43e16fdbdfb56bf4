"""What is right about one answer: rules of the instruction, of the room, and distance from one right answer.

An answer that cannot be read is wrong in every rule, IoU 0, L1 and depth error 1; it is never left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from datasets.geometry import iou
from datasets.relations import Place
from ldm.metrics.numbers import Estimate
from llava_bifrost.language.answer import satisfies
from llava_bifrost.language.instruction import PHRASES, Request
from llava_bifrost.worlds.world import SHAPE_NAMES, World

GROUND = 0.03  # of the image: contact point and ground agree this well; chosen
SIZE = 0.25  # a side may differ by this fraction from that of the typical solid; chosen
TOUCH = 0.04  # metres that the cylinders around two solids may overlap: the solids are slimmer; chosen
ORDERED = {"in front of": 1, "behind": -1}
COLUMNS = {
    "valid": "valid", "relations": "relation", "in_frame": "frame", "free": "free", "ground": "ground",
    "size": "size", "order": "order", "iou": "IoU", "box_l1": "L1", "centre": "centre",
    "depth_error": "d MAE", "parsed": "parsed"}  # fmt: skip
PUBLISHED = {
    "published_box_mse": "BBox MSE", "published_iou": "BBox IoU (+1 convention, share above 0.5)",
    "published_depth_mse": "Depth MSE"}  # fmt: skip

Measures = dict[str, float]
Table = dict[str, dict[str, Estimate]]  # row -> measure -> number


@dataclass(frozen=True, eq=False)
class LocatorCase:
    """One question. world: the room behind the image, where it is known; ground_truth: one right answer."""

    name: str
    image_u8: np.ndarray
    request: Request
    ground_truth: Place
    anchors: Mapping[str, Place]
    world: World | None = None


def measure_answer(case: LocatorCase, where: Place | None) -> Measures:
    """All measures of an answer (None: unreadable); those of the room only for a case with a world.

    Distances are to one right answer; for a place to put something, other answers are right too.
    """
    if where is None:
        errors = ("box_l1", "centre", "depth_error", "published_box_mse", "published_depth_mse")
        return {name: float(name in errors) for name in measure_answer(case, case.ground_truth)}
    ours, truth = np.array(where.box01_xyxy), np.array(case.ground_truth.box01_xyxy)
    measures = {
        "parsed": 1.0,
        "iou": iou(where.box01_xyxy, case.ground_truth.box01_xyxy),
        "box_l1": float(np.abs(ours - truth).mean()),
        "centre": float(np.linalg.norm((ours[:2] + ours[2:] - truth[:2] - truth[2:]) / 2)),
        "depth_error": abs(where.d - case.ground_truth.d),
        **published(where, case.ground_truth),
    }
    if case.request.replace:
        return measures
    clauses = satisfies(where, case.request, case.anchors)
    x0, y0, x1, y1 = where.box01_xyxy
    rules = {"in_frame": 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, "relations": all(clauses.values())}
    if case.world is not None:
        # Whether a solid of the target's shape at this place stands on something, is as large as such solids
        # are, and touches nothing. The surface is the one where its lower edge fits best.
        world, shape = case.world, SHAPE_NAMES.index(case.request.target.split()[-1])
        count = len(world.surfaces.index)
        middles, depths = np.full(count, (x0 + x1) / 2), np.full(count, where.d)
        solids = world.stand(np.full(count, shape), np.arange(count), middles, depths)
        off = np.abs(solids.box[:, 3] - y1) + np.where(world.support_margin(solids) < -TOUCH, 1.0, 0.0)
        best = int(np.argmin(off))
        width, height = solids.box[best, 2:] - solids.box[best, :2]
        rules |= {
            "ground": bool(off[best] < GROUND),
            "size": bool(abs((x1 - x0) / width - 1) <= SIZE and abs((y1 - y0) / height - 1) <= SIZE),
            "free": bool(world.clearance(solids)[best] > -TOUCH),
        }
    measures |= {name: float(value) for name, value in rules.items()}
    measures["valid"] = float(all(rules.values()))
    for (phrase, names), true in zip(case.request.clauses, clauses.values(), strict=True):
        measures[f"relation: {PHRASES[phrase]}"] = float(true)
        sign = ORDERED.get(PHRASES[phrase])
        if sign is not None:
            measures["order"] = float((where.d - case.anchors[names[0]].d) * sign > 0)
    return measures


def published(where: Place, ground_truth: Place) -> Measures:
    """The three numbers of the paper's Table 2, computed as its code does.

    Mean squared error of the box and of the depth, and the fraction of answers with an "IoU" above 0.5, where
    "IoU" adds 1 to every side as if fractions were pixels: even boxes that do not meet score up to 0.5.
    """
    a, b = where.box01_xyxy, ground_truth.box01_xyxy
    inner = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return {
        "published_box_mse": float(np.square(np.array(a) - np.array(b)).mean()),
        "published_iou": float(inner / (sum(areas) - inner) > 0.5),
        "published_depth_mse": (where.d - ground_truth.d) ** 2,
    }


def format_table(title: str, table: Table) -> str:
    """Main measures, intervals of the first row, single relations, and the numbers of the paper's Table 2."""
    lines = [f"{title:44}{'n':>6}" + "".join(f"{short:>9}" for short in COLUMNS.values())]
    for name, row in table.items():
        cells = "".join(f"{row[key]['mean']:9.3f}" if key in row else f"{'-':>9}" for key in COLUMNS)
        lines.append(f"{name:44}{row['parsed']['n']:>6}{cells}")
    first = next(iter(table.values()))
    half = {key: (mean["high"] - mean["low"]) / 2 for key, mean in first.items() if "high" in mean}
    spread = "".join(f"{half[key]:9.3f}" if key in half else f"{'-':>9}" for key in COLUMNS)
    lines.append(f"{'  half width of the 95 % interval, first row':50}{spread}")
    for key in sorted(key for key in first if key.startswith("relation: ")):
        number = first[key]
        interval = f"[{number['low']:.3f}, {number['high']:.3f}]" if "low" in number else ""
        lines.append(f"  {key:42}{number['n']:>6}{number['mean']:9.3f}  {interval}")
    lines.append("as published (Table 2; the IoU adds 1 to sides in [0, 1] and says little)")
    for name, measures in table.items():
        parts = ", ".join(f"{title} {measures[key]['mean']:.4f}" for key, title in PUBLISHED.items())
        lines.append(f"  {name:42}{parts}")
    return "\n".join(lines)
