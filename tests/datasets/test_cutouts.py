"""Flat cut-outs in the open world: outline, depth, shadow of two drawn images against a plain computation."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.scenes import SceneOptions, eval_seed, render, sample_scene
from datasets.scenes.describe import Camera, Light, Part, Scene, Solid, look_at
from datasets.scenes.image import draw_views
from datasets.scenes.open import PICTURE_SIDE, read_cutout
from datasets.scenes.pack import SceneView
from datasets.scenes.settings import StoreSettings
from datasets.scenes.store import read_options, read_shard, render_shards
from ldm.images import write_png

SIDE, FLAT = 64, "cutout"
OPTIONS = SceneOptions(size=(SIDE, SIDE), reference_size=(32, 32), world="open", smooth_edges=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red ring with a hole, a green step that is twice as wide as high, and a variant that is left out."""
    folder = tmp_path_factory.mktemp("cutouts")
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    away, shapes = np.hypot(x, y), dict[str, tuple[np.ndarray, tuple[int, int, int]]]()
    shapes["ring"] = (away < 0.9) & (away > 0.5), (200, 40, 30)
    shapes["step"] = (np.abs(y) < 0.4) & (np.abs(x) < 0.8) & ((y > 0) | (x < 0)), (30, 160, 60)
    shapes["step-small"] = shapes["step"]
    for name, (shown, colour) in shapes.items():
        rgb_u8 = np.where(shown[..., None], colour, (0, 0, 255)).astype(np.uint8)
        write_png(folder / f"{name}.png", rgb_u8, alpha_u8=(255 * shown).astype(np.uint8))
    return folder


def alpha_at(part: Part, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Alpha at local x, z, 0 outside the card."""
    assert part.picture is not None
    side = part.picture.shape[0]
    column, row = (np.clip((side / 2 * (1 + value)).astype(int), 0, side - 1) for value in (x, -z))
    return np.where((np.abs(x) < 1) & (np.abs(z) < 1), part.picture[row, column, 3], 0)


def crossing(part: Part, origin: np.ndarray, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where rays (..., 3) cross the middle of a card: t, local x, local z."""
    local = ((origin - part.centre) @ part.axes.T / part.scale, ray @ part.axes.T / part.scale)
    t = -local[0][..., 1] / local[1][..., 1]
    at = local[0] + t[..., None] * local[1]
    return t, at[..., 0], at[..., 2]


def rays(camera: Camera) -> np.ndarray:
    """(h, w, 3) direction of each pixel, as long as depth 1 along the axis."""
    x, y = np.meshgrid((np.arange(SIDE) + 0.5) / SIDE, (np.arange(SIDE) + 0.5) / SIDE)
    right, up, forward = camera.axes
    across, above = (2 * x - 1) * camera.tan_x, (1 - 2 * y) * camera.tan_y
    return forward + across[..., None] * right + above[..., None] * up


def eroded(mask: np.ndarray) -> np.ndarray:
    return cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) > 0


def flat_scenes(folder: Path, count: int = 24) -> list[Scene]:
    options = dataclasses.replace(OPTIONS, cutouts=folder)
    return [sample_scene(eval_seed(index), options) for index in range(count)]


def test_outline_holes_and_depth_are_those_of_the_image(folder: Path) -> None:
    compared = {"ring": 0, "step": 0}
    for scene in flat_scenes(folder):
        batch = render([scene], OPTIONS)
        low, high = scene.inverse_range
        for index, solid in enumerate(scene.solids):
            if solid.shape != FLAT:
                continue
            (part,) = solid.parts
            assert part.centre[2] - part.scale[2] == pytest.approx(solid.bottom)
            t, x, z = crossing(part, scene.camera.origin, rays(scene.camera))
            seen = (alpha_at(part, x, z) > 0.5) & (t > 0.05)
            mine = batch.amodal[0, index].numpy()
            sure = eroded(seen) | eroded(~seen)
            assert (mine[sure] == seen[sure]).mean() > 0.98
            shown = eroded(seen) & (batch.instances[0].numpy() == index + 1)
            expected = ((1 / t[shown] - low) / (high - low)).clip(0, 1)
            assert np.abs(batch.depth_01[0].numpy()[shown] - expected).max(initial=0) < 0.02
            compared[solid.name] += int(shown.sum())
    assert min(compared.values()) > 100


