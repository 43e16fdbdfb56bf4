"""Holes in floors and walls: their texture goes on in perspective where it agrees with the hole's rim."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from compose import compose_layers
from compose.models import JobNetworks
from compose.painters import erase_behind
from datasets.perspective import continue_planes
from datasets.planes import in_front, planes_behind
from ldm.experts.erase import Eraser
from ldm.images import write_depth, write_mask

SIDE, FINE = 320, 4  # pixels; samples per pixel and axis
HORIZON, WALL = 159.5, 70  # row where the floor vanishes, the middle; rows below it where the wall begins
HOLES = {"middle": np.s_[205:260, 130:190], "corner": np.s_[270:320, 0:60]}


def scene(name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Image (n, n, 3) uint8 of checkered planes, its depth (n, n), and the depth at infinity.

    A side wall is a floor on its side.
    """
    y, x = (np.mgrid[0 : SIDE * FINE, 0 : SIDE * FINE] + 0.5) / FINE - 0.5
    nearness = np.maximum(y - HORIZON, 1e-3)  # inverse distance, in rows below the horizon
    column, row = np.floor((x - 90) / nearness * 4), np.floor(900 / nearness)
    light = 60 + 130 * ((column + row) % 2)
    if name == "random squares":  # no shift continues them
        column, row = np.floor((x - 90) / nearness * 7), np.floor(1600 / nearness)
        light = 60 + 130 * (np.abs(np.sin(12.9898 * column + 78.233 * row) * 43758.5453) % 1)
    if name == "floor and wall":
        light = np.where(nearness > WALL, light, 70 + 110 * ((np.floor(x / 16) + np.floor(y / 16)) % 2))
        nearness = np.maximum(nearness, WALL)
    image, inverse = (
        cv2.resize(each, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for each in (light, nearness)
    )
    low, high = inverse.min(), inverse.max() * 1.2
    image_u8 = np.rint(image[..., None] * np.linspace(0.5, 1, SIDE)[:, None] * (1, 0.9, 0.8)).astype(np.uint8)
    depth_01 = ((inverse - low) / (high - low)).astype(np.float32)
    if name == "side wall":
        image_u8, depth_01 = image_u8.swapaxes(0, 1).copy(), depth_01.T.copy()
    return image_u8, depth_01, -low / (high - low)


def erased(
    name: str, hole: str, eraser: Eraser
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Mask (n, n), true image, plain fill, depth with an object in the hole, and the depth at infinity."""
    truth_u8, depth_01, horizon_d = scene(name)
    mask = np.zeros(depth_01.shape, bool)
    mask[HOLES[hole]] = True
    mask = mask.T.copy() if name == "side wall" else mask
    holed_u8 = np.where(mask[..., None], np.uint8([255, 0, 255]), truth_u8)
    depth_01 = np.where(mask, np.float32(min(1, depth_01[mask].max() + 0.05)), depth_01)
    return mask, truth_u8, eraser.erase(holed_u8, mask), depth_01, horizon_d


def loss(image_u8: np.ndarray, truth_u8: np.ndarray, mask: np.ndarray) -> float:
    return float(np.square(image_u8[mask].astype(float) - truth_u8[mask]).mean())


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("name", ["floor", "side wall", "floor and wall"])
def test_squares_go_on_behind_the_hole(name: str, hole: str) -> None:
    mask, truth_u8, plain_u8, depth_01, horizon_d = erased(name, hole, Eraser.load("opencv"))
    holed_u8 = np.where(mask[..., None], np.uint8([255, 0, 255]), truth_u8)
    given_u8 = holed_u8.copy()
    filled_u8, done = continue_planes(holed_u8, mask, mask, planes_behind(depth_01, mask), None, horizon_d)
    assert done[mask].mean() > 0.95
    assert loss(filled_u8, truth_u8, done) < 0.15 * loss(plain_u8, truth_u8, done)
    assert np.array_equal(filled_u8[~done], holed_u8[~done])
    assert not done[~mask].any()
    assert np.array_equal(holed_u8, given_u8)
    again_u8, _ = continue_planes(holed_u8, mask, mask, planes_behind(depth_01, mask), None, horizon_d)
    assert np.array_equal(filled_u8, again_u8)


def test_exemplars_of_the_plane_have_its_perspective() -> None:
    """Squares without order: they grow toward the viewer, and those of the plain fill do not."""
    pytest.importorskip("patchmatch")
    mask, truth_u8, plain_u8, depth_01, horizon_d = erased(
        "random squares", "middle", Eraser.load("exemplar")
    )
    given = plain_u8, mask, mask, planes_behind(depth_01, mask), None, horizon_d
    filled_u8, done = continue_planes(*given, exemplars=True)
    assert done[mask].mean() > 0.95
    assert not continue_planes(*given)[1].any()
    assert np.array_equal(filled_u8[~done], plain_u8[~done])

    gray_f = (
        image_u8[HOLES["middle"]].astype(float).mean(axis=-1) for image_u8 in (truth_u8, filled_u8, plain_u8)
    )
    true, filled, plain = (
        float((abs(np.diff(gray, axis=1)) > 8).mean()) for gray in gray_f
    )  # share of edges
    assert abs(filled - true) < 0.5 * abs(plain - true)
    assert np.array_equal(filled_u8, continue_planes(*given, exemplars=True)[0])


@pytest.mark.parametrize("known", [True, False])
def test_exemplars_of_the_plane_need_its_horizon(known: bool) -> None:
    """Depth by the image row has none; the fill stays that of the image then."""
    pytest.importorskip("patchmatch")
    eraser = Eraser.load("exemplar")
    mask, truth_u8, _, depth_01, _ = erased("random squares", "middle", eraser)
    if not known:
        y = np.arange(SIDE) / SIDE
        depth_01 = np.tile(np.where(y > 0.5, 1.5 * y - 0.625, 0.25 * y)[:, None], (1, SIDE))
        depth_01 = np.where(mask, depth_01[mask].max() + 0.05, depth_01).astype(np.float32)
    plain_u8 = eraser.erase(truth_u8, mask, 0, in_front(depth_01, mask))
    filled_u8, _ = erase_behind(eraser, truth_u8, mask, mask, depth_01, 0)
    changed = (filled_u8 != plain_u8).any(axis=-1)[mask].mean()
    assert changed > 0.9 if known else changed == 0


@pytest.mark.parametrize("name", ["floor", "floor and wall"])
def test_exemplars_are_in_perspective_with_depth(name: str) -> None:
    """As jobs and replaced objects are erased: nothing but the image and its depth is known."""
    pytest.importorskip("patchmatch")
    eraser = Eraser.load("exemplar")
    mask, truth_u8, plain_u8, depth_01, _ = erased(name, "middle", eraser)
    holed_u8 = np.where(mask[..., None], np.uint8([255, 0, 255]), truth_u8)
    filled_u8, _ = erase_behind(eraser, holed_u8, mask, mask, depth_01, 0)
    assert loss(filled_u8, truth_u8, mask) < 0.3 * loss(plain_u8, truth_u8, mask)
    blur = Eraser.load("opencv")
    blurred_u8, _ = erase_behind(blur, holed_u8, mask, mask, depth_01, 0)
    assert np.array_equal(blurred_u8, blur.erase(holed_u8, mask))


def test_a_job_erases_in_perspective(tmp_path: Path) -> None:
    pytest.importorskip("patchmatch")
    mask, truth_u8, plain_u8, depth_01, _ = erased("floor", "middle", Eraser.load("exemplar"))
    files = {name: str(tmp_path / f"{name}.png") for name in ("background", "background_depth", "mask")}
    holed_u8 = np.where(mask[..., None], np.uint8([255, 0, 255]), truth_u8)
    Image.fromarray(holed_u8).save(files["background"])
    write_depth(files["background_depth"], depth_01)
    write_mask(files["mask"], mask)
    layer = {"erase": "it", "mask": files.pop("mask"), "grow": 0}
    result = compose_layers({**files, "eraser": "exemplar", "layers": [layer]}, JobNetworks())
    assert loss(result.image_u8, truth_u8, mask) < 0.3 * loss(plain_u8, truth_u8, mask)
    assert np.array_equal(result.image_u8[~mask], holed_u8[~mask])


@pytest.mark.parametrize("known", ["no plane", "no texture that repeats", "a plane beyond infinity"])
def test_what_is_not_known_stays_as_it_was_filled(known: str) -> None:
    mask, truth_u8, _, depth_01, horizon_d = erased("floor", "middle", Eraser.load("opencv"))
    rng = np.random.default_rng(0)
    if known == "no plane":
        depth_01 = rng.uniform(size=depth_01.shape).astype(np.float32)
    if known == "no texture that repeats":
        truth_u8 = rng.integers(0, 256, truth_u8.shape, np.uint8)
    horizon_d = 2.0 if known == "a plane beyond infinity" else horizon_d
    same_u8, done = continue_planes(truth_u8, mask, mask, planes_behind(depth_01, mask), None, horizon_d)
    assert not done.any()
    assert np.array_equal(same_u8, truth_u8)


def test_what_is_unknown_gives_no_colours() -> None:
    """A red carpet lies on the floor, at the depth of the floor: it is not copied."""
    mask, truth_u8, plain_u8, depth_01, horizon_d = erased("floor", "middle", Eraser.load("opencv"))
    carpet = np.zeros_like(mask)
    carpet[205:260, 195:255] = True
    holed_u8 = np.where(carpet[..., None], np.uint8([255, 0, 0]), truth_u8)
    filled_u8, done = continue_planes(
        holed_u8, mask, mask | carpet, planes_behind(depth_01, mask), None, horizon_d
    )
    assert done[mask].mean() > 0.95
    assert loss(filled_u8, truth_u8, done) < 0.15 * loss(plain_u8, truth_u8, done)


def test_bent_depth_leaves_the_ground() -> None:
    """Estimated depth is on no plane around the hole; the ground of the whole image counts then."""
    mask, truth_u8, plain_u8, depth_01, horizon_d = erased("floor", "middle", Eraser.load("opencv"))
    wave = 0.04 * np.sin(np.arange(SIDE) / 9)
    bent_01 = np.clip(depth_01 + wave + wave[:, None], 0, 1).astype(np.float32)
    plane = np.linalg.lstsq(
        np.column_stack([np.zeros(100), np.arange(200, 300) / SIDE, np.ones(100)]), depth_01[200:300, 20],
        rcond=None)[0]  # fmt: skip
    assert not continue_planes(truth_u8, mask, mask, planes_behind(bent_01, mask), None, horizon_d)[1].any()
    filled_u8, done = continue_planes(truth_u8, mask, mask, planes_behind(bent_01, mask), plane, horizon_d)
    assert done[mask].mean() > 0.7
    assert loss(filled_u8, truth_u8, done) < 0.15 * loss(plain_u8, truth_u8, done)
