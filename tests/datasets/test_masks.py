"""Mask operations: parity with the published numbers, and what must hold for any mask."""

import cv2
import numpy as np
import pytest

from datasets import masks
from datasets.fusion import HF_MODES, high_frequency
from datasets.geometry import mask_of_box
from datasets.masks import LEVELS, dilate, feather_inside, largest_piece, mask_level, perturb_mask
from tests.datasets.preprocess_golden import SEEDS, Golden, PublishedStream, load_golden


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden()


def blob(seed: int, size: tuple[int, int] = (90, 120)) -> np.ndarray:
    """A random smooth shape, (h, w) bool."""
    noise = np.random.default_rng(seed).random(size).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 8)
    return largest_piece(smooth > np.quantile(smooth, 0.8))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_dilation_equals_the_published_rectangle(golden):
    assert golden.error("dilate_0p02", dilate(golden["in_tmask"] > 0, 0.02, shape="legacy-rect")) == 0


def test_dilation_offsets_are_those_of_the_published_loop():
    mask = np.zeros((40, 60), bool)
    mask[20, 30] = True
    rows, columns = np.nonzero(dilate(mask, 0.1, shape="legacy-rect"))
    assert (rows.min() - 20, rows.max() - 20, columns.min() - 30, columns.max() - 30) == (-4, 3, -6, 5)


@pytest.mark.parametrize("seed", SEEDS)
def test_perturbation_equals_the_published_stream(golden, seed):
    actual = perturb_mask(golden["in_tmask"] > 0, PublishedStream(seed), whole=True)
    assert golden.error(f"perturb{seed}", actual) == 0


def test_edge_maps_equal_the_published_ones(golden):
    image, mask = golden["in_img"], golden["in_mask"] > 0
    assert golden.error("sobel_color", high_frequency(image, mask, "color")) == 0
    assert golden.error("sobel_gray", high_frequency(image, mask, "gray255") / 255) <= 1 / 255


@pytest.mark.parametrize("mode", HF_MODES)
def test_detail_maps_stay_inside_the_object(mode):
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    mask = mask_of_box((20, 10, 60, 50), (60, 80))
    result = high_frequency(image, mask, mode)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert not result[~mask].any()
    assert result.any() == (mode != "zero")


def test_unknown_detail_mode_names_the_allowed_ones():
    with pytest.raises(ValueError, match="cutout"):
        high_frequency(np.zeros((9, 9, 3), np.uint8), np.ones((9, 9), bool), "gray")


@pytest.mark.parametrize("seed", range(6))
def test_a_fast_perturbation_contains_the_mask_and_is_reproducible(seed):
    mask = blob(seed, (180, 260))
    rough = perturb_mask(mask, np.random.default_rng(seed))
    assert (rough | ~mask).all()
    assert np.array_equal(rough, perturb_mask(mask, np.random.default_rng(seed)))


def test_perturbations_spread_over_the_published_range_of_overlap():
    mask = blob(1)
    found = [overlap(mask, perturb_mask(mask, np.random.default_rng(seed))) for seed in range(40)]
    assert min(found) < 0.5
    assert max(found) > 0.8


def test_levels_grow_from_the_silhouette_to_the_box():
    mask = blob(2)
    region = np.ones(mask.shape, bool)
    rng = np.random.default_rng(0)
    found = {level: mask_level(mask, level, region, 0.02, rng) for level in LEVELS}
    assert np.array_equal(found["exact"], mask)
    assert mask.sum() < found["fine"].sum() < found["coarse"].sum() < found["box"].sum()
    assert all((level | ~mask).all() for level in found.values())
    with pytest.raises(ValueError, match="perturbed"):
        mask_level(mask, "rough", region, 0.02, rng)


def test_the_largest_piece():
    mask = mask_of_box((5, 5, 26, 26), (60, 60)) | mask_of_box((40, 40, 51, 51), (60, 60))
    assert largest_piece(mask).sum() == 21 * 21


@pytest.mark.parametrize("width", [0, 1, 5, 40])
def test_a_feather_lies_inside_and_does_not_fall_towards_an_occluder(width):
    mask, occluder = mask_of_box((10, 10, 40, 50), (60, 60)), mask_of_box((40, 10, 60, 50), (60, 60))
    weight = feather_inside(mask, width)
    assert not weight[~mask].any()
    assert (weight[mask] > 0).all()
    assert weight.max() <= 1
    sharp = feather_inside(mask, width, open_to=occluder)
    assert sharp[30, 39] >= weight[30, 39]
    assert not sharp[~mask].any()


@pytest.mark.parametrize("cached", [0, masks.CACHED], ids=["outlines", "rows"])
@pytest.mark.parametrize("frame", [None, (900, 1300)])
def test_dilation_equals_opencv(monkeypatch, frame, cached):
    monkeypatch.setattr(masks, "CACHED", cached)
    rng = np.random.default_rng(3)
    mask = np.zeros((400, 500), np.uint8)
    for _ in range(4):
        centre, axes = rng.integers(60, 400, 2).tolist(), rng.integers(10, 90, 2).tolist()
        cv2.ellipse(mask, centre, axes, float(rng.integers(180)), 0, float(rng.integers(90, 360)), 1, -1)
    mask[0, :40] = mask[395:, 480:] = 1  # at the borders too
    for amount in (0.004, 0.03, 0.1, 0.3):
        h, w = frame or mask.shape
        size = 2 * int(amount * w) + 1, 2 * int(amount * h) + 1
        expected = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, size)) > 0
        assert np.array_equal(dilate(mask > 0, amount, frame=frame), expected)
    noise = rng.random((120, 90)) < 0.5
    expected = cv2.dilate(noise.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (27, 37))) > 0
    assert np.array_equal(dilate(noise, 0.151), expected)
