"""Which surface each ray meets, and what stands between a point and the lamp.

Rays are a flat list over all packed views. Ray directions are scaled so that the ray parameter t *is* the
depth along the camera axis. Legend: n rays, p part slots per view, j lamp samples, component first.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.scenes.pack import PackedViews, Parts
from datasets.scenes.palette import KINDS
from datasets.scenes.solids import FAR, meet

NOTHING = -9  # slot of a ray that meets no surface
NEAREST = 0.05  # metres; nothing is closer to the camera
GOLDEN_ANGLE = math.pi * (3 - 5**0.5)
LAMP_SAMPLES = tuple(  # a sunflower on the unit disc: as many levels of soft shadow
    (radius * math.cos(GOLDEN_ANGLE * i), radius * math.sin(GOLDEN_ANGLE * i))
    for i, radius in enumerate(math.sqrt((i + 0.5) / 8) for i in range(8))
)


@dataclass(frozen=True, eq=False)
class Rays:
    """Primary rays. near: (p, n) bool, the part's projected box covers the ray's pixel."""

    packed: PackedViews
    view: Tensor  # (n,) column of the views
    direction: Tensor  # (3, n)
    near: Tensor
    footprint: Tensor  # (n,) or (1,) width of a ray at depth 1, metres

    def at(self, table: Tensor) -> Tensor:
        """Columns of table (..., b) for each ray: (..., n), or (..., 1) when there is one view only."""
        return table if self.packed.count == 1 else table.index_select(-1, self.view)

    def of_slot(self, table: Tensor, slot: int) -> Tensor:
        """Columns of table (..., b * p), an entry of Parts, at one slot of each ray's view."""
        if self.packed.count == 1:
            return table[..., slot : slot + 1]
        columns = torch.arange(self.packed.count, device=self.view.device) * self.packed.slots + slot
        return self.at(table[..., columns])

    def subset(self, index: Tensor) -> "Rays":
        footprint = self.footprint[index] if self.footprint.numel() > 1 else self.footprint
        return Rays(self.packed, self.view[index], self.direction[:, index], self.near[:, index], footprint)


@dataclass(frozen=True, eq=False)
class Hit:
    slot: Tensor  # (n,) part slot, or -1 floor, -2 back, -3 left, -4 right wall, -5 ceiling, NOTHING
    depth: Tensor  # (n,)


def covers(packed: PackedViews, size: tuple[int, int]) -> Tensor:
    """(p, b * h * w) bool: the projected box of each part, one pixel wider on each side, covers the pixel."""
    h, w = size
    x0, y0, x1, y1 = packed.window[:, :, None]  # (b, 1)
    box = packed.parts.box.view(4, packed.count, packed.slots)
    bx0, bx1 = ((box[i] - x0) / (x1 - x0) * w for i in (0, 2))  # (b, p) in pixels of the window
    by0, by1 = ((box[i] - y0) / (y1 - y0) * h for i in (1, 3))
    x, y = torch.arange(w, device=box.device), torch.arange(h, device=box.device)
    columns = (x + 2 > bx0[..., None]) & (x - 1 < bx1[..., None])  # (b, p, w)
    rows = (y + 2 > by0[..., None]) & (y - 1 < by1[..., None])
    covered = rows[..., :, None] & columns[..., None, :]  # (b, p, h, w)
    return covered.transpose(0, 1).reshape(packed.slots, -1)


