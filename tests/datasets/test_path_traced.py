"""Images by Mitsuba: the same geometry as the ray caster's, a pair that differs by one solid, errors."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.scenes import Scene, SceneOptions, eval_seed, render, sample_scene
from datasets.scenes.image import draw_views
from datasets.scenes.pack import SceneView
from datasets.scenes.path_traced import find_mitsuba, mitsuba_scene
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import HEADER, _header, read_options, read_shard, render_shards

SIDE = 48
OPTIONS = SceneOptions(size=(SIDE, SIDE), reference_size=(32, 32))
TRACED = dataclasses.replace(OPTIONS, renderer="mitsuba")


@pytest.fixture(scope="module")
def mitsuba() -> Any:
    pytest.importorskip("mitsuba", reason="mitsuba is an extra: requirements-extras.txt")
    return find_mitsuba()


def scene_of(seed: int, options: SceneOptions) -> tuple[Scene, SceneView]:
    scene = sample_scene(eval_seed(seed), options)
    return scene, SceneView(scene.solids, scene.camera, scene.light, scene.room, scene.removed)


@pytest.mark.parametrize(
    ("seed", "world", "window"),
    [(40, "plain", "full"), (41, "plain", "object"), (42, "wide", "full"), (47, "wide", "object")],
)
def test_every_point_lies_where_the_ray_caster_has_it(mitsuba, seed: int, world: str, window: str) -> None:
    options = dataclasses.replace(OPTIONS, world=world, window=window)
    scene, view = scene_of(seed, options)
    drawn = draw_views([view], options.size, 1, False, "cpu")
    described = mitsuba_scene(mitsuba, view, scene.solids, options.size)
    described["integrator"] = {"type": "aov", "aovs": "p:position"}
    points = np.array(mitsuba.render(mitsuba.load_dict(described), spp=25))[..., :3]
    inverse, expected = 1 / ((points - scene.camera.origin) @ scene.camera.axes[2]), drawn.inverse[0].numpy()
    error = np.abs(inverse - expected) / expected
    assert np.median(error) < 1e-3
    assert (error > 0.02).mean() < 0.1  # pixels that an edge crosses: theirs is a mean


def test_light_differs_and_nothing_else(mitsuba) -> None:
    for seed in (40, 43):
        scene, _ = scene_of(seed, OPTIONS)
        own, traced = render([scene], OPTIONS), render([scene], TRACED)
        for name in ("depth_01", "without_depth_01", "instances", "amodal", "reference_mask"):
            assert torch.equal(getattr(own, name), getattr(traced, name))
        assert own.facts == traced.facts
        for name in ("image_01", "without_01", "reference_01"):
            first, second = getattr(own, name), getattr(traced, name)
            assert 0.01 < (first - second).abs().mean() < 0.12
            assert float(first.mean()) == pytest.approx(float(second.mean()), rel=0.15)
        changed = (traced.image_01 != traced.without_01).any(1)[0]
        assert changed[traced.amodal[0, scene.removed] & (traced.instances[0] == scene.removed + 1)].all()
        assert (~changed).float().mean() > 0.3  # paths that the solid does not cross are the same
        assert (traced.reference_01[0][:, ~own.reference_mask[0]] > 0.95).float().mean() > 0.9


def test_a_run_is_repeated_to_the_last_bit(mitsuba, tmp_path: Path) -> None:
    options = {
        "size": (24, 24),
        "reference_size": (16, 16),
        "count": 1,
        "split": "eval",
        "renderer": "mitsuba",
    }
    (first,), (second,) = (render_shards(StoreSettings(out=tmp_path / name, **options)) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert read_options(first).renderer == "mitsuba"
    own = StoreSettings(out=tmp_path / "c", **{**options, "renderer": "builtin"})
    shard, other = read_shard(first), read_shard(render_shards(own)[0])
    np.testing.assert_array_equal(shard.depth_u16, other.depth_u16)
    assert (shard.image_u8 != other.image_u8).any()
    with pytest.raises(ValueError, match="other settings"):
        render_shards(dataclasses.replace(own, out=tmp_path / "a"))


def test_shards_of_the_ray_caster_are_named_as_before(tmp_path: Path) -> None:
    settings = StoreSettings(size=(16, 16), reference_size=(16, 16), out=tmp_path, count=1)
    (path,) = render_shards(settings)
    assert not {"renderer", "cutouts", "world"} & json.loads(_header(path)["recipe"])["options"].keys()
    assert HEADER == "scenes"


def test_errors_say_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="plain and the wide world"):
        SceneOptions(world="open", renderer="mitsuba")
    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(ValueError, match=r"pip install mitsuba==[\d.]+ \(requirements-extras.txt\)"):
        render([scene_of(40, OPTIONS)[0]], TRACED)
