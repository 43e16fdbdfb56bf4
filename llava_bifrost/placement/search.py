"""Where an object could stand: points on the ground and on raised surfaces, with the box it would have there.

Everything is decided for many candidates at once. Units: x, y, w, h in fractions of the image; d a depth_01;
`side` and `away` in a ground plan whose unit is the same in both directions: away = 1 / (d - horizon_d).
Legend: k candidates.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datasets.geometry import Box01
from datasets.relations import Place
from llava_bifrost.placement import sizes
from llava_bifrost.placement.ground import TOLERANCE, VIEW_DEGREES, Ground, Plane, hull

# All are chosen by looking at the placer's answers in rendered rooms and photographs.
COLUMNS, ROWS = 40, 44  # of the grid of contact points
SIZES = (1.0, 0.88, 1.14)  # relative sizes that are tried
FITTING = (1.0, 0.85, 0.7)  # relative sizes on top of an object
DEPTHS = (0.03, 1.0)  # where objects may stand
FLAT = 0.1  # thickness of pictures and curtains, relative to that of others
THICK = 0.85  # thickness of a known object relative to its width
BACK = 0.85  # how far behind its contact point an object stands, relative to its width
SLIM = 0.95  # of the radius of an object's circle that must be free
ROOM = 0.25  # least visible fraction of an object
RAISED = 1.06  # nearer than the ground by this factor: another surface
LEVEL = 3.0  # largest difference in slope, in units of TOLERANCE per working pixel, of a level surface
AROUND = 0.1  # of the image: how far around a contact point its surface is looked for
SAME_LEVEL = 0.08  # relative difference of levels up to which two objects stand on one surface
UPON = ("on", "above")  # relations whose anchor may be touched from above
LID = 0.65  # fraction of a box, from above, in which its upper side is looked for


@dataclass(frozen=True, eq=False)
class Placements:
    """k proposals; every field is an array (k,)."""

    x: np.ndarray  # middle
    y: np.ndarray  # lower edge
    w: np.ndarray
    h: np.ndarray
    d: np.ndarray  # of the object: of its contact point, and a little nearer
    contact: np.ndarray  # depth of the surface at the lower edge
    size: np.ndarray  # relative to the expected size
    level: np.ndarray  # of the surface below: 1 the ground, larger: raised, 0: the top of something uneven

    def __len__(self) -> int:
        return len(self.x)

    def where(self, chosen: np.ndarray) -> "Placements":
        return Placements(*(values[chosen] for values in vars(self).values()))

    @property
    def boxes01(self) -> np.ndarray:
        """(k, 4), inside the image."""
        edges = self.x - self.w / 2, self.y - self.h, self.x + self.w / 2, self.y
        return np.clip(np.stack(edges, 1), 0.0, 1.0)


def join(parts: Sequence[Placements]) -> Placements:
    nothing = Placements(*[np.zeros(0)] * 8)
    columns = zip(*(vars(part).values() for part in (nothing, *parts)), strict=True)
    return Placements(*map(np.concatenate, columns))


@dataclass(frozen=True)
class ObjectExtent:
    unit_px: float  # square root of its box's area, per unit of Ground.scale
    aspect: float  # width / height in pixels
    relief: float  # how much nearer than its contact point its middle is, in units of width and scale


@dataclass(frozen=True, eq=False)
class View:
    """What is known of a background: its depth, its ground, the objects in it."""

    depth_01: np.ndarray  # (h, w)
    ground: Ground
    known: Mapping[str, Place]

    @cached_property
    def levels(self) -> dict[str, float]:
        """On which surface each known object stands: 1 the ground, larger: raised."""
        planes = {name: surface_below(self, place) for name, place in self.known.items()}
        return {name: 1.0 if plane is None else self.level(plane) for name, plane in planes.items()}

    def level(self, plane: Plane) -> float:
        """How much nearer to the camera than the ground a parallel plane is."""
        return plane.b / self.ground.plane.b

    def placements(
        self, relations: Sequence[tuple[str, str]], named: Mapping[str, Place], extent: ObjectExtent
    ) -> Placements:
        """All candidates that are worth a look, on the surfaces that (relation, anchor) pairs speak of."""
        parts: list[Placements] = []
        # On top of an object: on its level upper side where one is seen, else just below its upper edge.
        upon = [name for kind, name in relations if kind in UPON and not sizes.is_level(name, named[name])]
        for name in upon:
            anchor, side = named[name], sizes.by_noun(sizes.UPPER_SIDES, name)
            x0, y0, x1, y1 = anchor.box01_xyxy
            lid = (x0, y0, x1, y0 + (side[1] if side else LID) * (y1 - y0))
            plane = level_plane(self, lid)
            top = [] if plane is None else [on_plane(self, plane, lid, extent, size) for size in FITTING]
            if not any(len(part) for part in top):
                upper, lower = side or sizes.TOP_SIDE
                rows, columns = y0 + (y1 - y0) * np.linspace(upper, lower, 9), np.linspace(x0, x1, 13)[2:-2]
                y, x = (values.ravel() for values in np.meshgrid(rows, columns, indexing="ij"))
                points = np.stack([x, y, np.full(x.shape, min(anchor.d, DEPTHS[1]))])
                top = [_sized(points, self, extent, 0.0, size) for size in FITTING]
            parts += top
        words = {relation for relation, _ in relations}
        if parts and not words - {"on"}:
            return join(parts)
        # On the ground, hidden parts of it included.
        rows, columns = np.linspace(0.05, 0.995, ROWS), np.linspace(0.02, 0.98, COLUMNS)
        y, x = (values.ravel() for values in np.meshgrid(rows, columns, indexing="ij"))
        d = np.asarray(self.ground.plane.at(x, y))
        usable = at(self.ground.reach, x, y) & (d > DEPTHS[0]) & (d < DEPTHS[1])
        # Where the background is farther than the ground, there is no ground.
        usable &= at(self.depth_01, x, y) > d - 4 * TOLERANCE
        for factor in (1.0, 0.75, 0.55) if "under" in words else (1.0,):
            sized = _sized(np.stack([x, y, d])[:, usable], self, extent, 1.0, factor)
            parts.append(sized.where(at(self.ground.reach, *behind(self, sized, self.ground.plane))))
        # On the raised surfaces on which anchors stand.
        for anchor in named.values():
            if (plane := surface_below(self, anchor)) is not None:
                x0, _, x1, y1 = anchor.box01_xyxy
                wide = 3 * max(AROUND, x1 - x0)
                around = _inside(x0 - wide, y1 - wide, x1 + wide, y1 + wide)
                parts.append(on_plane(self, plane, around, extent))
        return join(parts)


def at(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of a map (h, w) at points in fractions, those beyond its border at the border."""
    h, w = values.shape
    return values[np.clip((y * h).astype(int), 0, h - 1), np.clip((x * w).astype(int), 0, w - 1)]


