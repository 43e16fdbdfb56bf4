"""The wider world: solids of several parts and further patterns, for training data with more variety.

Nothing else knows these words: evaluation scenes, locator and inpainter keep to the plain world.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from datasets.scenes.describe import Part, Solid
from datasets.scenes.furnish import finish_of, size_on, solid_at
from datasets.scenes.palette import COLOURS, WIDE_PATTERNS
from datasets.scenes.pose import extent, upright

COMPOUND = 0.45  # fraction of solids made of several parts
PATTERNED = 0.5  # fraction of solids with one of the further patterns
TUBE = 0.38  # radius of a torus' tube over that of its ring

# Parts of a compound: kind, half extents, height of the middle; in units of the solid's size.
COMPOUNDS: dict[str, tuple[tuple[str, tuple[float, float, float], float], ...]] = {
    "mushroom": (("cylinder", (0.28, 0.28, 0.45), 0.45), ("dome", (0.8, 0.8, 0.62), 0.85)),
    "house": (("box", (0.62, 0.55, 0.45), 0.45), ("pyramid", (0.74, 0.68, 0.36), 1.26)),
    "snowman": (
        ("ellipsoid", (0.6, 0.6, 0.52), 0.5),
        ("ellipsoid", (0.44, 0.44, 0.4), 1.24),
        ("ellipsoid", (0.3, 0.3, 0.3), 1.8),
    ),
    "bottle": (
        ("cylinder", (0.4, 0.4, 0.62), 0.62),
        ("dome", (0.4, 0.4, 0.34), 1.24),
        ("cylinder", (0.15, 0.15, 0.3), 1.6),
    ),
    "tower": (
        ("box", (0.6, 0.6, 0.4), 0.4),
        ("box", (0.42, 0.42, 0.32), 1.12),
        ("pyramid", (0.36, 0.36, 0.3), 1.74),
    ),
    "lamp": (
        ("cylinder", (0.5, 0.5, 0.07), 0.07),
        ("cylinder", (0.08, 0.08, 0.6), 0.7),
        ("cone", (0.62, 0.62, 0.42), 1.4),
    ),
    "spool": (
        ("cylinder", (0.62, 0.62, 0.14), 0.14),
        ("cylinder", (0.32, 0.32, 0.42), 0.7),
        ("cylinder", (0.62, 0.62, 0.14), 1.26),
    ),
    "tree": (
        ("cylinder", (0.16, 0.16, 0.3), 0.3),
        ("cone", (0.62, 0.62, 0.42), 0.9),
        ("cone", (0.46, 0.46, 0.38), 1.4),
    ),
    "stack": (
        ("torus", (0.5, 0.5, 0.5), 0.19),
        ("torus", (0.4, 0.4, 0.4), 0.53),
        ("torus", (0.3, 0.3, 0.3), 0.79),
    ),
}


def wide_solid(rng: np.random.Generator, spot: np.ndarray, host: int, solids: Sequence[Solid]) -> Solid:
    """A solid as `furnish.solid_at` draws it, or a compound, with a plain or a further pattern."""
    solid = solid_at(rng, spot, host, solids)
    if rng.random() < COMPOUND:
        solid = compound(rng, spot, host, solids, solid)
    if rng.random() < PATTERNED:
        pattern = list(WIDE_PATTERNS)[int(rng.integers(len(WIDE_PATTERNS)))]
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        name = f"{WIDE_PATTERNS[pattern]} {colour} {solid.shape}"
        solid = replace(solid, name=name, finish=finish_of(rng, colour, pattern))
    return solid


def compound(
    rng: np.random.Generator, spot: np.ndarray, host: int, solids: Sequence[Solid], like: Solid
) -> Solid:
    """A compound with the finish of `like`, its foot at spot (2,)."""
    shape = list(COMPOUNDS)[int(rng.integers(len(COMPOUNDS)))]
    size = size_on(rng, (0.26, 0.4), host, solids)
    wide, high = rng.uniform(0.85, 1.15, 2)
    axes, bottom = upright(rng.uniform(0, 2 * np.pi)), solids[host].top if host >= 0 else 0.0
    parts = []
    for kind, half, height in COMPOUNDS[shape]:
        tall, param = (wide, TUBE) if kind == "torus" else (high, 0.0)
        centre = np.array([*spot, bottom + height * size * tall])
        parts.append(Part(kind, centre, axes, np.array(half) * (wide, wide, tall) * size, param))
    reaches = [extent(part) for part in parts]
    radius = max(reach[0] for reach in reaches)
    top = max(float(part.centre[2] + reach[2]) for part, reach in zip(parts, reaches, strict=True))
    name = like.name.removesuffix(like.shape) + shape
    centre = np.array([*spot, (bottom + top) / 2])
    return Solid(shape, name, tuple(parts), like.finish, radius, centre, bottom, top, support=host)
