"""Rendered scenes: exact masks, depth and counterfactuals, and pixels that depend on the seed alone."""

import dataclasses

import numpy as np
import pytest
import torch

from datasets.scenes import SceneBatch, SceneOptions, eval_seed, render, sample_scene, train_seed
from datasets.scenes.describe import Scene, extent
from datasets.scenes.furnish import COMPOUNDS
from datasets.scenes.image import REACH, draw_views
from datasets.scenes.pack import SceneView
from datasets.scenes.palette import ALL_PATTERNS, KINDS, PATTERNS, SHAPES, WIDE_PATTERNS
from datasets.scenes.surface import pattern_blend

OPTIONS = SceneOptions(size=(64, 64), reference_size=(48, 48))
PLAIN = dataclasses.replace(OPTIONS, smooth_edges=False)
COUNT = 12
COLOURS_AND_DEPTHS = (
    "image_01",
    "without_01",
    "depth_01",
    "without_depth_01",
    "reference_01",
    "reference_depth_01",
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(eval_seed(index), OPTIONS) for index in range(COUNT)]


@pytest.fixture(scope="module")
def batch(scenes: list[Scene]) -> SceneBatch:
    return render(scenes, OPTIONS)


@pytest.fixture(scope="module")
def plain(scenes: list[Scene]) -> SceneBatch:
    return render(scenes, PLAIN)


def whole_view(scene: Scene) -> SceneView:
    return SceneView(scene.solids, scene.camera, scene.light, scene.room, scene.removed)


def test_tensors_have_the_documented_shapes_and_ranges(batch: SceneBatch) -> None:
    most = max(len(fact.names) for fact in batch.facts)
    assert batch.image_01.shape == batch.without_01.shape == (COUNT, 3, 64, 64)
    assert batch.depth_01.shape == batch.without_depth_01.shape == batch.instances.shape == (COUNT, 64, 64)
    assert batch.amodal.shape == batch.visible.shape == (COUNT, most, 64, 64)
    assert batch.reference_01.shape == (COUNT, 3, 48, 48)
    assert batch.reference_mask.shape == batch.reference_depth_01.shape == (COUNT, 48, 48)
    for name in COLOURS_AND_DEPTHS:
        values = getattr(batch, name)
        assert torch.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() <= 1


def test_depth_orders_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        image = draw_views([whole_view(scene)], PLAIN.size, 1, False, "cpu")
        owner, inverse = image.owner[0], image.part_inverse[0]
        mine = image.part_owner[0][:, None, None] == owner
        nearest_of_owner = torch.where(mine, inverse, 0.0).amax(0)
        solid = owner >= 0
        assert solid.any()
        assert torch.equal(nearest_of_owner[solid], inverse.amax(0)[solid])
        assert (image.inverse[0] >= inverse.amax(0)).all()


def test_masks_and_boxes_agree(batch: SceneBatch) -> None:
    assert not (batch.visible & ~batch.amodal).any()
    for index, fact in enumerate(batch.facts):
        for k, box in enumerate(fact.boxes01):
            rows, columns = np.nonzero(batch.amodal[index, k].numpy())
            if len(rows):
                found = (columns.min() / 64, rows.min() / 64, (columns.max() + 1) / 64, (rows.max() + 1) / 64)
                assert box == pytest.approx(found)
                assert fact.depths[k][1] <= fact.depths[k][0] <= fact.depths[k][2]
        shown = batch.amodal[index, fact.removed].sum() / 64**2
        assert fact.area[fact.removed] == pytest.approx(float(shown))


def test_removing_a_solid_only_brightens_what_it_shaded(plain: SceneBatch) -> None:
    for index, fact in enumerate(plain.facts):
        image, without = plain.image_01[index], plain.without_01[index]
        outside = ~plain.amodal[index, fact.removed]
        changed = (image != without).any(0) & outside
        assert (image <= without + 1e-6)[:, outside].all()
        assert (plain.depth_01[index] == plain.without_depth_01[index])[outside].all()
        assert not changed.all()
        assert (plain.depth_01[index] >= plain.without_depth_01[index])[~outside].all()


