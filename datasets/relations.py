"""Spatial relations between objects, decided in 2.5D: a box in the image and an extent in depth.

One set of rules serves a single pair (`holds`, `relation`) and many pairs at once (`relation_margins`). Each
rule is a list of inequalities. Its margin is the smallest slack among them, each in units of its scale, and
the relation holds where the margin is positive. Depth is relative inverse depth, 1 = nearest. The thresholds
are chosen, by looking at rendered rooms (exact boxes and depths) and photographs (annotated and estimated).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from math import nextafter
from typing import Any

import cv2
import numpy as np

from datasets.geometry import EXTENT_PER_SIZE, MIN_EXTENT, Box01, check_box01, depth_extent

RELATIONS = ("left of", "right of", "in front of", "behind", "on", "next to")  # what `relation` finds
ALL_RELATIONS = (*RELATIONS, "above", "under", "between")  # what `holds` decides; "between" has two anchors

SIDE = 0.5  # centres apart by more than this fraction of the mean width: left or right
DEPTH_STEP = 0.06  # depths apart by at least this: in front or behind
NEAR_GAP = 0.06  # boxes of neighbours are horizontally closer than this fraction of the image
CONTACT_BAND = 0.65  # what stands on an object has its lower edge in the upper 65 % of the object's box
TOP = 0.15  # what lies under an object keeps clear of the upper 15 % of the object's box
CONTACT = 0.001  # depth between an object and its support that margins forgive; single pairs have to meet
REACH = 12  # pixels from the common border of two masks within which their depths are compared (chosen)
MIN_ZONE = 8  # pixels that each needs there (chosen)
X_SCALE, Y_SCALE, DEPTH_SCALE = 0.04, 0.03, 0.05  # slack that counts as a margin of 1; chosen
# The next floats, so that a strict inequality reads "at least DEPTH_STEP" and "at most DEPTH_STEP".
_BELOW_STEP, _ABOVE_STEP = nextafter(DEPTH_STEP, 0), nextafter(DEPTH_STEP, 1)


class _Edges:
    """Names for the numbers of a place or of many places."""

    box01_xyxy: Any
    d: Any
    far: Any
    near: Any

    x0 = property(lambda self: self.box01_xyxy[0])
    y0 = property(lambda self: self.box01_xyxy[1])
    x1 = property(lambda self: self.box01_xyxy[2])
    y1 = property(lambda self: self.box01_xyxy[3])
    width = property(lambda self: self.x1 - self.x0)
    middle = property(lambda self: (self.x0 + self.x1) / 2)  # horizontal centre


@dataclass(frozen=True)
class Place(_Edges):
    """Where an object is, or where it goes. box01_xyxy: fractions of the image; d: depth of its centre, or
    the median; far <= d <= near: its extent; all in [0, 1], ValueError otherwise.
    """

    box01_xyxy: Box01
    d: float
    far: float
    near: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "box01_xyxy", check_box01(self.box01_xyxy))
        if not 0 <= self.far <= self.d <= self.near <= 1:
            depths = self.far, self.d, self.near
            raise ValueError(f"depths must satisfy 0 <= far <= d <= near <= 1, got {depths}")

    @classmethod
    def of(cls, box01_xyxy: Box01, d: float, far: float | None = None, near: float | None = None) -> "Place":
        """A place; an extent that is not given follows from the size of the box."""
        if far is None and near is None:
            far, near = depth_extent(d, check_box01(box01_xyxy))
        if far is None or near is None:
            raise ValueError("far and near are given together or not at all")
        return cls(box01_xyxy, d, far, near)

    @property
    def extent(self) -> tuple[float, float] | None:
        """(far, near); None where they only follow from the size of the box."""
        extent = self.far, self.near
        return None if extent == depth_extent(self.d, self.box01_xyxy) else extent

    def touches_border(self, edge: float) -> bool:
        """Whether a side comes closer to the border of the image than `edge`, where it may be cut off."""
        return min(self.x0, self.y0) <= edge or max(self.x1, self.y1) >= 1 - edge

    def moved(self, box01_xyxy: Box01) -> "Place":
        """At another box, at the same depth; an extent that follows from the size follows again."""
        return Place.of(box01_xyxy, self.d, *(self.extent or ()))


@dataclass(frozen=True, eq=False)
class Places(_Edges):
    """Many places: box01_xyxy (4, ...), d, far and near (...)."""

    box01_xyxy: np.ndarray
    d: np.ndarray
    far: np.ndarray
    near: np.ndarray

    @classmethod
    def of(cls, boxes01: np.ndarray, d: np.ndarray) -> "Places":
        """Boxes (n, 4) at depths (n,), with the extent that follows from their sizes."""
        x0, y0, x1, y1 = boxes01.T
        half = MIN_EXTENT + EXTENT_PER_SIZE * np.sqrt((x1 - x0) * (y1 - y0))
        return cls(boxes01.T, d, np.maximum(d - half, 0), np.minimum(d + half, 1))

    def spread(self, axis: int) -> "Places":
        """With one more axis, for all pairs."""
        d, far, near = (np.expand_dims(value, axis) for value in (self.d, self.far, self.near))
        return Places(np.expand_dims(self.box01_xyxy, axis + 1), d, far, near)


def gap(low_a: Any, high_a: Any, low_b: Any, high_b: Any) -> Any:
    """Signed distance of two intervals, negative when they overlap. Symmetric."""
    return _max(low_a, low_b) - _min(high_a, high_b)


def relation_margins(a: Places, b: Places, surfaces: bool = False) -> dict[str, np.ndarray]:
    """Relation -> (k, m) margin of "a is <relation> b" for k places a and m places b.

    Positive where the relation holds, 1 and more where it holds comfortably. "between" needs two anchors, see
    `between_margins`. surfaces: what lies in the box of another is on it, as `relation` says; the questions
    about rendered rooms are made without.
    """
    a, b = a.spread(1), b.spread(0)
    on = _on(a, b, surfaces)
    apart = -on / 0.3  # an object that stands on another is not beside it
    margins = {word: np.minimum(margin, apart) for word, margin in _beside(a, b).items()}
    return {**margins, "on": on, "above": _above(a, b), "under": _above(b, a)}


def between_margins(margins: Mapping[str, np.ndarray], a: Places, b: Places) -> np.ndarray:
    """(k, m, m) margin of "a is between anchors i and j of b", from `relation_margins`; i and j differ."""
    to_b, to_c = ({word: np.expand_dims(margin, axis) for word, margin in margins.items()} for axis in (2, 1))
    return _between(a.spread(1).spread(1), b.spread(1), b.spread(0), to_b, to_c)


def relation(a: Place, b: Place, on: bool | None = None) -> frozenset[str]:
    """Everything that is true of a with respect to b ("a is left of b"), a subset of RELATIONS.

    on: whether a stands on b where that is known. None: whether a's lower edge lies on the upper part of b, a
    sticks out above b's top edge or lies in b's box and is less than half as high, and their depths meet.
    What stands on an object is not also beside, before or behind it; the caller asks relation(b, a, on=False)
    for the converse. Left / right and in front / behind are antisymmetric, next to is symmetric.
    """
    if on is None:
        on = bool(_on(a, b) > 0 and gap(a.far, a.near, b.far, b.near) <= 0)
    if on:
        return frozenset({"on"})
    return frozenset(word for word, margin in _beside(a, b).items() if margin > 0)


def holds(word: str, a: Place, *anchors: Place) -> bool:
    """Whether "a <word> the anchor" is true, word one of ALL_RELATIONS; "between" takes two anchors."""
    expected = 2 if word == "between" else 1
    if word not in ALL_RELATIONS:
        raise ValueError(f"unknown relation {word!r}; known: {', '.join(ALL_RELATIONS)}")
    if len(anchors) != expected:
        raise ValueError(f"{word!r} relates an object to {expected}, got {len(anchors)}")
    if word == "between":
        b, c = anchors
        to_b, to_c = ({word: 1 if word in true else -1 for word in RELATIONS}
                      for true in (relation(a, b), relation(a, c)))  # fmt: skip
        return bool(_between(a, b, c, to_b, to_c) > 0)
    if word in ("above", "under"):
        return bool((_above(a, anchors[0]) if word == "above" else _above(anchors[0], a)) > 0)
    return word in relation(a, anchors[0])


def _beside(a: _Edges, b: _Edges) -> dict[str, Any]:
    """Margins of the relations of objects of which none stands on the other."""
    aside, step, apart = b.middle - a.middle, a.d - b.d, SIDE * (a.width + b.width) / 2
    across, upright = gap(a.x0, a.x1, b.x0, b.x1), gap(a.y0, a.y1, b.y0, b.y1)
    left, right = (aside - apart) / X_SCALE, (-aside - apart) / X_SCALE
    level = (DEPTH_STEP - abs(step)) / (DEPTH_SCALE / 2)
    return {
        "left of": left,
        "right of": right,
        "in front of": _min((step - _BELOW_STEP) / DEPTH_SCALE, -across / X_SCALE),
        "behind": _min((-step - _BELOW_STEP) / DEPTH_SCALE, -across / X_SCALE),
        "next to": _min(level, -upright / Y_SCALE, (NEAR_GAP - across) / X_SCALE, _max(left, right)),
    }


def _on(a: _Edges, b: _Edges, surfaces: bool = True) -> Any:
    """surfaces: a's box may lie in that of a bed or table seen from above, whose top edge is then higher."""
    band = b.y0 + CONTACT_BAND * (b.y1 - b.y0) - a.y1
    edges = _min(a.middle - b.x0, b.x1 - a.middle) / X_SCALE
    margin = _min(edges, _min(a.y1 - b.y0, band, b.y0 - a.y0) / Y_SCALE)
    if surfaces:
        inside = a.y0 - b.y0, a.x0 - b.x0, b.x1 - a.x1, b.y1 - b.y0 - 2 * (a.y1 - a.y0), band
        margin = _max(margin, _min(*inside) / Y_SCALE)
    return _min(margin, (CONTACT - gap(a.far, a.near, b.far, b.near)) / 0.01)


