"""What a scene is, without pixels: descriptions, poses of solids, their outlines, cameras around them.

A Scene is a pure function of (seed, options), see layout.py.

World: right-handed metres, z up, floor z = 0. A solid is one or more *parts* (a table is a slab and four
legs); a part is a canonical solid (solids.py) with its own frame. Image fractions: (x, y) from the top left
corner of the full view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datasets.scenes.solids import MARCHED, half_extent, support, surface_points

UP = np.array([0.0, 0.0, 1.0])
CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])  # of a cube
_TURNS = np.arange(12) * (np.pi / 6)
HORIZON = np.stack([np.cos(_TURNS), np.sin(_TURNS), 0 * _TURNS], 1)


class SceneRejected(ValueError):
    """No acceptable scene was found for this seed with these options."""


@dataclass(frozen=True, eq=False)
class Part:
    """One canonical solid in the world: q = axes @ (p - centre) / scale."""

    kind: str
    centre: np.ndarray  # (3,)
    axes: np.ndarray  # (3, 3) rows are the part's own axes in the world
    scale: np.ndarray  # (3,) half extents
    param: float = 0.0
    picture: np.ndarray | None = None  # (s, s, 4) linear light and alpha on a box's x and z, a hole below 0.5

    def corners(self) -> np.ndarray:
        """World corners (8, 3) of the part's own bounding box."""
        return self.centre + (CORNERS * (self.scale * half_extent(self.kind, self.param))) @ self.axes


@dataclass(frozen=True, eq=False)
class Finish:
    """Surface of a solid: two colours, a pattern in the solid's own frame, gloss."""

    colour: str
    pattern: str
    rgb_a: np.ndarray  # (3,) linear light
    rgb_b: np.ndarray  # (3,) linear light, second colour of the pattern
    frequency: float
    gloss: float  # [0, 1]
    shine: float  # Blinn exponent
    stains: float = 0.0  # strength of uneven tones


@dataclass(frozen=True, eq=False)
class Solid:
    """One instance. `name` is unique words only, such as "striped red cone"."""

    shape: str
    name: str
    parts: tuple[Part, ...]
    finish: Finish
    radius: float  # of the vertical cylinder around it
    centre: np.ndarray  # (3,)
    bottom: float  # height of its lowest point
    top: float  # height of its highest point
    support: int = -1  # index of the solid it stands on, -1: the floor
    movable: bool = True  # furniture is not: it is never the removed solid


@dataclass(frozen=True, eq=False)
class Camera:
    """Pinhole. Image fraction (fx, fy) looks along forward + (2 fx - 1) tan_x right + (1 - 2 fy) tan_y up."""

    origin: np.ndarray  # (3,)
    axes: np.ndarray  # (3, 3) rows right, up, forward
    tan_x: float
    tan_y: float
    window01_xyxy: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # rendered part of the full view

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (n, 3) -> (n, 3): fractions x, y of the full view, depth along the view axis."""
        local = (points - self.origin) @ self.axes.T
        z = np.maximum(local[:, 2], 1e-6)
        x, y = 0.5 + local[:, 0] / (2 * self.tan_x * z), 0.5 - local[:, 1] / (2 * self.tan_y * z)
        return np.stack([x, y, local[:, 2]], 1)


@dataclass(frozen=True, eq=False)
class Light:
    """One ball lamp and the light of the sky. Colours are linear."""

    origin: np.ndarray  # (3,)
    radius: float
    key_rgb: np.ndarray  # (3,)
    sky_rgb: np.ndarray  # (3,)
    bounce_rgb: np.ndarray  # (3,) light that comes from below
    strength: float = 22.0  # of the lamp: it gives strength / (6 + distance^2)


@dataclass(frozen=True, eq=False)
class Outdoors:
    """Height of a room's walls and the air around; as it stands that of a closed room."""

    height: float = np.inf  # of the walls, metres
    ceiling: float = np.inf  # its height, infinite without one
    haze: float = 0.0  # part of the light that a metre of air replaces by that of the horizon
    horizon_rgb: tuple[float, float, float] | np.ndarray = (0.0, 0.0, 0.0)  # linear
    zenith_rgb: tuple[float, float, float] | np.ndarray = (0.0, 0.0, 0.0)  # linear
    clouds: float = 0.0  # [0, 1]
    skyline: float = 0.0  # sine of the height of hills or trees at the horizon, 0: none
    skyline_rgb: tuple[float, float, float] | np.ndarray = (0.0, 0.0, 0.0)  # linear
    stains: float = 0.0  # strength of uneven tones on floor and walls; more than 0 in the open world


