"""Poses of solids, their outline in the image, cameras around them."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from datasets.scenes.describe import Camera, Part
from datasets.scenes.solids import support

UP = np.array([0.0, 0.0, 1.0])


def upright(yaw: float) -> np.ndarray:
    """Axes (3, 3) of a part that stands, turned by yaw radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


_TURNS = np.arange(12) * (np.pi / 6)
HORIZON = np.stack([np.cos(_TURNS), np.sin(_TURNS), 0 * _TURNS], 1)


def reach(part: Part, directions: np.ndarray) -> np.ndarray:
    """How far the part extends from its centre along world directions (k, 3) -> (k,) metres."""
    return support(part.kind, (directions @ part.axes.T) * part.scale, part.param)


def extent(part: Part) -> tuple[float, float, float]:
    """Radius of the vertical cylinder around the part, its reach downwards and upwards, metres."""
    reaches = reach(part, np.concatenate([HORIZON, -UP[None], UP[None]]))
    return float(reaches[:12].max()) * 1.02, float(reaches[12]), float(reaches[13])


@lru_cache(maxsize=256)
def skin(kind: str, param: float) -> np.ndarray:
    """Points (k, 3) of the canonical surface whose hull is the solid to about one percent."""
    turn = np.arange(24) * (np.pi / 12)
    circle = np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)
    levels = np.linspace(-1, 1, 13)
    ball = np.concatenate([circle * (1 - z * z) ** 0.5 + [0, 0, z] for z in levels])
    if kind == "ellipsoid":
        return ball
    if kind == "box":
        return np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    if kind in ("cylinder", "prism"):
        return np.concatenate([circle + [0, 0, 1], circle - [0, 0, 1]])
    if kind == "cone":
        return np.concatenate([circle - [0, 0, 1], [[0, 0, 1]]])
    if kind == "pyramid":
        return np.array([[-1, -1, -1], [-1, 1, -1], [1, -1, -1], [1, 1, -1], [0, 0, 1]], float)
    if kind == "dome":
        return np.concatenate([ball[ball[:, 2] >= 0], circle])
    if kind == "capsule":
        return np.concatenate([ball + [0, 0, param], ball - [0, 0, param]])
    tube = np.arange(12) * (np.pi / 6)
    ring = 1 + param * np.cos(tube)
    return np.concatenate([circle * r + [0, 0, param * np.sin(t)] for r, t in zip(ring, tube, strict=True)])


def outline(parts: Sequence[Part], camera: Camera) -> tuple[float, float, float, float]:
    """Box x0, y0, x1, y1 around the parts in fractions of the full view, to about one percent."""
    points = np.concatenate(
        [part.centre + (skin(part.kind, part.param) * part.scale) @ part.axes for part in parts]
    )
    seen = camera.project(points)[:, :2]
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
    flat = float(np.hypot(away[0], away[1]))
    elevation = float(np.clip(np.arctan2(away[2], flat) + lift, np.radians(3), np.radians(75)))
    azimuth = np.arctan2(away[1], away[0]) + yaw
    return target + np.linalg.norm(away) * direction(azimuth, elevation)


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """Unit vector (3,) of two angles in radians."""
    level = np.cos(elevation)
    return np.array([np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(elevation)])
