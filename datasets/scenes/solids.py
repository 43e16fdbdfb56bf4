"""Canonical solids: where a ray enters and leaves them, and their normal.

Every solid lives in its own frame, in which it has one fixed form (unit sphere, cube [-1, 1]^3, ...); rays
are moved there. A convex solid is met in one interval [enter, leave]; torus, lathe, extrusion and blob from
the first hit, found by steps along the ray, to the end of their bounds. An empty interval (enter > leave)
is a miss. Vectors are component-first: o, d, q: (3, n); t, param: (n,).
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

FAR = 1e9  # depth of a miss
# Samples of a ray within the bounds of a solid; chosen: no visible gaps.
STEPS = {"torus": 24, "lathe": 12, "extrusion": 14, "blob": 10}
SECANTS = {"torus": 4, "lathe": 10, "extrusion": 10, "blob": 6}  # refinements of its first hit
BEVEL = 0.06  # edges whose normal is rounded, as a fraction of the half extent; chosen by eye
MARCHED = ("lathe", "extrusion", "blob")  # their surface is zero of `_gap`; the parameter is their form

Interval = tuple[Tensor, Tensor]


def support(kind: str, d: np.ndarray, param: float) -> np.ndarray:
    """Largest <q, d> over the canonical solid, for local directions d (k, 3) of any length -> (k,)."""
    if kind in MARCHED:
        return (np.asarray(d, np.float64) @ surface_points(kind, param).T).max(1)
    x, y, z = np.asarray(d, np.float64).T
    flat, length = np.hypot(x, y), np.sqrt(x * x + y * y + z * z)
    reaches = {
        "ellipsoid": length, "box": abs(x) + abs(y) + abs(z), "cylinder": flat + abs(z),
        "prism": flat + abs(z), "cone": np.maximum(z, flat - z), "torus": flat + param * length,
        "capsule": param * abs(z) + length, "pyramid": np.maximum(z, abs(x) + abs(y) - z),
        "dome": np.hypot(flat, np.maximum(z, 0.0))}  # fmt: skip
    return reaches[kind]


def half_extent(kind: str, param: float) -> tuple[float, float, float]:
    """Half sides of the box around the canonical solid, centred on its origin."""
    if kind == "torus":
        return (1 + param, 1 + param, param)
    return (1.0, 1.0, 1.0 + param) if kind == "capsule" else (1.0, 1.0, 1.0)


def _safe(d: Tensor) -> Tensor:
    return torch.where(d.abs() < 1e-9, torch.full_like(d, 1e-9), d)


def _slab(o: Tensor, d: Tensor, low: Tensor | float, high: Tensor | float) -> Interval:
    """low <= o + t d <= high for one coordinate (n,)."""
    inverse = 1 / _safe(d)
    a, b = (low - o) * inverse, (high - o) * inverse
    return torch.minimum(a, b), torch.maximum(a, b)


def _ball(o: Tensor, d: Tensor, radius: Tensor | float = 1.0) -> Interval:
    """|o + t d| <= radius, in any number of coordinates: sphere (3, n) or endless cylinder (2, n)."""
    a = (d * d).sum(0).clamp(min=1e-12)
    middle = -(o * d).sum(0) / a
    nearest = o + middle * d
    room = (radius * radius - (nearest * nearest).sum(0)) / a
    half, missed = room.clamp(min=0).sqrt(), room < 0
    return torch.where(missed, FAR, middle - half), torch.where(missed, -FAR, middle + half)


def _both(a: Interval, b: Interval) -> Interval:
    return torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])


def _tube(o: Tensor, d: Tensor, radius: Tensor | float = 1.0, half: Tensor | float = 1.0) -> Interval:
    return _both(_ball(o[:2], d[:2], radius), _slab(o[2], d[2], -half, half))


def _either(a: Interval, b: Interval) -> Interval:
    """Hull of two overlapping intervals; an empty one does not count."""
    gone_a, gone_b = a[0] > a[1], b[0] > b[1]
    start = torch.minimum(torch.where(gone_a, FAR, a[0]), torch.where(gone_b, FAR, b[0]))
    return start, torch.maximum(torch.where(gone_a, -FAR, a[1]), torch.where(gone_b, -FAR, b[1]))


def _cone(o: Tensor, d: Tensor) -> Interval:
    """x^2 + y^2 <= w^2 with w = (1 - z) / 2 in [0, 1]: apex at z = 1, base radius 1 at z = -1."""
    ow, dw = (1 - o[2]) / 2, -d[2] / 2
    a = _safe(d[0] ** 2 + d[1] ** 2 - dw**2)
    b, c = o[0] * d[0] + o[1] * d[1] - ow * dw, o[0] ** 2 + o[1] ** 2 - ow**2
    room = b * b - a * c
    root = room.clamp(min=0).sqrt()
    first, second = (-b - root) / a, (-b + root) / a
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    steep, down = a < 0, dw > 0  # a steep ray is inside one nappe before `low` and in the other after `high`
    enter = torch.where(steep, torch.where(down, high, -FAR), torch.where(room < 0, FAR, low))
    leave = torch.where(steep, torch.where(down, FAR, low), torch.where(room < 0, -FAR, high))
    return _both((enter, leave), _slab(o[2], d[2], -1.0, 1.0))


def _march(kind: str, o: Tensor, d: Tensor, param: Tensor, bounds: Interval, exact: bool) -> Interval:
    """From the first hit of a solid that is not convex to the end of its bounds.

    The distance to the surface is sampled along the ray within the bounds; the first step that ends inside
    holds the entry, refined by secants. Only a chord shorter than a step can be missed.
    """
    start, stop = bounds
    outside = (start > stop) | (stop < 0)
    low = torch.where(outside, 0.0, start.clamp(min=0))
    step = torch.where(outside, 0.0, stop - low) / STEPS[kind]
    ladder = torch.arange(1.0, STEPS[kind] + 1, device=o.device)[:, None]
    within = _gap(kind, o[:, None] + (low + ladder * step) * d[:, None], param) < 0  # (steps, n)
    reached = torch.where(within, ladder, FAR).amin(0)
    met = (reached < FAR) & ~outside
    high = low + torch.where(met, reached, 1.0) * step
    low = high - step
    if not exact and not (met & (low < 1) & (high >= 1)).any():
        return torch.where(met, low, FAR), torch.where(met, stop, -FAR)
    gap_low, gap_high = _gap(kind, o + low * d, param), _gap(kind, o + high * d, param)
    for turn in range(SECANTS[kind]):
        part = (gap_low / (gap_low - gap_high).clamp(min=1e-6)).clamp(0.02, 0.98)
        t = low + (high - low) * (part if kind == "torus" or turn % 2 else 0.5)  # edges stop pure secants
        gap = _gap(kind, o + t * d, param)
        low, gap_low = torch.where(gap > 0, t, low), torch.where(gap > 0, gap, gap_low)
        high, gap_high = torch.where(gap > 0, high, t), torch.where(gap > 0, gap_high, gap)
    return torch.where(met, high, FAR), torch.where(met, stop, -FAR)


def _gap(kind: str, q: Tensor, param: Tensor) -> Tensor:
    """About the distance of q (3, ...) from the surface, negative inside."""
    x, y, z = q
    if kind == "blob":
        length = (x * x + y * y + z * z).sqrt().clamp(min=1e-6)
        return length - _radius(kind, q / length, param)
    ring = (x * x + y * y).sqrt()
    if kind == "torus":
        return ((ring - 1).square() + z * z).sqrt() - param
    return torch.maximum(ring - _radius(kind, q, param), z.abs() - 1)


def _radius(kind: str, q: Tensor, param: Tensor) -> Tensor:
    """Radius in (0, 1) of a form: a lathe's at its height, an extrusion's in its direction around z, a
    blob's in the unit direction q. The numbers are chosen for variety.
    """
    x, y, z = q
    first, second = (param * 0.37).frac(), (param * 0.71).frac()
    if kind == "lathe":
        waves = 0.26 * ((1.5 + 2.5 * first) * z + 1.7 * param).sin()
        return 0.56 + waves + 0.16 * ((3 + 3 * second) * z + 3.1 * param).sin()
    if kind == "extrusion":
        lobes = 2 + (5 * first).floor()
        return 0.78 + (0.06 + 0.15 * second) * (lobes * torch.atan2(y, x)).sin()
    bumps = (2.5 * x + param).sin() + (2.7 * y + 1.7 * param).sin() + (2.3 * z + 2.9 * param).sin()
    return 0.64 + 0.115 * bumps


@lru_cache(maxsize=256)
def surface_points(kind: str, param: float) -> np.ndarray:
    """Points (k, 3) of a `MARCHED` surface whose hull is the solid to about one percent."""
    count = {"lathe": (41, 24), "extrusion": (2, 120), "blob": (41, 48)}[kind]
    level = torch.linspace(-1, 1, count[0], dtype=torch.float64)
    turn = torch.arange(count[1], dtype=torch.float64) * (2 * np.pi / count[1])
    z, angle = torch.meshgrid(level, turn, indexing="ij")
    flat = (1 - z * z).clamp(min=0).sqrt() if kind == "blob" else torch.ones_like(z)
    q = torch.stack([angle.cos() * flat, angle.sin() * flat, z])
    radius = _radius(kind, q, torch.tensor(param, dtype=torch.float64))
    points = q * radius if kind == "blob" else torch.stack([q[0] * radius, q[1] * radius, z])
    return points.flatten(1).T.numpy()


def meet(kind: str, o: Tensor, d: Tensor, param: Tensor, exact: bool = True) -> Interval:
    """Interval of t in which o + t d is inside the canonical solid (torus: from its first hit).

    exact: False where only whether it begins before t = 1 matters; where it does may then be wrong.
    """
    if kind == "ellipsoid":
        return _ball(o, d)
    if kind == "cylinder":
        return _tube(o, d)
    if kind == "cone":
        return _cone(o, d)
    if kind == "torus":
        return _march(kind, o, d, param, _tube(o, d, 1 + param, param), exact)
    if kind in MARCHED:
        start, stop = _ball(o, d) if kind == "blob" else _tube(o, d)
        near = ((start <= stop) & (stop >= 0)).nonzero().squeeze(1)
        enter, leave = torch.full_like(start, FAR), torch.full_like(start, -FAR)
        bounds = start[near], stop[near]
        enter[near], leave[near] = _march(kind, o[:, near], d[:, near], param[near], bounds, exact)
        return enter, leave
    if kind == "capsule":
        lift = torch.stack([torch.zeros_like(param), torch.zeros_like(param), param])
        return _either(_either(_ball(o - lift, d), _ball(o + lift, d)), _tube(o, d, half=param))
    if kind == "pyramid":  # half spaces value + t slope <= 0: |x|, |y| <= (1 - z) / 2 and z >= -1
        enter, leave = torch.full_like(o[0], -FAR), torch.full_like(o[0], FAR)
        spaces = [(-1 - o[2], -d[2])]
        for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
            spaces.append((sign * o[axis] + o[2] / 2 - 0.5, sign * d[axis] + d[2] / 2))
        for value, slope in spaces:
            slope = _safe(slope)
            t = -value / slope
            enter = torch.where(slope < 0, torch.maximum(enter, t), enter)
            leave = torch.where(slope > 0, torch.minimum(leave, t), leave)
        return enter, leave
    if kind == "dome":
        return _both(_ball(o, d), _slab(o[2], d[2], 0.0, 2.0))
    interval = _slab(o[2], d[2], -1.0, 1.0)
    sides, half = (BOX_SIDES, 1.0) if kind == "box" else (PRISM_SIDES, PRISM_APOTHEM)
    for cosine, sine in sides:
        across = cosine * o[0] + sine * o[1], cosine * d[0] + sine * d[1]
        interval = _both(interval, _slab(*across, -half, half))
    return interval


PRISM_APOTHEM = 0.75**0.5  # hexagon with corners on the unit circle
BOX_SIDES = ((1.0, 0.0), (0.0, 1.0))
PRISM_SIDES = ((1.0, 0.0), (0.5, PRISM_APOTHEM), (-0.5, PRISM_APOTHEM))


def normal(kind: str, q: Tensor, param: Tensor) -> Tensor:
    """Outward gradient (3, n), of any length, at a point q of the surface; edges are slightly rounded."""
    x, y, z = q
    if kind in MARCHED:
        steps = 0.002 * torch.eye(3, device=q.device)[:, :, None]  # above float32's error, below any curve
        return torch.stack([_gap(kind, q + step, param) - _gap(kind, q - step, param) for step in steps])
    ring = (x * x + y * y).sqrt().clamp(min=1e-6)
    if kind == "ellipsoid":
        return q
    if kind == "box":
        return q.sign() * (q.abs() - 1 + BEVEL).clamp(min=1e-4)
    if kind == "cylinder":
        side, cap = (ring - 1 + BEVEL).clamp(min=1e-4), (z.abs() - 1 + BEVEL).clamp(min=1e-4)
        return torch.stack([x / ring * side, y / ring * side, z.sign() * cap])
    if kind == "torus":
        pull = 1 - 1 / ring
        return torch.stack([x * pull, y * pull, z])
    if kind == "capsule":
        return torch.stack([x, y, z - torch.maximum(torch.minimum(z, param), -param)])
    if kind == "dome":
        return torch.where(z < 0.003, torch.stack([x * 0, y * 0, x * 0 - 1]), q)
    if kind in ("cone", "pyramid"):
        if kind == "cone":
            across, along = x / ring, y / ring
        else:
            first = x.abs() > y.abs()
            across, along = torch.where(first, x.sign(), 0.0), torch.where(first, 0.0, y.sign())
        side = torch.stack([across, along, torch.full_like(z, 0.5)])
        return torch.where(z < -0.997, torch.stack([x * 0, y * 0, x * 0 - 1]), side)
    total = torch.zeros_like(q)
    for cosine, sine in PRISM_SIDES:
        along = cosine * x + sine * y
        push = along.sign() * (along.abs() / PRISM_APOTHEM - 1 + BEVEL).clamp(min=1e-4)
        total[0] += cosine * push
        total[1] += sine * push
    total[2] = z.sign() * (z.abs() - 1 + BEVEL).clamp(min=1e-4)
    return total
