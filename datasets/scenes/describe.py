"""What a scene is: plain descriptions, no pixels. A Scene is a pure function of (seed, options); see
layout.py.

World: right-handed metres, z up, floor z = 0. A solid is one or more *parts* (a table is a slab and four
legs); a part is a canonical solid (solids.py) with its own frame. Image fractions: (x, y) from the top left
corner of the full view.
"""

from dataclasses import dataclass

import numpy as np

from datasets.scenes.solids import half_extent
from ldm.settings.schema import check_settings, setting

EVAL_BIT = 1 << 40


class SceneRejected(ValueError):
    """No acceptable scene was found for this seed with these options."""


def train_seed(index: int) -> int:
    """Seed of training scene `index` (0 ... 2^40 - 1)."""
    if not 0 <= index < EVAL_BIT:
        raise ValueError(f"scene index must lie in [0, 2^40), got {index}")
    return index


def eval_seed(index: int) -> int:
    """Seed of evaluation scene `index`: the bit 2^40 is set, so it is never a training seed."""
    return EVAL_BIT | train_seed(index)


@dataclass(frozen=True)
class SceneOptions:
    """What is rendered. Training renders window "object", every other use "full"."""

    size: tuple[int, int] = setting((128, 128), help="height,width of every view", low=16, high=4096)
    supersample: int = setting(1, help="rays per pixel and axis, 2 for best quality", low=1, high=2)
    smooth_edges: bool = setting(True, help="at supersample 1, four rays in the pixels that need them")
    objects: tuple[int, int] = setting((2, 6), help="least,most solids, tables not counted", low=2, high=8)
    window: str = setting(
        "full", help="full view, or a square around the removed object", choices=("full", "object")
    )
    reference_size: tuple[int, int] = setting(
        (112, 112), help="height,width of the reference view, equal", low=16, high=4096
    )
    reference_pose: str = setting(
        "mixed",
        help="pose of the reference: as in the scene, another within 30 degrees, or half and half",
        choices=("same", "other", "mixed"),
    )
    furniture: float = setting(0.45, help="fraction of scenes with a table or a low platform", low=0, high=1)
    occluded: float = setting(
        0.42, help="fraction of scenes that look for a partly hidden solid to remove", low=0, high=1
    )
    world: str = setting(
        "plain",
        help="wide: also solids of several parts and further patterns, for the compositor",
        choices=("plain", "wide"),
    )
    chunk: int = setting(0, help="views rendered together; 0 is 1 on a CPU, 32 on an accelerator", low=0)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.window == "object" and self.size[0] != self.size[1]:
            raise ValueError(f"window object needs a square size, got {self.size}")
        if self.reference_size[0] != self.reference_size[1]:
            raise ValueError(f"reference_size must be square, got {self.reference_size}")
        if self.objects[0] > self.objects[1]:
            raise ValueError(f"objects must be (least, most), got {self.objects}")


@dataclass(frozen=True, eq=False)
class Part:
    """One canonical solid in the world: q = axes @ (p - centre) / scale."""

    kind: str
    centre: np.ndarray  # (3,)
    axes: np.ndarray  # (3, 3) rows are the part's own axes in the world
    scale: np.ndarray  # (3,) half extents
    param: float = 0.0

    def corners(self) -> np.ndarray:
        """World corners (8, 3) of the part's own bounding box."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
        return self.centre + (signs * (self.scale * half_extent(self.kind, self.param))) @ self.axes


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


@dataclass(frozen=True, eq=False)
class Scene:
    """A complete description; `render` turns it into pixels."""

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