def test_far_from_the_solid_and_its_shadow_nothing_changes(scenes: list[Scene], plain: SceneBatch) -> None:
    tested = 0
    for index, scene in enumerate(scenes):
        image = draw_views([whole_view(scene)], PLAIN.size, 1, False, "cpu")
        point = _points(scene, image.inverse[0].double().numpy())
        solid = scene.solids[scene.removed]
        size = max(solid.radius, solid.top - solid.bottom)
        middle = np.array([*solid.centre[:2], (solid.bottom + solid.top) / 2])
        way = scene.light.origin - point
        along = np.clip(((middle - point) * way).sum(-1) / (way**2).sum(-1), 0, 1)
        beside = np.linalg.norm(point + along[..., None] * way - middle, axis=-1)
        far = beside > 1.5 * size + scene.light.radius
        far &= np.linalg.norm(point - middle, axis=-1) > REACH * size
        far &= ~plain.amodal[index, scene.removed].numpy()
        assert torch.equal(plain.image_01[index][:, far], plain.without_01[index][:, far])
        tested += far.sum()
    assert tested > 0.1 * COUNT * 64**2


def _points(scene: Scene, inverse: np.ndarray) -> np.ndarray:
    """World point (h, w, 3) of each pixel of the full view."""
    h, w = inverse.shape
    fy, fx = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    right, up, forward = scene.camera.axes
    x, y = (2 * fx - 1) * scene.camera.tan_x, (1 - 2 * fy) * scene.camera.tan_y
    ray = forward + x[..., None] * right + y[..., None] * up
    return scene.camera.origin + ray / inverse[..., None]


def test_the_counterfactual_is_the_scene_without_the_solid(scenes: list[Scene], batch: SceneBatch) -> None:
    for index, scene in enumerate(scenes):
        left = [solid for k, solid in enumerate(scene.solids) if k != scene.removed]
        alone = draw_views(
            [SceneView(left, scene.camera, scene.light, scene.room)], OPTIONS.size, 1, True, "cpu"
        )
        assert torch.allclose(alone.image[0], batch.without_01[index], atol=2e-6)


def test_a_seed_gives_the_same_pixels_in_any_batch(batch: SceneBatch) -> None:
    again = [sample_scene(eval_seed(index), OPTIONS) for index in range(8)]
    for group in (again[:1], again[:3], again):
        found = render(group, OPTIONS)
        for name in ("image_01", "without_01", "depth_01", "instances", "reference_01", "reference_depth_01"):
            assert torch.equal(getattr(found, name), getattr(batch, name)[: len(group)]), name
        assert found.facts == batch.facts[: len(group)]
    together = render(again, dataclasses.replace(OPTIONS, chunk=4))
    assert torch.allclose(together.image_01, batch.image_01[:8], atol=1e-6)
    assert torch.equal(together.instances, batch.instances[:8])


def test_every_tensor_is_made_on_the_asked_device(scenes: list[Scene], batch: SceneBatch) -> None:
    with torch.device("meta"):
        found = render(scenes[:2], OPTIONS, "cpu")
    assert torch.equal(found.image_01, batch.image_01[:2])


def test_the_reference_in_the_same_pose_has_the_outline_of_the_solid() -> None:
    options = dataclasses.replace(PLAIN, reference_pose="same")
    for index in range(4):
        scene = sample_scene(train_seed(index), options)
        found = render([scene], options)
        view = dataclasses.replace(whole_view(scene), camera=scene.reference_camera)
        inside = draw_views([view], options.reference_size, 1, False, "cpu")
        parts = inside.part_owner[0] == scene.removed
        assert torch.equal((inside.part_inverse[0][parts] > 0).any(0), found.reference_mask[0])
        assert (found.reference_01[0][:, ~found.reference_mask[0]] == 1).all()


