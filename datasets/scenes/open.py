"""Contents of the open world: rooms with few or no walls, outdoor ground under a sky, any camera, a lamp
anywhere or the sun, solids of any size on the ground that the camera sees.

The ranges are chosen for variety, not measured.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from datasets.scenes import describe, palette
from datasets.scenes.describe import Camera, Light, Outdoors, Part, Room, Solid
from datasets.scenes.furnish import COOL, OPEN_COMPOUNDS, WARM, assembled, finish_of, linear, solid_at
from datasets.scenes.furnish import room as closed_room
from ldm.images import read_image

OUTDOORS = 0.55  # fraction of scenes
NATURAL = 0.6  # fraction of surfaces and of solids that are natural ones
ASSEMBLED = 0.3  # fraction of solids that are chairs and the like
SMOOTH = 0.25  # fraction of solids that are lathes, extrusions or blobs
FLAT = 0.35  # fraction of solids that are flat cut-outs where there are any
PICTURE_SIDE = 64  # of a cut-out, pixels
MUTED = 0.6  # largest part of a solid's colours that turns into gray and brown
FARTHEST = 30.0  # metres, where solids stand
EARTHS = ((0.36, 0.42, 0.22), (0.47, 0.44, 0.30), (0.55, 0.50, 0.42), (0.50, 0.48, 0.46), (0.66, 0.60, 0.50),
          (0.30, 0.28, 0.26), (0.24, 0.33, 0.17), (0.80, 0.76, 0.68))  # fmt: skip
HILLS = ((0.20, 0.26, 0.18), (0.36, 0.42, 0.50), (0.30, 0.28, 0.26), (0.48, 0.52, 0.58))
FIT = 0.55, 0.95, 1.2  # fraction of a solid's box inside the image, its largest width and height


def open_room(rng: Generator) -> Room:
    """Ground, walls that are there or not, and the air around; muted colours as of a room."""
    place, outside = closed_room(rng), rng.random() < OUTDOORS
    has_wall = rng.random(3) < ((0.2, 0.1, 0.1) if outside else (0.85, 0.5, 0.5))
    back, left, right = np.where(has_wall, rng.uniform((0.8, 1.2, 1.2), (7.0, 6.0, 6.0)), np.inf)
    height = rng.uniform(0.4, 4.0) if outside else rng.uniform(2.2, 3.6)
    ceiling, surfaces = height if not outside and rng.random() < 0.7 else np.inf, dict[str, Any]()
    for name, own in (("floor", EARTHS if outside else palette.FLOOR_TONES), ("wall", palette.WALL_TONES)):
        if rng.random() < (0.85 if outside and name == "floor" else NATURAL):
            surfaces[name] = list(palette.NATURAL)[int(rng.integers(len(palette.NATURAL)))]
            first = palette.jitter(own[int(rng.integers(len(own)))], rng)
            second = first * rng.uniform(0.3, 0.85) + rng.uniform(-0.05, 0.05, 3)
            pair = np.clip(np.stack([first, second]), 0.02, 1)
            surfaces[f"{name}_rgb"] = linear(pair * rng.uniform(0.6, 1.1))
    for name in ("floor_frequency", "wall_frequency"):
        surfaces[name] = getattr(place, name) * 2.0 ** rng.uniform(-1.0, 2.0)
    if outside or not has_wall[0]:
        surfaces |= {"picture": place.picture * [1, 1, 0, 1], "rug": place.rug * [1, 1, not outside, 1]}
    blue, gray = rng.random(), rng.uniform(0.45, 1.0)
    zenith = gray * (np.array([0.85, 0.9, 0.95]) * (1 - blue) + np.array([0.16, 0.36, 0.75]) * blue)
    horizon = np.clip(gray * (0.55 + 0.45 * np.array([1.0, 1.0, 1.05]) * rng.uniform(0.7, 1.1)), 0, 1)
    horizon = linear(horizon * np.array([1.0, rng.uniform(0.85, 1.0), rng.uniform(0.75, 1.1)]))
    hills = linear(palette.jitter(HILLS[int(rng.integers(len(HILLS)))], rng))
    air = Outdoors(
        height=height, ceiling=ceiling, clouds=rng.random(), zenith_rgb=linear(zenith), horizon_rgb=horizon,
        haze=10 ** rng.uniform(-3.2, -1.3) if outside else 0.0, stains=rng.uniform(0.1, 0.5),
        skyline=(rng.random() < 0.6) * rng.uniform(0.01, 0.25),
        skyline_rgb=0.6 * hills + 0.4 * horizon * rng.random())  # fmt: skip
    limits = {"back": back, "left": -left, "right": right, "angle": rng.uniform(-np.pi, np.pi)}
    return replace(place, **limits, **surfaces, air=air)


def open_camera(rng: Generator, place: Room, solids: Sequence[Solid], aspect: float) -> Camera:
    """Level with a horizon, from above, or between; near or far, wide or narrow, at times a little rolled."""
    height, middle = (solids[0].top, solids[0].centre[:2]) if solids else (0.0, np.array([0.0, 0.4]))
    target = np.array([*(middle + rng.uniform(-0.3, 0.3, 2)), height + rng.uniform(0, 0.4)])
    low, high = ((1.0, 14.0), (10.0, 40.0), (35.0, 80.0))[int(rng.choice(3, p=[0.45, 0.4, 0.15]))]
    azimuth, elevation = np.radians(rng.uniform(-50, 50) - 90), np.radians(rng.uniform(low, high))
    origin = target + np.exp(rng.uniform(np.log(0.9), np.log(6.0))) * describe.direction(azimuth, elevation)
    origin[0] = np.clip(origin[0], place.left + 0.3, place.right - 0.3)
    origin[2] = np.clip(origin[2], 0.12, place.air.ceiling - 0.7)
    target[2] += np.linalg.norm(origin - target) * rng.uniform(-0.15, 0.3)
    (right, up, forward), roll = describe.look_at(origin, target), np.radians(rng.normal(0, 2.5))
    right, up = right * np.cos(roll) + up * np.sin(roll), up * np.cos(roll) - right * np.sin(roll)
    tan = np.tan(np.radians(rng.uniform(28, 82)) / 2)  # of the longer side
    tan_x = float(tan if aspect >= 1 else tan * aspect)
    return Camera(origin, np.stack([right, up, forward]), tan_x, float(tan_x / aspect))


def open_light(rng: Generator, place: Room, target: np.ndarray) -> Light:
    """The sun or a lamp anywhere above, hard to soft, and more or less light of the sky."""
    outside = place.air.haze > 0
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(14, 80))
    distance = 40.0 if outside else rng.uniform(2.0, 5.0)
    radius = distance * (rng.uniform(0.005, 0.08) if outside else rng.uniform(0.03, 0.3))
    direct = rng.uniform(0.1, 0.35) if rng.random() < 0.3 else rng.uniform(0.6, 1.3)
    tone = WARM + (COOL - WARM) * rng.uniform(0.2, 1)
    sky = (np.asarray(place.air.zenith_rgb) + 0.5) if outside else np.ones(3) * rng.uniform(0.9, 1.1, 3)
    fill = sky / sky.mean() * (rng.uniform(0.3, 0.65) + 0.35 * (direct < 0.35))
    origin = target + distance * describe.direction(azimuth, elevation)
    bounce = place.floor_rgb.mean(0) * rng.uniform(0.3, 0.6) + 0.04
    return Light(origin, radius, tone * direct, fill, bounce, strength=1.3 * (6.0 + distance**2))


def open_spot(rng: Generator, solids: Sequence[Solid], camera: Camera) -> tuple[int, np.ndarray]:
    """As `layout`'s: on the table, before or behind another solid, or where a ray meets the ground."""
    if solids and not solids[0].movable and rng.random() < 0.6:
        part = solids[0].parts[0]
        return 0, part.centre[:2] + (rng.uniform(-1, 1, 2) * part.scale[:2] * 0.9) @ part.axes[:2, :2]
    peers = [solid for solid in solids if solid.movable and solid.support == -1]
    if peers and rng.random() < 0.5:
        peer = peers[int(rng.integers(len(peers)))]
        sight = (peer.centre[:2] - camera.origin[:2]) * np.exp(rng.uniform(-0.8, 0.8))
        return -1, camera.origin[:2] + sight + rng.uniform(-1.2, 1.2, 2) * peer.radius
    for _ in range(8):
        across, down = rng.uniform(-1, 1), 1 - 1.88 * rng.uniform(0, 1)
        ray = camera.axes[2] + across * camera.tan_x * camera.axes[0] + down * camera.tan_y * camera.axes[1]
        depth = -camera.origin[2] / min(ray[2], -1e-6)
        if 0.4 < depth < FARTHEST:
            return -1, (camera.origin + depth * ray)[:2]
    return -1, camera.origin[:2]  # under the camera, where nothing fits


