"""Depth behind an erased object: planes continue, also where two of them meet."""

import numpy as np
import pytest

from datasets.fusion import fill_depth
from datasets.planes import fill_planes

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
    filled = fill_planes(depth_01, mask)
    assert filled.dtype == np.float32
    assert np.array_equal(filled[~mask], truth[~mask])
    assert np.abs(filled - truth)[mask].mean() < 0.002


def test_planes_meet_better_than_rows() -> None:
    """Rows cannot know that a side wall begins inside the hole."""
    truth, mask = SCENES["corner of a room"].astype(np.float32), np.zeros((H, W), bool)
    mask[20:80, 80:155] = True
    depth_01 = np.where(mask, np.float32(0.95), truth)
    errors = [np.abs(fill(depth_01, mask) - truth)[mask].mean() for fill in (fill_planes, fill_depth)]
    assert errors[0] < 0.1 * errors[1]


def test_without_planes_rows_are_interpolated() -> None:
    depth_01 = np.random.default_rng(0).uniform(size=(H, W)).astype(np.float32)
    mask = np.zeros((H, W), bool)
    mask[40:90, 60:110] = True
    assert np.array_equal(fill_planes(depth_01, mask), fill_depth(depth_01, mask))


@pytest.mark.parametrize("value", [False, True])
def test_nothing_to_fill_or_to_fill_from(value: bool) -> None:
    depth_01 = np.full((8, 8), 0.3, np.float32)
    assert fill_planes(depth_01, np.full((8, 8), value)) is depth_01