def test_the_object_window_shows_the_solid_well_in_the_depth_of_the_full_view() -> None:
    options = dataclasses.replace(PLAIN, window="object")
    scenes = [sample_scene(train_seed(index), options) for index in range(30)]
    close = render(scenes, options)
    for fact in close.facts:
        assert fact.visible[fact.removed] >= 0.3
        assert 0.03 <= fact.area[fact.removed] <= 0.6
        assert min(fact.window01_xyxy) >= -1e-9
        assert max(fact.window01_xyxy) <= 1 + 1e-9
    for index, scene in enumerate(scenes[:6]):
        full_camera = dataclasses.replace(scene.camera, window01_xyxy=(0.0, 0.0, 1.0, 1.0))
        large = dataclasses.replace(options, size=(256, 256))
        full = render([dataclasses.replace(scene, camera=full_camera)], large)
        x0, y0, x1, y1 = scene.camera.window01_xyxy
        fraction = (torch.arange(64) + 0.5) / 64
        rows = ((y0 + fraction * (y1 - y0)) * 256).long()
        columns = ((x0 + fraction * (x1 - x0)) * 256).long()
        assert (full.depth_01[0][rows][:, columns] - close.depth_01[index]).abs().median() < 0.01


def test_the_wide_world_has_solids_of_several_parts_and_further_patterns() -> None:
    options = dataclasses.replace(PLAIN, size=(32, 32), reference_size=(16, 16), world="wide")
    scenes = [sample_scene(train_seed(index), options) for index in range(80)]
    solids = [solid for scene in scenes for solid in scene.solids if solid.movable]
    assert {solid.shape for solid in solids} >= {*SHAPES, *COMPOUNDS}
    assert {solid.finish.pattern for solid in solids} == {*PATTERNS, *WIDE_PATTERNS}
    for solid in solids:
        lowest = min(part.centre[2] - extent(part)[1] for part in solid.parts)
        assert abs(lowest - solid.bottom) < 0.02
        assert max(part.centre[2] + extent(part)[2] for part in solid.parts) == pytest.approx(solid.top)
    batch = render(scenes[:8], options)
    for fact in batch.facts:
        assert len(set(fact.names)) == len(fact.names)


def test_every_wide_pattern_shows_both_colours() -> None:
    turn = torch.linspace(-3, 3, 400)
    q = torch.stack([turn.cos(), turn.sin(), torch.linspace(-1, 1, 400)])
    kind = torch.full((400,), KINDS.index("cylinder"))
    for name in WIDE_PATTERNS:
        pattern = torch.full((400,), ALL_PATTERNS.index(name))
        share = pattern_blend(pattern, q, q, kind, torch.full((400,), 4.0), torch.full((400,), 0.01))
        assert 0.03 < float(share.mean()) < 0.97, name
        assert float(share.min()) == 0
        assert float(share.max()) == 1


def test_every_shape_and_pattern_appears_and_occlusion_is_common() -> None:
    options = dataclasses.replace(PLAIN, size=(32, 32), reference_size=(16, 16))
    scenes = [sample_scene(train_seed(index), options) for index in range(100)]
    assert {solid.shape for scene in scenes for solid in scene.solids} >= set(SHAPES)
    assert {solid.finish.pattern for scene in scenes for solid in scene.solids} == set(PATTERNS)
    facts = render(scenes, options).facts
    hidden = np.mean([0.35 <= fact.visible[fact.removed] <= 0.9 for fact in facts])
    assert 0.25 <= hidden <= 0.55
    words = {word for fact in facts for _, word, _ in fact.relations}
    assert words == {"left of", "right of", "in front of", "behind", "on", "next to"}
    assert all(len(set(fact.names)) == len(fact.names) for fact in facts)


def test_training_and_evaluation_seeds_never_meet() -> None:
    top = 2**40 - 1
    assert train_seed(top) < eval_seed(0)
    assert eval_seed(7) != train_seed(7)
    for bad in (-1, top + 1):
        with pytest.raises(ValueError, match="scene index"):
            train_seed(bad)


@pytest.mark.parametrize(
    "change",
    [
        {"size": (8, 64)},
        {"window": "box"},
        {"supersample": 3},
        {"objects": (5, 3)},
        {"furniture": 2.0},
        {"size": (64, 96), "window": "object"},
    ],
    ids=str,
)
def test_nonsense_options_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(reversed(change))):
        dataclasses.replace(OPTIONS, **change)
