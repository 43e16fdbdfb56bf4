"""The ground of an image from its depth map: the plane, its horizon, and where it can be seen.

Inverse depth is affine in the image coordinates of a plane, so a plane is three numbers:
d(x, y) = a x + b y + c with x, y in fractions of the image. Relative inverse depth d = (1/z - low) / range
hides where 1/z = 0 lies; that value of d, `horizon_d`, is what sizes need: an object of fixed size covers a
width proportional to d - horizon_d. It follows from a wall, because walls and ground are at right angles.
Legend: h w pixels of the depth map, k points, p planes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from datasets.geometry import Box01
from datasets.relations import Place
from ldm.images import resize

# All are chosen, by looking at the planes of rendered rooms and photographs.
WORKING_SIDE = 96  # pixels of the longer side; planes need no more
HYPOTHESES = 500  # planes tried
REACH = 0.14  # largest distance of the three points of a hypothesis, fraction of the image
TOLERANCE = 0.012  # depth; points on a plane lie within it
STEEP = 0.15  # least gain of depth per image height of a plane that can be ground
ROLL = 0.5  # largest gain across the image, of that along it: cameras are held nearly level
SPARSE = 5  # every so many points are enough to choose among planes
PIECE = 0.004  # of a mask; smaller pieces do not count
FEET = 0.3  # of the image that the feet of all known objects are worth
HIDDEN = 0.25  # depth by which what is below a box may be nearer than the object and not hide its foot
ENOUGH = 0.25  # of the image, of a plane beside feet
STEEPEST = 4.0  # gain of depth per image height; beyond, through one foot, it is a step in depth
PER_FOOT = 40  # planes tried around each of them
MOST_FEET = 100  # that are looked at: every plane is held against every foot, and more tell nothing new
TRIED = 12  # best planes that are refined until one is still a ground
RISE, RISE_ROWS = 0.4, 0.03  # least slope of what is seen, of the plane's, over so much of the height
BENDING = 1.5  # gain of depth per image height from which a plane may bend
HORIZON_ROW = 0.4  # of the image height, of the camera that is assumed where no ground is seen
BELOW = 0.02  # fraction of points that may lie below the ground
LEAST_AREA = 0.03  # of the image that a plane must cover
EDGE = 0.01  # of the image; what comes closer to its border may be cut off
VIEW_DEGREES = 47.0  # field of view of the longer side that is taken where nothing is known
HORIZON_D = -0.45  # depth at infinity where no wall shows it: the farthest point is 3.2 times the nearest
FARTHEST_HORIZON = -1.2  # least depth at infinity that is believed


@dataclass(frozen=True)
class Plane:
    """d(x, y) = a x + b y + c, with x and y in fractions of the image."""

    a: float
    b: float
    c: float

    def at(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray | float:
        """Depth at points; not clipped."""
        return self.a * x + self.b * y + self.c

    @property
    def tolerance(self) -> float:
        """Depth within which points are on the plane: estimated depth bends on steep ones."""
        return TOLERANCE * max(1.0, self.b / BENDING)

    def height_of(self, x: Any, d: Any) -> Any:
        return (d - self.c - self.a * x) / self.b

    def raised(self, factor: float, horizon_d: float) -> "Plane":
        """The parallel plane whose distance to the camera is 1 / factor of this one's."""
        shift = horizon_d - factor * horizon_d
        return Plane(self.a * factor, self.b * factor, self.c * factor + shift)

    def horizon(self, planes: np.ndarray, points: np.ndarray, size_hw: tuple[int, ...]) -> float:
        """Depth at infinity: the value that makes the largest wall upright on the ground."""
        rest = points[_residual(self, points) > 3 * TOLERANCE]
        rest = rest[rest[:, 1] < np.quantile(points[:, 1], 0.7)]
        walls = planes[planes[:, 1] < 0.5 * self.b]
        least = LEAST_AREA * len(points)
        if len(rest) < least or not len(walls):
            return HORIZON_D
        on = (np.abs(_residuals(walls, rest[::SPARSE])) < TOLERANCE).sum(axis=1)  # (p,)
        if SPARSE * on.max() < least:
            return HORIZON_D
        wall = _refined(Plane(*map(float, walls[int(np.argmax(on))])), rest)
        h, w = size_hw
        half = np.tan(np.radians(VIEW_DEGREES) / 2)
        half_x, half_y = (half, half * h / w) if w >= h else (half * w / h, half)
        near, far = float(self.at(0.5, 0.5)), float(wall.at(0.5, 0.5))
        slope = self.a * wall.a / (4 * half_x**2) + self.b * wall.b / (4 * half_y**2)
        roots = np.roots([1.0, -(near + far), near * far + slope])
        real = [float(root.real) for root in roots if abs(root.imag) < 1e-6]
        fitting = [min(0.0, root) for root in real if FARTHEST_HORIZON <= root <= 0.02]
        return min(fitting, key=lambda value: abs(value - HORIZON_D)) if fitting else HORIZON_D


