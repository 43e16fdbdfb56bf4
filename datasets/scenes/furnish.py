"""Random contents of a scene: room, lamp, furniture, one solid at a place; ranges are chosen for variety."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from datasets.scenes import palette
from datasets.scenes.describe import Finish, Light, Part, Room, Solid, extent, upright

_SHAPE_NAMES, _COLOUR_NAMES = tuple(palette.SHAPES), tuple(palette.COLOURS)
_PATTERN_STEPS = np.cumsum([0.3, 0.14, 0.1, 0.12, 0.1, 0.12, 0.05])
WARM, COOL = np.array([1.0, 0.80, 0.58]), np.array([0.80, 0.91, 1.0])

# The wider world: solids of several parts and further patterns, for training data with more variety. Nothing
# else knows these words: evaluation scenes, locator and inpainter keep to the plain world.
COMPOUND = 0.45  # fraction of solids made of several parts
PATTERNED = 0.5  # fraction of solids with one of the further patterns
TUBE = 0.38  # radius of a torus' tube over that of its ring

# Parts of a compound: kind, half extents, height of the middle; in units of the solid's size.
COMPOUNDS: dict[str, tuple[tuple, ...]] = {
    "mushroom": (("cylinder", (0.28, 0.28, 0.45), 0.45), ("dome", (0.8, 0.8, 0.62), 0.85)),
    "house": (("box", (0.62, 0.55, 0.45), 0.45), ("pyramid", (0.74, 0.68, 0.36), 1.26)),
    "snowman": (("ellipsoid", (0.6, 0.6, 0.52), 0.5), ("ellipsoid", (0.44, 0.44, 0.4), 1.24),
                ("ellipsoid", (0.3, 0.3, 0.3), 1.8)),
    "bottle": (("cylinder", (0.4, 0.4, 0.62), 0.62), ("dome", (0.4, 0.4, 0.34), 1.24),
               ("cylinder", (0.15, 0.15, 0.3), 1.6)),
    "tower": (("box", (0.6, 0.6, 0.4), 0.4), ("box", (0.42, 0.42, 0.32), 1.12),
              ("pyramid", (0.36, 0.36, 0.3), 1.74)),
    "lamp": (("cylinder", (0.5, 0.5, 0.07), 0.07), ("cylinder", (0.08, 0.08, 0.6), 0.7),
             ("cone", (0.62, 0.62, 0.42), 1.4)),
    "spool": (("cylinder", (0.62, 0.62, 0.14), 0.14), ("cylinder", (0.32, 0.32, 0.42), 0.7),
              ("cylinder", (0.62, 0.62, 0.14), 1.26)),
    "tree": (("cylinder", (0.16, 0.16, 0.3), 0.3), ("cone", (0.62, 0.62, 0.42), 0.9),
             ("cone", (0.46, 0.46, 0.38), 1.4)),
    "stack": (("torus", (0.5, 0.5, 0.5), 0.19), ("torus", (0.4, 0.4, 0.4), 0.53),
              ("torus", (0.3, 0.3, 0.3), 0.79))}  # fmt: skip

OPEN_COMPOUNDS: dict[str, tuple[tuple, ...]] = {  # of the open world; at last how far a part is aside
    "chair": (("box", (0.5, 0.5, 0.06), 0.9, (0, 0)), ("box", (0.5, 0.06, 0.5), 1.4, (0, 0.44)),
              ("box", (0.06, 0.46, 0.42), 0.42, (-0.42, 0)), ("box", (0.06, 0.46, 0.42), 0.42, (0.42, 0))),
    "sofa": (("box", (1.2, 0.5, 0.25), 0.3, (0, 0)), ("box", (1.2, 0.15, 0.5), 0.55, (0, 0.5)),
             ("box", (0.16, 0.55, 0.4), 0.4, (-1.2, 0)), ("box", (0.16, 0.55, 0.4), 0.4, (1.2, 0))),
    "shelf": (("box", (0.7, 0.3, 0.04), 0.2, (0, 0)), ("box", (0.7, 0.3, 0.04), 1.0, (0, 0)),
              ("box", (0.7, 0.3, 0.04), 1.8, (0, 0)),
              ("box", (0.05, 0.3, 1.0), 1.0, (-0.7, 0)), ("box", (0.05, 0.3, 1.0), 1.0, (0.7, 0))),
    "bush": (("ellipsoid", (0.5, 0.5, 0.5), 0.5, (0, 0)), ("ellipsoid", (0.4, 0.4, 0.4), 0.4, (0.45, 0.1)),
             ("ellipsoid", (0.4, 0.4, 0.4), 0.4, (-0.4, 0.2)), ("blob", (0.5, 0.5, 0.4), 0.8, (0, 0))),
    "figure": (("box", (0.13, 0.13, 0.5), 0.5, (-0.2, 0)), ("box", (0.13, 0.13, 0.5), 0.5, (0.2, 0)),
               ("ellipsoid", (0.4, 0.22, 0.5), 1.4, (0, 0)), ("ellipsoid", (0.18, 0.18, 0.22), 2.05, (0, 0))),
    "cart": (("box", (1.0, 0.5, 0.25), 0.45, (0, 0)), ("box", (0.55, 0.46, 0.22), 0.9, (-0.1, 0)),
             ("ellipsoid", (0.2, 0.6, 0.2), 0.2, (-0.6, 0)), ("ellipsoid", (0.2, 0.6, 0.2), 0.2, (0.6, 0))),
    "pot": (("cylinder", (0.4, 0.4, 0.35), 0.35, (0, 0)), ("blob", (0.7, 0.7, 0.6), 1.2, (0, 0))),
}  # fmt: skip


def linear(srgb: np.ndarray) -> np.ndarray:
    """Display values -> linear light."""
    return np.asarray(srgb, np.float64) ** 2.2


def _tone(rng: Generator, tones: Sequence[tuple[float, float, float]]) -> np.ndarray:
    return palette.jitter(tones[int(rng.integers(len(tones)))], rng, 0.8)


def room(rng: Generator) -> Room:
    """Muted floor and walls, so that the solids stand out."""
    floor = palette.FLOORS[int(rng.integers(len(palette.FLOORS)))]
    wall = palette.WALLS[int(rng.choice(len(palette.WALLS), p=[0.4, 0.15, 0.2, 0.13, 0.12]))]
    ground = _tone(rng, palette.WOODS if floor == "planks" else palette.FLOOR_TONES)
    other = {
        "planks": ground * 0.45,
        "tiles": np.clip(ground * rng.choice([0.55, 1.25]), 0, 1),
        "carpet": ground * 0.82,
    }.get(floor, ground * rng.uniform(0.6, 0.8))
    paint = _tone(rng, palette.WALL_TONES)
    second = {
        "bricks": np.clip(paint * 0.72, 0, 1),
        "tiles": paint * 0.8,
        "panel": _tone(rng, palette.WALL_TONES) * 0.85,
    }.get(wall, np.clip(paint * rng.uniform(0.84, 0.93), 0, 1))
    inside = _tone(rng, tuple(palette.COLOURS.values())) * 0.45 + 0.28
    border = _tone(rng, palette.FLOOR_TONES)
    has_rug = rng.random() < 0.3
    rug = rng.uniform([-0.5, 0.0, 0.9, 0.6], [0.5, 0.8, 1.5, 1.0]) * [1, 1, has_rug, 1]
    has_picture = rng.random() < 0.35
    picture = rng.uniform([-1.3, 1.1, 0.3, 0.25], [1.3, 1.5, 0.6, 0.4]) * [1, 1, has_picture, 1]
    motif, frame = _tone(rng, tuple(palette.COLOURS.values())) * 0.6 + 0.2, _tone(rng, palette.WOODS) * 0.8
    has_skirting = rng.random() < 0.75
    return Room(
        back=rng.uniform(2.4, 3.8), left=-rng.uniform(2.5, 4.0), right=rng.uniform(2.5, 4.0), floor=floor,
        wall=wall, floor_rgb=linear(np.stack([ground, other])), wall_rgb=linear(np.stack([paint, second])),
        floor_frequency=rng.uniform(1.3, 2.4), wall_frequency=rng.uniform(1.6, 3.0),
        angle=rng.uniform(-0.5, 0.5), phase=rng.random(), skirting=has_skirting * rng.uniform(0.08, 0.14),
        skirting_rgb=linear(np.clip(paint * 1.1, 0, 1)), rug=rug,
        rug_rgb=np.stack([linear(inside), linear(border)]), picture=picture,
        picture_rgb=np.stack([linear(motif), linear(frame)]))  # fmt: skip


def lamp(rng: Generator, place: Room) -> Light:
    """A ball lamp above the camera's side of the room, warm to cool."""
    origin = np.array([rng.uniform(-2.3, 2.3), rng.uniform(-2.6, 0.8), rng.uniform(2.6, 4.2)])
    tone = WARM + (COOL - WARM) * rng.random()
    sky = (COOL + WARM) / 2 + (COOL - WARM) * rng.uniform(-0.3, 0.6)
    strength = rng.uniform(0.27, 0.48)
    bounce = place.floor_rgb[0] * rng.uniform(0.35, 0.6) + 0.05
    return Light(origin, rng.uniform(0.12, 0.45), tone * rng.uniform(0.75, 1.1), sky * strength, bounce)


