"""Rendered rooms as the locator's world: where an object of a given shape can stand, free of all others.

A world is what an image shows, in metres, all known exactly. A box and a depth, together with a shape's
typical size, are a place in the room: "on the ground" or "collides with nothing" are decided in 3D.
Legend: k objects that are placed, s solids of the scene, p points on a solid's surface.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from datasets.relations import Place
from datasets.scenes.batch import SceneFacts
from datasets.scenes.describe import Camera, Part, Scene, extent, skin
from datasets.scenes.layout import sample_scene
from datasets.scenes.palette import SHAPES
from datasets.scenes.settings import SceneOptions

SHAPE_NAMES = tuple(SHAPES)
SIZE = 0.34  # metres, the mean of what the renderer draws
YAW = 0.4  # of a typical solid towards the camera, radians; chosen
POINTS = 48  # of a typical solid's outline; chosen
FLOOR = -1
# Chosen: fractions of an anchor that are visible if it is movable or furniture (on which objects stand).
MIN_VISIBLE = {True: 0.6, False: 0.35}
MIN_AREA = 0.006  # of the image, of an anchor; chosen
FLAT_SHAPES = ("cube", "box", "cylinder", "prism")  # upright ones have a top on which something can stand
# Depth of a solid's front, in units of its reach towards the camera, the camera looking down with sine s:
# mean at (a + b s) before its centre, farthest at (c + e s) behind, nearest n before. Measured on 6,500
# rendered upright solids; the mean depth then is within 0.003 of the rendered one.
FRONTS = {
    "sphere": (0.71, -0.02, -0.03, 0.09, 1.00), "egg": (0.71, -0.14, 0.00, 0.57, 1.00),
    "cube": (0.60, -0.30, 0.47, 0.01, 0.98), "box": (0.56, -0.28, 0.43, 0.11, 0.98),
    "cylinder": (0.66, -0.39, 0.14, 0.34, 0.99), "cone": (1.01, -1.38, 0.33, 1.39, 0.98),
    "torus": (0.58, -0.42, 0.55, 0.14, 1.00), "capsule": (0.67, -0.26, 0.01, 0.60, 1.00),
    "pyramid": (0.60, -0.43, 0.18, 2.64, 0.98), "dome": (0.71, 0.05, 0.00, -0.06, 1.00),
    "prism": (0.59, -0.30, 0.27, 0.19, 0.96)}  # fmt: skip


# The upright solids of mean proportions and size 1 that stand for the shapes.
_TURN = np.array([[np.cos(YAW), np.sin(YAW), 0], [-np.sin(YAW), np.cos(YAW), 0], [0, 0, 1.0]])
TYPICAL = [
    Part(form.kind, np.zeros(3), _TURN, (np.array(form.low) + form.high) / 2, sum(form.param) / 2)
    for form in SHAPES.values()
]
_SKINS = [(skin(part.kind, part.param) * part.scale) @ part.axes for part in TYPICAL]
# (shapes, p, 3) around the centre; x to the right, y away from the camera, z up.
_OUTLINES = np.stack([points[np.round(np.linspace(0, len(points) - 1, POINTS)).astype(int)]
                      for points in _SKINS])  # fmt: skip
_EXTENTS = np.array([extent(part) for part in TYPICAL])  # (shapes, 3) radius, down, up
_FRONTS = np.array([FRONTS[shape] for shape in SHAPE_NAMES])


@dataclass(frozen=True, eq=False)
class Surfaces:
    """What can be stood on, the ground first. index: of the solid, or FLOOR. size: of a typical solid."""

    index: np.ndarray  # (j,)
    height: np.ndarray
    size: np.ndarray


@dataclass(frozen=True, eq=False)
class Standing:
    """k typical solids, each on a surface."""

    shape: np.ndarray  # (k,) index into SHAPE_NAMES
    surface: np.ndarray  # (k,) index into World.surfaces
    box: np.ndarray  # (k, 4) fractions, not clipped
    d: np.ndarray  # (k,) mean depth of the front; also far and near
    far: np.ndarray
    near: np.ndarray
    xy: np.ndarray  # (k, 2) floor position of the centre, metres
    radius: np.ndarray  # (k,) of the vertical cylinder around it
    bottom: np.ndarray  # (k,) height of the foot
    top: np.ndarray  # (k,)


@dataclass(frozen=True, eq=False)
class Solids:
    """The solids of a scene as arrays, with what the renderer knows of them."""

    names: tuple[str, ...]
    movable: np.ndarray  # (s,) bool
    centre: np.ndarray  # (s, 2) metres
    radius: np.ndarray  # (s,)
    bottom: np.ndarray  # (s,)
    top: np.ndarray  # (s,)
    half: np.ndarray  # (s, 2) half sides of the first part, for furniture and hosts
    axes: np.ndarray  # (s, 2, 2) its horizontal axes
    flat: np.ndarray  # (s,) bool: something can stand on it
    support: np.ndarray  # (s,)
    box: np.ndarray  # (s, 4) amodal, within the image
    depths: np.ndarray  # (s, 3) d, far, near
    visible: np.ndarray  # (s,)
    area: np.ndarray  # (s,)


@dataclass(frozen=True, eq=False)
class World:
    """One scene. `without(i)` gives it without solid i."""

    seed: int
    camera: Camera
    inverse_range: tuple[float, float]  # of 1 / view depth; relative depth 0 and 1
    walls: tuple[float, float, float]  # x of the left one, x of the right one, y of the back one
    solids: Solids
    removed: int  # the solid that the counterfactual image lacks
    present: np.ndarray  # (s,) bool

    @classmethod
    def of(cls, scene: Scene, facts: SceneFacts) -> "World":
        """The world of a scene of which the full view was rendered."""
        if scene.camera.window01_xyxy != (0.0, 0.0, 1.0, 1.0):
            raise ValueError(f"scene {scene.seed}: a world needs the full view (window full)")
        geometry = [
            (s.centre[:2], s.radius, s.bottom, s.top, s.parts[0].scale[:2], s.parts[0].axes[:2, :2],
             s.movable and s.shape in FLAT_SHAPES and s.parts[0].axes[2, 2] > 0.9)
            for s in scene.solids]  # fmt: skip
        rendered = (facts.supports, facts.boxes01, facts.depths, facts.visible, facts.area)
        columns = (facts.movable, *zip(*geometry, strict=True), *rendered)
        solids = Solids(facts.names, *(np.array(column) for column in columns))
        room, every = scene.room, np.ones(len(scene.solids), bool)
        walls = (room.left, room.right, room.back)
        return cls(scene.seed, scene.camera, scene.inverse_range, walls, solids, facts.removed, every)

    def without(self, index: int) -> "World":
        return replace(self, present=self.present & (np.arange(len(self.present)) != index))

    @cached_property
    def surfaces(self) -> Surfaces:
        """The floor, furniture, and solids with a free flat top."""
        solids, present = self.solids, np.flatnonzero(self.present)
        free = solids.flat[present] & ~np.isin(present, solids.support[present])
        on = present[free | ~solids.movable[present]]
        size = np.where(solids.movable[on], np.minimum(SIZE, 0.95 * solids.half[on].min(1)), SIZE)
        return Surfaces(np.array([FLOOR, *on]), np.array([0.0, *solids.top[on]]), np.array([SIZE, *size]))

    @cached_property
    def anchors(self) -> tuple[int, ...]:
        """Solids that a sentence may refer to: present, seen well enough, not cut by the image's border."""
        solids = self.solids
        inside = (solids.box[:, :2].min(1) > 0) & (solids.box[:, 2:].max(1) < 1)
        seen = solids.visible >= np.where(solids.movable, MIN_VISIBLE[True], MIN_VISIBLE[False])
        good = self.present & seen & (solids.area >= MIN_AREA) & (inside | ~solids.movable)
        return tuple(map(int, np.flatnonzero(good)))

    def place(self, index: int) -> Place:
        box: Any = tuple(self.solids.box[index].tolist())
        return Place(box, *self.solids.depths[index].tolist())

    def stand(self, shape: np.ndarray, surface: np.ndarray, middle: np.ndarray, d: np.ndarray) -> "Standing":
        """Typical solids of k shapes on k surfaces, the middle of their boxes at x = middle, at depth d."""
        camera, (low, high) = self.camera, self.inverse_range
        right, up, forward = camera.axes
        away = np.array([forward[0], forward[1], 0.0])
        away /= np.linalg.norm(away)
        size = self.surfaces.size[surface]
        points = _OUTLINES[shape] * size[:, None, None]  # (k, p, 3)
        across = points[..., 0]
        upward = points[..., 1] * (away @ up) + points[..., 2] * up[2]
        along = points[..., 1] * (away @ forward) + points[..., 2] * forward[2]
        reach = -along.min(1)
        mean, slope, back, back_slope, front = _FRONTS[shape].T
        steep = -forward[2]
        z = 1 / np.maximum(low + d * (high - low), 1e-3) + (mean + slope * steep) * reach
        radius, down, above = (_EXTENTS[shape] * size[:, None]).T
        bottom = self.surfaces.height[surface]
        y = (bottom + down - camera.origin[2] - z * forward[2]) / up[2]
        x = (2 * middle - 1) * camera.tan_x * z
        for _ in range(2):  # the middle of a box is not quite where the centre is seen
            seen = 0.5 + (x[:, None] + across) / (2 * camera.tan_x * (z[:, None] + along))
            x = x + (middle - (seen.min(1) + seen.max(1)) / 2) * 2 * camera.tan_x * z
        seen = 0.5 + (x[:, None] + across) / (2 * camera.tan_x * (z[:, None] + along))
        rows = 0.5 - (y[:, None] + upward) / (2 * camera.tan_y * (z[:, None] + along))
        box = np.stack([seen.min(1), rows.min(1), seen.max(1), rows.max(1)], 1)
        xy = camera.origin[:2] + x[:, None] * right[:2] + y[:, None] * up[:2] + z[:, None] * forward[:2]

        def relative(depth: np.ndarray) -> np.ndarray:
            return np.clip((1 / np.maximum(depth, 0.05) - low) / (high - low), 0, 1)

        far = np.minimum(relative(z + np.maximum(back + back_slope * steep, 0) * reach), d)
        near = np.maximum(relative(z - front * reach), d)
        return Standing(shape, surface, box, d, far, near, xy, radius, bottom, bottom + down + above)

    def clearance(self, objects: Standing) -> np.ndarray:
        """(k,) metres to the nearest solid at the same height or to a wall, negative inside one."""
        solids, (left, right, back) = self.solids, self.walls
        x, y = objects.xy.T
        free = np.minimum(np.minimum(x - left, right - x), back - y) - objects.radius
        host = self.surfaces.index[objects.surface]
        for i in np.flatnonzero(self.present):
            offset = objects.xy - solids.centre[i]
            gap = np.linalg.norm(offset, axis=1) - solids.radius[i]
            if not solids.movable[i]:
                outside = np.maximum(np.abs(offset @ solids.axes[i].T) - solids.half[i], 0)
                gap = np.linalg.norm(outside, axis=1)
            low, high = np.maximum(objects.bottom, solids.bottom[i]), np.minimum(objects.top, solids.top[i])
            beside = (high > low - 0.01) & (host != i)
            free = np.where(beside, np.minimum(free, gap - objects.radius), free)
        return free

    def support_margin(self, objects: Standing) -> np.ndarray:
        """(k,) metres from the edge of what each stands on, negative where it would fall."""
        solids, margins = self.solids, np.full(len(objects.d), 9.0)
        for j, index in enumerate(self.surfaces.index):
            here = objects.surface == j
            if index == FLOOR or not here.any():
                continue
            local = np.abs((objects.xy[here] - solids.centre[index]) @ solids.axes[index].T)
            half = solids.half[index]
            if solids.movable[index]:
                room = 0.5 * half.min() - np.linalg.norm(local, axis=1)
            else:
                room = (half - local).min(1) - 0.75 * objects.radius[here]
            margins[here] = room
        return margins


def world_of(fact: SceneFacts, options: SceneOptions) -> World:
    """The world of one stored scene: sampled again from its seed, no pixels, about 7 ms."""
    return World.of(sample_scene(fact.seed, options), fact)
