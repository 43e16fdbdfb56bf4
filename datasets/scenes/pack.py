"""Descriptions -> tensors: many views side by side, so that one set of tensor operations renders all of them.

Legend: b views, p part slots per view (padded), component first: (3, b * p). Part `slot` of view `v` is
column v * p + slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.scenes.describe import Camera, Light, Outdoors, Part, Room, Solid
from datasets.scenes.palette import ALL_PATTERNS, KINDS, LOOKS, NATURAL
from datasets.scenes.solids import half_extent


@dataclass(frozen=True, eq=False)
class SceneView:
    """What one image shows. hidden: the solid that its counterfactual lacks, -1: none."""

    solids: Sequence[Solid]
    camera: Camera
    light: Light
    room: Room | None
    hidden: int = -1


@dataclass(frozen=True, eq=False)
class Parts:
    """All parts of all views; n = b * p. Padding has owner -1 and is met by no ray."""

    kind: Tensor  # (n,) index into KINDS
    owner: Tensor  # (n,) index into the view's solids
    hidden: Tensor  # (n,) bool, belongs to the view's hidden solid
    matrix: Tensor  # (9, n) row major, world -> canonical frame
    centre: Tensor  # (3, n)
    eye: Tensor  # (3, n) the camera in the canonical frame
    param: Tensor  # (n,)
    bound: Tensor  # (n,) radius of the sphere around it
    middle: Tensor  # (3, n) middle of the solid; a dome's centre is on its base
    ball_radius: Tensor  # (n,) of the ball that stands for it in ambient occlusion
    box: Tensor  # (4, n) x0 y0 x1 y1, fractions of the full view
    rgb_a: Tensor  # (3, n)
    rgb_b: Tensor  # (3, n)
    pattern: Tensor  # (n,) index into ALL_PATTERNS
    aspect: Tensor  # (3, n) half extents over the largest one
    size: Tensor  # (n,) largest half extent, metres
    frequency: Tensor  # (n,)
    gloss: Tensor  # (n,)
    shine: Tensor  # (n,)
    stains: Tensor  # (n,)
    picture: Tensor  # (n,) index into `pictures`


@dataclass(frozen=True, eq=False)
class PackedViews:
    """b views. Camera and light tables are (3, b) or (b,); room tables are None where no room is seen."""

    count: int
    slots: int
    kinds: tuple[int, ...]  # kinds that occur
    looks: tuple[int, ...]  # indices into LOOKS that occur
    parts: Parts
    origin: Tensor
    right: Tensor  # already times tan_x
    up: Tensor  # already times tan_y
    forward: Tensor
    window: Tensor  # (4, b)
    light: dict[str, Tensor]  # by field of Light
    room: dict[str, Tensor] | None
    open: bool  # the rooms are those of the open world
    pictures: Tensor | None  # (k, 4, s, s) linear light and alpha of flat parts; the first is opaque

    def picture_at(self, q: Tensor, part: Tensor) -> Tensor:
        """(4, n) of the pictures of parts (n,), at points q (3, n) in their frames."""
        assert self.pictures is not None
        side = self.pictures.shape[-1]
        x, z = ((side / 2 * (1 + value)).long().clamp(0, side - 1) for value in (q[0], -q[2]))
        return self.pictures[self.parts.picture[part], :, z, x].T


PADDING = {  # a part that no ray meets: its box is off the image, its centre far below the floor
    "kind": 0, "owner": -1, "hidden": False, "matrix": np.eye(3).ravel(), "centre": (0, 0, -1e4),
    "eye": (0, 0, 1e4), "param": 0, "bound": 0, "middle": (0, 0, -1e4), "ball_radius": 0, "box": (9, 9, 8, 8),
    "rgb_a": (0, 0, 0), "rgb_b": (0, 0, 0), "pattern": 0, "aspect": (1, 1, 1), "size": 1,
    "frequency": 1, "gloss": 0, "shine": 1, "stains": 0, "picture": 0}  # fmt: skip


def _describe(view: SceneView, owner: int, part: Part) -> dict[str, Any]:
    """The entries of `Parts` of one part."""
    finish, scale, matrix = view.solids[owner].finish, part.scale, part.axes / part.scale[:, None]
    half, largest = scale * half_extent(part.kind, part.param), scale.max()
    long = largest * (1 + part.param)
    bounds = {"ellipsoid": largest, "torus": long, "capsule": long}
    corners, box = view.camera.project(part.corners()), (-9.0, -9.0, 9.0, 9.0)
    return {
        "kind": KINDS.index(part.kind), "owner": owner, "hidden": owner == view.hidden,
        "matrix": matrix.ravel(), "centre": part.centre, "eye": matrix @ (view.camera.origin - part.centre),
        "param": part.param, "bound": bounds.get(part.kind, float(np.linalg.norm(half))),
        "middle": part.centre + (0.4 * scale[2] * part.axes[2] if part.kind == "dome" else 0),
        "ball_radius": np.prod(half) ** (1 / 3),  # about the volume of the part's box
        "box": box if corners[:, 2].min() < 0.1 else (*corners[:, :2].min(0), *corners[:, :2].max(0)),
        **{name: getattr(finish, name) for name in ("rgb_a", "rgb_b", "frequency", "gloss", "shine")},
        "stains": finish.stains, "picture": part.picture is not None,
        "pattern": ALL_PATTERNS.index(finish.pattern), "aspect": scale / largest, "size": largest,
    }  # fmt: skip


def pack(views: Sequence[SceneView], device: torch.device | str = "cpu") -> PackedViews:
    """Tensors of the views on `device`. Either all views show a room or none does."""

    def table(values: list) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.array(values, np.float32).T)).to(device)

    described = [
        [_describe(view, owner, part) for owner, solid in enumerate(view.solids) for part in solid.parts]
        for view in views
    ]
    slots = max(map(len, described))
    rows = [row for parts in described for row in parts + [PADDING] * (slots - len(parts))]
    columns = {field.name: table([row[field.name] for row in rows]) for field in fields(Parts)}
    columns |= {name: columns[name].long() for name in ("kind", "owner", "pattern", "picture")}
    columns["hidden"] = columns["hidden"] > 0.5
    columns["picture"] = columns["picture"] * columns["picture"].cumsum(0)
    parts = [part for view in views for solid in view.solids for part in solid.parts]
    pictures = [part.picture for part in parts if part.picture is not None]
    stack = np.stack([np.ones_like(pictures[0]), *pictures]).transpose(0, 3, 1, 2) if pictures else None
    rooms = [view.room for view in views if view.room is not None]
    assert len(rooms) in (0, len(views)), "views with and without a room are packed apart"
    floors, walls = (
        [LOOKS.index(("natural" if getattr(room, place) in NATURAL else place, getattr(room, place)))
         for room in rooms] for place in ("floor", "wall"))  # fmt: skip
    numbers: dict[str, list] = {}  # of the rooms: pairs of colours as (6, b), textures as indices
    read = [(rooms, item.name) for item in fields(Room) if item.name != "air"]
    for owners, name in read + [([room.air for room in rooms], item.name) for item in fields(Outdoors)]:
        values = [getattr(owner, name) for owner in owners]
        numbers[name] = [np.ravel(value) for value in values] if np.ndim(values) > 1 else values
    numbers |= {"floor": floors, "wall": walls}
    cameras = [view.camera for view in views]
    kinds = {row["kind"] for parts in described for row in parts}
    return PackedViews(
        len(views), slots, tuple(sorted(kinds)), tuple(sorted({*floors, *walls})), Parts(**columns),
        origin=table([camera.origin for camera in cameras]),
        right=table([camera.axes[0] * camera.tan_x for camera in cameras]),
        up=table([camera.axes[1] * camera.tan_y for camera in cameras]),
        forward=table([camera.axes[2] for camera in cameras]),
        window=table([camera.window01_xyxy for camera in cameras]),
        light={f.name: table([getattr(view.light, f.name) for view in views]) for f in fields(Light)},
        room={name: table(numbers[name]) for name in numbers} if rooms else None,
        open=any(room.air.stains for room in rooms),
        pictures=None if stack is None else torch.from_numpy(stack).to(device))  # fmt: skip