@dataclass(frozen=True, eq=False)
class Ground:
    """The plane on which objects stand, and where it can be seen."""

    plane: Plane
    horizon_d: float  # depth at infinity, not above 0
    seen: np.ndarray  # (h, w) bool at working size: pixels that show the ground
    reach: np.ndarray  # (h, w) bool: the convex hull of these, ground that something hides included
    measured: bool  # False: the image shows no ground, and a level one is assumed

    def scale(self, d: np.ndarray | float) -> np.ndarray | float:
        """Size in the image of an object at depth d, relative to its true size; at least 0.02."""
        return np.maximum(np.asarray(d) - self.horizon_d, 0.02)

    def standing(self, place: Place) -> Place:
        """An object at the depth of its foot where that can be among what its box shows.

        One sees through chairs, and others stand before them: the middle of a box tells little.
        """
        foot = min(float(self.plane.at(place.middle, place.y1)), 1.0)
        if not self.measured or not place.far <= foot <= place.near + HIDDEN:
            return place
        return Place(place.box01_xyxy, foot, place.far, max(place.near, foot))

    def as_place(self) -> Place:
        """The ground as an object: from its farthest row to the lower border, over the whole width."""
        rows = np.flatnonzero(self.reach.any(axis=1))
        top = float(rows.min(initial=len(self.reach) - 1)) / len(self.reach)
        far, middle = (min(max(float(self.plane.at(0.5, y)), 0.0), 1.0) for y in (top, (top + 1) / 2))
        return Place((0.0, top, 1.0, 1.0), max(middle, far), far, 1.0)


def fit_ground(depth_01: np.ndarray, boxes01: Sequence[Box01] = ()) -> Ground:
    """Find the ground of a depth map (h, w), 1 = nearest; the same input gives the same answer.

    boxes01: of known objects; what is seen at their lower edges speaks for the surface that they stand on
    The best plane that still is a ground after its refinement counts. Where none is, a level ground is
    assumed (`measured` is False): as far as anything at HORIZON_ROW, nearest at the lower edge of the image,
    or through the lower edges of the objects.
    """
    scale = min(1.0, WORKING_SIDE / max(depth_01.shape))
    h, w = (max(8, round(side * scale)) for side in depth_01.shape)
    small = resize(depth_01, (h, w), how="nearest").astype(np.float32)
    y, x = np.mgrid[0:h, 0:w]
    points = np.stack([(x + 0.5) / w, (y + 0.5) / h, small], axis=-1).reshape(-1, 3).astype(np.float64)
    found = []  # what the map shows at the feet of objects, just below their boxes: x, y and depth
    for x0, y0, x1, y1 in boxes01:
        row, left = round(y1 * h), min(round((x0 + 0.2 * (x1 - x0)) * w), w - 1)
        if row >= h:
            continue
        columns = slice(left, max(round((x1 - 0.2 * (x1 - x0)) * w), left + 1))
        d = float(np.quantile(small[row : row + 2, columns], 0.25))
        if d < np.quantile(small[min(round(y0 * h), row - 1) : row, columns], 0.95) + HIDDEN:
            found.append(((x0 + x1) / 2, (row + 1) / h, d))
    feet = np.array(found).reshape(-1, 3)
    if len(feet) > MOST_FEET:
        feet = feet[np.linspace(0, len(feet) - 1, MOST_FEET).astype(int)]
    planes = _hypotheses(points, (h, w), feet)
    # The ground has the most points and feet among those that rise towards the viewer with nothing below.
    rising = planes[(planes[:, 1] > STEEP) & (np.abs(planes[:, 0]) < ROLL * planes[:, 1])]
    score = _ground_score(rising, points[::SPARSE], feet)
    for index in np.argsort(-score)[:TRIED]:
        plane = _refined(Plane(*map(float, rising[index])), points)
        refined = _ground_score(np.array([[plane.a, plane.b, plane.c]]), points[::SPARSE], feet)[0]
        rises = plane.b > STEEP and abs(plane.a) < ROLL * plane.b
        if rises and min(score[index], refined) > LEAST_AREA:
            break
    else:  # a level ground under a level camera
        far = float(small.min())
        usable = feet[(feet[:, 1] > HORIZON_ROW + 0.1) & (feet[:, 2] > far + 0.02)]
        slopes = (usable[:, 2] - far) / (usable[:, 1] - HORIZON_ROW)
        slope = float(np.quantile(slopes, 0.25)) if len(usable) else (1 - far) / (1 - HORIZON_ROW)
        level = Plane(0.0, max(slope, STEEP), far - max(slope, STEEP) * HORIZON_ROW)
        reached = (y + 0.5) / h > HORIZON_ROW
        return Ground(level, min(0.0, HORIZON_D), np.zeros((h, w), bool), reached, False)
    above = _residual(plane, points).reshape(h, w)
    # A wall that crosses the plane is not ground: depth has to rise along the rows there.
    reach = max(1, round(RISE_ROWS * h))
    padded = np.pad(small, ((reach, reach), (0, 0)), mode="edge")
    climbs = (padded[2 * reach :] - padded[: -2 * reach]) * h / (2 * reach) > RISE * plane.b
    seen = (np.abs(above) < 2 * plane.tolerance) & climbs
    rows = np.nonzero(seen.any(axis=1))[0]
    hidden = (above > 0) & (y >= (rows[0] if len(rows) else h))  # by something nearer
    return Ground(plane, plane.horizon(planes, points, depth_01.shape), seen, hull(seen) | hidden, True)


