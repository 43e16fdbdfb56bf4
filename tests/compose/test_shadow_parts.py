"""Parts of a shadow: only what is dark, or stands before it, is read and made."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compose.shadow import depth_without, undo_part
from datasets.geometry import Crop

H, W = 96, 128  # of the background


@pytest.mark.parametrize("rows", [slice(0, 20), slice(7, 18), np.arange(2, 20, 3), slice(0, 4)], ids=str)
def test_what_the_object_replaces_is_not_in_the_depth_without_it(rows: Any) -> None:
    rng = np.random.default_rng(0)
    depth_01, own_01 = rng.random((20, 30)), rng.random((8, 9)).astype(np.float32)
    visible, box = rng.random((8, 9)) < 0.5, (11, 6, 20, 14)
    expected = depth_01.astype(np.float32)
    expected[6:14, 11:20][~visible] = own_01[~visible]
    shown = np.zeros((20, 30), bool)
    shown[6:14, 11:20] = visible
    geometry: Any = SimpleNamespace(
        native_layers=SimpleNamespace(visible=visible, depth_01=own_01), window=SimpleNamespace(box_xyxy=box),
        inputs=SimpleNamespace(background_depth_01=depth_01),
    )  # fmt: skip
    parts = [slice(0, 30), slice(15, 30), slice(0, 5)]
    for columns in parts if isinstance(rows, slice) else [np.arange(1, 30, 4), np.arange(0, 10)]:
        found_01, seen = depth_without(geometry, rows, columns)
        assert np.array_equal(found_01, expected[rows][:, columns])
        assert np.array_equal(seen, shown[rows][:, columns])


@pytest.mark.parametrize("box", [(0, 0, 60, 40), (50, 10, 128, 96), (20, 30, 61, 71)], ids=str)
@pytest.mark.parametrize("pad", [(0, 0, 0, 0), (7, 3, 0, 11)], ids=str)
def test_a_part_of_a_crop_is_undone_as_the_whole(box: Any, pad: Any) -> None:
    rng = np.random.default_rng(0)
    crop = Crop(box, pad, (32, 32), (H, W))
    for y, x, size in ((10, 12, 9), (0, 0, 4), (28, 20, 4), (0, 0, 32), (5, 5, 0)):
        square_01 = np.zeros((32, 32), np.float32)
        square_01[y : y + size, x : x + size] = rng.random((min(size, 32 - y), min(size, 32 - x)))
        found_01, cut = undo_part(crop, square_01, 0.1)
        whole_01 = crop.undo(square_01)
        assert found_01.shape == cut.native.size
        assert np.abs(whole_01[crop.within(cut)] - found_01).max() < 1e-6
        whole_01[crop.within(cut)] = 0
        assert not (whole_01 > 0.1).any()