def pixel_rays(
    packed: PackedViews,
    size: tuple[int, int],
    near: Tensor,
    pixel: Tensor,
    offset: tuple[float, float] | Tensor,
    scale: float = 1.0,
) -> Rays:
    """Rays through flat pixels (n,) of the b * h * w grid. near: (p, n) bool, `covers` of these pixels;
    offset: from their centres, in [-0.5, 0.5], (x, y) or a tensor (2, n); scale: width in pixels.
    """
    h, w = size
    view, inside = pixel // (h * w), pixel % (h * w)
    fx, fy = (inside % w + 0.5 + offset[0]) / w, (inside // w + 0.5 + offset[1]) / h
    rays = Rays(packed, view, view, near, view)
    x0, y0, x1, y1 = rays.at(packed.window)
    sx, sy = 2 * (x0 + fx * (x1 - x0)) - 1, 1 - 2 * (y0 + fy * (y1 - y0))
    right = rays.at(packed.right)
    direction = rays.at(packed.forward) + sx * right + sy * rays.at(packed.up)
    width = 2 * right.square().sum(0).sqrt() * (x1 - x0) / w * scale
    return replace(rays, direction=direction, footprint=width)


def by_kind(packed: PackedViews, part: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Split (ray, part) pairs by the part's kind."""
    kinds = packed.parts.kind[part]
    for index in packed.kinds:
        chosen = (kinds == index).nonzero().squeeze(1)
        if chosen.numel():
            yield KINDS[index], chosen


def to_part(parts: Parts, part: Tensor, vector: Tensor) -> Tensor:
    """Rotate and scale world vectors (3, n) into the frames of parts (n,)."""
    m = parts.matrix.index_select(1, part)
    x, y, z = vector
    return torch.stack([m[3 * i] * x + m[3 * i + 1] * y + m[3 * i + 2] * z for i in range(3)])


def _meet(
    packed: PackedViews, kind: str, o: Tensor, d: Tensor, part: Tensor, exact: bool = True
) -> tuple[Tensor, Tensor]:
    """`solids.meet` of rays in the frames of parts (n,), through the holes of flat ones."""
    enter, leave = meet(kind, o, d, packed.parts.param[part], exact)
    if kind == "box" and packed.pictures is not None:
        enter = torch.where(packed.picture_at(o + enter * d, part)[3] > 0.5, enter, FAR)
    return enter, leave


def cast_parts(rays: Rays) -> Tensor:
    """Depth (p, n) at which each ray enters each part, FAR where it does not: amodal ground truth."""
    slot, ray = rays.near.nonzero().unbind(1)
    parts, part = rays.packed.parts, rays.view[ray] * rays.packed.slots + slot
    depth = torch.full(rays.near.shape, FAR, device=ray.device)
    count = rays.near.shape[1]
    for kind, chosen in by_kind(rays.packed, part):
        its_part, its_ray = part[chosen], ray[chosen]
        direction = to_part(parts, its_part, rays.direction.index_select(1, its_ray))
        enter, leave = _meet(rays.packed, kind, parts.eye.index_select(1, its_part), direction, its_part)
        met = (enter < leave) & (enter > NEAREST)
        depth.view(-1)[slot[chosen] * count + its_ray] = torch.where(met, enter, FAR)
    return depth


def cast_room(rays: Rays) -> Hit:
    """Floor or wall behind everything; nothing when the views have no room."""
    room = rays.packed.room
    if room is None:
        return Hit(torch.full_like(rays.view, NOTHING), rays.direction.new_full(rays.view.shape, FAR))
    origin = rays.at(rays.packed.origin)
    dx, dy, dz = rays.direction
    sides = (rays.at(room[name]) - origin[0] for name in ("left", "right"))
    walls = [-origin[2] / dz, (rays.at(room["back"]) - origin[1]) / dy, *(side / dx for side in sides)]
    if rays.packed.open:  # walls of some height or none, at times a ceiling
        high = rays.at(room["height"])
        walls[1:] = [torch.where(origin[2] + t * dz < high, t, FAR) for t in walls[1:]]
        walls.append((rays.at(room["ceiling"]) - origin[2]) / dz)
    nearest = torch.stack([torch.where(t > NEAREST, t, FAR) for t in walls]).min(0)
    slot = -1 - nearest.indices
    if rays.packed.open:
        slot = torch.where(nearest.values < FAR, slot, NOTHING)
    return Hit(slot, nearest.values)


def first(depth: Tensor, behind: Hit) -> Hit:
    """The nearest of the parts (p, n) and of the room."""
    nearest = depth.min(0)
    solid = nearest.values < behind.depth
    slot = torch.where(solid, nearest.indices, behind.slot)
    return Hit(slot, torch.where(solid, nearest.values, behind.depth))


def shadows(rays: Rays, point: Tensor, facing: Tensor) -> tuple[Tensor, Tensor]:
    """Fraction (n,) of the lamp that each point sees, in the full scene and without the hidden solid. Points
    (3, n) lie a little above the surface; facing: (n,) bool, it looks towards the lamp.
    """
    n, device = point.shape[1], point.device
    parts, light = rays.packed.parts, rays.packed.light
    way, radius = rays.at(light["origin"]) - point, rays.at(light["radius"])
    length = way.square().sum(0).sqrt()
    # The parts whose bounding sphere may hide some of the lamp from a point, (p, n).
    toward, between = way / length, []
    for number in range(rays.packed.slots):
        bound = rays.of_slot(parts.bound, number)
        offset = rays.of_slot(parts.centre, number) - point
        along = (offset * toward).sum(0)
        beside = offset.square().sum(0) - along.square()
        reach = bound + radius * ((along + bound) / length).clamp(0, 1)
        between.append((beside < reach.square()) & (along > -bound) & (along < length + bound) & facing)
    slot, ray = torch.stack(between).nonzero().unbind(1)
    blocked = torch.zeros(2, len(LAMP_SAMPLES), n, dtype=torch.bool, device=device)
    part = rays.view[ray] * rays.packed.slots + slot
    disc = torch.tensor(LAMP_SAMPLES, device=device).T  # (2, j)
    for kind, chosen in by_kind(rays.packed, part):
        its_part, its_ray = part[chosen], ray[chosen]
        offset = point.index_select(1, its_ray) - parts.centre.index_select(1, its_part)
        origin = to_part(parts, its_part, offset)
        goal = to_part(parts, its_part, way.index_select(1, its_ray))
        # The lamp's samples, a level disc, in the frames of the parts.
        m = parts.matrix.index_select(1, its_part) * radius.expand(n)[its_ray]
        offsets = [m[3 * i] * disc[0, :, None] + m[3 * i + 1] * disc[1, :, None] for i in range(3)]
        aim = goal[:, None] + torch.stack(offsets)  # (3, j, m)
        wide = origin[:, None].expand_as(aim).reshape(3, -1)
        pairs = its_part.repeat(disc.shape[1])
        enter, leave = _meet(rays.packed, kind, wide, aim.reshape(3, -1), pairs, exact=False)
        stopped = ((enter < leave) & (leave > 0) & (enter < 1)).view(disc.shape[1], -1)
        sample, pair = stopped.nonzero().unbind(1)
        blocked[0, sample, its_ray[pair]] = True
        lasting = ~parts.hidden[its_part[pair]]
        blocked[1, sample[lasting], its_ray[pair[lasting]]] = True
    seen = 1 - blocked.float().mean(1)
    return seen[0], seen[1]
