"""The ground of an image from its depth map: the plane, its horizon, and where it can be seen.

Inverse depth is affine in the image coordinates of a plane, so a plane is three numbers:
d(x, y) = a x + b y + c with x, y in fractions of the image. Relative inverse depth d = (1/z - low) / range
hides where 1/z = 0 lies; that value of d, `horizon_d`, is what sizes need: an object of fixed size covers a
width proportional to d - horizon_d. It follows from a wall, because walls and ground are at right angles.

Legend: h w pixels of the depth map, k points, p planes.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ldm.images import resize

# All are chosen, by looking at the planes of rendered rooms and photographs.
WORKING_SIDE = 96  # pixels of the longer side; planes need no more
HYPOTHESES = 500  # planes tried
REACH = 0.14  # largest distance of the three points of a hypothesis, fraction of the image
TOLERANCE = 0.012  # depth; points on a plane lie within it
STEEP = 0.15  # least gain of depth per image height of a plane that can be ground
SPARSE = 5  # every so many points are enough to choose among planes
PIECE = 0.004  # of a mask; smaller pieces do not count
BELOW = 0.02  # fraction of points that may lie below the ground
LEAST_AREA = 0.03  # of the image that a plane must cover
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

    def height_of(self, x: Any, d: Any) -> Any:
        """The y at which the plane has depth d."""
        return (d - self.c - self.a * x) / self.b

    def raised(self, factor: float, horizon_d: float) -> "Plane":
        """The parallel plane whose distance to the camera is 1 / factor of this one's."""
        shift = horizon_d - factor * horizon_d
        return Plane(self.a * factor, self.b * factor, self.c * factor + shift)


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


def fit_ground(depth_01: np.ndarray) -> Ground:
    """Find the ground of a depth map (h, w), 1 = nearest; the same map gives the same answer.

    Where no plane fits, a level ground is assumed: farthest in the middle of the image, nearest at its
    lower edge.
    """
    scale = min(1.0, WORKING_SIDE / max(depth_01.shape))
    h, w = (max(8, round(side * scale)) for side in depth_01.shape)
    small = resize(depth_01.astype(np.float32), (h, w), how="nearest")
    y, x = np.mgrid[0:h, 0:w]
    points = np.stack([(x + 0.5) / w, (y + 0.5) / h, small], axis=-1).reshape(-1, 3).astype(np.float64)
    # Planes (p, 3) through three points that lie close together.
    rng = np.random.default_rng(0)
    first = np.stack([rng.integers(0, h, HYPOTHESES), rng.integers(0, w, HYPOTHESES)])
    reach = np.array([max(2, round(REACH * h)), max(2, round(REACH * w))])
    corners = [first]
    for _ in range(2):
        step = rng.integers(-reach[:, None], reach[:, None] + 1, (2, HYPOTHESES))
        corners.append(np.clip(first + step, 0, [[h - 1], [w - 1]]))
    three = np.stack([points[row * w + column] for row, column in corners], axis=1)  # (p, 3, 3)
    system = np.concatenate([three[:, :, :2], np.ones((HYPOTHESES, 3, 1))], axis=2)
    usable = np.abs(np.linalg.det(system)) > 1e-4
    planes = np.linalg.solve(system[usable], three[usable][:, :, 2:])[:, :, 0]
    # The ground has the most points among those that rise towards the viewer and have nothing below.
    rising = planes[(planes[:, 1] > STEEP) & (np.abs(planes[:, 0]) < planes[:, 1])]
    above = _residuals(rising, points[::SPARSE])
    below = (above < -2 * TOLERANCE).mean(axis=1)
    score = (np.abs(above) < TOLERANCE).mean(axis=1) - 3 * np.maximum(below - BELOW, 0)
    if not (score > LEAST_AREA).any():
        level = Plane(0.0, 2 * (1 - float(small.min())), float(small.min()) * 2 - 1)
        return Ground(level, min(0.0, HORIZON_D), np.zeros((h, w), bool), np.ones((h, w), bool), False)
    plane = _refined(Plane(*map(float, rising[int(np.argmax(score))])), points)
    seen = np.abs(_residual(plane, points)).reshape(h, w) < 2 * TOLERANCE
    horizon_d = _horizon(plane, planes, points, depth_01.shape)
    return Ground(plane, horizon_d, seen, hull(seen), True)


def _residuals(planes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Depth of points above planes (p, k)."""
    return points[:, 2] - (planes[:, :2] @ points[:, :2].T + planes[:, 2:])


def _residual(plane: Plane, points: np.ndarray) -> np.ndarray:
    """Depth of points above a plane (k,)."""
    return points[:, 2] - np.asarray(plane.at(points[:, 0], points[:, 1]))


def _refined(plane: Plane, points: np.ndarray) -> Plane:
    """Least squares over the points on the plane."""
    for _ in range(3):
        on = np.abs(_residual(plane, points)) < TOLERANCE
        if on.sum() < 12:
            break
        system = np.column_stack([points[on, :2], np.ones(int(on.sum()))])
        a, b, c = np.linalg.lstsq(system, points[on, 2], rcond=None)[0]
        plane = Plane(float(a), float(b), float(c))
    return plane


def _horizon(ground: Plane, planes: np.ndarray, points: np.ndarray, size_hw: tuple[int, ...]) -> float:
    """Depth at infinity: the value that makes the largest wall upright on the ground."""
    rest = points[_residual(ground, points) > 3 * TOLERANCE]
    rest = rest[rest[:, 1] < np.quantile(points[:, 1], 0.7)]
    walls = planes[planes[:, 1] < 0.5 * ground.b]
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
    near, far = float(ground.at(0.5, 0.5)), float(wall.at(0.5, 0.5))
    slope = ground.a * wall.a / (4 * half_x**2) + ground.b * wall.b / (4 * half_y**2)
    roots = np.roots([1.0, -(near + far), near * far + slope])
    real = [float(root.real) for root in roots if abs(root.imag) < 1e-6]
    fitting = [min(0.0, root) for root in real if FARTHEST_HORIZON <= root <= 0.02]
    return min(fitting, key=lambda value: abs(value - HORIZON_D)) if fitting else HORIZON_D


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
