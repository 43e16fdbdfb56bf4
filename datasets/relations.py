"""Spatial relations between two placed things, decided in 2.5D: a box in the image and an extent in depth.

The same function serves rendered scenes (exact boxes and depths, and exact knowledge of what stands on what)
and photographs (annotated boxes, estimated depth). Depth is relative inverse depth, 1 = nearest.
"""

from dataclasses import dataclass

RELATIONS = ("left of", "right of", "in front of", "behind", "on", "next to")  # what `relation` finds
JUDGED = (*RELATIONS, "above", "under", "between")  # what `judge` can decide; "between" has two anchors

SIDE = 0.5  # centres apart by more than this share of the mean width: left or right
DEPTH_STEP = 0.06  # depths apart by at least this: in front or behind
NEAR_GAP = 0.06  # boxes of neighbours are horizontally closer than this share of the image
FOOT = 0.65  # what stands on a thing has its lower edge in the upper 65 % of the thing's box
TOP = 0.15  # what lies under a thing keeps clear of the upper 15 % of the thing's box


@dataclass(frozen=True)
class Place:
    """Where a thing is.

    box01_xyxy: fractions of the image. d: its depth; far <= d <= near: its extent; all in [0, 1].
    """

    box01_xyxy: tuple[float, float, float, float]
    d: float
    far: float
    near: float

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.box01_xyxy
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"box01_xyxy must have x0 < x1 and y0 < y1, got {self.box01_xyxy}")
        if not 0 <= self.far <= self.d <= self.near <= 1:
            raise ValueError(
                f"depths must satisfy 0 <= far <= d <= near <= 1, got {(self.far, self.d, self.near)}"
            )

    @property
    def width(self) -> float:
        return self.box01_xyxy[2] - self.box01_xyxy[0]

    @property
    def middle(self) -> float:
        """Horizontal centre."""
        return (self.box01_xyxy[0] + self.box01_xyxy[2]) / 2


def gap(low_a: float, high_a: float, low_b: float, high_b: float) -> float:
    """Signed distance of two intervals, negative when they overlap. Symmetric."""
    return max(low_a, low_b) - min(high_a, high_b)


def relation(a: Place, b: Place, on: bool | None = None) -> frozenset[str]:
    """Everything that is true of a with respect to b ("a is left of b"), a subset of RELATIONS.

    on: whether a stands on b where that is known; None decides by `stands_on`. What stands on a thing is not
    also beside, before or behind it; the caller asks relation(b, a, on=False) for the converse, which then is
    judged by position alone. Left / right and in front / behind are antisymmetric, next to is symmetric.
    """
    if on or (on is None and stands_on(a, b)):
        return frozenset({"on"})
    found = set()
    aside = b.middle - a.middle
    if abs(aside) > SIDE * (a.width + b.width) / 2:
        found.add("left of" if aside > 0 else "right of")
    ax0, ay0, ax1, ay1 = a.box01_xyxy
    bx0, by0, bx1, by1 = b.box01_xyxy
    across, upright = gap(ax0, ax1, bx0, bx1), gap(ay0, ay1, by0, by1)
    step = a.d - b.d
    if abs(step) >= DEPTH_STEP and across < 0:
        found.add("in front of" if step > 0 else "behind")
    if abs(step) < DEPTH_STEP and upright < 0 and across < NEAR_GAP and found & {"left of", "right of"}:
        found.add("next to")
    return frozenset(found)


def stands_on(a: Place, b: Place) -> bool:
    """a's lower edge lies on the upper part of b, a sticks out above b's top edge, and their depths meet.

    Never true both ways: a's top edge is above b's.
    """
    ax0, ay0, ax1, ay1 = a.box01_xyxy
    bx0, by0, bx1, by1 = b.box01_xyxy
    inside = bx0 < a.middle < bx1 and by0 < ay1 < by0 + FOOT * (by1 - by0) and ay0 < by0
    return inside and gap(a.far, a.near, b.far, b.near) <= 0


def above(a: Place, b: Place) -> bool:
    """a is above b: it stands on it, hangs over it, or is open below and spans it (a table above a dog).

    a's top edge is higher, their depths meet within DEPTH_STEP, and either a's middle lies over b and a's
    lower edge ends in the upper part of b or higher; or b's middle lies below a, and b reaches from under
    a's top to a's lower part. Never true both ways. "a under b" is above(b, a).
    """
    ax0, ay0, ax1, ay1 = a.box01_xyxy
    bx0, by0, bx1, by1 = b.box01_xyxy
    if ay0 >= by0 or gap(a.far, a.near, b.far, b.near) > DEPTH_STEP:
        return False
    over = bx0 < a.middle < bx1 and ay1 < by0 + FOOT * (by1 - by0)
    spans = ax0 < b.middle < ax1 and by0 > ay0 + TOP * (ay1 - ay0) and by1 > ay0 + FOOT * (ay1 - ay0)
    return over or spans


def between(a: Place, b: Place, c: Place) -> bool:
    """a is between b and c: beside both on opposite sides at a depth between theirs, or in front of one and
    behind the other. The order of b and c does not matter."""
    to_b, to_c = relation(a, b), relation(a, c)
    level = min(b.d, c.d) - DEPTH_STEP < a.d < max(b.d, c.d) + DEPTH_STEP
    return (level and _opposed("left of", "right of", to_b, to_c)) or _opposed(
        "in front of", "behind", to_b, to_c
    )


def _opposed(one: str, other: str, to_b: frozenset[str], to_c: frozenset[str]) -> bool:
    return (one in to_b and other in to_c) or (other in to_b and one in to_c)


def judge(word: str, a: Place, *anchors: Place) -> bool:
    """Whether "a <word> the anchor" is true, word one of JUDGED; "between" takes two anchors, others one."""
    wanted = 2 if word == "between" else 1
    if word not in JUDGED:
        raise ValueError(f"unknown relation {word!r}; known: {', '.join(JUDGED)}")
    if len(anchors) != wanted:
        raise ValueError(f"{word!r} relates a thing to {wanted}, got {len(anchors)}")
    if word == "between":
        return between(a, *anchors)
    if word in ("above", "under"):
        return above(a, anchors[0]) if word == "above" else above(anchors[0], a)
    return word in relation(a, anchors[0])
