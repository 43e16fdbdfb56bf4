"""Colour and orientation of the surface that each ray meets: textures of the room, patterns of the solids.

A texture of floor and walls takes coordinates u, v >= 0 in cells, the width `soft` of a ray in cells and a
phase in [0, 1]; it returns the fraction of the surface's second colour and a brightness. Patterns turn with
their solid. Edges are as soft as the ray is wide, so far surfaces have no aliasing.
Legend: n rays, component first.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.scenes.natural import CLOUD, GRAIN, natural_look, noise_at, sky
from datasets.scenes.palette import ALL_PATTERNS, FLAT_SIDED, KINDS, LOOKS, NATURAL
from datasets.scenes.solids import normal
from datasets.scenes.trace import NOTHING, Hit, Rays, by_kind, to_part

ORIGIN = 64.0  # added to the coordinates, so that they are positive in a room
RAIL = 0.85  # height of a panelled wall, metres
ROUND = tuple(kind not in FLAT_SIDED for kind in KINDS)
Look = tuple[Tensor, Tensor]


def edge(value: Tensor, width: Tensor) -> Tensor:
    """0 below, 1 above zero, a ramp of the given width between."""
    return (value / width + 0.5).clamp(0, 1)


def _frac(value: Tensor) -> Tensor:
    """The part above the next lower whole number, also of a negative one."""
    return value - value.floor()


def _hash(a: Tensor, b: Tensor, phase: Tensor) -> Tensor:
    """A number in [0, 1) for each pair of whole numbers."""
    return ((a * 12.9898 + b * 78.233 + phase * 37.719).sin() * 437.585).frac().abs()


def _joints(u: Tensor, v: Tensor, width: Tensor, gap: float) -> Tensor:
    """1 in the joints between unit cells, 0 inside them."""
    du, dv = (_frac(u) - 0.5).abs(), (_frac(v) - 0.5).abs()
    return edge(torch.maximum(du, dv) - (0.5 - gap), width)


def _look(kind: int, u: Tensor, v: Tensor, soft: Tensor, phase: Tensor) -> Look:
    """One texture; kind is an index into LOOKS."""
    place, name = LOOKS[kind]
    if place == "natural":
        return natural_look(name, u, v, soft, phase)
    floor, wall = (name, "") if place == "floor" else ("", name)
    if floor == "tiles":
        return _joints(u, v, soft, 0.025), 0.93 + 0.14 * _hash(u.floor(), v.floor(), phase)
    if floor == "planks":
        across = v * 3
        row = across.floor()
        along = u * 0.55 + _hash(row, row * 0, phase)
        tone = _hash(row, along.floor(), phase)
        grain = ((u * 3 + 2 * (v * 5 + tone * 40).sin()) * 2.2).sin() * (v * 41 + tone * 90).sin()
        sides = edge((_frac(across) - 0.5).abs() - 0.47, soft * 3)
        ends = edge((_frac(along) - 0.5).abs() - 0.495, soft * 0.55)
        return torch.maximum(sides, ends), 0.86 + 0.3 * tone + 0.07 * grain * (0.12 / soft).clamp(max=1)
    if wall == "stripes":
        return edge((u * 2 * math.pi).sin(), 5 * soft), torch.ones_like(u)
    if wall == "panel":  # second colour below the rail, grooves in it
        height = v - ORIGIN
        below = edge(RAIL - height, soft)
        groove = edge(0.02 - (_frac(u * 3) - 0.5).abs(), soft * 3) * below
        return below, 1 - 0.3 * edge(0.025 - (height - RAIL).abs(), soft) - 0.18 * groove
    if wall == "bricks":
        course = v * 3
        along = u + 0.5 * _frac(course.floor() * 0.5) * 2
        tone = _hash(along.floor(), course.floor(), phase)
        return _joints(along, course, soft * 3, 0.045), 0.9 + 0.2 * tone
    if wall == "tiles":
        u, v = u * 2, v * 2
        return _joints(u, v, soft * 2, 0.03), 0.97 + 0.06 * _hash(u.floor(), v.floor(), phase)
    # Uneven brightness of a plain surface.
    cloud = 1 + 0.035 * ((u * 1.7 + phase * 9).sin() + (v * 2.3 + 1.3 * (u * 0.9).sin()).sin())
    if floor == "checker":
        return edge((u * math.pi).sin() * (v * math.pi).sin(), 3 * soft), cloud
    if floor == "carpet":
        weave = (u * 31).sin() * (v * 29).sin() * (0.03 / soft).clamp(max=1)
        return 0.5 + 0.5 * weave, cloud
    return torch.zeros_like(u), cloud


def room_colours(rays: Rays, hit: Hit, point: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Linear albedo (3, n) and gloss (n,) of floor and walls. width: (n,) of a ray on the surface, metres."""
    room = rays.packed.room
    assert room is not None

    def at(name: str) -> Tensor:
        return rays.at(room[name])

    x, y, z = point
    floor, side = hit.slot == -1, (hit.slot == -3) | (hit.slot == -4)
    cosine, sine = at("angle").cos(), at("angle").sin()
    u = torch.where(floor, x * cosine + y * sine, torch.where(side, y, x))
    v = torch.where(floor, y * cosine - x * sine, z)
    kind = torch.where(floor, at("floor"), at("wall"))
    rate = torch.where(floor, at("floor_frequency"), at("wall_frequency"))
    u, v, soft, phase = u * rate + ORIGIN, v * rate + ORIGIN, (width * rate).clamp(min=0.015), at("phase")
    looks = rays.packed.looks  # the textures that occur
    blend, tone = _look(looks[0], u, v, soft, phase)
    for index in looks[1:]:
        chosen, look = kind == index, _look(index, u, v, soft, phase)
        blend, tone = torch.where(chosen, look[0], blend), torch.where(chosen, look[1], tone)
    pair = torch.where(floor, at("floor_rgb"), at("wall_rgb"))  # (6, n)
    if rays.packed.open:
        blend = torch.where(hit.slot == -5, 0.0, blend)
        stained = noise_at(u * 0.07 + phase, (v + torch.where(hit.slot == -5, y, 0.0)) * 0.07, soft * 0.07)
        tone = tone * (1 + at("stains") * (stained[CLOUD] + 0.5 * stained[GRAIN]))
    colour = torch.lerp(pair[:3], pair[3:], blend) * tone
    colour = torch.where(~floor & (z < at("skirting")), at("skirting_rgb"), colour)
    on_rug, rug = _rectangle(at("rug"), at("rug_rgb"), x, y, width)
    on_picture, picture = _rectangle(at("picture"), at("picture_rgb"), x, z, width)
    on_rug, on_picture = on_rug * floor, on_picture * (hit.slot == -2)
    colour = torch.lerp(torch.lerp(colour, rug, on_rug), picture, on_picture)
    return colour * corner_light(rays, floor, point), torch.where(floor & (on_rug < 0.5), 0.12, 0.0)