def test_its_shadow_has_its_holes(folder: Path) -> None:
    picture, aspect = read_cutout(folder / "ring.png")
    assert picture.shape == (PICTURE_SIDE, PICTURE_SIDE, 4)
    assert aspect == pytest.approx(1)
    scene = flat_scenes(folder, 1)[0]
    part = Part("box", np.array([0, 0, 0.8]), np.eye(3), np.array([0.8, 0.02, 0.8]), picture=picture)
    plain = dataclasses.replace(scene.solids[0].finish, stains=0.0)
    solid = Solid(FLAT, "ring", (part,), plain, 0.8, part.centre, 0.0, 1.6)
    origin = np.array([0.0, -2.2, 2.4])
    camera = Camera(origin, look_at(origin, np.array([0, -0.9, 0])), 0.4, 0.4)
    light = Light(np.array([0.3, 6.0, 8.0]), 0.02, np.ones(3), np.full(3, 0.1), np.full(3, 0.1), 100.0)
    room = dataclasses.replace(scene.room, back=np.inf, left=-np.inf, right=np.inf)
    view = draw_views([SceneView([solid], camera, light, room, 0)], (SIDE, SIDE), 1, False, "cpu")
    ground = (view.owner[0] < 0).numpy()
    depth = 1 / view.inverse_without[0].double().numpy()
    points = camera.origin + depth[..., None] * rays(camera)
    t, x, z = crossing(part, points, light.origin - points)
    dark = (alpha_at(part, x, z) > 0.5) & (t > 0) & (t < 1)
    ratio = (view.image[0] / view.without[0].clamp(min=1e-3)).mean(0).numpy()
    through = (np.hypot(x, z) < 0.4) & (np.abs(x) < 1)
    assert (eroded(dark) & ground).sum() > 50
    assert (through & ground).sum() > 20
    assert ratio[eroded(dark) & ground].max() < 0.8
    assert ratio[through & ground].min() > 0.85


def test_colours_are_those_of_the_image(folder: Path) -> None:
    for scene in flat_scenes(folder):
        if scene.solids[scene.removed].shape == FLAT:
            batch = render([scene], OPTIONS)
            red, green, blue = batch.reference_01[0][:, batch.reference_mask[0]].mean(1)
            name = scene.solids[scene.removed].name
            assert (red > 1.5 * green) if name == "ring" else (green > 1.5 * red)
            assert blue < max(red, green) / 1.5
            return
    raise AssertionError("no scene lacks a cut-out")


def test_without_the_setting_there_is_none() -> None:
    scenes = [sample_scene(eval_seed(index), OPTIONS) for index in range(6)]
    assert all(part.picture is None for scene in scenes for solid in scene.solids for part in solid.parts)


def test_shards_tell_the_folder_and_stay_apart(folder: Path, tmp_path: Path) -> None:
    options = {"size": (32, 32), "reference_size": (16, 16), "count": 2, "world": "open", "out": tmp_path}
    settings = StoreSettings(**options, cutouts=folder)
    (path,) = render_shards(settings)
    assert Path(str(read_options(path).cutouts)) == folder
    again = render([sample_scene(0, read_options(path))], read_options(path))
    assert torch.equal(again.instances[0].byte(), torch.from_numpy(read_shard(path).instances_u8[0]))
    with pytest.raises(ValueError, match="other settings"):
        render_shards(StoreSettings(**options))


def test_errors_name_the_folder_or_the_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="open world only"):
        SceneOptions(cutouts=folder)
    with pytest.raises(ValueError, match=f"{tmp_path} holds no images"):
        sample_scene(0, dataclasses.replace(OPTIONS, cutouts=tmp_path))
    write_png(tmp_path / "opaque.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="opaque.png has no alpha"):
        read_cutout(tmp_path / "opaque.png")