def finish_of(rng: Generator, colour: str, pattern: str) -> Finish:
    """A surface of a named colour and pattern; second colour and gloss are drawn."""
    first = palette.jitter(palette.COLOURS[colour], rng)
    bright = float(first.mean()) > 0.45
    others = [name for name in palette.COLOURS if name != colour]
    pale = "black" if bright and rng.random() < 0.4 else ("navy" if colour == "white" else "white")
    second = pale if rng.random() < 0.6 else others[int(rng.integers(len(others)))]
    gloss = float(rng.choice([0.08, 0.3, 0.7], p=[0.35, 0.4, 0.25]) * rng.uniform(0.8, 1.2))
    frequency, other = float(rng.integers(3, 6)), linear(palette.jitter(palette.COLOURS[second], rng))
    return Finish(colour, pattern, linear(first), other, frequency, gloss, float(10 + 90 * gloss))


def furniture(rng: Generator, probability: float) -> tuple[Solid, ...]:
    """Nothing, a table, or a raised block; it stands on the floor near the middle of the room."""
    if rng.random() >= probability:
        return ()
    yaw, middle = rng.uniform(-0.5, 0.5), np.array([rng.uniform(-0.3, 0.3), rng.uniform(0.2, 0.8)])
    axes, table = upright(yaw), rng.random() < 0.55
    half = np.array([rng.uniform(0.75, 1.1), rng.uniform(0.5, 0.75)])
    top = rng.uniform(0.45, 0.7) if table else rng.uniform(0.12, 0.32)
    thick = rng.uniform(0.03, 0.05) if table else top / 2
    parts = [Part("box", np.array([*middle, top - thick]), axes, np.array([*half, thick]))]
    if table:
        leg, length = rng.uniform(0.03, 0.05), top / 2 - thick
        for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            foot = middle + (np.array([x, y]) * (half - 1.6 * leg)) @ axes[:2, :2]
            parts.append(Part("box", np.array([*foot, length]), axes, np.array([leg, leg, length])))
    rgb = linear(_tone(rng, palette.WOODS if table or rng.random() < 0.4 else palette.FLOOR_TONES))
    finish = Finish("brown", "solid", rgb, rgb * 0.7, 3.0, 0.2, 30.0)
    shape, name = ("table", "table") if table else ("block", "low platform")
    radius, centre = float(np.linalg.norm(half)), np.array([*middle, top / 2])
    return (Solid(shape, name, tuple(parts), finish, radius, centre, 0.0, top, movable=False),)


