"""The open world: depth, masks and counterfactuals against a plain computation, other worlds untouched."""

import dataclasses

import numpy as np
import pytest
import torch

from datasets.scenes import SceneBatch, SceneOptions, eval_seed, render, sample_scene
from datasets.scenes.describe import Part, Scene, extent
from datasets.scenes.furnish import OPEN_COMPOUNDS
from datasets.scenes.image import draw_views
from datasets.scenes.natural import natural_look, noise_at
from datasets.scenes.pack import SceneView
from datasets.scenes.palette import NATURAL, OPEN_SHAPES
from tests.datasets.test_solids import inside

SIDE, COUNT = 32, 6
OPTIONS = SceneOptions(size=(SIDE, SIDE), reference_size=(24, 24), world="open", smooth_edges=False)
STEPS = np.linspace(0, 1, 97)[1:]  # of the way to the surface that a ray is said to meet


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(eval_seed(index), OPTIONS) for index in range(COUNT)]


@pytest.fixture(scope="module")
def batch(scenes: list[Scene]) -> SceneBatch:
    return render(scenes, OPTIONS)


def rays(scene: Scene) -> np.ndarray:
    """Direction (h, w, 3) of each pixel, as long as depth 1 along the camera's axis."""
    fy, fx = np.meshgrid((np.arange(SIDE) + 0.5) / SIDE, (np.arange(SIDE) + 0.5) / SIDE, indexing="ij")
    right, up, forward = scene.camera.axes
    x, y = (2 * fx - 1) * scene.camera.tan_x, (1 - 2 * fy) * scene.camera.tan_y
    return forward + x[..., None] * right + y[..., None] * up


def gap(part: Part, points: np.ndarray) -> np.ndarray:
    """About the distance of points (..., 3) from a part, in its half extents, negative inside."""
    local = ((points - part.centre) @ part.axes.T) / part.scale
    found = inside(part.kind, torch.from_numpy(local.reshape(-1, 3).T), part.param)
    return found.numpy().reshape(points.shape[:-1])


def room_depth(scene: Scene, ray: np.ndarray) -> np.ndarray:
    """Depth of floor, walls and ceiling (h, w), infinite where the sky is seen."""
    place, origin, nearest = scene.room, scene.camera.origin, np.full(ray.shape[:2], np.inf)
    planes = [(1, place.back), (0, place.left), (0, place.right), (2, place.air.ceiling), (2, 0.0)]
    for axis, at in planes:
        if np.isfinite(at):
            t = (at - origin[axis]) / ray[..., axis]
            low_enough = (axis == 2) | (origin[2] + t * ray[..., 2] < place.air.height)
            nearest = np.where((t > 0.05) & low_enough, np.minimum(nearest, t), nearest)
    return nearest


def test_every_pixel_is_the_first_surface_on_its_ray(scenes: list[Scene]) -> None:
    seen = {"sky": 0, "room": 0, "solid": 0}
    for scene in scenes:
        view = draw_views(
            [SceneView(scene.solids, scene.camera, scene.light, scene.room)], (SIDE, SIDE), 1, False, "cpu"
        )
        inverse, owner, ray = view.inverse[0].double().numpy(), view.owner[0].numpy(), rays(scene)
        behind = room_depth(scene, ray)
        empty = owner < 0
        far = np.where(np.isfinite(behind), 1 / behind, 0)
        np.testing.assert_allclose(inverse[empty], far[empty], rtol=2e-3, atol=1e-6)
        assert (inverse[~empty] >= far[~empty]).all()
        seen["sky"] += int((empty & ~np.isfinite(behind)).sum())
        seen["room"] += int((empty & np.isfinite(behind)).sum())
        seen["solid"] += int((~empty).sum())
        depth = np.minimum(1 / np.maximum(inverse, 1e-9), 60.0)
        surface = scene.camera.origin + depth[..., None] * ray
        before = scene.camera.origin + (depth[..., None] * STEPS)[..., None] * ray[..., None, :]
        for index, solid in enumerate(scene.solids):
            gaps = np.stack([gap(part, surface) for part in solid.parts])
            on_it = np.abs(gaps).min(0)
            assert on_it[owner == index].max(initial=0) < 0.03
            # No solid stands before what is seen: only chords shorter than a step may be missed.
            within = np.stack([gap(part, before[..., :-4, :]) for part in solid.parts]).min(0) < -0.05
            assert (within.any(-1)).mean() < 0.002
    assert min(seen.values()) > 0.05 * COUNT * SIDE**2


def test_the_counterfactual_is_the_scene_without_the_solid(scenes: list[Scene], batch: SceneBatch) -> None:
    for index, scene in enumerate(scenes):
        left = [solid for k, solid in enumerate(scene.solids) if k != scene.removed]
        alone = draw_views(
            [SceneView(left, scene.camera, scene.light, scene.room)], (SIDE, SIDE), 1, False, "cpu"
        )
        assert torch.allclose(alone.image[0], batch.without_01[index], atol=2e-6)
        outside = ~batch.amodal[index, scene.removed]
        assert torch.equal(batch.depth_01[index][outside], batch.without_depth_01[index][outside])
        low, high = scene.inverse_range
        expected = ((alone.inverse[0] - low) / (high - low)).clamp(0, 1)
        assert torch.allclose(expected, batch.without_depth_01[index], atol=1e-5)