@lru_cache(maxsize=8)
def cutout_files(folder: Path) -> tuple[Path, ...]:
    """Images of a folder, but not NAME-x, as which a set of emojis has its variants. ValueError: none."""
    images = (path for kind in ("png", "webp") for path in folder.glob(f"*.{kind}"))
    found = tuple(sorted(path for path in images if "-" not in path.stem))
    if not found:
        raise ValueError(f"cutouts: {folder} holds no images NAME.png or NAME.webp")
    return found


@lru_cache(maxsize=4096)
def read_cutout(path: Path) -> tuple[np.ndarray, float]:
    """Linear light and alpha (s, s, 4) inside the outline's box, and the box's width over its height."""
    image = read_image(path)
    if image.alpha_u8 is None or not (image.alpha_u8 > 127).any():
        raise ValueError(f"cutouts: {path} has no alpha channel, or shows nothing")
    x, y, w, h = cv2.boundingRect((image.alpha_u8 > 127).astype(np.uint8))
    alpha = image.alpha_u8[y : y + h, x : x + w, None].astype(np.float32) / 255
    light = linear(image.rgb_u8[y : y + h, x : x + w] / 255) * alpha  # transparent pixels have no colour
    layers = np.concatenate([light.astype(np.float32), alpha], 2)
    small = cv2.resize(layers, (PICTURE_SIDE, PICTURE_SIDE), interpolation=cv2.INTER_AREA)
    return np.dstack([small[..., :3] / np.maximum(small[..., 3:], 1e-3), small[..., 3]]), w / h


