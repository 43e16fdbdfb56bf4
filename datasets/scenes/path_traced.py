"""The images of a scene in the light of Mitsuba's path tracer: a physically based control set.

Geometry, textures, cameras and lamps are those of the scene, so its masks, depth and facts hold as they are;
only the light differs. What image.py approximates is computed: light from surface to surface, shadows of lamp
and sky, dark corners, gloss. Legend: k points, h w pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import atan, ceil, degrees
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.scenes.describe import Part, Solid
from datasets.scenes.image import FALLOFF, RenderedViews, compressed, to_display
from datasets.scenes.pack import PackedViews, SceneView, pack
from datasets.scenes.solids import BOX_SIDES, PRISM_APOTHEM, PRISM_SIDES
from datasets.scenes.surface import Surface, corner_light, surface_of
from datasets.scenes.trace import Hit, Rays

# Chosen for about 3 CPU seconds per scene at 128 px, and for errors below a pixel.
SAMPLES, BOUNCES = 25, 5  # paths per pixel; surfaces on a path, the lamp included
TEXELS = 40  # per metre of floor and walls
HIGH, FRONT = 5.0, -8.0  # metres: top of the walls, end of the floor behind the camera
STEP, ARCS = 0.04, 24  # largest step on a part, in half extents; arcs around it, between edges of prisms


def find_mitsuba() -> Any:
    """The library, for one path after the other; ValueError with the command that installs it."""
    try:
        import drjit
        import mitsuba
    except ImportError:
        from ldm.doctor import requirement

        lack = f"pip install {requirement('mitsuba')} (requirements-extras.txt)"
        raise ValueError(f"--renderer mitsuba: the library mitsuba is missing; {lack}") from None
    mitsuba.set_variant("scalar_rgb")
    drjit.set_thread_count(torch.get_num_threads())
    return mitsuba


def with_path_tracing(views: Sequence[SceneView], drawn: RenderedViews) -> RenderedViews:
    """The drawn views with other images: in Mitsuba's light, on white where a view has no room."""
    mi, size = find_mitsuba(), (drawn.image.shape[2], drawn.image.shape[3])

    def image_of(view: SceneView, lacking: int = -1) -> Tensor:
        solids = [solid for index, solid in enumerate(view.solids) if index != lacking]
        rendered = mi.render(mi.load_dict(mitsuba_scene(mi, view, solids, size)), spp=SAMPLES)
        rgba = torch.from_numpy(np.array(rendered, np.float32)).permute(2, 0, 1).to(drawn.image)
        return to_display(compressed(rgba[:3]) + (1 - rgba[3]))

    images = [image_of(view) for view in views]
    others = [image_of(view, view.hidden) if view.hidden >= 0 else images[i] for i, view in enumerate(views)]
    return replace(drawn, image=torch.stack(images), without=torch.stack(others))


def mitsuba_scene(mi: Any, view: SceneView, solids: Sequence[Solid], size: tuple[int, int]) -> dict[str, Any]:
    """What mitsuba.load_dict takes: a view of size (h, w) with these of its solids."""
    light, room, camera = view.light, view.room, view.camera
    packed = pack([replace(view, solids=solids, hidden=-1)])
    # As strong as the lamp of image.py at the place of the removed solid.
    square = float(((light.origin - view.solids[max(view.hidden, 0)].centre) ** 2).sum())
    radiance = light.key_rgb * light.strength / light.radius**2 * square / (square + FALLOFF)
    x0, y0, x1, y1 = camera.window01_xyxy  # a narrower view whose centre is beside the axis
    scene: dict[str, Any] = {
        "type": "scene", "integrator": {"type": "path", "max_depth": BOUNCES, "hide_emitters": True},
        "sky": {"type": "constant", "radiance": {"type": "rgb", "value": light.sky_rgb.tolist()}},
        "lamp": {
            "type": "sphere", "center": light.origin.tolist(), "radius": float(light.radius),
            "emitter": {"type": "area", "radiance": {"type": "rgb", "value": radiance.tolist()}}},
        "sensor": {
            "type": "perspective", "fov_axis": "x", "fov": 2 * degrees(atan(camera.tan_x * (x1 - x0))),
            "near_clip": 0.05, "to_world": mi.ScalarTransform4f().look_at(
                camera.origin.tolist(), (camera.origin + camera.axes[2]).tolist(), camera.axes[1].tolist()),
            "principal_point_offset_x": 0.5 - (0.5 - x0) / (x1 - x0),
            "principal_point_offset_y": 0.5 - (0.5 - y0) / (y1 - y0),
            "sampler": {"type": "multijitter", "sample_count": SAMPLES},
            "film": {"type": "hdrfilm", "height": size[0], "width": size[1], "pixel_format": "rgba",
                     "component_format": "float32", "rfilter": {"type": "box"}}}}  # fmt: skip
    if room is not None:
        wide, deep, high = np.diag([room.right - room.left, room.back - FRONT, HIGH])
        near, far = np.array([[room.left, FRONT, 0], [room.left, room.back, 0]])
        planes = {-1: (near, wide, deep), -2: (far, wide, high), -3: (near, deep, high),
                  -4: (near + wide, deep, high)}  # fmt: skip
        scene |= {f"plane{-slot}": _plane(mi, packed, slot, *plane) for slot, plane in planes.items()}
    parts = [part for solid in solids for part in solid.parts]
    return scene | {f"part{slot}": _mesh(mi, packed, slot, part) for slot, part in enumerate(parts)}