def size_on(rng: Generator, limits: tuple[float, float], host: int, solids: Sequence[Solid]) -> float:
    """Half the side of a solid in metres: smaller on furniture, and no wider than a solid below it."""
    size = rng.uniform(*limits) * (1.0 if host < 0 else 0.82)
    if host >= 0 and solids[host].movable:
        size = min(size, 0.95 * float(solids[host].parts[0].scale[:2].min()))
    return size


def assembled(
    pieces: tuple[tuple, ...], foot: np.ndarray, axes: np.ndarray, size: float, stretch: tuple[float, float]
) -> tuple[list[Part], float, float]:
    """Parts of a compound on foot (3,), the radius of the cylinder around them, the height of their top."""
    parts, radius, (across, high) = list[Part](), 0.0, stretch
    for kind, half, height, *aside in pieces:
        tall, param = (across, TUBE) if kind == "torus" else (high, 0.0)
        offset = (np.array(aside[0] if aside else (0, 0)) * across * size) @ axes[:2, :2]
        centre = np.array([*(foot[:2] + offset), foot[2] + height * size * tall])
        parts.append(Part(kind, centre, axes, np.array(half) * (across, across, tall) * size, param))
        radius = max(radius, extent(parts[-1])[0] + float(np.linalg.norm(offset)))
    return parts, radius, max(float(part.centre[2] + extent(part)[2]) for part in parts)