def open_solid(
    rng: Generator,
    spot: np.ndarray,
    host: int,
    solids: Sequence[Solid],
    camera: Camera,
    stains: float,
    cutouts: Sequence[Path] = (),
) -> Solid:
    """A solid whose size is a fraction of the image at its place, with muted colours and natural surfaces."""
    kind, shapes = rng.random(), list(palette.OPEN_SHAPES)
    shape = shapes[int(rng.integers(len(shapes)))] if kind < SMOOTH else ""
    solid = solid_at(rng, spot, host, solids, shape, wide=kind >= SMOOTH)
    foot = np.array([*spot, solid.bottom])
    if kind > 1 - ASSEMBLED:
        shape = list(OPEN_COMPOUNDS)[int(rng.integers(len(OPEN_COMPOUNDS)))]
        axes = describe.upright(rng.uniform(0, 2 * np.pi))
        parts, radius, top = assembled(OPEN_COMPOUNDS[shape], foot, axes, 0.5, (1.0, 1.0))
        middle, name = np.array([*spot, (foot[2] + top) / 2]), f"{solid.finish.colour} {shape}"
        solid = Solid(shape, name, tuple(parts), solid.finish, radius, middle, foot[2], top, support=host)
    if flat := bool(cutouts) and rng.random() < FLAT:  # upright, turned about to the camera
        path = cutouts[int(rng.integers(len(cutouts)))]
        picture, aspect = read_cutout(path)
        half = np.array([min(aspect, 1), 0.02, min(1 / aspect, 1)])
        yaw = np.arctan2(camera.axes[0, 1], camera.axes[0, 0]) + rng.uniform(-0.6, 0.6)
        card = Part("box", foot + [0, 0, half[2]], describe.upright(yaw), half, picture=picture)
        radius, top = float(np.hypot(*half[:2])), foot[2] + 2 * half[2]
        solid = replace(solid, shape="cutout", name=path.stem, parts=(card,), radius=radius,
                        centre=card.centre, top=top)  # fmt: skip
    depth = max(0.2, float((foot - camera.origin) @ camera.axes[2]))
    wanted = np.exp(rng.uniform(np.log(0.06), np.log(0.42))) * camera.tan_x * depth  # half its largest side
    wanted = float(np.clip(wanted, 0.05, 0.3 if host == 0 else 4.0))
    across = wanted / max(solid.radius, (solid.top - solid.bottom) / 2)
    upright = not flat and all(abs(part.axes[2, 2]) > 0.99 for part in solid.parts)
    factor = across * np.array([1.0, 1.0, 2.0 ** rng.uniform(-0.7, 1.0) if upright else 1.0])
    parts = [replace(one, centre=foot + (one.centre - foot) * factor, scale=one.scale * factor)
             for one in solid.parts]  # fmt: skip
    finish, name = solid.finish, solid.name
    if rng.random() < NATURAL and not flat:
        pattern = list(palette.NATURAL)[int(rng.integers(len(palette.NATURAL)))]
        finish = finish_of(rng, finish.colour, pattern)
        name = f"{palette.NATURAL[pattern]} {finish.colour} {solid.shape}"
    gray = linear(palette.jitter(EARTHS[int(rng.integers(len(EARTHS)))], rng))
    part, other = MUTED * rng.random(), rng.random()
    second = finish.rgb_a * (1 - other) + finish.rgb_b * other
    first, second = (colour * (1 - part) + gray * part for colour in (finish.rgb_a, second))
    finish = replace(finish, rgb_a=first, rgb_b=second, stains=stains)
    return replace(
        solid, name=name, parts=tuple(parts), finish=finish, radius=solid.radius * across,
        centre=foot + (solid.centre - foot) * factor,
        top=solid.bottom + (solid.top - solid.bottom) * factor[2])  # fmt: skip
