"""Soft edges: coverage and colours of known mixtures are found, and what is certain keeps its bytes."""

import numpy as np
import pytest

from ldm.experts.matting import own_colours, soft_alpha

H, W = 120, 140
Y, X = np.mgrid[0:H, 0:W]
SHAPES = {
    "disc": np.clip((34 - np.hypot(X - 70, Y - 60)) / 4 + 0.5, 0, 1),
    "slanted edge": np.clip((X + Y / 3 - 90) / 5, 0, 1),  # touches the border
    "two things": np.clip((14 - np.minimum(np.hypot(X - 30, Y - 60), np.hypot(X - 100, Y - 60))) / 3, 0, 1),
}
COLOURS = {"dark on light": ((40, 60, 30), (220, 210, 230)), "red on green": ((200, 40, 40), (40, 160, 60))}


def mixture(shape: str, colours: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image (h, w, 3) of two slightly noisy colours, its alpha, and the front alone."""
    alpha, rng = SHAPES[shape].astype(np.float32), np.random.default_rng(0)
    front, back = (np.array(each) + rng.normal(0, 2, (H, W, 3)) for each in COLOURS[colours])
    mixed = alpha[..., None] * front + (1 - alpha[..., None]) * back
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8), alpha, front


@pytest.mark.parametrize("colours", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_and_colours_of_a_mixture_are_found(shape: str, colours: str) -> None:
    image_u8, alpha, front = mixture(shape, colours)
    mask, rim = alpha > 0.5, (alpha > 0.05) & (alpha < 0.95)
    found = soft_alpha(image_u8, mask)
    assert found.dtype == np.float32
    assert np.abs(found - alpha)[rim].mean() < 0.5 * np.abs(mask - alpha)[rim].mean()
    own_u8 = own_colours(image_u8, found)
    assert np.abs(own_u8[rim] - front[rim]).mean() < 0.65 * np.abs(image_u8[rim] - front[rim]).mean()
    whole = (found == 0) | (found == 1)
    assert np.array_equal(own_u8[whole], image_u8[whole])


@pytest.mark.parametrize("factor", [1, 8])
def test_far_from_the_outline_the_mask_decides(factor: int) -> None:
    image_u8, alpha, _ = mixture("disc", "red on green")
    image_u8, alpha = (np.repeat(np.repeat(a, factor, 0), factor, 1) for a in (image_u8, alpha))
    image_u8[: 5 * factor] = 0  # a dark strip far away
    mask = alpha > 0.5
    found, far = soft_alpha(image_u8, mask), np.abs(np.hypot(X - 70, Y - 60) - 34) > 6
    far = np.repeat(np.repeat(far, factor, 0), factor, 1)
    assert np.array_equal(found[far], mask[far])
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("value", [False, True])
def test_a_mask_without_outline_is_given_back(value: bool) -> None:
    mask = np.full((9, 9), value)
    image_u8 = np.zeros((9, 9, 3), np.uint8)
    assert np.array_equal(soft_alpha(image_u8, mask), mask)
    assert own_colours(image_u8, soft_alpha(image_u8, mask)) is image_u8


def test_one_colour_leaves_the_mask_decide() -> None:
    mask = SHAPES["disc"] > 0.5
    found = soft_alpha(np.full((H, W, 3), 128, np.uint8), mask)
    assert ((found > 0.5) ^ mask).sum() < 0.02 * mask.sum()