def solid_at(
    rng: Generator, spot: np.ndarray, host: int, solids: Sequence[Solid], shape: str = "", wide: bool = False
) -> Solid:
    """A random solid whose foot is at spot (2,), on solid `host` or on the floor (-1); any shape if none.

    wide: at times a compound with the finish of that solid, at times a further pattern
    """
    shape = shape or _SHAPE_NAMES[rng.integers(len(_SHAPE_NAMES))]
    form = (palette.SHAPES | palette.OPEN_SHAPES)[shape]
    draw = rng.uniform(form.low, form.high)
    scale = np.full(3, draw[0]) if form.uniform else (draw[[0, 0, 2]] if form.round_base else draw)
    size, axes = size_on(rng, (0.28, 0.46), host, solids), upright(rng.uniform(0, 2 * np.pi))
    if rng.random() < form.lies:  # the part's own z axis is horizontal
        axes = np.stack([axes[0], axes[2], -axes[1]])
    if shape == "sphere":  # turned by a unit quaternion, uniform over rotations
        a, b, c, d = (lambda v: v / np.linalg.norm(v))(rng.normal(size=4))
        first = a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)
        second = 2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)
        third = 2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d
        axes = np.array([first, second, third])
    part = Part(form.kind, np.zeros(3), axes, scale * size, float(rng.uniform(*form.param)))
    radius, down, up = extent(part)
    ground = solids[host].top if host >= 0 else 0.0
    centre = np.array([*spot, ground + down])
    parts, bottom, top = [replace(part, centre=centre)], float(centre[2] - down), float(centre[2] + up)
    colour = _COLOUR_NAMES[rng.integers(len(_COLOUR_NAMES))]
    pattern = palette.PATTERNS[int(np.searchsorted(_PATTERN_STEPS, rng.random()))]
    finish = finish_of(rng, colour, pattern)
    if wide and rng.random() < COMPOUND:
        shape = list(COMPOUNDS)[int(rng.integers(len(COMPOUNDS)))]
        size = size_on(rng, (0.26, 0.4), host, solids)
        stretch, axes = tuple(rng.uniform(0.85, 1.15, 2)), upright(rng.uniform(0, 2 * np.pi))
        foot = np.array([*spot, ground])
        parts, radius, top = assembled(COMPOUNDS[shape], foot, axes, size, stretch)
        bottom, centre = ground, np.array([*spot, (ground + top) / 2])
    if wide and rng.random() < PATTERNED:
        pattern = list(palette.WIDE_PATTERNS)[int(rng.integers(len(palette.WIDE_PATTERNS)))]
        colour = _COLOUR_NAMES[rng.integers(len(_COLOUR_NAMES))]
        finish = finish_of(rng, colour, pattern)
    words = (palette.PATTERN_WORDS | palette.WIDE_PATTERNS)[pattern], colour, shape
    name = " ".join(word for word in words if word)
    return Solid(shape, name, tuple(parts), finish, radius, centre, bottom, top, support=host)