def corner_light(rays: Rays, floor: Tensor, point: Tensor) -> Tensor:
    """Fraction (n,) of the sky's light that floor and walls receive near the corners of a room."""
    back, left, right = (rays.at((rays.packed.room or {})[name]) for name in ("back", "left", "right"))
    x, y, z = point
    wall_gap = torch.minimum(back - y, torch.minimum(x - left, right - x))
    return 1 - 0.28 * torch.exp(-torch.where(floor, wall_gap, z).clamp(min=0) * 3.2)


def _rectangle(place: Tensor, pair: Tensor, u: Tensor, v: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage (n,) and colour (3, n) of a framed rectangle: centre u, v, half sides in metres, 0: absent."""
    centre_u, centre_v, half_u, half_v = place
    inset = torch.minimum(half_u - (u - centre_u).abs(), half_v - (v - centre_v).abs())  # metres, inside > 0
    soft, band = width.clamp(min=0.005), 0.09 * half_v
    frame = edge(band - (inset - 2 * band).abs(), soft)
    return edge(inset, soft) * (half_u > 0), torch.lerp(pair[:3].expand(3, u.numel()), pair[3:], frame)


@dataclass(frozen=True, eq=False)
class Surface:
    """One point per ray. owner: index of the solid, -1 room or nothing."""

    point: Tensor  # (3, n) metres
    normal: Tensor  # (3, n) unit
    albedo: Tensor  # (3, n) linear; where nothing is met the light that is seen there
    gloss: Tensor  # (n,)
    shine: Tensor  # (n,)
    owner: Tensor  # (n,)
    empty: Tensor  # (n,) bool, the ray meets nothing


def surface_of(rays: Rays, hit: Hit) -> Surface:
    """Everything about the met points that does not depend on light."""
    depth = torch.where(hit.slot == NOTHING, 1.0, hit.depth)
    point = rays.at(rays.packed.origin) + depth * rays.direction
    dark, bright = torch.zeros_like(depth), torch.ones_like(depth)
    facing, albedo, gloss, shine = torch.stack([dark, dark, bright]), bright.repeat(3, 1), dark, bright
    if rays.packed.room is not None:
        aside = (hit.slot == -3).float() - (hit.slot == -4).float()
        facing = torch.stack([aside, -(hit.slot == -2).float(), (hit.slot == -1).float()])
        facing[2] -= (hit.slot == -5).float()
        slant = (facing * rays.direction).sum(0).abs().clamp(min=0.12)
        albedo, gloss = room_colours(rays, hit, point, rays.footprint * hit.depth / slant)
        shine = torch.full_like(depth, 24.0)
        if rays.packed.open and (index := (hit.slot == NOTHING).nonzero().squeeze(1)).numel():
            albedo[:, index] = sky(rays, index)
    surface = Surface(point, facing, albedo, gloss, shine, torch.full_like(hit.slot, -1), hit.slot == NOTHING)
    ray = (hit.slot >= 0).nonzero().squeeze(1)
    if not ray.numel():
        return surface
    parts = rays.packed.parts
    part = rays.view[ray] * rays.packed.slots + hit.slot[ray]
    q = to_part(parts, part, point[:, ray] - parts.centre[:, part])
    gradient = torch.zeros_like(q)
    for kind, chosen in by_kind(rays.packed, part):
        gradient[:, chosen] = normal(kind, q[:, chosen], parts.param[part[chosen]])
    footprint = rays.footprint.expand(depth.shape)[ray] * hit.depth[ray] / parts.size[part]
    shown, pattern, frequency = q * parts.aspect[:, part], parts.pattern[part], parts.frequency[part]
    blend = pattern_blend(pattern, shown, gradient, parts.kind[part], frequency, footprint)
    m, (x, y, z) = parts.matrix.index_select(1, part), gradient
    facing = torch.stack([m[i] * x + m[3 + i] * y + m[6 + i] * z for i in range(3)])
    surface.normal[:, ray] = facing / facing.square().sum(0).sqrt().clamp(min=1e-9)
    albedo = torch.lerp(parts.rgb_a[:, part], parts.rgb_b[:, part], blend)
    if rays.packed.pictures is not None:
        albedo = torch.where(parts.picture[part] > 0, rays.packed.picture_at(q, part)[:3], albedo)
    if (stains := parts.stains[part]).any():
        x, y, z = shown
        shift = 7 * parts.rgb_a[:, part].sum(0)  # each solid's own
        u, v = 0.21 * x + 0.13 * z + shift, 0.21 * z + 0.17 * y - 0.1 * x + shift
        found = noise_at(u, v, footprint * 0.25)
        albedo = albedo * (1 + stains * (found[CLOUD] + 0.6 * found[GRAIN]))
    surface.albedo[:, ray] = albedo
    surface.gloss[ray], surface.shine[ray] = parts.gloss[part], parts.shine[part]
    surface.owner[ray] = parts.owner[part]
    return surface


def pattern_blend(
    pattern: Tensor, q: Tensor, gradient: Tensor, kind: Tensor, frequency: Tensor, footprint: Tensor
) -> Tensor:
    """Fraction (n,) of the second colour. q: (3, n) point, footprint: (n,), in largest half extents."""
    round_kind, torus = torch.tensor(ROUND, device=kind.device)[kind], kind == KINDS.index("torus")
    x, y, z = q  # two phases: around and along a round solid, on the face of a flat one, around a tube
    axis, step = gradient.abs().max(0).indices, 0.55 * math.pi * frequency
    tube = torch.atan2(z, (x * x + y * y).sqrt() - 0.75)
    around = torch.atan2(y, x) * frequency * torch.where(torus, 2.0, 1.0)
    along = torch.where(torus, 2 * tube, z * step * 1.1)
    u = torch.where(round_kind, around, torch.where(axis == 0, y, x) * step)
    v = torch.where(round_kind, along, torch.where(axis == 2, y, z) * step)
    sin_u, sin_v = u.sin(), v.sin()
    rings = torch.where(torus, sin_u, sin_v)
    waves = {  # of each pattern: its sign chooses the colour
        "stripes": lambda: rings, "columns": lambda: torch.where(torus, sin_v, sin_u),
        "checker": lambda: sin_u * sin_v * 2, "diagonal": lambda: (u + v).sin(),
        "dots": lambda: u.cos() + v.cos() - 0.75, "halves": lambda: torch.where(torus, q[0], q[2]) * 4,
        "waves": lambda: (v + 1.2 * u.sin()).sin(), "grid": lambda: torch.maximum(u.cos(), v.cos()) - 0.8,
        "zigzag": lambda: (v + 1.3 * u.sin().asin()).sin(), "bands": lambda: rings + 0.65,
        "marble": lambda: (v + 1.4 * (0.7 * u + 0.9 * v.sin()).sin() + 0.8 * (1.9 * u).cos()).sin() + 0.4,
    }  # fmt: skip
    wave, used = torch.full_like(u, -9.0), set(pattern.unique().tolist())
    for name, value in waves.items():
        if (index := ALL_PATTERNS.index(name)) in used:
            wave = torch.where(pattern == index, value(), wave)
    blend = (wave / (2.2 * frequency * footprint).clamp(min=0.04) + 0.5).clamp(0, 1)
    blend = torch.where(wave < -8, 0.0, blend)
    for name in NATURAL:
        if (chosen := (pattern == ALL_PATTERNS.index(name)).nonzero().squeeze(1)).numel():
            turns, soft = frequency[chosen], (footprint[chosen] * (6 / math.pi)).clamp(min=0.015)
            around, along = (value[chosen] / turns * (3 / math.pi) for value in (u, v))
            blend[chosen] = natural_look(name, around, along, soft, turns * 0.1)[0]
    shade = (0.5 - 0.5 * torch.where(torus, q[0], q[2])).clamp(0, 1)
    return torch.where(pattern == ALL_PATTERNS.index("gradient"), shade, blend)
