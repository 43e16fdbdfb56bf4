"""Descriptions -> tensors: many views side by side, so that one set of tensor operations renders all of them.

Legend: b views, p part slots per view (padded), component first: (3, b * p). Part `slot` of view `v` is
column v * p + slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.scenes.describe import Camera, Light, Part, Room, Solid
from datasets.scenes.palette import ALL_PATTERNS, FLOORS, KINDS, WALLS
from datasets.scenes.solids import half_extent


@dataclass(frozen=True, eq=False)
class View:
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
    heart: Tensor  # (3, n) middle of the solid; a dome's centre is on its base
    bulk: Tensor  # (n,) radius of the ball that stands for it in ambient occlusion
    box: Tensor  # (4, n) x0 y0 x1 y1, fractions of the full view
    rgb_a: Tensor  # (3, n)
    rgb_b: Tensor  # (3, n)
    pattern: Tensor  # (n,) index into ALL_PATTERNS
    aspect: Tensor  # (3, n) half extents over the largest one
    size: Tensor  # (n,) largest half extent, metres
    frequency: Tensor  # (n,)
    gloss: Tensor  # (n,)
    shine: Tensor  # (n,)


@dataclass(frozen=True, eq=False)
class World:
    """b views. Camera and light tables are (3, b) or (b,); room tables are None where no room is seen."""

    count: int
    slots: int
    kinds: tuple[int, ...]  # kinds that occur
    looks: tuple[int, ...]  # room textures that occur, floors before walls
    parts: Parts
    origin: Tensor
    right: Tensor  # already times tan_x
    up: Tensor  # already times tan_y
    forward: Tensor
    window: Tensor  # (4, b)
    lamp: Tensor
    lamp_radius: Tensor
    key: Tensor
    sky: Tensor
    bounce: Tensor
    room: dict[str, Tensor] | None


def pick(table: Tensor, index: Tensor, count: int) -> Tensor:
    """Columns of table (..., count) for index (n,) -> (..., n), or (..., 1) when there is one column only."""
    return table if count == 1 else table.index_select(-1, index)


def _matrix(part: Part) -> np.ndarray:
    return part.axes / part.scale[:, None]


def _bound(part: Part) -> float:
    if part.kind == "ellipsoid":
        return float(part.scale.max())
    if part.kind in ("torus", "capsule"):
        return float(part.scale.max()) * (1 + part.param)
    return float(np.linalg.norm(part.scale * half_extent(part.kind, part.param)))


def _bulk(part: Part) -> float:
    """Radius of a ball with about the same volume as the part's box."""
    return float(np.prod(part.scale * half_extent(part.kind, part.param)) ** (1 / 3))


def _heart(part: Part) -> np.ndarray:
    return part.centre + (0.4 * part.scale[2] * part.axes[2] if part.kind == "dome" else 0)


def _box(part: Part, camera: Camera) -> np.ndarray:
    corners = camera.project(part.corners())
    if corners[:, 2].min() < 0.1:
        return np.array([-9.0, -9.0, 9.0, 9.0])
    return np.concatenate([corners[:, :2].min(0), corners[:, :2].max(0)])


def _part_row(view: View, owner: int, part: Part) -> list[float]:
    finish, matrix = view.solids[owner].finish, _matrix(part)
    place = [*matrix.ravel(), *part.centre, *(matrix @ (view.camera.origin - part.centre)), part.param]
    bounds = [_bound(part), *_heart(part), _bulk(part), *_box(part, view.camera)]
    colours = [*finish.rgb_a, *finish.rgb_b, ALL_PATTERNS.index(finish.pattern)]
    form = [*(part.scale / part.scale.max()), part.scale.max(), finish.frequency, finish.gloss, finish.shine]
    return [KINDS.index(part.kind), owner, owner == view.hidden, *place, *bounds, *colours, *form]


