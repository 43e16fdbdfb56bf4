"""Names and numbers of the rendered world: solids, patterns, colours, room textures. No geometry, no torch.

A solid's *shape* is its word in a caption ("cube", "egg"); its *kind* is the canonical surface that is
intersected. Colours are sRGB in [0, 1]; `jitter` turns a named colour into one instance of it.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

KINDS = ("ellipsoid", "box", "cylinder", "cone", "torus", "capsule", "pyramid", "dome", "prism",
         "lathe", "extrusion", "blob")  # fmt: skip
FLAT_SIDED = ("box", "pyramid", "prism")
PATTERNS = ("solid", "stripes", "columns", "checker", "diagonal", "dots", "gradient", "halves")
PATTERN_WORDS = {
    "solid": "", "stripes": "striped", "columns": "paneled", "checker": "checkered",
    "diagonal": "diagonally striped", "dots": "dotted", "gradient": "shaded", "halves": "two-tone",
}  # fmt: skip
WIDE_PATTERNS = {
    "waves": "wavy", "grid": "gridded", "zigzag": "zigzagged", "bands": "banded", "marble": "marbled",
}  # fmt: skip
NATURAL = {"wood": "wooden", "stone": "stony", "grass": "mossy", "gravel": "pebbled", "cloth": "woven"}
ALL_PATTERNS = (*PATTERNS, *WIDE_PATTERNS, *NATURAL)
FLOORS = ("plain", "tiles", "planks", "checker", "carpet")
WALLS = ("plain", "stripes", "panel", "bricks", "tiles")
LOOKS = (*(("floor", name) for name in FLOORS), *(("wall", name) for name in WALLS),
         *(("natural", name) for name in NATURAL))  # fmt: skip

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.83, 0.12, 0.12), "orange": (0.94, 0.47, 0.08), "yellow": (0.96, 0.80, 0.12),
    "lime": (0.58, 0.80, 0.16), "green": (0.12, 0.56, 0.22), "teal": (0.06, 0.55, 0.54),
    "cyan": (0.28, 0.78, 0.90), "blue": (0.12, 0.28, 0.80), "navy": (0.08, 0.12, 0.38),
    "purple": (0.46, 0.18, 0.66), "pink": (0.95, 0.48, 0.66), "brown": (0.46, 0.27, 0.14),
    "white": (0.93, 0.92, 0.90), "gray": (0.50, 0.50, 0.52), "black": (0.09, 0.09, 0.10)}  # fmt: skip
FLOOR_TONES = (
    (0.62, 0.50, 0.38), (0.50, 0.38, 0.27), (0.70, 0.66, 0.60), (0.46, 0.48, 0.50),
    (0.56, 0.58, 0.50), (0.66, 0.58, 0.52), (0.40, 0.36, 0.34))  # fmt: skip
WALL_TONES = (
    (0.80, 0.76, 0.68), (0.70, 0.76, 0.78), (0.76, 0.72, 0.76), (0.68, 0.74, 0.66),
    (0.82, 0.80, 0.78), (0.60, 0.66, 0.72), (0.78, 0.68, 0.60), (0.52, 0.56, 0.58))  # fmt: skip
WOODS = ((0.55, 0.36, 0.20), (0.70, 0.52, 0.33), (0.36, 0.24, 0.16), (0.78, 0.72, 0.64))


@dataclass(frozen=True)
class Shape:
    """One word of the vocabulary. low, high: half extents (x, y, z) relative to the solid's size."""

    kind: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    uniform: bool = False  # x, y, z share one draw (spheres, cubes, and the kinds defined up to scale)
    round_base: bool = True  # x and y share one draw
    param: tuple[float, float] = (0.0, 0.0)  # capsule: half length / radius; torus: tube / ring radius
    lies: float = 0.0  # probability of lying on its side


SHAPES: dict[str, Shape] = {
    "sphere": Shape("ellipsoid", (0.80,) * 3, (1.0,) * 3, uniform=True),
    "egg": Shape("ellipsoid", (0.62, 0.62, 0.95), (0.75, 0.75, 1.2), lies=0.4),
    "cube": Shape("box", (0.68,) * 3, (0.82,) * 3, uniform=True),
    "box": Shape("box", (0.45, 0.40, 0.45), (0.95, 0.75, 1.15), round_base=False),
    "cylinder": Shape("cylinder", (0.48, 0.48, 0.55), (0.75, 0.75, 1.15), lies=0.2),
    "cone": Shape("cone", (0.62, 0.62, 0.85), (0.85, 0.85, 1.25)),
    "torus": Shape("torus", (0.72,) * 3, (0.80,) * 3, uniform=True, param=(0.26, 0.44), lies=0.3),
    "capsule": Shape("capsule", (0.42,) * 3, (0.56,) * 3, uniform=True, param=(0.7, 1.4), lies=0.4),
    "pyramid": Shape("pyramid", (0.70, 0.70, 0.75), (0.92, 0.92, 1.10)),
    "dome": Shape("dome", (0.85, 0.85, 0.75), (1.05, 1.05, 1.05)),
    "prism": Shape("prism", (0.55, 0.55, 0.50), (0.80, 0.80, 1.05)),
}

OPEN_SHAPES = {  # of the open world; their parameter decides the form
    "vase": Shape("lathe", (0.5, 0.5, 0.7), (0.9, 0.9, 1.3), param=(0.0, 100.0)),
    "cog": Shape("extrusion", (0.7, 0.7, 0.3), (1.0, 1.0, 1.2), param=(0.0, 100.0)),
    "pebble": Shape("blob", (0.7, 0.7, 0.6), (1.1, 1.1, 1.1), round_base=False, param=(0.0, 100.0)),
}


def jitter(rgb: tuple[float, float, float], rng: np.random.Generator, amount: float = 1.0) -> np.ndarray:
    """One instance of a colour: sRGB (3,) in [0, 1], hue +- 2 %, saturation and value +- 9 % at amount 1."""
    h, s, v = colorsys.rgb_to_hsv(*rgb)
    dh, ds, dv = rng.uniform(-1, 1, 3) * (0.02, 0.09, 0.09) * amount
    saturation, value = float(min(max(s + ds * s, 0), 1)), float(min(max(v + dv, 0.03), 0.98))
    return np.array(colorsys.hsv_to_rgb((h + dh) % 1, saturation, value), np.float32)
