"""Colour and orientation of the surface that each ray meets: patterns of the solids, textures of the room.

Patterns live in the solid's own frame, so they turn with it. Edges of a pattern are as soft as the ray is
wide, which keeps far textures free of aliasing. Legend: n rays, component first.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.scenes.palette import ALL_PATTERNS, FLAT_SIDED, KINDS
from datasets.scenes.room import room_colours
from datasets.scenes.solids import normal
from datasets.scenes.trace import NOTHING, Hit, Rays, by_kind, to_part

ROUND = tuple(kind not in FLAT_SIDED for kind in KINDS)


@dataclass(frozen=True, eq=False)
class Surface:
    """One point per ray. owner: index of the solid, -1 room or nothing."""

    point: Tensor  # (3, n) metres
    normal: Tensor  # (3, n) unit
    albedo: Tensor  # (3, n) linear
    gloss: Tensor  # (n,)
    shine: Tensor  # (n,)
    owner: Tensor  # (n,)
    empty: Tensor  # (n,) bool, the ray meets nothing


def surface_of(rays: Rays, hit: Hit) -> Surface:
    """Everything about the met points that does not depend on light."""
    depth = torch.where(hit.slot == NOTHING, 1.0, hit.depth)
    point = rays.at(rays.packed.origin) + depth * rays.direction
    n, device = depth.numel(), depth.device
    surface = Surface(
        point,
        torch.zeros(3, n, device=device),
        torch.ones(3, n, device=device),
        torch.zeros(n, device=device),
        torch.ones(n, device=device),
        torch.full((n,), -1, device=device),
        hit.slot == NOTHING,
    )
    surface.normal[2] = 1
    if rays.packed.room is not None:
        facing = surface.normal
        facing[0] = (hit.slot == -3).float() - (hit.slot == -4).float()
        facing[1] = -(hit.slot == -2).float()
        facing[2] = (hit.slot == -1).float()
        slant = (facing * rays.direction).sum(0).abs().clamp(min=0.12)
        colour, gloss = room_colours(rays, hit, point, rays.footprint * hit.depth / slant)
        surface.albedo.copy_(colour)
        surface.gloss.copy_(gloss)
        surface.shine.fill_(24.0)
    on_solid = (hit.slot >= 0).nonzero().squeeze(1)
    if on_solid.numel():
        _solid_surface(rays, hit, surface, on_solid)
    return surface


def _solid_surface(rays: Rays, hit: Hit, out: Surface, ray: Tensor) -> None:
    parts = rays.packed.parts
    part = rays.view[ray] * rays.packed.slots + hit.slot[ray]
    q = to_part(parts, part, out.point[:, ray] - parts.centre[:, part])
    gradient = torch.zeros_like(q)
    kinds = parts.kind[part]
    for kind, chosen in by_kind(rays.packed, part):
        gradient[:, chosen] = normal(kind, q[:, chosen], parts.param[part[chosen]])
    footprint = rays.footprint.expand(hit.depth.shape)[ray] * hit.depth[ray] / parts.size[part]
    round_kind = torch.tensor(ROUND, device=ray.device)[kinds]
    torus = kinds == KINDS.index("torus")
    blend = pattern_blend(
        parts.pattern[part],
        q * parts.aspect[:, part],
        gradient,
        round_kind,
        torus,
        parts.frequency[part],
        footprint,
    )
    m, (x, y, z) = parts.matrix.index_select(1, part), gradient
    facing = torch.stack([m[i] * x + m[3 + i] * y + m[6 + i] * z for i in range(3)])
    out.normal[:, ray] = facing / facing.square().sum(0).sqrt().clamp(min=1e-9)
    out.albedo[:, ray] = torch.lerp(parts.rgb_a[:, part], parts.rgb_b[:, part], blend)
    out.gloss[ray], out.shine[ray] = parts.gloss[part], parts.shine[part]
    out.owner[ray] = parts.owner[part]


def pattern_blend(
    pattern: Tensor,
    q: Tensor,
    gradient: Tensor,
    round_kind: Tensor,
    torus: Tensor,
    frequency: Tensor,
    footprint: Tensor,
) -> Tensor:
    """Share (n,) of the second colour. q: (3, n) point, footprint: (n,), in largest half extents."""
    # Two phases: around and along a round solid, on the face of a flat one, around a tube.
    x, y, z = q
    axis, step = gradient.abs().max(0).indices, 0.55 * math.pi * frequency
    tube = torch.atan2(z, (x * x + y * y).sqrt() - 0.75)
    around = torch.atan2(y, x) * frequency * torch.where(torus, 2.0, 1.0)
    along = torch.where(torus, 2 * tube, z * step * 1.1)
    u = torch.where(round_kind, around, torch.where(axis == 0, y, x) * step)
    v = torch.where(round_kind, along, torch.where(axis == 2, y, z) * step)
    sin_u, sin_v = u.sin(), v.sin()
    # The wave of each pattern: its sign chooses the colour.
    rings = torch.where(torus, sin_u, sin_v)
    waves = {
        "stripes": rings,
        "columns": torch.where(torus, sin_v, sin_u),
        "checker": sin_u * sin_v * 2,
        "diagonal": (u + v).sin(),
        "dots": u.cos() + v.cos() - 0.75,
        "halves": torch.where(torus, q[0], q[2]) * 4,
        "waves": (v + 1.2 * u.sin()).sin(),
        "grid": torch.maximum(u.cos(), v.cos()) - 0.8,
        "zigzag": (v + 1.3 * u.sin().asin()).sin(),
        "bands": rings + 0.65,
        "marble": (v + 1.4 * (0.7 * u + 0.9 * v.sin()).sin() + 0.8 * (1.9 * u).cos()).sin() + 0.4,
    }
    wave = torch.full_like(u, -9.0)
    for name, value in waves.items():
        wave = torch.where(pattern == ALL_PATTERNS.index(name), value, wave)
    width = (2.2 * frequency * footprint).clamp(min=0.04)
    blend = (wave / width + 0.5).clamp(0, 1)
    blend = torch.where(wave < -8, 0.0, blend)
    shade = (0.5 - 0.5 * torch.where(torus, q[0], q[2])).clamp(0, 1)
    return torch.where(pattern == ALL_PATTERNS.index("gradient"), shade, blend)


def take(surface: Surface, index: Tensor) -> Surface:
    """The same surface for some of the rays."""
    return replace(surface, **{name: value[..., index] for name, value in vars(surface).items()})
