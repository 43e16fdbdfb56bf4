"""What is behind an erased object in depth: the planes of its surroundings, continued.

Inverse depth is affine in the image coordinates of a plane. Where floor and wall meet, the
nearer one is seen (the larger inverse depth); where one ends in front of the other, as at a table,
it is the lesser of both. What is nearer than the object hides it, and says nothing of what is behind; that is
never nearer than the object. Legend: h w pixels, k points round the hole, p planes.
"""

from collections.abc import Callable
from itertools import combinations

import cv2
import numpy as np

from datasets.fusion import fill_depth

# All are chosen, by looking at rendered rooms.
REACH = 0.5  # width of the ring round the hole, over the square root of the hole's area
POINTS = 1500  # of the ring, at most
HYPOTHESES = 400  # planes tried, each through three points
TOLERANCE = 0.012  # depth; points on a plane lie within it
PLANES = 3  # at most
OWN = 0.75  # quantile of the depth in the region: the object's near side; the best of five on rendered rooms
FEW = 0.02  # of the ring; with less that is not nearer than the region that shows no object
LEAST = 0.12  # of the ring that a plane must explain
ENOUGH = 0.7  # of the ring that all planes together must explain, or rows are interpolated


Behind = tuple[np.ndarray, np.ndarray, Callable[..., np.ndarray]]  # of `planes_behind`


def in_front(depth_01: np.ndarray, region: np.ndarray) -> np.ndarray:
    """(h, w) bool: what is nearer than the object that stands in region (h, w) bool."""
    return (depth_01 > np.quantile(depth_01[region], OWN) + TOLERANCE) & ~region


def planes_behind(depth_01: np.ndarray, region: np.ndarray) -> Behind:
    """Depth (h, w) without what stands in region (h, w) bool, float32, elsewhere as given; the planes (p, 3)
    behind the region; and np.max or np.min, which of their depths a x + b y + c (x and y in fractions of the
    image) is seen. Where the surroundings are no planes there is none: rows are interpolated (`fill_depth`).
    """
    if not region.any() or region.all():
        return depth_01, np.empty((0, 3)), np.max
    reach = max(3, round(REACH * np.sqrt(region.sum())))
    away = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 3)
    ring = (away > 0) & (away <= reach)
    front = in_front(depth_01, region)
    if (ring & front).sum() > (1 - FEW) * ring.sum():  # as of a niche
        front, most_01 = np.zeros_like(region), np.ones_like(depth_01)
    else:
        most_01 = depth_01
    y, x = np.nonzero(ring & ~front)
    chosen = np.linspace(0, len(y) - 1, min(POINTS, len(y))).astype(int)
    h, w = depth_01.shape
    points = np.column_stack([x[chosen] / w, y[chosen] / h, np.ones(len(chosen))])  # (k, 3)
    values = depth_01[y[chosen], x[chosen]].astype(np.float64)
    # Planes (p, 3) by RANSAC (Fischler and Bolles 1981), one after the other, the largest first.
    rng, left, found = np.random.default_rng(0), np.ones(len(values), bool), list[np.ndarray]()
    while len(found) < PLANES and left.sum() >= max(3, LEAST * len(values)):
        rest, depth = points[left], values[left]
        triples = rng.integers(len(rest), size=(HYPOTHESES, 3))
        corners = rest[triples]  # (n, 3, 3)
        wide = abs(np.linalg.det(corners)) > 1e-5
        if not wide.any():
            break
        tried = np.linalg.solve(corners[wide], depth[triples[wide]][..., None])[..., 0]  # (n, 3)
        counts = (abs(tried @ rest.T - depth) < TOLERANCE).sum(axis=1)
        inside = abs(rest @ tried[counts.argmax()] - depth) < TOLERANCE
        if counts.max() < max(3, LEAST * len(values)):
            break
        found.append(np.linalg.lstsq(rest[inside], depth[inside], rcond=None)[0])
        left[np.flatnonzero(left)[abs(rest @ found[-1] - depth) < 2 * TOLERANCE]] = False
    planes = np.array(found).reshape(-1, 3)
    seen = points @ planes.T  # (k, p)
    sets = [list(each) for size in (1, 2, 3) for each in combinations(range(len(planes)), size)]
    ways = [(each, join) for each in sets for join in (np.max, np.min)]
    losses = [np.minimum(abs(join(seen[:, each], axis=1) - values), TOLERANCE).mean() for each, join in ways]
    if not ways or min(losses) > (1 - ENOUGH) * TOLERANCE:
        rows = np.minimum(fill_depth(depth_01, region | front), most_01)
        return np.where(region, rows, depth_01), np.empty((0, 3)), np.max
    each, join = ways[int(np.argmin(losses))]
    grid = np.stack(np.broadcast_arrays(np.arange(w) / w, np.arange(h)[:, None] / h, 1.0), axis=-1)
    model = join(grid @ planes[each].T, axis=-1)
    # What little the planes leave at the border of the hole is carried across it, so that no step is seen.
    steps = fill_depth(np.clip(depth_01 - model, -TOLERANCE, TOLERANCE), region | front)
    filled = np.clip(np.minimum(model + steps, most_01), 0, 1).astype(np.float32)
    return np.where(region, filled, depth_01.astype(np.float32, copy=False)), planes[each], join
