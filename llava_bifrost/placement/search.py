"""Where a thing could stand: points on the ground and on raised surfaces, with the box it would have there.

Everything is decided for many spots at once. Units: x, y, w, h in fractions of the image; d a depth_01;
`side` and `away` in a ground plan whose unit is the same in both directions: away = 1 / (d - horizon_d).

Legend: k spots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from datasets.geometry import Box01
from datasets.relations import DEPTH_STEP, Place
from llava_bifrost.placement.ground import TOLERANCE, VIEW_DEGREES, Ground, Plane, hull

COLUMNS, ROWS = 40, 44  # of the grid of feet
SIZES = (1.0, 0.88, 1.14)  # relative sizes that are tried
FITTING = (1.0, 0.85, 0.7)  # relative sizes on top of a thing
DEPTHS = (0.03, 0.98)  # where things may stand
THICK = 0.85  # thickness of a known thing relative to its width
BACK = 0.85  # how far behind its foot an object stands, relative to its width
SLIM = 0.95  # of the radius of an object's circle that must be free
CONTACT = 0.03  # depth by which things seen in a box may be nearer without hiding it
ROOM = 0.25  # least visible share of a thing
RAISED = 1.06  # nearer than the ground by this factor: another surface
LEVEL = 3.0  # largest difference in slope, in units of TOLERANCE per working pixel, of a level surface
AROUND = 0.1  # of the image: how far around a foot its surface is looked for
SAME_LEVEL = 0.08  # relative difference of levels up to which two things stand on one surface
LID = 0.65  # share of a box, from above, in which its upper side is looked for


@dataclass(frozen=True, eq=False)
class CandidatePlacements:
    """k proposals; every field is an array (k,)."""

    x: np.ndarray  # middle
    y: np.ndarray  # lower edge
    w: np.ndarray
    h: np.ndarray
    d: np.ndarray  # of the object: of its foot, and a little nearer
    foot: np.ndarray  # depth of the surface at the lower edge
    size: np.ndarray  # relative to the expected size
    level: np.ndarray  # of the surface below: 1 the ground, larger: raised, 0: the top of something uneven

    def __len__(self) -> int:
        return len(self.x)

    def where(self, kept: np.ndarray) -> "CandidatePlacements":
        """The spots of a mask or of indices."""
        return CandidatePlacements(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})

    def box(self, index: int) -> tuple[float, float, float, float]:
        x, y, w, h = (float(values[index]) for values in (self.x, self.y, self.w, self.h))
        return max(0.0, x - w / 2), max(0.0, y - h), min(1.0, x + w / 2), min(1.0, y)


def join(parts: Sequence[CandidatePlacements]) -> CandidatePlacements:
    """One list of several."""
    return CandidatePlacements(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(CandidatePlacements)
        }
    )


NOWHERE = CandidatePlacements(*(np.zeros(0) for _ in fields(CandidatePlacements)))


@dataclass(frozen=True)
class ObjectExtent:
    """What is to be placed."""

    unit_px: float  # square root of its box's area, per unit of Ground.scale
    aspect: float  # width / height in pixels
    bulge: float  # how much nearer than its foot its middle is, in units of width and scale


@dataclass(frozen=True, eq=False)
class View:
    """What is known of a background: its depth, its ground, the things in it."""

    depth_01: np.ndarray  # (h, w)
    ground: Ground
    known: Mapping[str, Place]
    size_hw: tuple[int, int]

    @cached_property
    def levels(self) -> dict[str, float]:
        """On which surface each known thing stands: 1 the ground, larger: raised."""
        planes = {name: surface_below(self, place) for name, place in self.known.items()}
        return {name: 1.0 if plane is None else self.level(plane) for name, plane in planes.items()}

    def level(self, plane: Plane) -> float:
        """How much nearer to the camera than the ground a parallel plane is."""
        return plane.b / self.ground.plane.b

    def depth_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Depth of the background at points in fractions."""
        h, w = self.depth_01.shape
        rows = np.clip((np.asarray(y) * h).astype(int), 0, h - 1)
        columns = np.clip((np.asarray(x) * w).astype(int), 0, w - 1)
        return self.depth_01[rows, columns]

    def reached(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether the ground extends to points."""
        h, w = self.ground.reach.shape
        rows = np.clip((y * h).astype(int), 0, h - 1)
        columns = np.clip((x * w).astype(int), 0, w - 1)
        return self.ground.reach[rows, columns]


def on_ground(view: View, body: ObjectExtent, factor: float = 1.0) -> CandidatePlacements:
    """Spots on the ground, hidden parts of it included."""
    rows, columns = np.linspace(0.05, 0.995, ROWS), np.linspace(0.02, 0.98, COLUMNS)
    y, x = (values.ravel() for values in np.meshgrid(rows, columns, indexing="ij"))
    d = np.asarray(view.ground.plane.at(x, y))
    kept = view.reached(x, y) & (d > DEPTHS[0]) & (d < DEPTHS[1])
    # Where the background is farther than the ground, there is no ground.
    kept &= view.depth_at(x, y) > d - 4 * TOLERANCE
    spots = _sized(x[kept], y[kept], d[kept], view, body, 1.0, factor)
    return spots.where(view.reached(*behind(view, spots, view.ground.plane)))


def on_plane(
    view: View, plane: Plane, box01: Box01, body: ObjectExtent, factor: float = 1.0
) -> CandidatePlacements:
    """Spots on a raised plane inside a box: where it is seen, and where nearer things hide it in between."""
    x0, y0, x1, y1 = box01
    rows, columns = np.linspace(y0, y1, ROWS // 2), np.linspace(x0, x1, COLUMNS // 2)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    d = np.asarray(plane.at(x, y))
    above = view.depth_at(x, y) - d
    seen = np.abs(above) < 2 * TOLERANCE
    there = seen | (hull(seen) & (above > 0))
    kept = (there & (d > DEPTHS[0]) & (d < 1)).ravel()
    level = view.level(plane)
    spots = _sized(x.ravel()[kept], y.ravel()[kept], d.ravel()[kept], view, body, level, factor)
    back_x, back_y = behind(view, spots, plane)
    row = np.clip(((back_y - y0) / (y1 - y0) * len(rows)).astype(int), 0, len(rows) - 1)
    column = np.clip(((back_x - x0) / (x1 - x0) * len(columns)).astype(int), 0, len(columns) - 1)
    return spots.where((back_y >= y0) & there[row, column])


def on_top(view: View, anchor: Place, body: ObjectExtent) -> CandidatePlacements:
    """Spots on top of a thing: on its level upper side where one is seen, else just below its upper edge."""
    x0, y0, x1, y1 = anchor.box01_xyxy
    lid = (x0, y0, x1, y0 + LID * (y1 - y0))
    plane = level_plane(view, lid)
    seen = [] if plane is None else [on_plane(view, plane, lid, body, size) for size in FITTING]
    if sum(len(part) for part in seen):
        return join(seen)
    rows, columns = y0 + (y1 - y0) * np.linspace(0.03, 0.35, 9), np.linspace(x0, x1, 13)[2:-2]
    y, x = (values.ravel() for values in np.meshgrid(rows, columns, indexing="ij"))
    flat = np.full(x.shape, min(anchor.d, DEPTHS[1]))
    return join([_sized(x, y, flat, view, body, 0.0, size) for size in FITTING])


def surface_below(view: View, thing: Place) -> Plane | None:
    """The raised surface on which a thing stands, as seen beside its foot; None: the ground."""
    x0, y0, x1, y1 = thing.box01_xyxy
    near = min(max(AROUND, x1 - x0), 2 * AROUND)
    region = clipped(x0 - near, y1 - 0.3 * near, x1 + near, y1 + 0.6 * near)
    return level_plane(view, region, without=thing.box01_xyxy)


def clipped(x0: float, y0: float, x1: float, y1: float) -> Box01:
    """A region inside the image."""
    return max(0.0, x0), max(0.0, y0), min(1.0, x1), min(1.0, y1)


def level_plane(view: View, box01: Box01, without: Box01 | None = None) -> Plane | None:
    """The raised level surface that a box shows most of, or None. without: a box that does not count."""
    ground, horizon = view.ground.plane, view.ground.horizon_d
    h, w = view.depth_01.shape
    x0, y0, x1, y1 = box01
    y, x = np.meshgrid(np.linspace(y0, y1, 48), np.linspace(x0, x1, 48), indexing="ij")
    step = 2.0 / h
    here, lower = view.depth_at(x, y), view.depth_at(x, y + step)
    floor = np.maximum(np.asarray(ground.at(x, y)) - horizon, 1e-3)
    factor = (here - horizon) / floor
    slope = np.abs((lower - here) - factor * ground.b * step)
    level = (slope < LEVEL * TOLERANCE * step * 10) & (factor > RAISED) & (y + step < y1)
    if without is not None:
        left, top, right, bottom = without
        level &= (x < left) | (x > right) | (y < top) | (y > bottom)
    if level.sum() < 0.04 * level.size:
        return None
    counts, edges = np.histogram(factor[level], bins=40)
    best = int(np.argmax(counts))
    near = np.abs(factor - (edges[best] + edges[best + 1]) / 2) < max(edges[1] - edges[0], 0.03)
    if (level & near).sum() < 0.03 * level.size:
        return None
    return ground.raised(float(np.median(factor[level & near])), horizon)


def _sized(
    x: np.ndarray,
    y: np.ndarray,
    foot: np.ndarray,
    view: View,
    body: ObjectExtent,
    level: float,
    factor: float = 1.0,
) -> CandidatePlacements:
    """Boxes at feet, for every relative size, those inside the image."""
    parts = []
    for size in SIZES:
        side = body.unit_px * size * factor * np.asarray(view.ground.scale(foot))
        w, h = side * body.aspect**0.5 / view.size_hw[1], side / body.aspect**0.5 / view.size_hw[0]
        inside = (x - w / 2 >= 0) & (x + w / 2 <= 1) & (y - h >= 0) & (y <= 1)
        d = np.minimum(foot + body.bulge * w * np.asarray(view.ground.scale(foot)), 1.0)
        alike = np.ones(len(x))
        parts.append(
            CandidatePlacements(x, y, w, h, d, foot, alike * size * factor, alike * level).where(inside)
        )
    return join(parts)


def behind(view: View, spots: CandidatePlacements, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """The points x, y of a surface on which the far side of each object stands."""
    left, right, away, _ = plan(view, spots.x, spots.w, spots.foot)
    back = away + BACK * (right - left)
    d = 1 / back + view.ground.horizon_d
    x = ((2 * spots.x - 1) * away / back + 1) / 2
    return x, (d - plane.c - plane.a * x) / plane.b


def plan(view: View, x: np.ndarray, w: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, ...]:
    """Footprints in the ground plan: (side0, side1, away0, away1), each (k,); away0 is the near edge."""
    half = np.tan(np.radians(VIEW_DEGREES) / 2)
    away = 1 / np.asarray(view.ground.scale(d))
    left, right = ((2 * edge - 1) * half * away for edge in (x - w / 2, x + w / 2))
    return left, right, away, away + THICK * (right - left)


def possible(relation: str, spots: CandidatePlacements, anchor: Place) -> np.ndarray:
    """Quick necessary conditions of a relation, (k,) bool; the relation itself is judged elsewhere."""
    x0, y0, x1, _ = anchor.box01_xyxy
    across = (spots.x - spots.w / 2 < x1) & (spots.x + spots.w / 2 > x0)
    if relation == "left of":
        return spots.x < anchor.middle
    if relation == "right of":
        return spots.x > anchor.middle
    if relation == "behind":
        return (spots.d < anchor.d) & across
    if relation == "in front of":
        return (spots.d > anchor.d) & across
    if relation == "next to":
        return np.abs(spots.d - anchor.d) <= DEPTH_STEP
    return spots.y - spots.h < y0 if relation in ("on", "above") else np.ones(len(spots), bool)


def clear(
    view: View, spots: CandidatePlacements, touching: Sequence[str] = (), slim: float = SLIM
) -> np.ndarray:
    """Whether a spot is free of the footprints of all known things, (k,) bool.

    A footprint of a known thing is a rectangle, that of the object a circle.
    touching: things that the spot may overlap, because it is on or under them.
    slim: share of the object's radius that must be free.
    """
    free = np.ones(len(spots), bool)
    left, right, front, _ = plan(view, spots.x, spots.w, spots.foot)
    radius, side = (right - left) / 2, (right + left) / 2
    away = front + radius
    for name, place in view.known.items():
        if name in touching:
            continue
        x0, _, x1, y1 = place.box01_xyxy
        standing = float(view.ground.plane.at((x0 + x1) / 2, min(y1, 1.0)))
        foot = standing if view.levels[name] == 1 and standing <= place.near else place.d
        edges = plan(view, *(np.array([value]) for value in ((x0 + x1) / 2, x1 - x0, foot)))
        a0, a1, b0, b1 = (float(edge[0]) for edge in edges)
        across = np.maximum(np.maximum(a0 - side, side - a1), 0)
        along = np.maximum(np.maximum(b0 - away, away - b1), 0)
        here = np.abs(spots.level / view.levels[name] - 1) < SAME_LEVEL
        free &= ~((np.hypot(across, along) < slim * radius) & here)
    return free


def visible_share(view: View, spots: CandidatePlacements, side: int = 9) -> np.ndarray:
    """Share of each box, its corners left out, in front of which nothing stands, (k,)."""
    steps = (np.arange(side) + 0.5) / side
    u, v = np.meshgrid(steps, steps)
    round_ = (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.26
    u, v = u[round_], v[round_]
    x = spots.x[:, None] + (u - 0.5) * spots.w[:, None]
    y = spots.y[:, None] + (v - 1) * spots.h[:, None]
    return (view.depth_at(x, y) <= spots.d[:, None] + CONTACT).mean(axis=1)
