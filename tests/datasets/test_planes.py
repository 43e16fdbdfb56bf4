"""Depth behind an erased object: planes continue, also where two of them meet."""

from itertools import product

import numpy as np
import pytest

from datasets.fusion import fill_depth
from datasets.planes import in_front, planes_behind

H, W = 120, 160
Y, X = np.mgrid[0:H, 0:W].astype(np.float64)
FLOOR, WALL = 0.9 * Y / H - 0.2, 0.25 + 0.05 * X / W
SCENES = {
    "floor": FLOOR + 0.2,
    "floor and wall": np.maximum(FLOOR, WALL),
    "corner of a room": np.maximum(np.maximum(FLOOR, WALL), 0.1 + 0.6 * (X / W - 0.3)),
    "edge of a table": np.minimum(0.3 + 0.5 * Y / H, 0.55 + 0 * Y),
    "flat": np.full((H, W), 0.4),
}
HOLES = {"middle": np.s_[40:90, 60:110], "at the border": np.s_[70:120, 0:50], "thin": np.s_[20:110, 70:76]}


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("scene", SCENES)
def test_planes_continue_behind_what_is_erased(scene: str, hole: str) -> None:
    truth = np.clip(SCENES[scene], 0, 1).astype(np.float32)
    mask = np.zeros((H, W), bool)
    mask[HOLES[hole]] = True
    depth_01 = np.where(mask, np.float32(0.95), truth)
    filled = planes_behind(depth_01, mask)[0]
    assert filled.dtype == np.float32
    assert np.array_equal(filled[~mask], truth[~mask])
    assert np.abs(filled - truth)[mask].mean() < 0.002


def test_planes_meet_better_than_rows() -> None:
    """Rows cannot know that a side wall begins inside the hole."""
    truth, mask = SCENES["corner of a room"].astype(np.float32), np.zeros((H, W), bool)
    mask[20:80, 80:155] = True
    depth_01 = np.where(mask, np.float32(0.95), truth)
    filled = planes_behind(depth_01, mask)[0], fill_depth(depth_01, mask)
    errors = [np.abs(depth - truth)[mask].mean() for depth in filled]
    assert errors[0] < 0.1 * errors[1]


def test_without_planes_rows_are_interpolated() -> None:
    depth_01 = np.random.default_rng(0).uniform(size=(H, W)).astype(np.float32)
    mask = np.zeros((H, W), bool)
    mask[40:90, 60:110] = True
    depth_01[mask] = 1
    assert np.array_equal(planes_behind(depth_01, mask)[0], fill_depth(depth_01, mask))


@pytest.mark.parametrize(
    ("scene", "side"),
    [*product(["floor and wall", "corner of a room", "flat"], ["left", "right"]), ("floor and wall", "below"),
     ("flat", "below"), ("flat", "all but one")],
)  # fmt: skip
def test_what_hides_the_object_says_nothing_of_what_is_behind(scene: str, side: str) -> None:
    truth = np.clip(SCENES[scene], 0, 1).astype(np.float32)
    depth_01, mask = truth.copy(), np.zeros((H, W), bool)
    covers = {"left": [np.s_[:, 30:62]], "right": [np.s_[:, 104:140]], "below": [np.s_[80:, 40:130]],
              "all but one": [np.s_[:, 30:66], np.s_[:, 104:140], np.s_[84:, 40:130]]}[side]  # fmt: skip
    mask[40:90, 60:110] = True
    depth_01[mask] = 0.8
    for cover in covers:
        depth_01[cover], mask[cover] = 0.95, False
    filled = planes_behind(depth_01, mask)[0]
    assert np.abs(filled - truth)[mask].mean() < 0.01
    assert np.array_equal(filled[~mask], depth_01[~mask])
    assert in_front(depth_01, mask)[covers[0]].all()
    assert not in_front(depth_01, mask)[:40, 66:100].any()


def test_what_is_behind_is_never_nearer_than_the_object() -> None:
    """A shelf at the left is nearer than the wall; rows or planes would carry it over the object."""
    depth_01, mask = np.full((H, W), 0.2, np.float32), np.zeros((H, W), bool)
    depth_01 += np.random.default_rng(1).uniform(0, 0.1, (H, W)).astype(np.float32)
    depth_01[:, :60] = 0.5
    mask[40:90, 60:110] = True
    depth_01[mask] = np.tile(np.linspace(0.3, 0.6, 50), 50)
    filled = planes_behind(depth_01, mask)[0]
    assert (filled <= depth_01).all()
    assert filled[mask].mean() < 0.35


@pytest.mark.parametrize("deep", [0.0, 0.1])
def test_a_niche_is_closed_by_the_wall_around_it(deep: float) -> None:
    depth_01, mask = np.full((H, W), 0.4, np.float32), np.zeros((H, W), bool)
    mask[40:90, 60:110] = True
    depth_01[mask] = deep
    assert planes_behind(depth_01, mask)[0] == pytest.approx(np.full((H, W), 0.4), abs=1e-3)


@pytest.mark.parametrize("value", [False, True])
def test_nothing_to_fill_or_to_fill_from(value: bool) -> None:
    depth_01 = np.full((8, 8), 0.3, np.float32)
    assert planes_behind(depth_01, np.full((8, 8), value))[0] is depth_01
