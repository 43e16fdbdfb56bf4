"""Which of several proposed places is best: simple geometry, each part a number in (0, 1].

    in frame     the sides of the box that lie on the border of the image, where the object may be cut off
    a clause     "behind the sofa": whether it is true, where the anchors' places are known
    support      the depth of what is seen at the foot of the box against the depth of the object
    size         against the size that the anchors and a small table of nouns suggest at this depth

What cannot be judged (no depth map, no anchors) is left out. The score is the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log, prod

import numpy as np

from datasets.geometry import depth_at_contact
from datasets.relations import Place
from llava_bifrost.language.answer import PHRASES, Candidate, Location, Request, iou, satisfies
from llava_bifrost.placement.ground import Ground, fit_ground
from llava_bifrost.placement.sizes import size_at_one, size_px

BORDER = 0.003  # of the image; a side nearer to the border touches it
TOUCHING = 0.85  # per side that touches
BROKEN = 0.05  # of a clause that is false
LOOSE = 0.05  # depth between foot and ground that costs nothing
SLACK = 1.5  # times larger or smaller that costs nothing
SAME_IOU, SAME_DEPTH = 0.9, 0.02  # proposals closer than this are one
FLOATING = ("above",)  # relations of things that need no support


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known about the image besides the proposals.

    request: what was asked. anchors: name -> place, all that is known. depth_01: (h, w), 1 = nearest.
    """

    request: Request | None = None
    anchors: Mapping[str, Place] = field(default_factory=dict)
    depth_01: np.ndarray | None = None


def rank(candidates: Sequence[Candidate], evidence: Evidence) -> list[Candidate]:
    """Best first, with scores; equal scores (to 0.01) are ordered by the model's own probability."""
    ground = None if evidence.depth_01 is None else fit_ground(evidence.depth_01)
    scored = [
        replace(one, score=round(prod(score_parts(one.location, evidence, ground).values()), 4))
        for one in candidates
    ]
    return sorted(scored, key=lambda one: (-round(one.score or 0.0, 2), -one.log_probability))


def score_parts(location: Location, evidence: Evidence, ground: Ground | None = None) -> dict[str, float]:
    """The parts of the score by name."""
    touching = sum(edge < BORDER or edge > 1 - BORDER for edge in location.box01_xyxy)
    parts = {"in frame": TOUCHING**touching}
    request = evidence.request
    if request is not None and _all_known(request, evidence.anchors):
        clauses = satisfies(location, request, evidence.anchors)
        parts |= {clause: 1.0 if true else BROKEN for clause, true in clauses.items()}
    if evidence.depth_01 is None:
        return parts
    floats = request is not None and any(PHRASES[phrase] in FLOATING for phrase, _ in request.relations)
    if not floats:
        gap = abs(location.depth - depth_at_contact(evidence.depth_01, location.box01_xyxy))
        parts["support"] = exp(-max(0.0, gap - LOOSE) / 0.1)
    if request is not None and not request.replace:
        ground = fit_ground(evidence.depth_01) if ground is None else ground
        parts["size"] = _size(location, request, evidence, ground)
    return parts


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without near repetitions; of those the most probable one stays. The first candidate stays first."""
    kept: list[Candidate] = []
    for one in [*candidates[:1], *sorted(candidates[1:], key=lambda one: -one.log_probability)]:
        if not any(_same(one.location, other.location) for other in kept):
            kept.append(one)
    return kept


def _same(a: Location, b: Location) -> bool:
    close = abs(a.depth - b.depth) < SAME_DEPTH
    return close and iou(a.box01_xyxy, b.box01_xyxy) > SAME_IOU


def _all_known(request: Request, anchors: Mapping[str, Place]) -> bool:
    return all(name in anchors for name in request.anchors)


def _size(location: Location, request: Request, evidence: Evidence, ground: Ground) -> float:
    """exp(-|log ratio|) beyond the slack."""
    depth_01, anchors = evidence.depth_01, evidence.anchors
    if depth_01 is None:
        raise ValueError("the size of a place is judged with a depth map")
    size_hw = (depth_01.shape[0], depth_01.shape[1])
    named = {name: anchors[name] for name in request.anchors if name in anchors}
    at_one = size_at_one(request.target, named, anchors, ground, size_hw)
    expected = at_one * float(ground.scale(location.depth))
    ratio = size_px(location.place, size_hw) / max(expected, 1e-6)
    return exp(-max(0.0, abs(log(ratio)) - log(SLACK)))
