"""Colour and orientation of the surface that each ray meets: patterns of the solids, textures of the room.

Patterns live in the solid's own frame, so they turn with it. Edges of a pattern are as soft as the ray is wide, which
keeps far textures free of aliasing. Legend: n rays, component first.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.scenes.pack import World, pick
from datasets.scenes.palette import FLAT_SIDED, FLOORS, KINDS, PATTERNS, WALLS
from datasets.scenes.solids import normal
from datasets.scenes.trace import Hit, Rays, from_part, to_part

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


def surface(world: World, rays: Rays, hit: Hit) -> Surface:
    """Everything about the met points that does not depend on light."""
    depth = torch.where(hit.slot == -9, 1.0, hit.depth)
    point = pick(world.origin, rays.view, world.count) + depth * rays.direction
    n, device = depth.numel(), depth.device
    found = Surface(
        point,
        torch.zeros(3, n, device=device),
        torch.ones(3, n, device=device),
        torch.zeros(n, device=device),
        torch.ones(n, device=device),
        torch.full((n,), -1, device=device),
        hit.slot == -9,
    )
    found.normal[2] = 1
    if world.room is not None:
        _room_surface(world, rays, hit, found)
    on_solid = (hit.slot >= 0).nonzero().squeeze(1)
    if on_solid.numel():
        _solid_surface(world, rays, hit, found, on_solid)
    return found


def _solid_surface(world: World, rays: Rays, hit: Hit, out: Surface, ray: Tensor) -> None:
    parts = world.parts
    part = rays.view[ray] * world.slots + hit.slot[ray]
    q = to_part(world, part, out.point[:, ray] - parts.centre[:, part])
    gradient = torch.zeros_like(q)
    kinds = parts.kind[part]
    for index in world.kinds:
        chosen = (kinds == index).nonzero().squeeze(1)
        gradient[:, chosen] = normal(KINDS[index], q[:, chosen], parts.param[part[chosen]])
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
    out.normal[:, ray] = from_part(world, part, gradient)
    out.albedo[:, ray] = torch.lerp(parts.rgb_a[:, part], parts.rgb_b[:, part], blend)
    out.gloss[ray], out.shine[ray] = parts.gloss[part], parts.shine[part]
    out.owner[ray] = parts.owner[part]


def _coordinates(
    q: Tensor, gradient: Tensor, round_kind: Tensor, torus: Tensor, frequency: Tensor
) -> tuple[Tensor, Tensor]:
    """Two phases (n,) on the surface: around and along a round solid, on the face of a flat one; around a ring's tube."""
    x, y, z = q
    turn = torch.atan2(y, x)
    axis = gradient.abs().max(0).indices
    step = 0.55 * math.pi * frequency
    flat_u = torch.where(axis == 0, y, x) * step
    flat_v = torch.where(axis == 2, y, z) * step
    tube = torch.atan2(z, (x * x + y * y).sqrt() - 0.75)
    u = torch.where(round_kind, turn * frequency * torch.where(torus, 2.0, 1.0), flat_u)
    v = torch.where(round_kind, torch.where(torus, 2 * tube, z * step * 1.1), flat_v)
    return u, v


def pattern_blend(
    pattern: Tensor,
    q: Tensor,
    gradient: Tensor,
    round_kind: Tensor,
    torus: Tensor,
    frequency: Tensor,
    footprint: Tensor,
) -> Tensor:
    """Share (n,) of the second colour. q: (3, n) canonical point in isotropic units, footprint: (n,) in those units."""
    u, v = _coordinates(q, gradient, round_kind, torus, frequency)
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
    }
    wave = torch.full_like(u, -9.0)
    for name, value in waves.items():
        wave = torch.where(pattern == PATTERNS.index(name), value, wave)
    width = (2.2 * frequency * footprint).clamp(min=0.04)
    blend = (wave / width + 0.5).clamp(0, 1)
    blend = torch.where(wave < -8, 0.0, blend)
    shade = (0.5 - 0.5 * torch.where(torus, q[0], q[2])).clamp(0, 1)
    return torch.where(pattern == PATTERNS.index("gradient"), shade, blend)


def _room_surface(world: World, rays: Rays, hit: Hit, out: Surface) -> None:
    room, view, count = world.room, rays.view, world.count
    assert room is not None
    x, y, z = out.point
    floor, side = hit.slot == -1, hit.slot <= -3
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    out.normal[0] = torch.where(hit.slot == -3, one, torch.where(hit.slot == -4, -one, zero))
    out.normal[1] = torch.where(hit.slot == -2, -one, zero)
    out.normal[2] = torch.where(floor, one, zero)
    slant = (out.normal * rays.direction).sum(0).abs().clamp(min=0.12)
    width = rays.footprint * hit.depth / slant

    angle = pick(room["angle"], view, count)
    turned_x, turned_y = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    u = torch.where(floor, turned_x, torch.where(side, y, x))
    v = torch.where(floor, turned_y, z)
    rate = torch.where(
        floor, pick(room["floor_frequency"], view, count), pick(room["wall_frequency"], view, count)
    )
    kind = torch.where(floor, pick(room["floor"], view, count), len(FLOORS) + pick(room["wall"], view, count))
    blend, tone = _texture(kind, u, v, rate, width, pick(room["phase"], view, count))
    first = torch.where(
        floor, pick(room["floor_rgb"][:3], view, count), pick(room["wall_rgb"][:3], view, count)
    )
    second = torch.where(
        floor, pick(room["floor_rgb"][3:], view, count), pick(room["wall_rgb"][3:], view, count)
    )
    colour = torch.lerp(first, second, blend) * tone

    board = ~floor & (z < pick(room["skirting"], view, count))
    colour = torch.where(board, pick(room["skirting_rgb"], view, count), colour)
    on_rug, rug = _rug(world, rays, x, y, width)
    out.albedo.copy_(torch.lerp(colour, rug, on_rug * floor))
    out.gloss.copy_(torch.where(floor & (on_rug < 0.5), 0.12, 0.0).expand_as(x))
    out.shine.fill_(24.0)


