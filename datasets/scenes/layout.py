"""Seed -> Scene: room, light, camera, solids by rejection sampling, and which solid is removed.

Everything random comes from one numpy Generator made of (seed, attempt), so a seed is one scene everywhere.
The ranges are chosen for variety, not measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from datasets.scenes.choose import choose_removed, object_window, reference_setup
from datasets.scenes.describe import Camera, Room, Scene, SceneOptions, SceneRejected, Solid
from datasets.scenes.furnish import furniture, lamp, room, solid_at, wide_solid
from datasets.scenes.pack import SceneView
from datasets.scenes.pose import direction, look_at, outline

ATTEMPTS = 24  # scenes tried per seed; two in five fail
TRIES = 14  # places tried per solid
FLAT_TOPPED = ("cube", "box", "cylinder", "prism")
Draw = Callable[[np.random.Generator, np.ndarray, int, Sequence[Solid]], Solid]  # see furnish.solid_at


def sample_scene(seed: int, options: SceneOptions) -> Scene:
    """The scene of this seed.

    Raises SceneRejected when no attempt gives a usable scene; two in five attempts fail, so with the default
    options that does not happen.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    reasons = []
    for attempt in range(ATTEMPTS):
        try:
            return _attempt(seed, np.random.default_rng((seed, attempt)), options)
        except SceneRejected as reason:
            reasons.append(str(reason))
    raise SceneRejected(f"seed {seed}: no scene in {ATTEMPTS} attempts: {'; '.join(sorted(set(reasons)))}")


def _attempt(seed: int, rng: np.random.Generator, options: SceneOptions) -> Scene:
    place = room(rng)
    solids = [*furniture(rng, options.furniture)]
    camera = camera_of(rng, place, solids, options)
    light = lamp(rng, place)
    count = int(rng.integers(options.objects[0], options.objects[1] + 1))
    for _ in range(count):
        added = place_solid(rng, solids, camera, place, wide_solid if options.world == "wide" else solid_at)
        if added is not None:
            solids.append(added)
    movable = [solid for solid in solids if solid.movable]
    if len(movable) < options.objects[0]:
        raise SceneRejected("too few solids fit")
    removed, area, inverse_range = choose_removed(rng, SceneView(solids, camera, light, place), options)
    same = options.reference_pose == "same" or (options.reference_pose == "mixed" and rng.random() < 0.5)
    reference_camera, reference_light = reference_setup(rng, solids[removed], camera, same)
    if options.window == "object":
        camera = replace(camera, window01_xyxy=object_window(rng, solids[removed], camera, area))
    return Scene(
        seed,
        tuple(solids),
        place,
        camera,
        light,
        removed,
        reference_camera,
        reference_light,
        inverse_range,
        same,
    )


def camera_of(
    rng: np.random.Generator, place: Room, solids: Sequence[Solid], options: SceneOptions
) -> Camera:
    """A camera that looks at the furniture, or at the middle of the floor where there is none."""
    height = solids[0].top if solids else 0.0
    middle = solids[0].centre[:2] if solids else np.array([0.0, 0.4])
    target = np.array([*(middle + rng.uniform(-0.25, 0.25, 2)), 0.15 + 0.75 * height + rng.uniform(0, 0.15)])
    azimuth = np.radians(rng.uniform(-32, 32) - 90)
    elevation = np.radians(rng.uniform(11, 38))
    distance = rng.uniform(2.7, 3.9)
    origin = target + distance * direction(azimuth, elevation)
    origin[0] = np.clip(origin[0], place.left + 0.3, place.right - 0.3)
    h, w = options.size
    aspect = w / h if options.window == "full" else float(rng.choice([1.0, 4 / 3, 3 / 2]))
    half = np.tan(np.radians(rng.uniform(36, 52)) / 2)  # of the longer side
    tan_x = half if aspect >= 1 else half * aspect
    return Camera(origin, look_at(origin, target), float(tan_x), float(tan_x / aspect))


def place_solid(
    rng: np.random.Generator, solids: list[Solid], camera: Camera, place: Room, draw: Draw = solid_at
) -> Solid | None:
    """One more solid that touches nothing, mostly in view; half of them before or behind another one."""
    names = {solid.name for solid in solids}
    for _ in range(TRIES):
        host = _host(rng, solids)
        spot = _spot(rng, solids, host, camera)
        added = draw(rng, spot, host, solids)
        (x, y), radius = added.centre[:2], added.radius + 0.02
        in_room = place.left + radius < x < place.right - radius and y < place.back - radius
        if added.name in names or not (in_room and _fits(added, solids)):
            continue
        x0, y0, x1, y1 = outline(added.parts, camera)
        inside = max(0.0, min(x1, 1) - max(x0, 0)) * max(0.0, min(y1, 1) - max(y0, 0))
        if inside >= 0.9 * (x1 - x0) * (y1 - y0) and x1 - x0 < 0.6 and y1 - y0 < 0.7:
            return added
    return None


def _host(rng: np.random.Generator, solids: Sequence[Solid]) -> int:
    """Index of what the next solid stands on, -1 the floor."""
    if solids and not solids[0].movable and rng.random() < 0.62:
        return 0
    taken = {solid.support for solid in solids}
    flat = [
        index
        for index, solid in enumerate(solids)
        if solid.movable and solid.shape in FLAT_TOPPED and index not in taken
        if solid.parts[0].axes[2, 2] > 0.9  # it stands upright
    ]
    return int(rng.choice(flat)) if flat and rng.random() < 0.16 else -1


def _spot(rng: np.random.Generator, solids: Sequence[Solid], host: int, camera: Camera) -> np.ndarray:
    """Floor position (2,) for the next solid."""
    if host >= 0 and solids[host].movable:
        return solids[host].centre[:2] + rng.uniform(-0.04, 0.04, 2)
    peers = [solid for solid in solids if solid.movable and solid.support == host]
    if peers and rng.random() < 0.6:
        peer = peers[int(rng.integers(len(peers)))]
        sight = camera.origin[:2] - peer.centre[:2]
        sight /= np.linalg.norm(sight)
        aside = np.array([-sight[1], sight[0]])
        step = (peer.radius + rng.uniform(0.28, 0.75)) * rng.choice([-1.0, 1.0])
        return peer.centre[:2] + step * sight + rng.uniform(-0.95, 0.95) * peer.radius * aside
    if host == 0:
        part = solids[0].parts[0]
        return part.centre[:2] + (rng.uniform(-1, 1, 2) * part.scale[:2] * 0.85) @ part.axes[:2, :2]
    return np.array([rng.uniform(-1.5, 1.5), rng.uniform(-0.9, 1.7)])


def _fits(added: Solid, solids: Sequence[Solid]) -> bool:
    """No overlap at the same height; solids count as vertical cylinders, furniture as a rectangle.

    The foot is on its support: inside the table's rectangle, or on a solid that is wide enough.
    """
    for index, other in enumerate(solids):
        part = other.parts[0]
        half, local = part.scale[:2], np.abs((added.centre[:2] - part.centre[:2]) @ part.axes[:2, :2].T)
        if index == added.support:
            wide_enough = added.radius < 1.05 * float(half.min())
            if not (wide_enough if other.movable else (local + 0.75 * added.radius < half).all()):
                return False
        elif min(added.top, other.top) > max(added.bottom, other.bottom) - 0.01:
            gap = np.linalg.norm(np.maximum(local - half, 0))
            if other.movable:
                gap = np.linalg.norm(other.centre[:2] - added.centre[:2]) - other.radius
            if gap < added.radius + 0.02:
                return False
    return True
