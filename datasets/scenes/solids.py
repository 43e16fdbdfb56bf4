"""Canonical solids: where a ray enters and leaves them, and their normal.

Every solid lives in its own frame, in which it has one fixed form (unit sphere, cube [-1, 1]^3, ...); rays
are moved there. All solids but the torus are convex, so a ray meets them in one interval [enter, leave]; an
empty interval (enter > leave) is a miss. Vectors are component-first: o, d, q: (3, n); t, param: (n,).
"""

import numpy as np
import torch
from torch import Tensor

FAR = 1e9  # depth of a miss
TORUS_STEPS = 24  # samples of a ray within a ring; chosen: no visible gaps
TORUS_SECANTS = 4  # refinements of its first hit
BEVEL = 0.06  # edges whose normal is rounded, as a fraction of the half extent; chosen by eye

Interval = tuple[Tensor, Tensor]


def support(kind: str, d: np.ndarray, param: float) -> np.ndarray:
    """Largest <q, d> over the canonical solid, for local directions d (k, 3) of any length -> (k,)."""
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


def _torus(o: Tensor, d: Tensor, tube: Tensor) -> Interval:
    """Ring of radius 1 about z with the given tube radius (n,).

    The distance to the surface is sampled along the ray within the ring's flat cylinder; the first step that
    ends inside holds the entry, refined by secants. Only a chord shorter than a step can be missed.
    """
    start, stop = _both(_ball(o[:2], d[:2], 1 + tube), _slab(o[2], d[2], -tube, tube))
    outside = (start > stop) | (stop < 0)
    low = torch.where(outside, 0.0, start.clamp(min=0))
    step = torch.where(outside, 0.0, stop - low) / TORUS_STEPS
    ladder = torch.arange(1.0, TORUS_STEPS + 1, device=o.device)[:, None]
    within = _ring_gap(o[:, None], d[:, None], low + ladder * step, tube) < 0  # (steps, n)
    reached = torch.where(within, ladder, FAR).amin(0)
    met = (reached < FAR) & ~outside
    high = low + torch.where(met, reached, 1.0) * step
    low = high - step
    gap_low, gap_high = _ring_gap(o, d, low, tube), _ring_gap(o, d, high, tube)
    for _ in range(TORUS_SECANTS):
        t = low + (high - low) * (gap_low / (gap_low - gap_high).clamp(min=1e-6)).clamp(0.02, 0.98)
        gap = _ring_gap(o, d, t, tube)
        low, gap_low = torch.where(gap > 0, t, low), torch.where(gap > 0, gap, gap_low)
        high, gap_high = torch.where(gap > 0, high, t), torch.where(gap > 0, gap_high, gap)
    return torch.where(met, high, FAR), torch.where(met, stop, -FAR)


def _ring_gap(o: Tensor, d: Tensor, t: Tensor, tube: Tensor) -> Tensor:
    """Distance of o + t d from the ring's surface, negative inside."""
    x, y, z = o + t * d
    return (((x * x + y * y).sqrt() - 1).square() + z * z).sqrt() - tube


def meet(kind: str, o: Tensor, d: Tensor, param: Tensor) -> Interval:
    """Interval of t in which o + t d is inside the canonical solid (torus: from its first hit)."""
    if kind == "ellipsoid":
        return _ball(o, d)
    if kind == "cylinder":
        return _both(_ball(o[:2], d[:2]), _slab(o[2], d[2], -1.0, 1.0))
    if kind == "cone":
        return _cone(o, d)
    if kind == "torus":
        return _torus(o, d, param)
    if kind == "capsule":
        lift = torch.stack([torch.zeros_like(param), torch.zeros_like(param), param])
        side = _both(_ball(o[:2], d[:2]), _slab(o[2], d[2], -param, param))
        return _either(_either(_ball(o - lift, d), _ball(o + lift, d)), side)
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
