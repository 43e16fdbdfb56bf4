"""Which of several proposed places is best: the product of what can be decided, each a number in (0, 1].

in frame     the sides of the box that lie on the border of the image, where the object may be cut off
a clause     "behind the sofa": whether it is true, where the anchors' places are known
support      the depth of what is seen at the lower edge of the box against the depth of the object
size         against the size that the anchors and a small table of nouns suggest at this depth
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import exp, log, prod

import numpy as np

from datasets.geometry import depth_at_contact, iou
from datasets.relations import Place
from llava_bifrost.language.answer import Candidate, satisfies
from llava_bifrost.language.instruction import PHRASES, Request
from llava_bifrost.placement.ground import Ground, fit_ground
from llava_bifrost.placement.sizes import size_at_one, size_px

# All are chosen.
BORDER = 0.003  # of the image; a side nearer to the border touches it
TOUCHING = 0.85  # per side that touches
BROKEN = 0.05  # of a clause that is false
LOOSE = 0.05  # depth between contact point and ground that costs nothing
SLACK = 1.5  # times larger or smaller that costs nothing
SAME_IOU, SAME_DEPTH = 0.9, 0.02  # proposals closer than this are one
FLOATING = "above"  # relation of objects that need no support


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known besides the proposals: the request, places by name, and depth (h, w), 1 = nearest."""

    request: Request | None = None
    anchors: Mapping[str, Place] = field(default_factory=dict)
    depth_01: np.ndarray | None = None

    @cached_property
    def expected(self) -> tuple[Ground, float] | None:
        """The ground and the object's expected size per unit of `Ground.scale`, where these are known."""
        if self.depth_01 is None or self.request is None or self.request.replace:
            return None
        named = {name: self.anchors[name] for name in self.request.anchors if name in self.anchors}
        size_hw = (self.depth_01.shape[0], self.depth_01.shape[1])
        ground = fit_ground(self.depth_01, [place.box01_xyxy for place in self.anchors.values()])
        return ground, size_at_one(self.request.target, named, self.anchors, ground, size_hw)


def rank(candidates: Sequence[Candidate], evidence: Evidence) -> list[Candidate]:
    """Best first, with scores; equal scores (to 0.01) are ordered by the model's own probability."""
    scores = [round(prod(score_parts(candidate.location, evidence).values()), 4) for candidate in candidates]
    scored = [replace(candidate, score=score) for candidate, score in zip(candidates, scores, strict=True)]
    return sorted(scored, key=lambda item: (-round(item.score or 0.0, 2), -item.log_probability))


def score_parts(location: Place, evidence: Evidence) -> dict[str, float]:
    request, depth_01 = evidence.request, evidence.depth_01
    touching = sum(edge < BORDER or edge > 1 - BORDER for edge in location.box01_xyxy)
    parts = {"in frame": TOUCHING**touching}
    if request is not None and set(request.anchors) <= evidence.anchors.keys():
        clauses = satisfies(location, request, evidence.anchors)
        parts |= {clause: 1.0 if true else BROKEN for clause, true in clauses.items()}
    if depth_01 is None:
        return parts
    if request is None or FLOATING not in [PHRASES[phrase] for phrase, _ in request.relations]:
        gap = abs(location.d - depth_at_contact(depth_01, location.box01_xyxy))
        parts["support"] = exp(-max(0.0, gap - LOOSE) / 0.1)
    if evidence.expected is not None:
        ground, unit_px = evidence.expected
        expected_px = unit_px * float(ground.scale(location.d))
        ratio = size_px(location, (depth_01.shape[0], depth_01.shape[1])) / max(expected_px, 1e-6)
        parts["size"] = exp(-max(0.0, abs(log(ratio)) - log(SLACK)))
    return parts


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without near repetitions; of those the most probable one stays. The first candidate stays first."""
    chosen: list[Candidate] = []
    for candidate in [*candidates[:1], *sorted(candidates[1:], key=lambda item: -item.log_probability)]:
        box01, depth = candidate.location.box01_xyxy, candidate.location.d
        alike = (iou(box01, other.location.box01_xyxy) > SAME_IOU for other in chosen
                 if abs(depth - other.location.d) < SAME_DEPTH)  # fmt: skip
        if not any(alike):
            chosen.append(candidate)
    return chosen
