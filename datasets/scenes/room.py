"""Procedural textures of floor and walls, the rug and the image on the back wall.

A texture takes coordinates u, v >= 0 in cells, the width `soft` of a ray in cells and a phase in [0, 1]; it
returns the fraction of the surface's second colour and a brightness. Edges are as soft as the ray is wide.
Legend: n rays.
"""

import math

import torch
from torch import Tensor

from datasets.scenes.palette import FLOORS, WALLS
from datasets.scenes.trace import Hit, Rays

ORIGIN = 64.0  # added to the coordinates, so that they are positive and frac agrees with floor
RAIL = 0.85  # height of a panelled wall, metres
Look = tuple[Tensor, Tensor]


def edge(value: Tensor, width: Tensor) -> Tensor:
    """0 below, 1 above zero, a ramp of the given width between."""
    return (value / width + 0.5).clamp(0, 1)


def _hash(a: Tensor, b: Tensor, phase: Tensor) -> Tensor:
    """A number in [0, 1) for each pair of whole numbers."""
    return ((a * 12.9898 + b * 78.233 + phase * 37.719).sin() * 437.585).frac().abs()


def _joints(u: Tensor, v: Tensor, width: Tensor, gap: float) -> Tensor:
    """1 in the joints between unit cells, 0 inside them."""
    du, dv = (u.frac() - 0.5).abs(), (v.frac() - 0.5).abs()
    return edge(torch.maximum(du, dv) - (0.5 - gap), width)


def _look(kind: int, u: Tensor, v: Tensor, soft: Tensor, phase: Tensor) -> Look:
    """One texture; kind is an index into the floors and then the walls."""
    floor = FLOORS[kind] if kind < len(FLOORS) else ""
    wall = "" if floor else WALLS[kind - len(FLOORS)]
    if floor == "tiles":
        return _joints(u, v, soft, 0.025), 0.93 + 0.14 * _hash(u.floor(), v.floor(), phase)
    if floor == "planks":
        across = v * 3
        row = across.floor()
        along = u * 0.55 + _hash(row, row * 0, phase)
        tone = _hash(row, along.floor(), phase)
        grain = ((u * 3 + 2 * (v * 5 + tone * 40).sin()) * 2.2).sin() * (v * 41 + tone * 90).sin()
        sides = edge((across.frac() - 0.5).abs() - 0.47, soft * 3)
        ends = edge((along.frac() - 0.5).abs() - 0.495, soft * 0.55)
        return torch.maximum(sides, ends), 0.86 + 0.3 * tone + 0.07 * grain * (0.12 / soft).clamp(max=1)
    if wall == "stripes":
        return edge((u * 2 * math.pi).sin(), 5 * soft), torch.ones_like(u)
    if wall == "panel":  # second colour below the rail, grooves in it
        height = v - ORIGIN
        below = edge(RAIL - height, soft)
        groove = edge(0.02 - ((u * 3).frac() - 0.5).abs(), soft * 3) * below
        return below, 1 - 0.3 * edge(0.025 - (height - RAIL).abs(), soft) - 0.18 * groove
    if wall == "bricks":
        course = v * 3
        along = u + 0.5 * (course.floor() * 0.5).frac() * 2
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
    floor, side = hit.slot == -1, hit.slot <= -3
    cosine, sine = at("angle").cos(), at("angle").sin()
    u = torch.where(floor, x * cosine + y * sine, torch.where(side, y, x))
    v = torch.where(floor, y * cosine - x * sine, z)
    kind = torch.where(floor, at("floor"), len(FLOORS) + at("wall"))
    rate = torch.where(floor, at("floor_frequency"), at("wall_frequency"))
    u, v, soft, phase = u * rate + ORIGIN, v * rate + ORIGIN, (width * rate).clamp(min=0.015), at("phase")
    looks = rays.packed.looks  # the textures that occur
    blend, tone = _look(looks[0], u, v, soft, phase)
    for index in looks[1:]:
        chosen, look = kind == index, _look(index, u, v, soft, phase)
        blend, tone = torch.where(chosen, look[0], blend), torch.where(chosen, look[1], tone)
    pair = torch.where(floor, at("floor_rgb"), at("wall_rgb"))  # (6, n)
    colour = torch.lerp(pair[:3], pair[3:], blend) * tone
    board = ~floor & (z < at("skirting"))
    colour = torch.where(board, at("skirting_rgb"), colour)
    on_rug, rug = _rectangle(at("rug"), at("rug_rgb"), x, y, width)
    on_picture, picture = _rectangle(at("picture"), at("picture_rgb"), x, z, width)
    on_rug, on_picture = on_rug * floor, on_picture * (hit.slot == -2)
    colour = torch.lerp(torch.lerp(colour, rug, on_rug), picture, on_picture)
    # Corners of the room receive less light of the sky.
    wall_gap = torch.minimum(at("back") - y, torch.minimum(x - at("left"), at("right") - x))
    corner = 1 - 0.28 * torch.exp(-torch.where(floor, wall_gap, z).clamp(min=0) * 3.2)
    return colour * corner, torch.where(floor & (on_rug < 0.5), 0.12, 0.0)


def _rectangle(place: Tensor, pair: Tensor, u: Tensor, v: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage (n,) and colour (3, n) of a framed rectangle.

    place: (4, .) centre u, v, half width, half height in metres; half width 0: absent.
    """
    centre_u, centre_v, half_u, half_v = place
    inset = torch.minimum(half_u - (u - centre_u).abs(), half_v - (v - centre_v).abs())  # metres, inside > 0
    soft = width.clamp(min=0.005)
    band = 0.09 * half_v
    frame = edge(band - (inset - 2 * band).abs(), soft)
    return edge(inset, soft) * (half_u > 0), torch.lerp(pair[:3].expand(3, u.numel()), pair[3:], frame)
