"""Properties of contact sheets: every image is shown, whole, beside its words."""

import numpy as np
import pytest

from ldm.sheet import as_levels, grid


def test_every_cell_shows_its_image_whole() -> None:
    red, blue = np.full((40, 40, 3), (255, 0, 0), np.uint8), np.full((20, 80, 3), (0, 0, 255), np.uint8)
    sheet = grid(
        [[red, blue], [None, red]], ["first", "second"], ["a", "a_rather_long_label of several words"], 64
    )
    count = [int((sheet == colour).all(axis=2).sum()) for colour in ((255, 0, 0), (0, 0, 255))]
    assert count == [2 * 64 * 64, 16 * 64]


def test_words_take_room_of_their_own() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    bare, titled = grid([[image]], cell=96), grid([[image]], ["title"], ["label"], cell=96)
    assert titled.shape[0] > bare.shape[0]
    assert titled.shape[1] > bare.shape[1]
    above = titled[: titled.shape[0] - 96 - 8, -96 - 8 :]
    assert (above < 128).any()


def test_masks_and_maps_become_gray() -> None:
    assert as_levels(np.array([[True, False]])).tolist() == [[255, 0]]
    assert as_levels(np.array([[0.5, 2.0]])).tolist() == [[128, 255]]
    with pytest.raises(ValueError, match="int64"):
        as_levels(np.zeros((2, 2), np.int64))


def test_wrong_counts_are_refused() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="needs 2 titles and 1 row labels"):
        grid([[image, image]], ["one"])
    with pytest.raises(ValueError, match="at least one"):
        grid([])