def _padding() -> list[float]:
    """A part that no ray meets: its box is off the image, its centre far below the floor."""
    place = [*np.eye(3).ravel(), 0, 0, -1e4, 0, 0, 1e4, 0]
    bounds = [0, 0, 0, -1e4, 0, 9, 9, 8, 8]
    return [0, -1, 0, *place, *bounds, *[0] * 7, 1, 1, 1, 1, 1, 0, 1]


# Rows of the packed table, in the order of Parts; _part_row and _padding follow it.
WIDTHS = {
    "kind": 1,
    "owner": 1,
    "hidden": 1,
    "matrix": 9,
    "centre": 3,
    "eye": 3,
    "param": 1,
    "bound": 1,
    "heart": 3,
    "bulk": 1,
    "box": 4,
    "rgb_a": 3,
    "rgb_b": 3,
    "pattern": 1,
    "aspect": 3,
    "size": 1,
    "frequency": 1,
    "gloss": 1,
    "shine": 1,
}


def _parts(views: Sequence[View], slots: int, device: torch.device) -> Parts:
    rows = []
    for view in views:
        found = [
            _part_row(view, owner, part) for owner, solid in enumerate(view.solids) for part in solid.parts
        ]
        rows += found + [_padding()] * (slots - len(found))
    table = torch.from_numpy(np.array(rows, np.float32).T.copy()).to(device)
    columns = dict(zip(WIDTHS, table.split(list(WIDTHS.values())), strict=True))
    columns = {name: column.squeeze(0) if WIDTHS[name] == 1 else column for name, column in columns.items()}
    whole = {name: columns[name].long() for name in ("kind", "owner", "pattern")}
    return Parts(**{**columns, **whole, "hidden": columns["hidden"] > 0.5})


ROOM_NUMBERS = (
    "back",
    "left",
    "right",
    "floor_frequency",
    "wall_frequency",
    "angle",
    "phase",
    "skirting",
    "skirting_rgb",
    "rug",
    "picture",
)


def _room(rooms: Sequence[Room], device: torch.device) -> dict[str, Tensor]:
    def column(values: list) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(v, np.float32) for v in values], -1)).to(device)

    table = {name: column([getattr(room, name) for room in rooms]) for name in ROOM_NUMBERS}
    for name in ("floor_rgb", "wall_rgb", "rug_rgb", "picture_rgb"):
        table[name] = column([getattr(room, name).ravel() for room in rooms])  # (6, b)
    table["floor"] = column([FLOORS.index(room.floor) for room in rooms])
    table["wall"] = column([WALLS.index(room.wall) for room in rooms])
    return table


def pack(views: Sequence[View], device: torch.device | str = "cpu") -> World:
    """Tensors of the views on `device`. Either all views show a room or none does."""
    device = torch.device(device)
    slots = max(sum(len(solid.parts) for solid in view.solids) for view in views)
    rooms = [view.room for view in views if view.room is not None]
    assert len(rooms) in (0, len(views)), "views with and without a room are packed apart"

    def table(values: list) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(v, np.float32) for v in values], -1)).to(device)

    cameras, lights = [view.camera for view in views], [view.light for view in views]
    looks = {FLOORS.index(place.floor) for place in rooms}
    looks |= {len(FLOORS) + WALLS.index(place.wall) for place in rooms}
    kinds = {KINDS.index(part.kind) for view in views for solid in view.solids for part in solid.parts}
    return World(
        len(views),
        slots,
        tuple(sorted(kinds)),
        tuple(sorted(looks)),
        _parts(views, slots, device),
        origin=table([c.origin for c in cameras]),
        right=table([c.axes[0] * c.tan_x for c in cameras]),
        up=table([c.axes[1] * c.tan_y for c in cameras]),
        forward=table([c.axes[2] for c in cameras]),
        window=table([c.window01_xyxy for c in cameras]),
        lamp=table([light.origin for light in lights]),
        lamp_radius=table([light.radius for light in lights]),
        key=table([light.key_rgb for light in lights]),
        sky=table([light.sky_rgb for light in lights]),
        bounce=table([light.bounce_rgb for light in lights]),
        room=_room(rooms, device) if rooms else None,
    )
