"""The relations of datasets/relations.py for many pairs at once, with how clearly each holds.

Legend: k placed things, m anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.geometry import EXTENT_PER_SIZE, MIN_EXTENT
from datasets.relations import DEPTH_STEP, FOOT, NEAR_GAP, SIDE, TOP

MARGIN_SCALE = {"x": 0.04, "y": 0.03, "d": 0.05}  # slack that counts as 1
PLAIN_GAP = 0.05  # fraction of the image between a thing and what it is plainly beside
PLAIN_STEP = 0.16  # depth between a thing and what it is plainly before or behind


@dataclass(frozen=True, eq=False)
class Places:
    """Many `Place`s: x0 ... y1, d, far, near, each an array of one shape."""

    x0: np.ndarray
    y0: np.ndarray
    x1: np.ndarray
    y1: np.ndarray
    d: np.ndarray
    far: np.ndarray
    near: np.ndarray

    @classmethod
    def of(cls, box: np.ndarray, d: np.ndarray, far: np.ndarray, near: np.ndarray) -> Places:
        """box (n, 4), d, far, near (n,)."""
        x0, y0, x1, y1 = box.T
        return cls(x0, y0, x1, y1, d, far, near)

    @classmethod
    def answered(cls, box: np.ndarray, d: np.ndarray) -> Places:
        """From boxes and centre depths alone, with the extent that `Location.place` gives them."""
        half = MIN_EXTENT + EXTENT_PER_SIZE * np.sqrt((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))
        return cls.of(box, d, np.maximum(d - half, 0), np.minimum(d + half, 1))

    def spread(self, axis: int) -> Places:
        """With one more axis, for all pairs."""
        fields = (self.x0, self.y0, self.x1, self.y1, self.d, self.far, self.near)
        return Places(*(np.expand_dims(value, axis) for value in fields))

    @property
    def middle(self) -> np.ndarray:
        return (self.x0 + self.x1) / 2


def _gap(low_a: np.ndarray, high_a: np.ndarray, low_b: np.ndarray, high_b: np.ndarray) -> np.ndarray:
    return np.maximum(low_a, low_b) - np.minimum(high_a, high_b)


def relation_table(things: Places, anchors: Places) -> dict[str, np.ndarray]:
    """Relation -> (k, m) slack, positive where it holds, 1 and more where it holds comfortably."""
    a, b = things.spread(1), anchors.spread(0)
    x, y, depth = MARGIN_SCALE["x"], MARGIN_SCALE["y"], MARGIN_SCALE["d"]
    mean = ((a.x1 - a.x0) + (b.x1 - b.x0)) / 2
    aside = b.middle - a.middle
    across, upright = _gap(a.x0, a.x1, b.x0, b.x1), _gap(a.y0, a.y1, b.y0, b.y1)
    step, meet = a.d - b.d, _gap(a.far, a.near, b.far, b.near)
    tall = b.y1 - b.y0
    on = _least(
        (a.middle - b.x0) / x, (b.x1 - a.middle) / x, (a.y1 - b.y0) / y, (b.y0 + FOOT * tall - a.y1) / y,
        (b.y0 - a.y0) / y, (0.001 - meet) / 0.01,
    )  # fmt: skip
    off = -on / 0.3  # a thing that stands on another is not beside it
    side = (np.abs(aside) - SIDE * mean) / x
    found = {
        "left of": np.where(aside > 0, side, -1),
        "right of": np.where(aside < 0, side, -1),
        "in front of": _least((step - DEPTH_STEP) / depth, -across / x),
        "behind": _least((-step - DEPTH_STEP) / depth, -across / x),
        "next to": _least(
            (DEPTH_STEP - np.abs(step)) / (depth / 2), -upright / y, (NEAR_GAP - across) / x, side
        ),
    }
    found = {name: _least(slack, off) for name, slack in found.items()}
    return {**found, "on": on, "above": _above(a, b), "under": _above(b, a)}


def stray_table(things: Places, anchors: Places) -> dict[str, np.ndarray]:
    """Relation -> (k, m) how far a place is from the plainest one that the words describe, 1 = far.

    Beside: at the same depth, a small gap away. Before and behind: straight, one clear step. On: in the
    middle.
    """
    a, b = things.spread(1), anchors.spread(0)
    aside, step = np.abs(b.middle - a.middle), a.d - b.d
    across = _gap(a.x0, a.x1, b.x0, b.x1)
    beside = np.abs(across - PLAIN_GAP) / 0.15 + np.abs(step) / 0.1
    straight = aside / 0.1
    return {
        "left of": beside,
        "right of": beside,
        "next to": beside,
        "in front of": straight + np.abs(step - PLAIN_STEP) / 0.1,
        "behind": straight + np.abs(step + PLAIN_STEP) / 0.1,
        "on": straight + np.abs(step) / 0.2,
        "above": straight + np.abs(step) / 0.2,
        "under": straight + np.abs(step) / 0.2,
    }


def between_stray(things: Places, anchors: Places) -> np.ndarray:
    """(k, m, m) how far a place is from the middle between anchors i and j, 1 = far."""
    middle, d = anchors.middle, anchors.d
    x = things.middle[:, None, None] - (middle[:, None] + middle[None]) / 2
    return np.abs(x) / 0.1 + np.abs(things.d[:, None, None] - (d[:, None] + d[None]) / 2) / 0.1


def _least(*slacks: np.ndarray) -> np.ndarray:
    found = slacks[0]
    for slack in slacks[1:]:
        found = np.minimum(found, slack)
    return found


def _above(a: Places, b: Places) -> np.ndarray:
    """Slack of `relations.above`."""
    y = MARGIN_SCALE["y"]
    meets = (DEPTH_STEP - _gap(a.far, a.near, b.far, b.near)) / MARGIN_SCALE["d"]
    over = _least((a.middle - b.x0) / y, (b.x1 - a.middle) / y, (b.y0 + FOOT * (b.y1 - b.y0) - a.y1) / y)
    tall = a.y1 - a.y0
    spans = _least(
        (b.middle - a.x0) / y, (a.x1 - b.middle) / y, (b.y0 - a.y0 - TOP * tall) / y,
        (b.y1 - a.y0 - FOOT * tall) / y,
    )  # fmt: skip
    return _least((b.y0 - a.y0) / y, meets, np.maximum(over, spans))


def between_table(table: dict[str, np.ndarray], things: Places, anchors: Places) -> np.ndarray:
    """(k, m, m) slack of "between anchors i and j", from `relation_table`; the diagonal is not filled."""
    low = np.minimum(anchors.d[:, None], anchors.d[None]) - DEPTH_STEP
    high = np.maximum(anchors.d[:, None], anchors.d[None]) + DEPTH_STEP
    d = things.d[:, None, None]
    level = np.minimum(d - low, high - d) / MARGIN_SCALE["d"]
    sides = _opposed(table["left of"], table["right of"])
    return np.maximum(_least(level, sides), _opposed(table["in front of"], table["behind"]))


def _opposed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    pairs = np.minimum(one[:, :, None], other[:, None, :])
    return np.maximum(pairs, pairs.transpose(0, 2, 1))