def _above(a: _Edges, b: _Edges) -> Any:
    """a stands on b, hangs over it, or is open below and spans it (a table above a dog). What lies within
    b's box, as on a bed seen from above, is on it and not above it.

    a's top edge is higher, their depths meet within DEPTH_STEP, and either a's middle lies over b and a's
    lower edge ends in the upper part of b or higher; or b's middle lies below a, and b reaches from under
    a's top to a's lower part. Never true both ways.
    """
    meet = (_ABOVE_STEP - gap(a.far, a.near, b.far, b.near)) / DEPTH_SCALE
    over = _min(a.middle - b.x0, b.x1 - a.middle, b.y0 + CONTACT_BAND * (b.y1 - b.y0) - a.y1)
    tall = a.y1 - a.y0
    under = b.y0 - a.y0 - TOP * tall, b.y1 - a.y0 - CONTACT_BAND * tall
    spans = _min(b.middle - a.x0, a.x1 - b.middle, *under)
    return _min(meet, _min(b.y0 - a.y0, _max(over, spans)) / Y_SCALE)


def _between(a: _Edges, b: _Edges, c: _Edges, to_b: Mapping[str, Any], to_c: Mapping[str, Any]) -> Any:
    """a is beside both on opposite sides at a depth between theirs, or in front of one and behind the other.

    to_b, to_c: margins of a's relations to b and c. The order of b and c does not matter.
    """

    def opposite(word: str, converse: str) -> Any:
        return _max(_min(to_b[word], to_c[converse]), _min(to_b[converse], to_c[word]))

    level = _min(a.d - (_min(b.d, c.d) - DEPTH_STEP), _max(b.d, c.d) + DEPTH_STEP - a.d) / DEPTH_SCALE
    return _max(_min(level, opposite("left of", "right of")), opposite("in front of", "behind"))


def _min(*values: Any) -> Any:
    return reduce(np.minimum, values) if isinstance(values[0], np.ndarray) else min(values)


def _max(*values: Any) -> Any:
    return reduce(np.maximum, values) if isinstance(values[0], np.ndarray) else max(values)


def order_is_right(depth_01: np.ndarray, placed: np.ndarray, other: np.ndarray, nearer: bool) -> bool | None:
    """Whether median depths beside the common border show this order; None: less than MIN_ZONE pixels."""
    if not placed.any() or not other.any():
        return None
    first, second = (  # pixels of each mask near the other one
        mask & (cv2.distanceTransform((~beside).astype(np.uint8), cv2.DIST_L2, 3) <= REACH)
        for mask, beside in ((placed, other), (other, placed))
    )
    if min(first.sum(), second.sum()) < MIN_ZONE:
        return None
    difference = float(np.median(depth_01[first]) - np.median(depth_01[second]))
    return (difference > 0) == nearer and difference != 0