def _edge(value: Tensor, width: Tensor) -> Tensor:
    """0 below, 1 above zero, a ramp of the given width between."""
    return (value / width + 0.5).clamp(0, 1)


def _hash(a: Tensor, b: Tensor, phase: Tensor) -> Tensor:
    """A number in [0, 1) for each pair of whole numbers."""
    return ((a * 12.9898 + b * 78.233 + phase * 37.719).sin() * 437.585).frac().abs()


def _cells(u: Tensor, v: Tensor, width: Tensor, gap: float) -> Tensor:
    """1 inside unit cells, 0 in the joint between them."""
    du, dv = (0.5 - (u.frac().abs() - 0.5).abs()), (0.5 - (v.frac().abs() - 0.5).abs())
    return _edge(torch.minimum(du, dv) - gap, width)


def _texture(
    kind: Tensor, u: Tensor, v: Tensor, rate: Tensor, width: Tensor, phase: Tensor
) -> tuple[Tensor, Tensor]:
    """Blend towards the second colour and brightness, both (n,), of the floor (kind 0...) or wall (after the floors)."""
    u, v = u * rate + 64, v * rate + 64  # positive, so that frac and floor agree
    soft = (width * rate).clamp(min=0.015)
    cloud = 1 + 0.035 * ((u * 1.7 + phase * 9).sin() + (v * 2.3 + 1.3 * (u * 0.9).sin()).sin())
    row = (v * 3).floor()
    along = u * 0.55 + _hash(row, row * 0, phase)
    plank = _hash(row, along.floor(), phase)
    grain = ((u * 3 + 2.0 * (v * 5 + plank * 40).sin()) * 2.2).sin() * (v * 41 + plank * 90).sin()
    fine = (0.12 / soft).clamp(0, 1)  # detail thinner than a ray fades out
    shift = u + 0.5 * (2 * (v * 2).floor() * 0.5).frac() * 2
    tile = _hash(u.floor(), v.floor(), phase) - 0.5
    looks = {
        "floor plain": (0 * u, cloud),
        "floor tiles": (1 - _cells(u, v, soft, 0.025), cloud + 0.14 * tile),
        "floor planks": (1 - _cells(along, v * 3, soft * 3, 0.03), 0.86 + 0.3 * plank + 0.07 * grain * fine),
        "floor checker": (_edge((u * math.pi).sin() * (v * math.pi).sin(), 3 * soft), cloud),
        "floor carpet": (0.5 + 0.5 * (u * 31).sin() * (v * 29).sin() * fine * fine, cloud),
        "wall plain": (0 * u, cloud),
        "wall stripes": (_edge((u * 2 * math.pi).sin(), 5 * soft), 1 + 0 * u),
        "wall panel": (
            _edge(64 + 0.85 * rate - v, soft),
            1 - 0.25 * _edge(0.03 - ((v - 64) / rate - 0.85).abs(), width),
        ),
        "wall bricks": (
            1 - _cells(shift, v * 2, soft * 2, 0.04),
            1 + 0.18 * (_hash(shift.floor(), (v * 2).floor(), phase) - 0.5),
        ),
        "wall tiles": (
            1 - _cells(u * 2, v * 2, soft * 2, 0.03),
            1 + 0.06 * (_hash((u * 2).floor(), (v * 2).floor(), phase) - 0.5),
        ),
    }
    blend, tone = torch.zeros_like(u), torch.ones_like(u)
    for index, name in enumerate([f"floor {name}" for name in FLOORS] + [f"wall {name}" for name in WALLS]):
        chosen = kind == index
        blend, tone = torch.where(chosen, looks[name][0], blend), torch.where(chosen, looks[name][1], tone)
    return blend, tone


def _rug(world: World, rays: Rays, x: Tensor, y: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage (n,) and colour (3, n) of the rug."""
    room = world.room
    assert room is not None
    cx, cy, half_x, half_y = pick(room["rug"], rays.view, world.count)
    inset = torch.minimum(
        half_x - (x - cx).abs(), half_y - (y - cy).abs()
    )  # metres from the border, inside > 0
    soft = width.clamp(min=0.005)
    border = _edge(0.05 - (inset - 0.12).abs(), soft)
    colour = torch.lerp(
        pick(room["rug_rgb"][:3], rays.view, world.count),
        pick(room["rug_rgb"][3:], rays.view, world.count),
        border,
    )
    return _edge(inset, soft) * (half_x > 0), colour


def take(found: Surface, index: Tensor) -> Surface:
    """The same surface for some of the rays."""
    return replace(found, **{name: value[..., index] for name, value in vars(found).items()})