def test_masks_are_those_of_each_solid_alone(scenes: list[Scene], batch: SceneBatch) -> None:
    for index, scene in enumerate(scenes):
        fronts = []
        for solid in scene.solids:
            view = draw_views(
                [SceneView([solid], scene.camera, scene.light, scene.room)], (SIDE, SIDE), 1, False, "cpu"
            )
            fronts.append(torch.where(view.owner[0] == 0, view.inverse[0], 0.0))
        stack = torch.stack(fronts)
        nearest = torch.where(stack.amax(0) > 0, stack.argmax(0) + 1, 0)
        assert torch.equal(nearest, batch.instances[index])


@pytest.mark.parametrize("change", [{"chunk": 3}, {"window": "object"}, {"supersample": 2}], ids=str)
def test_a_seed_is_one_scene_in_any_batch(change: dict) -> None:
    options = dataclasses.replace(OPTIONS, size=(32, 32), **change)
    scenes = [sample_scene(eval_seed(index), options) for index in range(3)]
    together = render(scenes, options)
    for index in range(3):
        again = sample_scene(eval_seed(index), options)
        alone = render([again], dataclasses.replace(options, chunk=1))
        # A last bit decides at a few pixels how much of a far texture is averaged.
        same = (alone.image_01[0] - together.image_01[index]).abs().amax(0) < 1e-6
        assert same.float().mean() > (0.98 if "chunk" in change else 0.9999)
        assert torch.allclose(alone.reference_01[0], together.reference_01[index], atol=1e-6)
        assert torch.equal(alone.instances[0], together.instances[index])
    assert not torch.equal(together.image_01[0], together.image_01[1])


def test_cameras_shapes_and_surfaces_vary() -> None:
    options = dataclasses.replace(OPTIONS, size=(16, 16), reference_size=(16, 16))
    scenes = [sample_scene(eval_seed(index), options) for index in range(30)]
    pitch = np.degrees([np.arcsin(-scene.camera.axes[2, 2]) for scene in scenes])
    view = np.degrees([2 * np.arctan(scene.camera.tan_x) for scene in scenes])
    assert pitch.min() < 0
    assert pitch.max() > 45
    assert view.min() < 36
    assert view.max() > 72
    assert {scene.room.floor for scene in scenes} > {"grass", "stone"}
    walls = [np.isfinite([scene.room.back, scene.room.left, scene.room.right]).sum() for scene in scenes]
    assert {0, 1, 2} <= set(walls)
    solids = [solid for scene in scenes for solid in scene.solids if solid.movable]
    assert len({solid.shape for solid in solids} & {*OPEN_SHAPES, *OPEN_COMPOUNDS}) >= 8
    for solid in solids:
        assert min(part.centre[2] - extent(part)[1] for part in solid.parts) == pytest.approx(
            solid.bottom, abs=0.05
        )
        assert max(part.centre[2] + extent(part)[2] for part in solid.parts) == pytest.approx(
            solid.top, rel=0.03
        )


@pytest.mark.parametrize("world", ["plain", "wide"])
def test_the_other_worlds_know_nothing_of_it(world: str) -> None:
    options = dataclasses.replace(OPTIONS, world=world, size=(16, 16))
    for index in range(12):
        scene = sample_scene(eval_seed(index), options)
        assert not scene.room.air.stains
        assert scene.light.strength == 22
        for solid in scene.solids:
            assert solid.shape not in {*OPEN_SHAPES, *OPEN_COMPOUNDS}
            assert solid.finish.pattern not in NATURAL
            assert not solid.finish.stains


@pytest.mark.parametrize("width", [0.0, 1 / 64, 1.0])
def test_noise_repeats_without_a_seam_and_fades_with_the_width_of_a_ray(width: float) -> None:
    u, v = torch.rand(2, 2000, generator=torch.Generator().manual_seed(0))
    wide = torch.full_like(u, width)
    found = noise_at(u, v, wide)
    assert torch.allclose(found, noise_at(u + 3, v - 2, wide), atol=2e-3)
    assert found.abs().max() <= 1
    assert float(found[1].std()) == pytest.approx({0.0: 0.36, 1 / 64: 0.13, 1.0: 0.0}[width], abs=0.12)


@pytest.mark.parametrize("name", NATURAL)
def test_natural_looks_stay_in_range_and_show_both_colours(name: str) -> None:
    u, v = 8 * torch.rand(2, 3000, generator=torch.Generator().manual_seed(1))
    blend, tone = natural_look(name, u, v, torch.full_like(u, 0.02), torch.tensor([0.3]))
    assert 0 <= blend.min() < 0.3
    assert 0.6 < blend.max() <= 1
    assert tone.min() > 0.2
    assert tone.max() < 2


def test_the_sky_is_infinitely_far(scenes: list[Scene], batch: SceneBatch) -> None:
    tested = 0
    for index, scene in enumerate(scenes):
        up = ~np.isfinite(room_depth(scene, rays(scene))) & (batch.instances[index].numpy() == 0)
        assert (batch.depth_01[index].numpy()[up] == 0).all()
        tested += int(up.sum())
    assert tested > 200