def on_plane(view: View, plane: Plane, box01: Box01, extent: ObjectExtent, factor: float = 1.0) -> Placements:
    """Candidates on a raised plane in a box: where it is seen, and where nearer objects hide it between."""
    x0, y0, x1, y1 = box01
    rows, columns = np.linspace(y0, y1, ROWS // 2), np.linspace(x0, x1, COLUMNS // 2)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    d = np.asarray(plane.at(x, y))
    above = at(view.depth_01, x, y) - d
    seen = np.abs(above) < 2 * TOLERANCE
    there = seen | (hull(seen) & (above > 0))
    usable = there & (d > DEPTHS[0]) & (d < 1)
    candidates = _sized(np.stack([x, y, d])[:, usable], view, extent, view.level(plane), factor)
    back_x, back_y = behind(view, candidates, plane)
    row = np.clip(((back_y - y0) / (y1 - y0) * len(rows)).astype(int), 0, len(rows) - 1)
    column = np.clip(((back_x - x0) / (x1 - x0) * len(columns)).astype(int), 0, len(columns) - 1)
    return candidates.where((back_y >= y0) & there[row, column])


def surface_below(view: View, item: Place) -> Plane | None:
    """The raised surface on which an object stands, as seen beside its contact point; None: the ground."""
    x0, y0, x1, y1 = item.box01_xyxy
    near = min(max(AROUND, x1 - x0), 2 * AROUND)
    region = _inside(x0 - near, y1 - 0.3 * near, x1 + near, y1 + 0.6 * near)
    return level_plane(view, region, without=item.box01_xyxy)


def _inside(x0: float, y0: float, x1: float, y1: float) -> Box01:
    return max(0.0, x0), max(0.0, y0), min(1.0, x1), min(1.0, y1)


def level_plane(view: View, box01: Box01, without: Box01 | None = None) -> Plane | None:
    """The raised level surface that a box shows most of, or None. without: a box that does not count."""
    ground, horizon = view.ground.plane, view.ground.horizon_d
    x0, y0, x1, y1 = box01
    y, x = np.meshgrid(np.linspace(y0, y1, 48), np.linspace(x0, x1, 48), indexing="ij")
    step = 2.0 / view.depth_01.shape[0]
    here, lower = at(view.depth_01, x, y), at(view.depth_01, x, y + step)
    factor = (here - horizon) / np.maximum(np.asarray(ground.at(x, y)) - horizon, 1e-3)
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


def _sized(points: np.ndarray, view: View, extent: ObjectExtent, level: float, factor: float) -> Placements:
    """Boxes at contact points (3, k) of x, y and depth, for every relative size, those inside the image."""
    x, y, contact = points
    scale, (h_px, w_px) = np.asarray(view.ground.scale(contact)), view.depth_01.shape
    parts = []
    for size in SIZES:
        side = extent.unit_px * size * factor * scale
        w, h = side * extent.aspect**0.5 / w_px, side / extent.aspect**0.5 / h_px
        d = np.minimum(contact + extent.relief * w * scale, 1.0)
        relative, levels = np.full(len(x), size * factor), np.full(len(x), level)
        inside = (x - w / 2 >= 0) & (x + w / 2 <= 1) & (y - h >= 0) & (y <= 1)
        parts.append(Placements(x, y, w, h, d, contact, relative, levels).where(inside))
    return join(parts)


def behind(view: View, candidates: Placements, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """The points x, y of a surface on which the far side of each object stands."""
    left, right, away, _ = plan(view, candidates.x, candidates.w, candidates.contact)
    back = away + BACK * (right - left)
    x = ((2 * candidates.x - 1) * away / back + 1) / 2
    return x, plane.height_of(x, 1 / back + view.ground.horizon_d)


def plan(view: View, x: np.ndarray | float, w: np.ndarray | float, d: np.ndarray | float) -> tuple:
    """Footprints in the ground plan: (side0, side1, away0, away1), each (k,) or one; away0: the near edge."""
    half = np.tan(np.radians(VIEW_DEGREES) / 2)
    away = 1 / np.asarray(view.ground.scale(d))
    left, right = ((2 * edge - 1) * half * away for edge in (x - w / 2, x + w / 2))
    return left, right, away, away + THICK * (right - left)


def footprint(view: View, name: str) -> tuple:
    """(side0, side1, away0, away1) of a known object: wide and flat ones are as deep as they are high."""
    place = view.known[name]
    standing = float(view.ground.plane.at(place.middle, min(place.y1, 1.0)))
    on_ground = view.levels[name] == 1 and standing <= place.near
    if on_ground and sizes.is_one_of(sizes.LYING_NOUNS, name):  # the ground that its box covers
        rows = (float(view.ground.scale(view.ground.plane.at(place.middle, y))) for y in (place.y1, place.y0))
        left, right, away, _ = plan(view, place.middle, place.width, standing)
        return left, right, *(1 / row for row in rows)
    left, right, away, _ = plan(view, place.middle, place.width, standing if on_ground else place.d)
    h_px, w_px = view.depth_01.shape
    deep = min(1.0, (place.y1 - place.y0) * h_px / max(place.width * w_px, 1e-6))
    deep *= FLAT if sizes.is_one_of(sizes.FLAT_NOUNS, name) else 1.0
    return left, right, away, away + THICK * deep * (right - left)


def clear(view: View, tried: Placements, ignored: Collection[str] = (), slim: float = SLIM) -> np.ndarray:
    """Whether a candidate is free of the footprints of all known objects, (k,) bool.

    A footprint of a known object is a rectangle, that of the object to place a circle.
    ignored: objects that the candidate may overlap, because it is on or under them
    slim: fraction of the object's radius that must be free
    """
    free = np.ones(len(tried), bool)
    left, right, front, _ = plan(view, tried.x, tried.w, tried.contact)
    radius, side = (right - left) / 2, (right + left) / 2
    away = front + radius
    for name in view.known:
        if name in ignored:
            continue
        a0, a1, b0, b1 = footprint(view, name)
        across = np.maximum(np.maximum(a0 - side, side - a1), 0)
        along = np.maximum(np.maximum(b0 - away, away - b1), 0)
        here = np.abs(tried.level / view.levels[name] - 1) < SAME_LEVEL
        free &= ~((np.hypot(across, along) < slim * radius) & here)
    return free