@dataclass(frozen=True, eq=False)
class Room:
    """Floor z = 0 and the walls y = back, x = left, x = right. Colours are linear."""

    back: float
    left: float
    right: float
    floor: str
    wall: str
    floor_rgb: np.ndarray  # (2, 3)
    wall_rgb: np.ndarray  # (2, 3)
    floor_frequency: float
    wall_frequency: float
    angle: float  # of the floor pattern, radians
    phase: float  # seed of the tiles' tones, [0, 1]
    skirting: float  # height of the board along the walls, 0: none
    skirting_rgb: np.ndarray  # (3,)
    rug: np.ndarray  # (4,) centre x, y, half width, half depth; half width 0: none
    rug_rgb: np.ndarray  # (2, 3) inside, frame
    picture: np.ndarray  # (4,) on the back wall: centre x, z, half width, half height; half width 0: none
    picture_rgb: np.ndarray  # (2, 3) inside, frame
    air: Outdoors = Outdoors()


@dataclass(frozen=True, eq=False)
class Scene:
    seed: int
    solids: tuple[Solid, ...]
    room: Room
    camera: Camera
    light: Light
    removed: int  # index into solids
    reference_camera: Camera
    reference_light: Light
    inverse_range: tuple[float, float]  # of 1 / view depth over the full view without the removed solid
    same_pose: bool


def upright(yaw: float) -> np.ndarray:
    """Axes (3, 3) of a part that stands, turned by yaw radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


def extent(part: Part) -> tuple[float, float, float]:
    """Radius of the vertical cylinder around the part, its reach downwards and upwards, metres."""
    directions = np.concatenate([HORIZON, -UP[None], UP[None]])
    reaches = support(part.kind, (directions @ part.axes.T) * part.scale, part.param)
    return float(reaches[:12].max()) * 1.02, float(reaches[12]), float(reaches[13])


@lru_cache(maxsize=256)
def skin(kind: str, param: float) -> np.ndarray:
    """Points (k, 3) of the canonical surface whose hull is the solid to about one percent."""
    if kind in MARCHED:
        return surface_points(kind, param)
    turn = np.arange(24) * (np.pi / 12)
    circle = np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)
    ball = np.concatenate([circle * (1 - z * z) ** 0.5 + [0, 0, z] for z in np.linspace(-1, 1, 13)])
    apex, lift = UP[None], param * UP
    rings = [circle * (1 + param * np.cos(tube)) + np.sin(tube) * lift for tube in _TURNS]
    points = {
        "ellipsoid": [ball], "box": [CORNERS], "cylinder": [circle + apex, circle - apex],
        "prism": [circle + apex, circle - apex], "cone": [circle - apex, apex],
        "pyramid": [CORNERS[::2], apex], "dome": [ball[ball[:, 2] >= 0], circle],
        "capsule": [ball + lift, ball - lift], "torus": rings}  # fmt: skip
    return np.concatenate(points[kind])


def outline(parts: Sequence[Part], camera: Camera) -> tuple[float, float, float, float]:
    """Box x0, y0, x1, y1 around the parts in fractions of the full view, to about one percent."""
    points = [part.centre + (skin(part.kind, part.param) * part.scale) @ part.axes for part in parts]
    seen = camera.project(np.concatenate(points))[:, :2]
    (x0, y0), (x1, y1) = seen.min(0), seen.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def look_at(origin: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Axes (3, 3), rows right, up, forward, of a level camera at origin that looks at target."""
    forward = (target - origin) / np.linalg.norm(target - origin)
    right = np.cross(forward, UP)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(right, forward), forward])


def orbit(origin: np.ndarray, target: np.ndarray, yaw: float, lift: float) -> np.ndarray:
    """Origin moved around target by yaw and lift (radians); elevation stays within 3 and 75 degrees."""
    away = origin - target
    lifted = np.arctan2(away[2], float(np.hypot(away[0], away[1]))) + lift
    elevation = float(np.clip(lifted, np.radians(3), np.radians(75)))
    return target + np.linalg.norm(away) * direction(np.arctan2(away[1], away[0]) + yaw, elevation)


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """Unit vector (3,) of two angles in radians."""
    level = np.cos(elevation)
    return np.array([np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(elevation)])