def _hypotheses(points: np.ndarray, size: tuple[int, int], feet: np.ndarray) -> np.ndarray:
    """Planes (p, 3) through three points that lie close together, some of them around the feet (m, 3)."""
    (h, w), rng = size, np.random.default_rng(0)
    first = np.stack([rng.integers(0, h, HYPOTHESES), rng.integers(0, w, HYPOTHESES)])
    reach = np.array([max(2, round(REACH * h)), max(2, round(REACH * w))])
    corners = [first]
    for _ in range(2):
        step = rng.integers(-reach[:, None], reach[:, None] + 1, (2, HYPOTHESES))
        corners.append(np.clip(first + step, 0, [[h - 1], [w - 1]]))
    near = np.repeat(feet[:, 1::-1] * (h, w), PER_FOOT, axis=0).T  # (2, m * PER_FOOT)
    around = [near + rng.uniform(-1, 1, near.shape) * reach[:, None] for _ in range(3)]
    around = [np.clip(corner, 0, [[h - 1], [w - 1]]).astype(int) for corner in around]
    corners = [np.concatenate(pair, axis=1) for pair in zip(corners, around, strict=True)]
    three = np.stack([points[row * w + column] for row, column in corners], axis=1)  # (p, 3, 3)
    system = np.concatenate([three[:, :, :2], np.ones((len(three), 3, 1))], axis=2)
    usable = np.abs(np.linalg.det(system)) > 1e-4
    return np.linalg.solve(system[usable], three[usable][:, :, 2:])[:, :, 0]


def _ground_score(planes: np.ndarray, points: np.ndarray, feet: np.ndarray) -> np.ndarray:
    """How much speaks for planes (p, 3) as the ground: points on them, feet on them, little below them."""
    above = _residuals(planes, points)
    loose = TOLERANCE * np.maximum(1.0, planes[:, 1:2] / BENDING)  # (p, 1)
    # The map ends at its nearest value; ground that would be nearer is not seen as a hole.
    beyond = points[:, 2] > points[:, 2].max() - TOLERANCE
    below = ((above < -2 * loose) & ~beyond).mean(axis=1)
    low = 2 * points[:, 1]  # the lower half of an image shows more ground
    area = ((np.abs(above) < loose) * low).mean(axis=1)
    standing = np.zeros(len(planes))
    if len(feet):  # then a wall is no better for being large
        standing = np.clip(1 - np.abs(_residuals(planes, feet)) / (4 * loose), 0, 1).mean(axis=1)
        area = np.minimum(area, ENOUGH) + 0.1 * area
    alone = (planes[:, 1] > STEEPEST) & (len(feet) * standing < 1.2)
    area = np.where(alone, area - 1, area)
    return area + FEET * standing - (3 - 2 * standing) * np.maximum(below - BELOW, 0)


def _residuals(planes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Depth of points above planes (p, k)."""
    return points[:, 2] - (planes[:, :2] @ points[:, :2].T + planes[:, 2:])


def _residual(plane: Plane, points: np.ndarray) -> np.ndarray:
    """Depth of points above a plane (k,)."""
    return points[:, 2] - np.asarray(plane.at(points[:, 0], points[:, 1]))


def _refined(plane: Plane, points: np.ndarray) -> Plane:
    """Least squares over the points on the plane."""
    for _ in range(3):
        on = np.abs(_residual(plane, points)) < plane.tolerance
        if on.sum() < 12:
            break
        system = np.column_stack([points[on, :2], np.ones(int(on.sum()))])
        a, b, c = np.linalg.lstsq(system, points[on, 2], rcond=None)[0]
        plane = Plane(float(a), float(b), float(c))
    return plane


def hull(seen: np.ndarray) -> np.ndarray:
    """Convex hull of the main pieces of a mask (h, w)."""
    _, pieces, table, _ = cv2.connectedComponentsWithStats(seen.astype(np.uint8), connectivity=4)
    large = table[:, cv2.CC_STAT_AREA] > PIECE * seen.size
    large[0] = False  # piece 0 is what is not set
    rows, columns = np.nonzero(large[pieces])
    filled = np.zeros(seen.shape, np.uint8)
    if len(rows) >= 3:
        outline = cv2.convexHull(np.column_stack([columns, rows]).astype(np.int32))
        cv2.fillConvexPoly(filled, outline, 1)
    return filled.astype(bool)