def _surface(packed: PackedViews, slot: int, points: np.ndarray) -> Surface:
    """Colours and normals at world points (..., 3) of a part, or of a plane of the room (slot < 0)."""
    direction = torch.from_numpy(points.reshape(-1, 3).T.astype(np.float32)) - packed.origin
    view = torch.zeros(direction.shape[1], dtype=torch.int64)
    rays = Rays(packed, view, direction, view[None], torch.tensor([0.5 / TEXELS if slot < 0 else 0.001]))
    found = surface_of(rays, Hit(torch.full_like(view, slot), torch.ones_like(direction[0])))
    corner = corner_light(rays, view == slot + 1, found.point) if slot < 0 else 1.0
    return replace(found, albedo=(found.albedo / corner).clamp(0, 1))


def _plane(mi: Any, packed: PackedViews, slot: int, corner: np.ndarray, u: np.ndarray, v: np.ndarray) -> Any:
    """A rectangle of the room, its edges u and v (3,) in metres, with its colours as an image."""
    across, up = (np.linspace(0, 1, ceil(TEXELS * np.linalg.norm(edge)))[..., None] for edge in (u, v))
    found = _surface(packed, slot, corner + across * u + (up * v)[:, None])
    colours = found.albedo.T.reshape(len(up), len(across), 3).numpy()
    matrix = np.eye(4)
    matrix[:3] = np.stack([u / 2, v / 2, found.normal[:, 0].numpy(), corner + (u + v) / 2], 1)
    texture = {"type": "bitmap", "bitmap": mi.Bitmap(colours), "raw": True}
    bsdf = {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": texture}}
    return {"type": "rectangle", "to_world": mi.ScalarTransform4f(matrix), "bsdf": bsdf}


def _mesh(mi: Any, packed: PackedViews, slot: int, part: Part) -> Any:
    """A part as triangles: its profile turned about its own axis, colours and normals at the vertices."""
    ball = np.stack([np.cos(bend := np.linspace(-np.pi / 2, np.pi / 2, 33)), np.sin(bend)], 1)
    ring, lift = np.linspace(0, 2 * np.pi, 65), np.array([0, part.param])
    corners = {
        "ellipsoid": ball, "dome": [(0, 0), *ball[16:]],
        "capsule": [*(ball[:17] - lift), *(ball[16:] + lift)],
        "torus": np.stack([1 + part.param * np.cos(ring), part.param * np.sin(ring)], 1),
        "cone": [(0, -1), (1, -1), (0, 1)], "pyramid": [(0, -1), (1, -1), (0, 1)],
    }.get(part.kind, [(0, -1), (1, -1), (1, 1), (0, 1)])  # fmt: skip
    steps = zip(line := np.array(corners, np.float64), np.diff(line, axis=0), strict=False)
    rings = np.concatenate([a + _inside(ceil(np.hypot(*way) / STEP))[:, None] * way for a, way in steps])
    turn = (np.arange(ARCS)[:, None] + _inside(ceil(2 * np.pi / ARCS / STEP))).ravel() * (2 * np.pi / ARCS)
    turn = np.append(turn, turn[0] + 2 * np.pi)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    if part.kind in ("box", "pyramid", "prism"):
        sides, half = (PRISM_SIDES, PRISM_APOTHEM) if part.kind == "prism" else (BOX_SIDES, 1.0)
        circle = circle * (half / np.abs(np.array(sides) @ circle).max(0))
    local = np.stack([*(rings[:, :1] * circle[:, None]), rings[:, 1:] + 0 * turn], -1)
    found = _surface(packed, slot, part.centre + (local * part.scale) @ part.axes)
    first = (np.arange(len(rings) - 1)[:, None] * len(turn) + np.arange(len(turn) - 1)).reshape(-1, 1)
    faces = first + [[0, 1, len(turn) + 1, 0, len(turn) + 1, len(turn)]]
    settings = mi.Properties()  # the roughness of a Blinn exponent is alpha^(1/2), Walter et al. 2007
    gloss, rough = float(found.gloss[0]), (2 / (float(found.shine[0]) + 2)) ** 0.25
    colour = {"type": "mesh_attribute", "name": "vertex_color"}
    bsdf = {"type": "principled", "base_color": colour, "specular": gloss, "roughness": rough}
    settings["mesh_bsdf"] = mi.load_dict(bsdf)
    mesh = mi.Mesh("part", found.point.shape[1], 2 * len(faces), settings, has_vertex_normals=True)
    mesh.add_attribute("vertex_color", 3, found.albedo.T.ravel().numpy())
    values = mi.traverse(mesh)
    for name, table in (("vertex_positions", found.point), ("vertex_normals", found.normal)):
        values[name] = table.T.ravel().numpy()
    values["faces"] = faces.ravel().astype(np.uint32)
    values.update()
    return mesh


def _inside(count: int) -> np.ndarray:
    """Ends of `count` steps, a little inside [0, 1]: edges have vertices and normals on both sides."""
    return np.linspace(0.003, 0.997, count + 1)
