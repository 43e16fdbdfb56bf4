"""The relations of datasets/relations.py for many pairs at once, with how clearly each holds.

Legend: k placed things, m anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.geometry import EXTENT_PER_SIZE, MIN_EXTENT
from datasets.relations import DEPTH_STEP, FOOT, NEAR_GAP, SIDE, TOP

COMFORT = {"x": 0.04, "y": 0.03, "d": 0.05}  # slack that counts as 1
FAR_ASIDE = 0.2  # a thing "to the left of" another is at most this far from it, fraction of the picture
FAR_STEP = 0.25  # and one "behind" it at most this much farther


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
        return cls(*box.T, d, far, near)

    @classmethod
    def answered(cls, box: np.ndarray, d: np.ndarray) -> Places:
        """From boxes and centre depths alone, with the extent that `Location.place` gives them."""
        half = MIN_EXTENT + EXTENT_PER_SIZE * np.sqrt((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]))
        return cls(*box.T, d, np.maximum(d - half, 0), np.minimum(d + half, 1))

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
    """Relation -> (k, m) slack, positive where it holds, about 1 where it holds comfortably."""
    a, b = things.spread(1), anchors.spread(0)
    x, y, depth = COMFORT["x"], COMFORT["y"], COMFORT["d"]
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
    stray = np.maximum(0, np.abs(step) - FAR_STEP / 2) / 0.15 + np.maximum(0, across - FAR_ASIDE) / 0.15
    side = np.abs(aside) - SIDE * mean
    left = np.where(aside > 0, side, -1) / x - np.where(side > 0, stray, 0)
    right = np.where(aside < 0, side, -1) / x - np.where(side > 0, stray, 0)
    deep = np.maximum(0, np.abs(step) - FAR_STEP) / 0.15
    front, behind = (
        _least((step - DEPTH_STEP) / depth, -across / x),
        _least((-step - DEPTH_STEP) / depth, -across / x),
    )
    beside = _least(
        (DEPTH_STEP - np.abs(step)) / (depth / 2), -upright / y, (NEAR_GAP - across) / x, side / x
    )
    clear = {"left of": left, "right of": right, "in front of": _eased(front, deep),
             "behind": _eased(behind, deep), "next to": beside}  # fmt: skip
    found = {name: _least(_eased(slack, 0 * slack), off) for name, slack in clear.items()}
    found["on"], found["above"], found["under"] = on, _above(a, b), _above(b, a)
    return found


def _least(*slacks: np.ndarray) -> np.ndarray:
    found = slacks[0]
    for slack in slacks[1:]:
        found = np.minimum(found, slack)
    return found


def _eased(slack: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """A penalty makes a relation that holds less attractive, never false."""
    return np.where(slack > 0, np.maximum(slack - penalty, 0.01 * np.minimum(slack, 1)), slack)


def _above(a: Places, b: Places) -> np.ndarray:
    """Slack of `relations.above`."""
    y = COMFORT["y"]
    meets = (DEPTH_STEP - _gap(a.far, a.near, b.far, b.near)) / COMFORT["d"]
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
    level = np.minimum(d - low, high - d) / COMFORT["d"]
    sides = _opposed(table["left of"], table["right of"])
    return np.maximum(_least(level, sides), _opposed(table["in front of"], table["behind"]))


def _opposed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    pairs = np.minimum(one[:, :, None], other[:, None, :])
    return np.maximum(pairs, pairs.transpose(0, 2, 1))
