"""Which solid of a scene is removed, the window around it, and the view of it alone.

Legend: p parts, m rays of a coarse grid.
"""

from dataclasses import replace

import numpy as np
import torch

from datasets.geometry import Box01
from datasets.scenes.describe import Camera, Light, SceneOptions, SceneRejected, Solid
from datasets.scenes.pack import SceneView, pack
from datasets.scenes.pose import look_at, orbit, outline
from datasets.scenes.solids import FAR
from datasets.scenes.trace import cast_parts, cast_room, covers, pixel_rays

COARSE_SIDE = 56  # side of the coarse grid on which visibility is estimated
MIN_VISIBLE = 0.36  # of the removed solid; above the promised 0.3, the grid is coarse
HIDDEN = (0.36, 0.90)  # visible fraction of a "partly hidden" solid
MIN_AREA = {"full": 0.02, "object": 0.008}  # of the full view that the removed solid covers
MAX_AREA = 0.3  # all chosen: the solid is well seen, and much of the scene remains


def choose_removed(
    rng: np.random.Generator, view: SceneView, options: SceneOptions
) -> tuple[int, float, tuple[float, float]]:
    """Removed solid, its amodal fraction of the full view, and the range of inverse depth without it."""
    owner, depth, behind = _coarse_cast(view)
    candidates = []
    for index, solid in enumerate(view.solids):
        area, visible = _seen(owner == index, depth, behind)
        x0, y0, x1, y1 = outline(solid.parts, view.camera)
        in_frame = min(x0, y0) > -0.01 and max(x1, y1) < 1.01
        carries = any(other.support == index for other in view.solids)
        large = MIN_AREA[options.window] <= area <= MAX_AREA
        if solid.movable and not carries and in_frame and large and visible >= MIN_VISIBLE:
            candidates.append((index, area, visible))
    if not candidates:
        raise SceneRejected("no solid can be removed")
    if rng.random() < options.occluded:
        candidates = [entry for entry in candidates if HIDDEN[0] <= entry[2] <= HIDDEN[1]]
        if not candidates:
            raise SceneRejected("no solid is partly hidden")
    index, area, _ = candidates[int(rng.integers(len(candidates)))]
    inverse = 1 / torch.minimum(depth[owner != index].amin(0), behind)
    return index, area, (float(inverse.min()), float(inverse.max()))


def solid_fractions(view: SceneView) -> list[tuple[float, float]]:
    """Of each solid, on a coarse grid: amodal fraction of the full view, visible fraction of that."""
    owner, depth, behind = _coarse_cast(view)
    return [_seen(owner == index, depth, behind) for index in range(len(view.solids))]


def _seen(mine: torch.Tensor, depth: torch.Tensor, behind: torch.Tensor) -> tuple[float, float]:
    """Amodal fraction of the image, and visible fraction of that, of the solid with the parts `mine` (p,)."""
    front = depth[mine].amin(0)
    amodal = (front < FAR) & (front < behind)
    count = int(amodal.sum())
    visible = int((amodal & (front <= depth.amin(0))).sum())
    return count / amodal.numel(), visible / max(count, 1)


def _coarse_cast(view: SceneView) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Coarse cast up to the border: owner (p,), depth (p, m), depth of the room behind (m,)."""
    packed = pack([view])
    size = (COARSE_SIDE, COARSE_SIDE)
    pixel = torch.arange(COARSE_SIDE * COARSE_SIDE)
    place = torch.stack([pixel % COARSE_SIDE, pixel // COARSE_SIDE])
    rays = pixel_rays(packed, size, covers(packed, size), pixel, place / (COARSE_SIDE - 1) - 0.5)
    return packed.parts.owner, cast_parts(rays), cast_room(rays).depth


def object_window(rng: np.random.Generator, solid: Solid, camera: Camera, area: float) -> Box01:
    """Square window within the full view: the solid's longest side x U(1.5, 2.9), centre jittered."""
    aspect = camera.tan_x / camera.tan_y
    x0, y0, x1, y1 = outline(solid.parts, camera)
    longest = max(x1 - x0, (y1 - y0) / aspect)  # in widths of the full view
    side = min(longest * rng.uniform(1.5, 2.9), (area / aspect / 0.045) ** 0.5)
    side = min(max(side, 1.2 * longest), 1.0, 1 / aspect)
    slack = np.maximum(0.45 * (side - np.array([x1 - x0, (y1 - y0) / aspect])), 0)
    cx, cy = np.array([(x0 + x1) / 2, (y0 + y1) / 2 / aspect]) + rng.uniform(-1, 1, 2) * slack
    left = float(np.clip(cx - side / 2, 0, 1 - side))
    above = float(np.clip(cy - side / 2, 0, 1 / aspect - side))
    return left, above * aspect, left + side, (above + side) * aspect


def reference_setup(
    rng: np.random.Generator, solid: Solid, camera: Camera, same: bool
) -> tuple[Camera, Light]:
    """Square view of the solid alone, and another lamp for it."""
    target = np.array([*solid.centre[:2], (solid.bottom + solid.top) / 2])
    yaw, lift = np.radians(rng.uniform(8, 30) * rng.choice([-1, 1])), np.radians(rng.uniform(-8, 8))
    lamp_yaw, lamp_lift = np.radians(rng.uniform(-75, 75)), np.radians(rng.uniform(15, 45))
    if not same:
        origin = orbit(camera.origin, target, yaw, lift)
        camera = replace(camera, origin=origin, axes=look_at(origin, target))
    aspect, (x0, y0, x1, y1) = camera.tan_x / camera.tan_y, outline(solid.parts, camera)
    side = max(x1 - x0, (y1 - y0) / aspect) * rng.uniform(1.06, 1.25)  # in widths of the full view
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    window = cx - side / 2, cy - side * aspect / 2, cx + side / 2, cy + side * aspect / 2
    away = orbit(camera.origin, target, lamp_yaw, lamp_lift) - target
    warm = rng.uniform(0.9, 1.1)
    tone = np.array([warm, 1.0, 2 - warm])
    light = Light(
        target + away / np.linalg.norm(away) * 3.6,
        float(rng.uniform(0.2, 0.6)),
        tone * rng.uniform(0.6, 0.85),
        np.full(3, rng.uniform(0.38, 0.55)),
        np.full(3, rng.uniform(0.2, 0.35)),
    )
    return replace(camera, window01_xyxy=window), light
